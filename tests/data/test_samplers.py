"""Order and coverage of the samplers."""

from __future__ import annotations

import pytest

from se3_fast.data.samplers import EpochShuffleSampler, RankSubsetSampler


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
