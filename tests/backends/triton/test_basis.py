"""The Triton bases against ``dense`` in float64: values and every gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import get_basis, update_basis_with_fused
from se3_fast.kernels.basis_tables import pairwise_layout
from tests.support import TOLERANCE, TRITON_DEVICE, relative_error

AXES = torch.tensor([[0, 0, 0], [0, 1, 0], [0, -2, 0], [1, 0, 0], [0, 0, 1e-12], [1e15, 1e15, 0]], dtype=torch.float64)


def positions(num_edges: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Zero length, poles, axes, very short and very long ones, then random ones; rounded to ``dtype``."""
    random = torch.randn(num_edges, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([AXES, random])[:num_edges].to(TRITON_DEVICE, dtype)


def bases(backend: str, rel_pos: Tensor, max_degree: int, is_padded: bool) -> dict[str, Tensor]:
    """All pairwise and fused bases."""
    with se3_fast.backend(backend):
        pairwise = get_basis(rel_pos, max_degree, compute_gradients=True, use_pad_trick=is_padded)
        fused = update_basis_with_fused(pairwise, max_degree, use_pad_trick=is_padded, fully_fused=True)
    return {"0,0": pairwise["0,0"], **fused}


def random_gradients(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(output.shape, generator=generator, dtype=torch.float64).to(TRITON_DEVICE)
        for key, output in outputs.items()
    }


def differentiate(outputs: dict[str, Tensor], rel_pos: Tensor, gradients: dict[str, Tensor]) -> Tensor:
    """The gradient of the outputs that ``gradients`` names, with respect to the positions times their lengths."""
    chosen = [(outputs[key], gradient.to(outputs[key])) for key, gradient in gradients.items() if outputs[key].requires_grad]
    (gradient,) = torch.autograd.grad([output for output, _ in chosen], rel_pos, [gradient for _, gradient in chosen])
    return gradient * rel_pos.detach().norm(dim=1, keepdim=True)


def assert_equal(outputs: dict[str, Tensor], truths: dict[str, Tensor], tolerance: float) -> None:
    assert list(outputs) == list(truths)
    for key, truth in truths.items():
        assert relative_error(outputs[key], truth) < tolerance, key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("max_degree", "num_edges"), [(1, 0), (1, 1), (1, 67), (2, 33), (3, 9), (4, 7)])
def test_equals_dense(max_degree: int, num_edges: int, is_padded: bool, dtype: torch.dtype) -> None:
    rel_pos = positions(num_edges, dtype).requires_grad_()
    exact = rel_pos.detach().double().requires_grad_()
    outputs, truths = (bases(name, given, max_degree, is_padded) for name, given in (("triton", rel_pos), ("dense", exact)))
    assert {output.dtype for output in outputs.values()} == {dtype}
    assert_equal(outputs, truths, TOLERANCE[dtype])
    gradients = random_gradients(truths)
    gradient, truth = differentiate(outputs, rel_pos, gradients), differentiate(truths, exact, gradients)
    assert relative_error(gradient, truth) < TOLERANCE[dtype]
    assert num_edges == 0 or gradient[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_dtype_is_written_directly(dtype: torch.dtype) -> None:
    rel_pos = positions(9, torch.float32).requires_grad_()
    exact = rel_pos.detach().double().requires_grad_()
    with torch.autocast(TRITON_DEVICE.type, dtype), se3_fast.backend("triton"):
        pairwise = get_basis(rel_pos, 2, compute_gradients=True, amp=True)
        fused = update_basis_with_fused(pairwise, 2, use_pad_trick=False, fully_fused=True)
    outputs = {"0,0": pairwise["0,0"], **fused}
    assert {output.dtype for output in outputs.values()} == {dtype}
    truths = bases("dense", exact, 2, is_padded=False)
    assert_equal(outputs, truths, TOLERANCE[dtype])
    gradients = random_gradients(truths)
    gradient, truth = differentiate(outputs, rel_pos, gradients), differentiate(truths, exact, gradients)
    assert relative_error(gradient, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("key", ["2,1", "1,1", "out1_fused", "in2_fused", "fully_fused"])
def test_gradient_of_one_basis_alone(key: str) -> None:
    rel_pos, exact = (positions(9).requires_grad_() for _ in range(2))
    outputs, truths = (bases(name, given, 2, is_padded=True) for name, given in (("triton", rel_pos), ("dense", exact)))
    gradients = {key: random_gradients(truths)[key]}
    gradient, truth = differentiate(outputs, rel_pos, gradients), differentiate(truths, exact, gradients)
    assert relative_error(gradient, truth) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("max_degree", [1, 2])
def test_fused_from_bases_that_others_made(max_degree: int) -> None:
    """Not in one allocation, not contiguous, of a larger degree than asked for; each with a gradient of its own."""
    made = get_basis(positions(9), 2)
    given = {key: basis.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_() for key, basis in made.items()}
    results = {}
    for name in ("triton", "dense"):
        with se3_fast.backend(name):
            outputs = update_basis_with_fused(given, max_degree, use_pad_trick=False, fully_fused=True)
        fused = {key: output for key, output in outputs.items() if "fused" in key}
        grads = random_gradients(fused)
        used = {key: basis for key, basis in given.items() if max(map(int, key.split(","))) <= max_degree}
        gradients = torch.autograd.grad(list(fused.values()), list(used.values()), list(grads.values()))
        results[name] = outputs | {f"gradient of {key}": gradient for key, gradient in zip(used, gradients, strict=True)}
    assert_equal(results["triton"], results["dense"], TOLERANCE[torch.float64])


def test_without_the_fully_fused_key() -> None:
    results = {}
    for name in ("triton", "dense"):
        with se3_fast.backend(name):
            results[name] = update_basis_with_fused(get_basis(positions(5), 1), 1, use_pad_trick=False, fully_fused=False)
    assert_equal(results["triton"], results["dense"], TOLERANCE[torch.float64])


def test_bases_lie_aligned_in_one_allocation() -> None:
    with se3_fast.backend("triton"):
        pairwise = get_basis(positions(5, torch.float32), 2)
    assert len({basis.untyped_storage().data_ptr() for basis in pairwise.values()}) == 1
    starts = list(accumulate((64 * basis[0].numel() for basis in pairwise.values()), initial=0))  # 64: five edges rounded up
    assert [basis.storage_offset() for basis in pairwise.values()] == starts[:-1]
    assert pairwise_layout(2, is_padded=False).joined(list(pairwise.values())) is pairwise["0,0"]
    assert all(basis.is_contiguous() and not basis.requires_grad for basis in pairwise.values())


def test_degree_0_alone() -> None:
    rel_pos = positions(3).requires_grad_()
    outputs = bases("triton", rel_pos, 0, is_padded=False)
    assert_equal(outputs, bases("dense", rel_pos, 0, is_padded=False), TOLERANCE[torch.float64])
    assert differentiate(outputs, rel_pos, random_gradients(outputs)).abs().max() == 0


def test_two_runs_are_identical() -> None:
    results = []
    for _ in range(2):
        rel_pos = positions(19, torch.float32).requires_grad_()
        outputs = bases("triton", rel_pos, 2, is_padded=True)
        results.append(outputs | {"gradient": differentiate(outputs, rel_pos, random_gradients(outputs))})
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


def test_bases_of_wrong_shape_are_named() -> None:
    basis = get_basis(positions(4), 1)
    basis["0,1"] = basis["0,1"][:3]
    with se3_fast.backend("triton"), pytest.raises(ValueError, match=r"basis\['0,1'\]: expected shape \[4, 1, 1, 3\], got \[3, 1"):
        update_basis_with_fused(basis, 1, use_pad_trick=False, fully_fused=False)
