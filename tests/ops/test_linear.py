from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import Fiber, LinearSE3
from se3_fast.ops.linear import HeadFeatures, linear
from tests.support import random_features, random_rotation, relative_error, rotate_features

FIBER, BESIDE = Fiber({0: 4, 1: 2, 3: 6}), Fiber({0: 3, 1: 1})


def make_layer() -> LinearSE3:
    torch.manual_seed(0)
    return LinearSE3(FIBER + BESIDE, Fiber({0: 5, 1: 3, 3: 2})).double()


def test_two_parts_are_those_of_a_concatenation() -> None:
    layer, features, beside = make_layer(), random_features(FIBER, 7), random_features(BESIDE, 7, seed=2)
    together = {key: torch.cat([value, beside[key]], 1) if key in beside else value for key, value in features.items()}
    with se3_fast.backend("torch"):
        for key, expected in layer(together).items():
            assert torch.equal(layer(features, beside=beside)[key], expected)
            assert relative_error(expected, torch.einsum("oc,ncm->nom", layer.weights[key], together[key])) < 1e-14


def test_equivariance() -> None:
    layer, features, beside, rotation = make_layer(), random_features(FIBER, 7), random_features(BESIDE, 7, 2), random_rotation()
    rotated_after = rotate_features(layer(features, beside=beside), rotation)
    rotated_before = layer(rotate_features(features, rotation), beside=rotate_features(beside, rotation))
    for key, expected in rotated_after.items():
        assert relative_error(rotated_before[key], expected) < 1e-12


def test_features_per_head() -> None:
    features = random_features(FIBER, 7)
    channels = tuple((degree, FIBER[degree]) for degree in FIBER.degrees)
    heads = HeadFeatures(FIBER.to_attention_heads(features, 2), channels)
    assert all(torch.equal(value, features[key]) for key, value in heads.by_degree().items())
    weights = {key: torch.randn(3, value.shape[1], dtype=torch.float64) for key, value in features.items()}
    with se3_fast.backend("dense"):
        for key, expected in linear(weights, features).items():
            assert torch.equal(linear(weights, heads)[key], expected)


def test_no_degrees() -> None:
    assert linear({}, random_features(FIBER, 3)) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_under_autocast(dtype: torch.dtype) -> None:
    layer, features = make_layer().float(), {key: value.float() for key, value in random_features(FIBER + BESIDE, 3).items()}
    with torch.autocast("cpu", dtype):
        assert {value.dtype for value in layer(features).values()} == {dtype}
