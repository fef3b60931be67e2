"""The base class, as a custom data set uses it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

from se3_fast.data import DataModule


class Numbers(DataModule):
    """Eleven training numbers, four for validation, three for the test."""

    def __init__(self, **options: Any) -> None:
        self.prepared = 0
        super().__init__(**options)
        self.ds_train, self.ds_val, self.ds_test = (TensorDataset(torch.arange(n)) for n in (11, 4, 3))

    def prepare_data(self) -> None:
        self.prepared += 1

    def _collate(self, samples: list[tuple[torch.Tensor]]) -> list[int]:
        return [int(number) for (number,) in samples]


def test_batches_of_every_set() -> None:
    module = Numbers(batch_size=4)
    training = list(module.train_dataloader())
    assert [len(batch) for batch in training] == [4, 4, 3]
    assert sorted(chain(*training)) == list(range(11))
    assert list(module.val_dataloader()) == [[0, 1, 2, 3]]
    assert list(module.test_dataloader()) == [[0, 1, 2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_new_loader_repeats_an_epoch(num_workers: int) -> None:
    def epochs(*numbers: int) -> list[list[list[int]]]:
        loader = Numbers(batch_size=4, num_workers=num_workers, seed=5).train_dataloader()
        batches = []
        for number in numbers:
            loader.sampler.set_epoch(number)
            batches.append(list(loader))
        return batches

    first, second, third = epochs(0, 1, 2)
    assert epochs(2) == [third]
    assert first != second
    assert Numbers(batch_size=4, seed=6).train_dataloader().sampler.seed == 6


def test_loading_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    module = Numbers(batch_size=4)
    list(module.train_dataloader()), list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_first_process_of_a_machine_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Numbers(batch_size=4).prepared == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Numbers(batch_size=4).prepared == 0


def test_the_others_wait_and_shares_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda: waited.append(True))
    training, validation = [], []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        module = Numbers(batch_size=2)
        training += list(module.train_dataloader())
        validation += chain(*module.val_dataloader())
    assert len(waited) == 2
    assert sorted(validation) == [0, 1, 2, 3]
    assert len(training) == 6
    assert set(chain(*training)) == set(range(11))


def test_collate_fn_may_be_given() -> None:
    module = Numbers(batch_size=4, collate_fn=len)
    assert list(module.test_dataloader()) == [3]


@pytest.mark.parametrize(("options", "fault"), [({"batch_size": 0}, "batch_size"), ({"num_workers": -1}, "num_workers")])
def test_wrong_numbers_are_refused(options: dict[str, int], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Numbers(**({"batch_size": 4} | options))
