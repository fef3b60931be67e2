"""The depthwise convolution: values and derivatives of every backend against the formula, and the formula against couplings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Graph
from se3_fast.backends.cpp import library
from se3_fast.backends.operands import DepthwiseProfile
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.ops.depthwise_conv import depthwise_conv
from se3_fast.so3 import wigner_3j
from tests.support import relative_error

BACKENDS = ["triton", "torch", *(["cpp"] if library.is_available() else [])]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}

# (degrees of features, messages, harmonics), channels, width of the profile, radial functions, nodes, edges
SHAPES = {
    "usual": ((1, 1, 2), 16, 16, 8, 9, 40),
    "from scalars": ((0, 1, 2), 32, 16, 8, 9, 40),
    "to scalars": ((1, 0, 1), 16, 32, 8, 9, 30),
    "degree 2": ((2, 2, 4), 16, 16, 5, 6, 25),
    "one channel": ((1, 1, 1), 1, 1, 1, 4, 11),
    "three channels": ((1, 2, 3), 3, 5, 2, 5, 17),
    "no edges": ((1, 1, 2), 4, 8, 3, 5, 0),
    "one node": ((1, 1, 2), 4, 8, 3, 1, 3),
    "one hub": ((1, 1, 2), 16, 16, 8, 40, 130),
}
MANY_EDGES = ((1, 1, 2), 16, 16, 8, 50, 600)


def _problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[DepthwisePlan, Graph, list[Tensor]]:
    """Edges at random: duplicates, loops, and nodes without any."""
    degrees, channels, width, inputs, num_nodes, num_edges = MANY_EDGES if name == "many edges" else SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    plan = DepthwisePlan(*degrees)
    src = torch.randint(num_nodes, (num_edges,), generator=generator)
    dst = torch.zeros_like(src) if name == "one hub" else torch.randint(num_nodes, (num_edges,), generator=generator)
    shapes = [
        (num_nodes, plan.components_in, channels),
        (num_edges, plan.num_harmonics),
        (num_edges, inputs),
        (inputs, width),
        (width, width),
        (width, len(plan.paths) * channels),
    ]
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return plan, Graph(src, dst, num_nodes), operands


def _convolve(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> Tensor:
    return depthwise_conv(plan, graph, *operands[:3], DepthwiseProfile(*operands[3:]))


def _weighted(tensor: Tensor) -> Tensor:
    """A number that depends on all elements in different ways, not linearly."""
    factors = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).to(tensor).view_as(tensor)
    return (tensor * factors + 0.1 * tensor.square()).sum()


def _derivatives(name: str, backend: str, dtype: torch.dtype, with_weights: bool) -> list[Tensor]:
    """The sums, their gradients, and the gradients of a function of those."""
    plan, graph, operands = _problem(name, dtype)
    with se3_fast.backend(backend):
        sums = _convolve(plan, graph, operands)
        loss = _weighted(sums)
        followed = operands if with_weights else operands[:3]
        first = torch.autograd.grad(loss, followed, create_graph=True)
        second = torch.autograd.grad(torch.stack(list(map(_weighted, first))).sum(), operands, retain_graph=True)
        of_weights = torch.autograd.grad(loss, operands)
    return [sums, *first, *second, *of_weights]


@pytest.mark.parametrize("with_weights", [False, True], ids=["rows", "rows and weights"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_formula(backend: str, name: str, dtype: torch.dtype, with_weights: bool) -> None:
    """First derivatives, and second ones: of gradients of the rows (by hand), and of those of the weights (by formula)."""
    expected = _derivatives(name, "dense", torch.float64, with_weights)
    found = _derivatives(name, backend, dtype, with_weights)
    assert all(tensor.dtype == dtype for tensor in found)
    assert max(map(relative_error, found, expected)) < TOLERANCES[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_derivatives(backend: str) -> None:
    plan, graph, operands = _problem("three channels")
    results = []
    for name in ("dense", backend):
        with se3_fast.backend(name):
            value = _weighted(_convolve(plan, graph, operands))
            for _ in range(3):
                value = torch.stack(list(map(_weighted, torch.autograd.grad(value, operands[:3], create_graph=True)))).sum()
            results.append([value.detach(), *torch.autograd.grad(value, operands)])
    assert max(map(relative_error, results[1], results[0])) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_the_same_to_the_bit(backend: str) -> None:
    runs = [_derivatives("usual", backend, torch.float32, False) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_not_a_number_stays_one(backend: str) -> None:
    """A NaN of one edge reaches the sums of its destination, and no other."""
    plan, graph, operands = _problem("usual")
    for place in (1, 2):
        given = [operand.detach().clone() for operand in operands]
        given[place][7, 0] = torch.nan
        with se3_fast.backend(backend):
            sums = _convolve(plan, graph, given)
        is_reached = sums.isnan().flatten(1).any(1)
        assert is_reached.nonzero().flatten().tolist() == [int(graph.dst[7])]


def test_the_formula_is_the_couplings() -> None:
    """One edge, one path at a time, by the 3j symbols themselves."""
    plan, graph, operands = _problem("degree 2")
    features, harmonics, radial, first, second, last = (operand.detach() for operand in operands)
    hidden = radial
    for weight in (first, second):
        value = hidden @ weight
        hidden = 1.6765324703310907 * value / (1 + torch.exp(-value))
    weights = (hidden @ last).view(graph.num_edges(), len(plan.paths), -1)
    expected = torch.zeros(graph.num_nodes(), plan.components_out, features.shape[2], dtype=torch.float64)
    for edge, (src, dst) in enumerate(zip(graph.src.tolist(), graph.dst.tolist(), strict=True)):
        for number, (degree_in, degree, degree_out) in enumerate(plan.paths):
            to_degree = sum(path.degree_out == degree_out for path in plan.paths)
            symbols = wigner_3j(degree, degree_in, degree_out) * ((2 * degree_out + 1) / to_degree) ** 0.5
            message = torch.einsum(
                "m,mlk,lc->kc",
                harmonics[edge, degree**2 : (degree + 1) ** 2],
                symbols,
                features[src, degree_in**2 : (degree_in + 1) ** 2],
            )
            expected[dst, degree_out**2 : (degree_out + 1) ** 2] += weights[edge, number] * message
    with se3_fast.backend("dense"):
        assert relative_error(_convolve(plan, graph, operands), expected) < 1e-13


def test_faults_are_named() -> None:
    plan, graph, operands = _problem("usual")
    narrow = [operands[0][:, :3], *operands[1:]]
    with pytest.raises(ValueError, match=r"features: expected shape \[9, 4, 16\], got \[9, 3, 16\]"):
        _convolve(plan, graph, narrow)
    with pytest.raises(ValueError, match=r"profile\.last: expected shape \[16, 80\], got \[16, 79\]"):
        _convolve(plan, graph, [*operands[:5], operands[5][:, 1:]])
    with pytest.raises(ValueError, match=r"radial: expected torch\.float64 as the features have, got torch\.float32"):
        _convolve(plan, graph, [*operands[:2], operands[2].float(), *operands[3:]])
    with pytest.raises(ValueError, match=r"features: expected float32, float64, bfloat16 or float16, got torch\.complex64"):
        _convolve(plan, graph, [operand.to(torch.complex64) for operand in operands])
    with pytest.raises(ValueError, match=r"radial: expected shape \[40, 0\], got \[\]"):
        _convolve(plan, graph, [*operands[:2], operands[2].sum(), *operands[3:]])


@pytest.mark.parametrize("backend", ["dense", *(name for name in BACKENDS if name == "cpp")])
def test_forward_mode_of_a_batch_of_directions(backend: str) -> None:
    plan, graph, operands = _problem("three channels")
    features = operands[0].detach()

    def convolve(given: Tensor) -> Tensor:
        return _convolve(plan, graph, [given, *operands[1:]]).square()

    with se3_fast.backend(backend):
        found = torch.autograd.functional.jacobian(convolve, features, vectorize=True, strategy="forward-mode")
        expected = torch.autograd.functional.jacobian(convolve, features)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.skipif("cpp" not in BACKENDS, reason="needs the compiled operations")
def test_threads_that_are_told_another_number_of_threads() -> None:
    """Within a parallel region PyTorch may name another number of threads than outside, at the first call of each thread also by
    default: shares are those of the caller. In a process of its own, since OpenMP reads the numbers at its start."""
    problem = "tests.ops.test_depthwise_conv import _derivatives, relative_error; import torch"
    compare = "print(max(map(relative_error, *(_derivatives('many edges', b, torch.float64, True) for b in ('cpp', 'dense')))))"
    command = [sys.executable, "-c", f"from {problem}; {compare}"]
    environment = os.environ | {"OMP_NUM_THREADS": "2,4"}  # outside, within
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], check=False)
    assert child.returncode == 0, child.stderr
    assert float(child.stdout) < 1e-12
