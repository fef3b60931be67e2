"""NaN and infinity go through every operation of every backend as they do through the formula, so that a diverged run shows.

Each input and each gradient is made NaN or infinite in one place. Rules, against ``dense``:

- what the formula makes of it that is not finite is not finite on any backend, in outputs and in gradients;
- nothing else is touched but, perhaps, the rest of the same node, edge or graph (0 times NaN is NaN, and which zeros are multiplied
  is each backend's own affair), and of the same parameter. A parameter is everybody's: where it is not finite itself, nodes and
  edges are not told apart.

``dense`` multiplies by zeros where degrees share a radial profile. The formula is then evaluated pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import AttentionSE3, ConvSE3, ConvSE3FuseLevel, EdgeGeometry, Fiber
from se3_fast.backends.operands import Convolution
from se3_fast.contraction import RadialGroup
from se3_fast.ops.basis import get_basis
from se3_fast.ops.edge_attention import edge_attention, message_attention, takes_messages
from se3_fast.ops.equivariant_norm import Norm, group_norm, layer_norm
from se3_fast.ops.linear import linear
from se3_fast.ops.perceptron import perceptron
from se3_fast.ops.pooling import pooling
from se3_fast.ops.radial import RadialLayer, radial
from se3_fast.ops.tfn_conv import tfn_conv
from tests.support import device_of, make_convolution, random_graph

NAN, INFINITY = float("nan"), float("inf")
NUM_NODES, NUM_EDGES, WIDTH = 4, 7, 16
SIZES = [2, 0, 2]
GRAPH = random_graph(NUM_NODES, NUM_EDGES)

Tensors = dict[str, Tensor]


class Operation(NamedTuple):
    """An operation.

    Attributes:
        shapes: of its inputs, by name; those of parameters begin with a capital letter.
        run: outputs from inputs.
        formula: the same where ``dense`` multiplies by more zeros than the formula has.
    """

    shapes: dict[str, tuple[int, ...]]
    run: Callable[[Tensors], Sequence[Tensor]]
    formula: Callable[[Tensors], Sequence[Tensor]] | None = None


def convolution(fuse_level: ConvSE3FuseLevel, pool: bool, fiber_edge: Fiber | None = None) -> Operation:
    """On the device of its inputs."""
    plan = make_convolution(Fiber({0: 2, 1: 2}), Fiber({0: 2, 1: 2}), fiber_edge, fuse_level).plan
    shapes = {f"node{degree}": (NUM_NODES, channels, 2 * degree + 1) for degree, channels in plan.node_channels}
    shapes |= {f"edge{degree}": (NUM_EDGES, channels, 2 * degree + 1) for degree, channels in plan.edge_channels}
    shapes |= {f"hidden{index}": (NUM_EDGES, WIDTH) for index in range(len(plan.groups))}
    for index, group in enumerate(plan.groups):
        shapes[f"Weight{index}"] = (group.channels_out * group.channels_in * group.num_paths, WIDTH)

    def operands(inputs: Tensors, kind: str) -> Tensors:
        return {name.removeprefix(kind): tensor for name, tensor in inputs.items() if name.startswith(kind)}

    def run(inputs: Tensors) -> list[Tensor]:
        graph = GRAPH.to(inputs["node0"].device)
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
        hidden, weights = (list(operands(inputs, kind).values()) for kind in ("hidden", "Weight"))
        arguments = (plan, graph, geometry, operands(inputs, "node"), operands(inputs, "edge"), hidden, weights, pool)
        return list(tfn_conv(Convolution(*arguments, order=ConvSE3.contraction_order)).values())

    def by_pairs(inputs: Tensors) -> list[Tensor]:
        geometry = EdgeGeometry.from_relative_positions(GRAPH.edata["rel_pos"], 1)
        groups: list[RadialGroup] = []
        hidden, weights = [], []
        for index, group in enumerate(plan.groups):
            paths = inputs[f"Weight{index}"].view(group.channels_out * group.channels_in, group.num_paths, WIDTH)
            for pair in group.pairs:
                groups.append(replace(group, degrees_in=(pair.degree_in,), degrees_out=(pair.degree_out,)))
                hidden.append(inputs[f"hidden{index}"])
                weights.append(paths[:, pair.start : pair.stop].flatten(0, 1))
        pairwise = replace(plan, groups=tuple(groups))
        arguments = (pairwise, GRAPH, geometry, operands(inputs, "node"), operands(inputs, "edge"), hidden, weights, pool)
        return list(tfn_conv(Convolution(*arguments, order=ConvSE3.contraction_order)).values())

    return Operation(shapes, run, by_pairs)


def attention_of_messages(inputs: Tensors) -> list[Tensor]:
    messages, query = {"0": inputs["scalars"], "1": inputs["vectors"]}, {"0": inputs["query"]}
    values, keys = Fiber({0: 2, 1: 2}), Fiber({0: 2})
    if takes_messages(GRAPH.device):
        return list(message_attention(messages, query, GRAPH, values, 2).values())
    value = {"0": messages["0"][:, :2], "1": messages["1"]}
    graph = GRAPH.to(inputs["query"].device)
    return list(AttentionSE3(2, keys, values)(value, {"0": messages["0"][:, 2:]}, query, graph).values())


def evaluate_radial(inputs: Tensors) -> list[Tensor]:
    remaining = iter([tensor for name, tensor in inputs.items() if name != "invariants"])
    profiles = [tuple(RadialLayer(*(next(remaining) for _ in range(4))) for _ in range(2)) for _ in range(2)]
    return list(radial(inputs["invariants"], profiles))  # type: ignore[arg-type]


RADIAL_SHAPES = {"invariants": (NUM_EDGES, 3)} | {
    f"{name} {layer} of {profile}": shape
    for profile in range(2)
    for layer, inputs in enumerate((3, WIDTH))
    for name, shape in {"Weight": (WIDTH, inputs), "Bias": (WIDTH,), "Scale": (WIDTH,), "Shift": (WIDTH,)}.items()
}


def normed(inputs: Tensors) -> list[Tensor]:
    features = {degree: inputs[degree] for degree in ("0", "1")}
    return list(group_norm(features, Norm(inputs["Scale"], inputs["Shift"], 1e-5, nn.ReLU())).values())


def normed_by_formula(inputs: Tensors) -> list[Tensor]:
    """As it is written, where PyTorch subtracts scale * mean, infinite or not, afterwards."""
    results = []
    for degree, scale, shift in zip(("0", "1"), inputs["Scale"].chunk(2), inputs["Shift"].chunk(2), strict=True):
        norm = inputs[degree].norm(dim=-1)
        centred = norm - norm.mean(1, keepdim=True)
        normalised = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        results.append(inputs[degree] / norm[..., None] * torch.relu(normalised * scale + shift)[..., None])
    return results


OPERATIONS = {
    "convolution, one profile": convolution(ConvSE3FuseLevel.FULL, pool=False),
    "convolution, one profile, pooled": convolution(ConvSE3FuseLevel.FULL, pool=True),
    "convolution, profiles of pairs": convolution(ConvSE3FuseLevel.NONE, pool=True),
    "convolution, edge features": convolution(ConvSE3FuseLevel.NONE, pool=True, fiber_edge=Fiber({1: 1})),
    "attention": Operation(
        {"value": (NUM_EDGES, 2, 3), "key": (NUM_EDGES, 2, 2), "query": (NUM_NODES, 2, 2)},
        lambda inputs: [edge_attention(*inputs.values(), GRAPH.to(inputs["query"].device))],
    ),
    "attention of messages": Operation(
        {"scalars": (NUM_EDGES, 4, 1), "vectors": (NUM_EDGES, 2, 3), "query": (NUM_NODES, 2, 1)}, attention_of_messages
    ),
    "radial": Operation(RADIAL_SHAPES, evaluate_radial),
    "group norm": Operation(
        {"0": (NUM_NODES, 2, 1), "1": (NUM_NODES, 2, 3), "Scale": (4,), "Shift": (4,)}, normed, normed_by_formula
    ),
    "layer norm": Operation(
        {"1": (NUM_NODES, 3, 3), "Scale": (3,), "Shift": (3,)},
        lambda inputs: [layer_norm(inputs["1"], Norm(inputs["Scale"], inputs["Shift"], 1e-5, nn.ReLU()))],
    ),
    "linear": Operation(
        {"Weight 0": (2, 3), "Weight 1": (2, 2), "0": (NUM_NODES, 3, 1), "1": (NUM_NODES, 2, 3)},
        lambda inputs: list(
            linear({"0": inputs["Weight 0"], "1": inputs["Weight 1"]}, {"0": inputs["0"], "1": inputs["1"]}).values()
        ),
    ),
    "maximum": Operation(
        {"feature": (NUM_NODES, 2, 1)},
        lambda inputs: [pooling(inputs["feature"], torch.tensor(SIZES, device=inputs["feature"].device), "max")],
    ),
    "mean": Operation(
        {"feature": (NUM_NODES, 2, 1)},
        lambda inputs: [pooling(inputs["feature"], torch.tensor(SIZES, device=inputs["feature"].device), "avg")],
    ),
    "perceptron": Operation(
        {"x": (NUM_NODES, 3), "Weight 1": (4, 3), "Bias 1": (4,), "Weight 2": (2, 4), "Bias 2": (2,)},
        lambda inputs: [
            perceptron(
                inputs["x"], (inputs["Weight 1"], inputs["Bias 1"]), (inputs["Weight 2"], inputs["Bias 2"])
            )
        ],
    ),
    "basis": Operation(
        {"rel_pos": (NUM_EDGES, 3)}, lambda inputs: list(get_basis(inputs["rel_pos"], 2, compute_gradients=True).values())[1:]
    ),
}  # fmt: skip

CONTRACTED = {f"{name}, {order}": name for name in OPERATIONS for order in ("by edge", "by source") if "convolution" in name}
CASES = {name: name for name in OPERATIONS if "convolution" not in name} | CONTRACTED
"""Operations, convolutions in both orders of contraction."""

LONG_IN_THE_INTERPRETER = (
    *("convolution, one profile, by source", "convolution, one profile, pooled, by edge"),
    *(
        "convolution, profiles of pairs, by edge",
        "convolution, profiles of pairs, by source",
        "convolution, edge features, by source",
    ),
)
"""Cases that are much like others in Triton."""


def inputs_of(operation: Operation) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in operation.shapes.items()}


def not_finite(
    run: Callable[[Tensors], Sequence[Tensor]], inputs: Tensors, place: str, value: float, device: torch.device
) -> Tensors:
    """Where outputs and gradients are not finite; ``value`` stands at the second place of an input, or of the gradient."""
    leaves = {name: tensor.clone() for name, tensor in inputs.items()}
    if place in leaves:
        leaves[place].view(-1)[1] = value
    leaves = {name: tensor.to(device).requires_grad_() for name, tensor in leaves.items()}
    outputs = run(leaves)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]
    if place == "gradient":
        gradients[0].view(-1)[1] = value
    found = torch.autograd.grad(
        outputs, list(leaves.values()), [gradient.to(device) for gradient in gradients], allow_unused=True, materialize_grads=True
    )
    named = {f"output {number}": output for number, output in enumerate(outputs)} | dict(zip(leaves, found, strict=True))
    return {name: ~tensor.isfinite().cpu() for name, tensor in named.items()}


@cache
def expected(name: str, place: str, value: float) -> tuple[Tensors, Tensors]:
    """Where ``dense`` and where the formula is not finite."""
    operation, device = OPERATIONS[name], torch.device("cpu")
    inputs = inputs_of(operation)
    with se3_fast.backend("dense"):
        dense = not_finite(operation.run, inputs, place, value, device)
        formula = not_finite(operation.formula, inputs, place, value, device) if operation.formula else dense
    assert place == "gradient" or value < 0 or any(pattern.any() for pattern in formula.values())
    return dense, formula


def may_be_not_finite(name: str, pattern: Tensor) -> Tensor:
    """The whole parameter, or the rest of the same node, edge or graph."""
    if name[0].isupper():
        return pattern.any().expand(pattern.shape)
    return pattern.flatten(1).any(1).view(-1, *[1] * (pattern.ndim - 1)).expand(pattern.shape)


@pytest.fixture
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of contraction; edge features of degree > 0 go by edge all the same."""
    is_by_source = "by source" in request.node.callspec.params["case"]
    monkeypatch.setattr(ConvSE3, "contraction_order", "source" if is_by_source else "edge")


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        (case, backend)
        for case, backend in product(CASES, ("torch", "cpp", "triton"))
        if not (backend == "triton" and case in LONG_IN_THE_INTERPRETER)
    ],
)
@pytest.mark.usefixtures("order")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in Triton's interpreter
def test_goes_through_as_in_the_formula(case: str, backend: str) -> None:
    operation = OPERATIONS[CASES[case]]
    inputs = inputs_of(operation)
    device = device_of(backend)
    for place in [*inputs, "gradient"]:
        for value in (NAN, INFINITY, -INFINITY) if backend != "triton" else (NAN,):  # the interpreter takes its time
            dense, formula = expected(CASES[case], place, value)
            with se3_fast.backend(backend):
                result = not_finite(operation.run, inputs, place, value, device)
            for name, pattern in result.items():
                where = f"{value} in {place}: {name}"
                assert (pattern | ~formula[name]).all(), f"{where} is finite where the formula is not"
                if not place[0].isupper():
                    allowed = may_be_not_finite(name, dense[name])
                    assert (allowed | ~pattern).all(), f"{where} is not finite outside of what the formula has not"


@pytest.mark.parametrize("backend", ["dense", "torch", "cpp", "triton"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_maximum_shows_nan(backend: str) -> None:
    """The node that is NaN has the gradient; other graphs are not touched."""
    device = device_of(backend)
    feature = torch.tensor([1.0, 3.0, 2.0, NAN, 5.0], device=device).view(5, 1, 1).requires_grad_()
    with se3_fast.backend(backend):
        pooled = pooling(feature, torch.tensor([2, 3], device=device), "max")
        (gradient,) = torch.autograd.grad(pooled.sum(), feature)
    assert pooled[0] == 3 and pooled[1].isnan()
    assert gradient.flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("backend", ["dense", "torch", "cpp", "triton"])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_directions_that_are_none(axis: int, value: float, backend: str) -> None:
    """Positions on a device are not looked at: one that is not finite has frames that are not, and no other edge's are touched."""
    device = device_of(backend)
    rel_pos = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    with se3_fast.backend(backend):
        geometry = EdgeGeometry(rel_pos, 2)
        rel_pos[1, axis] = value  # afterwards: on the CPU they are looked at
        frames = geometry.angles.T if backend == "triton" else geometry.wigner
        assert len(geometry.zero_length_edges) == 0
    assert frames.isfinite().all(1).tolist() == [True, False, True, True]
