"""What only the Triton norm has. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import se3_fast
from se3_fast import Fiber
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.triton.equivariant_norm import FusedNorm
from se3_fast.ops.equivariant_norm import Norm, group_norm
from tests.model.test_golden import FILES, Golden, run_norm
from tests.ops.test_equivariant_norm import CASES, assert_equal, run
from tests.support import TOLERANCE, TRITON_DEVICE, random_features, relative_error

pytest.importorskip("triton")


def test_other_nonlinearities_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedNorm, "apply", lambda *_: pytest.fail("the kernel knows ReLU only"))
    for name in ("four degrees", "unequal channels"):
        results = [run(*CASES[name], backend, torch.float64, TRITON_DEVICE, nn.SiLU()) for backend in ("triton", "dense")]
        assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("norm_")], ids=lambda path: path.stem)
def test_golden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("group_norm", "layer_norm"):
        monkeypatch.setattr(formula, name, lambda *_: pytest.fail("expected the kernel to run"))
    with se3_fast.backend("triton"):
        run_norm(Golden(path, TRITON_DEVICE))


@pytest.mark.parametrize("num_parts", [1, 3, 64], ids="{} parts".format)
def test_gradients_of_parameters_in_a_row(num_parts: int) -> None:
    """Nobody reads degree 2; and there are more parts than blocks of nodes, too."""
    torch.manual_seed(0)
    scale, shift = (torch.randn(9, dtype=torch.float64, device=TRITON_DEVICE) for _ in range(2))
    row = torch.cat([scale, shift]).expand(num_parts, -1).requires_grad_()
    results = []
    for is_in_row in (True, False):
        features = {key: value.to(TRITON_DEVICE).requires_grad_() for key, value in random_features(Fiber.create(3, 3), 33).items()}
        parameters = [row] if is_in_row else [scale.requires_grad_(), shift.requires_grad_()]
        with se3_fast.backend("triton" if is_in_row else "dense"):
            outputs = group_norm(features, Norm(scale, shift, 1e-5, nn.ReLU()), row if is_in_row else None)
        (outputs["0"].pow(2).sum() + outputs["1"].pow(3).sum()).backward()
        of_parameters = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = of_parameters[0].sum(0) if is_in_row else torch.cat(of_parameters)
        results.append([total, *(feature.grad for feature in features.values())])
    for value, truth in zip(*results, strict=True):
        if value is None or truth is None:  # of degree 2: nobody's, or zero
            assert not any(gradient is not None and gradient.any() for gradient in (value, truth))
        else:
            assert relative_error(value, truth) < 1e-12
