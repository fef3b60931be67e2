from __future__ import annotations

import pytest
import torch

from se3_fast import Fiber, NormSE3
from tests.support import TOLERANCE, random_features, random_rotation, relative_error, rotate_features


@pytest.mark.parametrize("structure", [{0: 4, 1: 4, 2: 4}, {0: 5, 1: 3}, {0: 1}, {1: 1, 3: 1}])
def test_equivariance_and_gradients(structure: dict[int, int]) -> None:
    torch.manual_seed(0)
    fiber = Fiber(structure)
    module = NormSE3(fiber).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    features, rotation = random_features(fiber, 6), random_rotation()
    rotated_after = rotate_features(module(features), rotation)
    rotated_before = module(rotate_features(features, rotation))
    for key, expected in rotated_after.items():
        assert relative_error(rotated_before[key], expected) < 1e-12
    inputs = [feature.requires_grad_() for feature in features.values()]
    keys = list(features)
    assert torch.autograd.gradcheck(lambda *values: tuple(module(dict(zip(keys, values, strict=True))).values()), inputs)


def test_zero_features_stay_zero_with_finite_gradient() -> None:
    fiber = Fiber({0: 3, 1: 3})
    features = {key: torch.zeros_like(value).requires_grad_() for key, value in random_features(fiber, 2).items()}
    normed = NormSE3(fiber).double()(features)
    assert all(value.abs().max() == 0 for value in normed.values())
    sum(value.sum() for value in normed.values()).backward()  # type: ignore[union-attr]
    assert all(value.grad.isfinite().all() for value in features.values())


def test_second_derivatives_at_zero_features_are_finite() -> None:
    """As isolated nodes have them, in a loss on forces."""
    fiber = Fiber({0: 3, 1: 3})
    features = {
        key: value.index_fill(0, torch.tensor([1]), 0.0).requires_grad_() for key, value in random_features(fiber, 3).items()
    }
    normed = NormSE3(fiber).double()(features)
    leaves = list(features.values())
    loss = torch.stack([value.square().sum() for value in normed.values()]).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([value.square().sum() for value in first]).sum(), leaves)
    assert all(value.isfinite().all() for value in (*first, *second))


def test_no_nodes() -> None:
    fiber = Fiber({0: 3, 1: 3})
    assert NormSE3(fiber).double()(random_features(fiber, 0))["1"].shape == (0, 3, 3)


def test_one_node_with_one_channel() -> None:
    fiber = Fiber({0: 1, 1: 1})
    assert NormSE3(fiber).double()(random_features(fiber, 1))["1"].isfinite().all()


@pytest.mark.parametrize("structure", [{0: 4, 1: 4}, {0: 4, 1: 3}], ids=["group norm", "layer norm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_half_precision_features_have_their_gradient(structure: dict[int, int], dtype: torch.dtype) -> None:
    """x / n^2 is beyond float16 for n < 2^-16; computed in that, a zero gradient would come back as NaN at any loss scale."""
    fiber = Fiber(structure)
    features = {key: value.to(dtype) for key, value in random_features(fiber, 3).items()}
    for value in features.values():
        value[0, 0] *= 2.0**-17
    cotangents = {key: value.to(dtype) for key, value in random_features(fiber, 3, seed=1).items()}
    cotangents["0"][0] = 0.0
    cotangents["1"][0] *= 2.0**-10  # times 1 / n it is in float16's range
    module = NormSE3(fiber)
    gradients = []
    for of_features, of_module in ((dtype, torch.float32), (torch.float64, torch.float64)):
        inputs = {key: value.detach().to(of_features).requires_grad_() for key, value in features.items()}
        with torch.autocast("cpu", dtype=dtype, enabled=of_features == dtype):
            outputs = module.to(of_module)(inputs)
        assert {value.dtype for value in outputs.values()} == {of_features}
        torch.autograd.backward(list(outputs.values()), [cotangents[key].to(of_features) for key in outputs])
        gradients.append({key: value.grad for key, value in inputs.items()})
    for key, expected in gradients[1].items():
        assert relative_error(gradients[0][key], expected) < TOLERANCE[dtype]


def test_wrong_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"features\['1'\]: expected shape \[4, 3, 3\], got \[4, 2, 3\]"):
        NormSE3(Fiber({0: 3, 1: 3}))({"0": torch.zeros(4, 3, 1), "1": torch.zeros(4, 2, 3)})
