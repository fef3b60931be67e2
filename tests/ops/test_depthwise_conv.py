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
from se3_fast.backends.dense.depthwise_conv import knot_shares
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.ops.depthwise_conv import depthwise_conv
from se3_fast.so3 import wigner_3j
from tests.support import relative_error

BACKENDS = ["triton", "torch", *(["cpp"] if library.is_available() else [])]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}

# (degrees of features, messages, harmonics), channels, knots, nodes, edges
SHAPES = {
    "usual": ((1, 1, 2), 16, 16, 9, 40),
    "from scalars": ((0, 1, 2), 32, 16, 9, 40),
    "to scalars": ((1, 0, 1), 16, 32, 9, 30),
    "degree 2": ((2, 2, 4), 16, 16, 6, 25),
    "one channel": ((1, 1, 1), 1, 1, 4, 11),
    "three channels": ((1, 2, 3), 3, 5, 5, 17),
    "no edges": ((1, 1, 2), 4, 8, 5, 0),
    "one node": ((1, 1, 2), 4, 8, 1, 3),
    "one hub": ((1, 1, 2), 16, 16, 40, 130),
}
MANY_EDGES = ((1, 1, 2), 16, 16, 50, 600)


def _problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[DepthwisePlan, Graph, list[Tensor]]:
    """Edges at random: duplicates, loops, and nodes without any; some are beyond the knots."""
    degrees, channels, num_knots, num_nodes, num_edges = MANY_EDGES if name == "many edges" else SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    plan = DepthwisePlan(*degrees)
    src = torch.randint(num_nodes, (num_edges,), generator=generator)
    dst = torch.zeros_like(src) if name == "one hub" else torch.randint(num_nodes, (num_edges,), generator=generator)
    shapes = [
        (num_nodes, plan.components_in, channels),
        (num_edges, plan.num_harmonics),
        (num_edges,),
        (num_knots, len(plan.paths) * channels),
    ]
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    operands[2] = (num_knots + 6) * torch.rand(num_edges, generator=generator, dtype=torch.float64) - 3
    operands = [operand.to(dtype).requires_grad_() for operand in operands]
    return plan, Graph(src, dst, num_nodes), operands


def _convolve(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> Tensor:
    return depthwise_conv(plan, graph, *operands)


def _weighted(tensor: Tensor) -> Tensor:
    """A number that depends on all elements in different ways, not linearly."""
    factors = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).to(tensor).view_as(tensor)
    return (tensor * factors + 0.1 * tensor.square()).sum()


def _derivatives(name: str, backend: str, dtype: torch.dtype, with_table: bool) -> list[Tensor]:
    """The sums, their gradients, and the gradients of a function of those."""
    plan, graph, operands = _problem(name, dtype)
    with se3_fast.backend(backend):
        sums = _convolve(plan, graph, operands)
        loss = _weighted(sums)
        followed = operands if with_table else operands[:3]
        first = torch.autograd.grad(loss, followed, create_graph=True)
        second = torch.autograd.grad(torch.stack(list(map(_weighted, first))).sum(), operands, retain_graph=True)
        of_table = torch.autograd.grad(loss, operands)
    return [sums, *first, *second, *of_table]


@pytest.mark.parametrize("with_table", [False, True], ids=["rows", "rows and table"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_formula(backend: str, name: str, dtype: torch.dtype, with_table: bool) -> None:
    """First derivatives, and second ones: of gradients of the rows (by hand), and of those of the table (by formula)."""
    expected = _derivatives(name, "dense", torch.float64, with_table)
    found = _derivatives(name, backend, dtype, with_table)
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
        given[place][7, ...] = torch.nan
        with se3_fast.backend(backend):
            sums = _convolve(plan, graph, given)
        is_reached = sums.isnan().flatten(1).any(1)
        assert is_reached.nonzero().flatten().tolist() == [int(graph.dst[7])]


def test_the_formula_is_the_couplings() -> None:
    """One edge, one path at a time, by the 3j symbols themselves."""
    plan, graph, operands = _problem("degree 2")
    features, harmonics, places, table = (operand.detach() for operand in operands)
    distances = (places[:, None] - torch.arange(len(table))).abs()
    shares = ((2 - distances).clamp(min=0) ** 3 - 4 * (1 - distances).clamp(min=0) ** 3) / 6
    weights = (shares @ table).view(graph.num_edges(), len(plan.paths), -1)
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


def test_shares_of_knots_are_b_splines() -> None:
    """Between the knots they sum up to 1, their derivatives to 0; at the ends they are zero with two derivatives."""
    places = torch.tensor([-2.0, 1.0, 1.7, 2.0, 5.9, 9.0], dtype=torch.float64, requires_grad=True)
    shares = knot_shares(places, 8)
    (first,) = torch.autograd.grad((shares * torch.arange(8)).sum(), places, create_graph=True)
    (second,) = torch.autograd.grad((shares * torch.arange(8).square()).sum(), places, create_graph=True)
    assert shares.sum(1).tolist() == pytest.approx([0, 1, 1, 1, 1, 0])
    assert first.tolist() == pytest.approx([0, 1, 1, 1, 1, 0])  # a spline of straight lines is one
    (curvature,) = torch.autograd.grad(second.sum(), places)
    assert curvature.tolist() == pytest.approx([0, 2, 2, 2, 2, 0])  # of a parabola is one, a little higher
    inside = torch.tensor([-1.5, -0.3, 0.4, 3.3, 7.8, 8.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda places: knot_shares(places, 8), inside)


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_edges_at_knots_and_beyond_them(backend: str) -> None:
    """At a knot there is one derivative, not two from the sides; an edge that has left the knots is not there at all."""
    plan, generator = DepthwisePlan(1, 1, 2), torch.Generator().manual_seed(0)
    infinite = float("inf")
    places = torch.tensor([0.0, 3.0, 7.0, 8.5, -1.0, 9.0, 9.5, 1e30, infinite, -2.0, -2.5, -infinite], dtype=torch.float64)
    graph = Graph(torch.zeros(12, dtype=torch.int64), torch.arange(12), 12)
    features, harmonics = torch.randn(12, 4, 16, generator=generator).double(), torch.randn(12, 9, generator=generator).double()
    table = torch.randn(8, 16 * len(plan.paths), generator=generator).double()

    def evaluate(name: str, given: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (features, harmonics, given, table)]
        with se3_fast.backend(name):
            sums = depthwise_conv(plan, graph, *leaves)
            first = torch.autograd.grad(_weighted(sums), leaves, create_graph=True)
            second = torch.autograd.grad(_weighted(first[2]) + _weighted(first[0]), leaves, allow_unused=True)
        return [sums, *first, *(tensor for tensor in second if tensor is not None)]

    found, expected = evaluate(backend, places), evaluate("dense", places)
    assert max(map(relative_error, found, expected)) < 1e-12
    assert bool((found[0][:5] != 0).all()) and not bool(found[0][5:].any())
    assert bool((found[3][:5] != 0).all()) and not bool(found[3][5:].any())
    for side in (-1e-9, 1e-9):
        for value, wanted in zip(evaluate(backend, places + side), found, strict=True):
            assert relative_error(value, wanted) < 1e-7


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
@pytest.mark.parametrize(("dtype", "num_knots"), [(torch.bfloat16, 256), (torch.bfloat16, 258), (torch.float16, 2050)], ids=str)
def test_an_edge_beyond_many_knots_in_half_precision(backend: str, dtype: torch.dtype, num_knots: int) -> None:
    """Where numbers of knots are rounded."""
    graph = Graph(torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
    places = torch.tensor([float("inf"), 3.5], dtype=dtype)
    features, harmonics, table = (torch.ones(shape, dtype=dtype) for shape in ((2, 1, 1), (2, 4), (num_knots, 1)))
    with se3_fast.backend(backend):
        sums = depthwise_conv(DepthwisePlan(0, 0, 1), graph, features, harmonics, places, table)
    assert sums.flatten().tolist() == pytest.approx([0, 1], abs=0.01)


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_numbers_of_knots_that_kernels_do_not_take(backend: str) -> None:
    """The formula does."""
    plan, graph = DepthwisePlan(0, 0, 1), Graph(torch.tensor([0]), torch.tensor([0]), 1)
    for num_knots, expected in ((0, 0.0), (20000, 1.0)):
        table, place = torch.ones(num_knots, 1), torch.tensor([num_knots / 2])
        with se3_fast.backend(backend):
            assert float(depthwise_conv(plan, graph, torch.ones(1, 1, 1), torch.ones(1, 4), place, table)) == pytest.approx(
                expected
            )


def test_faults_are_named() -> None:
    plan, graph, operands = _problem("usual")
    narrow = [operands[0][:, :3], *operands[1:]]
    with pytest.raises(ValueError, match=r"features: expected shape \[9, 4, 16\], got \[9, 3, 16\]"):
        _convolve(plan, graph, narrow)
    with pytest.raises(ValueError, match=r"table: expected shape \[16, 80\], got \[16, 79\]"):
        _convolve(plan, graph, [*operands[:3], operands[3][:, 1:]])
    with pytest.raises(ValueError, match=r"places: expected torch\.float64 as the features have, got torch\.float32"):
        _convolve(plan, graph, [*operands[:2], operands[2].float(), operands[3]])
    with pytest.raises(ValueError, match=r"features: expected float32, float64, bfloat16 or float16, got torch\.complex64"):
        _convolve(plan, graph, [operand.to(torch.complex64) for operand in operands])
    with pytest.raises(ValueError, match=r"places: expected shape \[40\], got \[\]"):
        _convolve(plan, graph, [*operands[:2], operands[2].sum(), operands[3]])


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
