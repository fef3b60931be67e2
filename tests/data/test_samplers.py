"""Order and coverage of the samplers."""

from __future__ import annotations

import numpy as np
import pytest

from se3_fast.data.samplers import EdgeBatchSampler, EpochShuffleSampler, RankEdgeBatchSampler, RankSubsetSampler


def order(epoch: int, num_samples: int = 50, **options: int) -> list[int]:
    sampler = EpochShuffleSampler(num_samples, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochShuffleSampler(50, seed=3)
    list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == order(2, seed=3)
    assert sorted(order(2, seed=3)) == list(range(50))
    different = [tuple(order(epoch, seed=seed)) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(set(different)) == 9


def test_two_ranks_see_what_one_rank_sees_with_twice_the_batch() -> None:
    alone = order(4, num_samples=48)
    first, second = (order(4, num_samples=48, rank=rank, world_size=2) for rank in (0, 1))
    for start in range(0, 24, 6):
        assert set(first[start : start + 6]) | set(second[start : start + 6]) == set(alone[2 * start : 2 * start + 12])


@pytest.mark.parametrize(("num_samples", "world_size"), [(7, 2), (8, 2), (10, 4), (2, 5)])
def test_training_ranks_take_equally_many_and_cover_everything(num_samples: int, world_size: int) -> None:
    shares = [order(0, num_samples=num_samples, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-num_samples // world_size)}
    assert len(EpochShuffleSampler(num_samples, world_size=world_size)) == len(shares[0])
    assert {number for share in shares for number in share} == set(range(num_samples))


@pytest.mark.parametrize(("num_samples", "world_size"), [(7, 2), (8, 2), (10, 4), (2, 5)])
def test_evaluation_counts_every_sample_once(num_samples: int, world_size: int) -> None:
    samplers = [RankSubsetSampler(num_samples, rank, world_size) for rank in range(world_size)]
    assert sorted(number for sampler in samplers for number in sampler) == list(range(num_samples))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


@pytest.mark.parametrize("rank", [-1, 2])
def test_wrong_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be"):
        EpochShuffleSampler(10, rank=rank, world_size=2)
    with pytest.raises(ValueError, match="rank must be"):
        RankSubsetSampler(10, rank, 2)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        EpochShuffleSampler(10, seed=-1)


EDGES = np.random.default_rng(0).integers(0, 60, 200)
EDGES[17] = 1000  # more than any batch may have


def edge_batches(epoch: int, batch_edges: int = 100, **options: int) -> list[list[int]]:
    sampler = EdgeBatchSampler(EDGES, batch_edges, **options)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("batch_edges", [1, 30, 100, 10_000])
def test_batches_are_as_large_as_their_edges_allow(batch_edges: int) -> None:
    batches = edge_batches(3, batch_edges, seed=2)
    assert [number for batch in batches for number in batch] == order(3, num_samples=200, seed=2)
    for batch, after in zip(batches, [*batches[1:], [17]], strict=True):
        edges = np.maximum(EDGES[batch], 1).sum()
        assert edges <= batch_edges or len(batch) == 1
        assert edges + max(EDGES[after[0]], 1) > batch_edges or after == [17]
    assert [17] in batches or batch_edges == 10_000


def test_edge_batches_depend_on_seed_and_epoch_alone() -> None:
    sampler = EdgeBatchSampler(EDGES, 100, seed=3)
    before = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == list(sampler) == edge_batches(2, seed=3) != before
    sampler.set_epoch(0)
    assert list(sampler) == before
    different = [edge_batches(epoch, seed=seed) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(one != other for number, one in enumerate(different) for other in different[:number])
    assert len({len(batches) for batches in different}) > 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_batches_of_one(world_size: int) -> None:
    alone = edge_batches(1)
    shares = [edge_batches(1, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-len(alone) // world_size)}
    dealt = [batch for step in zip(*shares, strict=True) for batch in step]
    assert dealt == (alone + alone)[: len(dealt)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_by_edges_counts_every_sample_once(world_size: int) -> None:
    found = []
    for rank in range(world_size):
        sampler = RankEdgeBatchSampler(EDGES, 100, rank, world_size)
        batches = list(sampler)
        assert len(sampler) == len(batches) and all(EDGES[batch].sum() <= 100 or len(batch) == 1 for batch in batches)
        assert [number for batch in batches for number in batch] == list(RankSubsetSampler(200, rank, world_size))
        found += [number for batch in batches for number in batch]
    assert sorted(found) == list(range(200))
    assert len(RankEdgeBatchSampler(EDGES[:0], 100)) == 0 and list(RankEdgeBatchSampler(EDGES[:0], 100)) == []


def test_no_edges_in_a_batch_are_refused() -> None:
    for sampler in (EdgeBatchSampler, RankEdgeBatchSampler):
        with pytest.raises(ValueError, match="batch_edges must be 1 or more, got 0"):
            sampler(EDGES, 0)
        with pytest.raises(ValueError, match="rank must be from 0"):
            sampler(EDGES, 10, rank=2, world_size=2)
