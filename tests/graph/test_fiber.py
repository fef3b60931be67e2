from __future__ import annotations

import copy
import pickle

import pytest
import torch

from se3_fast import Fiber
from se3_fast.fiber import FiberEl


def test_iteration_is_by_channels_and_degrees_ascend() -> None:
    fiber = Fiber({0: 8, 2: 3, 1: 3})
    assert [tuple(entry) for entry in fiber] == [(2, 3), (1, 3), (0, 8)]
    assert fiber.degrees == [0, 1, 2]
    assert fiber.channels == [8, 3, 3]
    assert fiber.num_features == 8 + 9 + 15
    assert fiber[5] == 0


def test_string_degrees_and_pairs() -> None:
    assert Fiber({"1": 2, "0": 3}) == Fiber([(1, 2), (0, 3)])
    assert Fiber.create(3, 4) == Fiber({0: 4, 1: 4, 2: 4})


def test_given_order_is_kept_for_structures() -> None:
    fiber = Fiber({0: 8, 1: 3})
    assert [entry.degree for entry in Fiber(fiber.structure[::-1])] == [0, 1]


def test_arithmetic() -> None:
    fiber = Fiber({0: 2, 1: 3})
    assert fiber * 2 == {0: 4, 1: 6}
    assert fiber + 1 == {0: 3, 1: 4}
    assert fiber + Fiber({1: 5, 2: 7}) == {0: 2, 1: 8}
    assert len(list(fiber * Fiber({0: 1}))) == 2
    assert Fiber.combine_max(fiber, Fiber({1: 1, 2: 4})) == {0: 2, 1: 3, 2: 4}
    assert Fiber.combine_selectively(fiber, Fiber({1: 1, 2: 4})) == {0: 2, 1: 4}


def test_features_round_trip() -> None:
    features = {"0": torch.zeros(5, 2, 1), "2": torch.zeros(5, 4, 5)}
    assert Fiber.from_features(features) == {0: 2, 2: 4}


def test_heads_are_contiguous_channel_groups() -> None:
    features = {"0": torch.arange(4.0).view(1, 4, 1), "1": torch.arange(6.0).view(1, 2, 3)}
    heads = Fiber({0: 4, 1: 2}).to_attention_heads(features, 2)
    assert heads.tolist() == [[[0, 1, 0, 1, 2], [2, 3, 3, 4, 5]]]


def test_copies() -> None:
    fiber = Fiber({0: 8, 1: 3})
    for copied in (copy.deepcopy(fiber), pickle.loads(pickle.dumps(fiber))):
        assert copied == fiber and copied.structure == fiber.structure
    assert repr(fiber) == "Fiber({1: 3, 0: 8})"


@pytest.mark.parametrize("structure", [{0: -1}, {-1: 2}, [(0, 1), (0, 2)], {0: 1.5}, {0.5: 2}, [FiberEl(0, 1.5)]])
def test_bad_structures(structure: object) -> None:
    with pytest.raises(ValueError, match="structure"):
        Fiber(structure)  # type: ignore[arg-type]


def test_bad_features() -> None:
    with pytest.raises(ValueError, match=r"feats\['1'\]: expected shape \[N, C, 3\], got \[5, 2, 5\]"):
        Fiber.from_features({"1": torch.zeros(5, 2, 5)})
