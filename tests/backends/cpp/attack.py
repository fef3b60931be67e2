"""Bad calls of the compiled CPU operations, each made in this process, which a crash ends: see ``test_checks.py``.

Every operation is called as it should be, and then with each argument changed in many ways. Before each call its name is written
down, after it what came of it, so that whoever waits for this process knows which call ended it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from se3_fast import AttentionBlockSE3, ConvSE3FuseLevel, EdgeGeometry, Fiber
from se3_fast.backends.cpp import attention_block, force_network, library, tfn_conv_by_source
from se3_fast.backends.cpp.depthwise_conv import CppDepthwise
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.forces import ForceField
from se3_fast.so3 import axis_swap
from tests.support import make_convolution, random_features, random_graph

NUM_NODES, NUM_EDGES, WIDTH = 5, 12, 8
HUGE = 2**62
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64)


class Call(NamedTuple):
    """A call of an operation.

    Attributes:
        operation: its name.
        change: what was changed, and how.
        arguments: by name.
        is_bad: whether it must be refused; otherwise it may be, but must not crash.
    """

    operation: str
    change: str
    arguments: dict[str, Any]
    is_bad: bool


FEATURES = ("parts", "features", "messages", "queries", "nodes", "edges", "hidden", "grads", "gradients")
"""Arguments that may be bfloat16, all of a call together; the other numbers are float32 then. Not those of `OF_ONE_DTYPE`."""


OF_ONE_DTYPE = (
    "attention_block",
    "depthwise_conv",
    "depthwise_conv_backward",
    "depthwise_conv_along",
    "force_network",
    "force_network_along",
)


def good_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(operation, case, arguments by name) that are as they should be: of one dtype, and with features of bfloat16."""
    for operation, case, arguments in _calls_of_one_dtype():
        yield operation, case, arguments
        if operation not in OF_ONE_DTYPE and not arguments.keys().isdisjoint(FEATURES):
            in_half = {name: _in(value, torch.bfloat16 if name in FEATURES else torch.float32) for name, value in arguments.items()}
            constants = {name: arguments[name] for name in ("coefficients",) if name in arguments}
            yield operation, f"{case}, bfloat16", in_half | constants


def _in(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_in(entry, dtype) for entry in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _calls_of_one_dtype() -> Iterator[tuple[str, str, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(NUM_EDGES, 3, generator=generator), dim=-1)
    swaps = torch.cat([axis_swap(degree).flatten() for degree in range(3)])
    yield "wigner_blocks", "float32", {"direction": direction, "max_degree": 2, "axis_swaps": swaps}

    inputs, groups = 3, 2
    size = WIDTH * (inputs + 3) + WIDTH * (WIDTH + 3)
    profile = {
        "invariants": torch.randn(NUM_EDGES, inputs, generator=generator),
        "parameters": torch.randn(groups, size, generator=generator),
        "width": WIDTH,
        "has_norm": True,
        "epsilon": 1e-5,
    }
    yield "radial", "float32", profile
    gradient = torch.randn(groups, NUM_EDGES, WIDTH, generator=generator)
    yield "radial_backward", "float32", {"gradient": gradient, **profile, "with_invariants": True}

    order, offsets = random_graph(NUM_NODES, NUM_EDGES).incoming()
    attention = {
        "messages": [torch.randn(NUM_EDGES, channels, 3, generator=generator) for channels in (10, 4)],
        "queries": [torch.randn(NUM_NODES, 4, 3, generator=generator)],
        "order": order,
        "offsets": offsets,
        "value_channels": [6, 4],
        "heads": 2,
    }
    yield "edge_attention", "float32", attention
    gradients = [torch.randn(NUM_NODES, channels, 3, generator=generator) for channels in (6, 4)]
    yield "edge_attention_backward", "float32", {"gradients": gradients, **attention}
    features = [torch.randn(NUM_NODES, 3, size, generator=generator) for size in (1, 5)]
    norm = {"features": features, **{name: torch.randn(6, generator=generator) for name in ("scale", "shift")}, "epsilon": 1e-5}
    yield "equivariant_norm", "float32", norm
    yield "equivariant_norm_backward", "float32", {"gradients": [torch.ones_like(feature) for feature in features], **norm}

    maps = {
        "parts": [torch.randn(NUM_NODES, channels, size, generator=generator) for channels, size in ((3, 1), (2, 1), (4, 3))],
        "counts": [2, 1],
        "weights": [torch.randn(2, 5, generator=generator), torch.randn(6, 4, generator=generator)],
    }
    yield "linear", "float32", maps
    gradients = [torch.randn(NUM_NODES, channels, size, generator=generator) for channels, size in ((2, 1), (6, 3))]
    yield "linear_backward", "float32", {"gradients": gradients, **maps, "with_parts": True, "with_weights": True}
    for pool in (False, True):
        yield from _convolutions(pool)
    yield "attention_block", "float64", _attention_block()
    yield from _depthwise_convolutions()
    yield from _force_networks()


def _attention_block() -> dict[str, Any]:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    fiber_in, fiber_out, fiber_edge = Fiber({0: 3, 1: 2}), Fiber({0: 2, 1: 4, 2: 2}), Fiber({1: 2})
    block = AttentionBlockSE3(fiber_in, fiber_out, fiber_edge, num_heads=2, channels_div=1, max_degree=2).double()
    nodes, edges = random_features(fiber_in, NUM_NODES), random_features(Fiber({0: 1, 1: 2}), NUM_EDGES)
    call = block.as_one_operation(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 2))
    assert call is not None
    names = ("nodes", "edges", "invariants", "profiles", "weights", "query_weights", "output_weights", "wigner", "src", "dst")
    names += ("in_order", "in_offsets", "description", "coefficients", "value_channels", "query_nodes", "output_parts")
    return dict(zip((*names, "heads", "has_norm", "epsilon"), attention_block._arguments(call), strict=True))


def _depthwise_convolutions() -> Iterator[tuple[str, str, dict[str, Any]]]:
    plan, graph, generator = DepthwisePlan(1, 1, 2), random_graph(NUM_NODES, NUM_EDGES), torch.Generator().manual_seed(0)
    channels, num_knots = 8, 5
    rows = ((NUM_NODES, plan.components_in, channels), (NUM_EDGES, plan.num_harmonics), (NUM_EDGES,))
    table = (num_knots, len(plan.paths) * channels)
    operands = [torch.randn(shape, generator=generator).double() for shape in (*rows, table)]
    gradient = torch.randn(NUM_NODES, plan.components_out, channels, generator=generator).double()
    names = ("src", "dst", "order", "offsets", "table", "coefficients")
    edges = dict(zip(names, CppDepthwise(plan, graph).arguments, strict=True))
    yield "depthwise_conv", "float64", {"operands": operands, **edges}
    yield "depthwise_conv_backward", "float64", {"gradient": gradient, "operands": operands, **edges, "with_table": True}
    direction = [torch.randn(shape, generator=generator).double() for shape in rows]
    yield "depthwise_conv_along", "float64", {"direction": direction, "gradient": gradient, "operands": operands, **edges}


def _force_networks() -> Iterator[tuple[str, str, dict[str, Any]]]:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    graph.ndata["atomic_numbers"] = torch.arange(NUM_NODES) % 2 + 1
    model = (
        ForceField([1, 2], num_layers=2, num_channels=8, num_radial=3, radial_width=4, num_knots=5).double().requires_grad_(False)
    )
    names = ("rel_pos", "kinds", "weights", "src", "dst", "order", "offsets", "description", "coefficients", "cutoff")
    call = force_network.arguments(model._network(), graph, graph.edata["rel_pos"], graph.ndata["atomic_numbers"] - 1)
    arguments = dict(zip(names, call, strict=True))
    yield "force_network", "float64", arguments | {"keep": False}
    yield "force_network", "float64, kept", arguments | {"keep": True}
    energies, gradient, *kept = torch.ops.se3_fast_cpp.force_network(*call, True)
    of_results = {"of_energies": torch.ones_like(energies), "direction": torch.ones_like(gradient)}
    yield "force_network_along", "float64", of_results | arguments | {"kept": kept}


def _convolutions(pool: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    graph, generator = random_graph(NUM_NODES, NUM_EDGES), torch.Generator().manual_seed(0)
    cases = (
        ("full", ConvSE3FuseLevel.FULL, Fiber({0: 3, 1: 3, 2: 3}), Fiber({0: 2, 1: 2, 2: 2}), Fiber({})),
        ("edge features", ConvSE3FuseLevel.NONE, Fiber({0: 2, 1: 3}), Fiber({0: 1, 1: 4}), Fiber({1: 2})),
    )
    for case, fuse_level, fiber_in, fiber_out, fiber_edge in cases:
        plan = make_convolution(fiber_in, fiber_out, fiber_edge, fuse_level).plan
        wigner = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], plan.max_degree).wigner
        tensors = [
            *random_features(fiber_in, NUM_NODES).values(),
            *random_features(fiber_edge, NUM_EDGES).values(),
            *(torch.rand(NUM_EDGES, WIDTH, generator=generator).double() for _ in plan.groups),
            *(
                torch.rand(group.channels_out * group.channels_in * group.num_paths, WIDTH, generator=generator).double()
                for group in plan.groups
            ),
        ]
        count = NUM_NODES if pool else NUM_EDGES
        gradients = list(random_features(fiber_out, count).values())
        convolution = NativeConvolution(plan, graph, wigner, pool)
        name = f"{case}, {'pooled' if pool else 'per edge'}"
        shared = dict(zip(("nodes", "edges", "hidden", "weights"), convolution._split(tensors), strict=True))
        edges = {"wigner": wigner, "src": graph.src, "dst": graph.dst}
        described = dict(zip(("description", "coefficients"), convolution._description(tensors), strict=True))
        forward = dict(zip(("in_order", "in_offsets"), graph.incoming(), strict=True))
        backward = dict(zip(("out_order", "out_offsets"), graph.outgoing(), strict=True))
        yield "tfn_conv", name, {**shared, **edges, **forward, **described, "pool": pool}
        rel_pos = {"rel_pos": graph.edata["rel_pos"]}
        wanted = {"with_weights": True, "with_positions": True}
        arguments = {"grads": gradients, **shared, **edges, **backward, **rel_pos, **described, "pool": pool, **wanted}
        yield "tfn_conv_backward", name, arguments
        if fiber_edge:
            continue
        names = ("nodes", "hidden", "weights", "wigner", "dst", "out_order", "out_offsets", "description", "coefficients", "pool")
        by_source = tfn_conv_by_source.NativeConvolutionBySource(plan, graph, wigner, pool)._arguments(tensors)
        arguments = dict(zip(names, by_source, strict=True))
        yield "tfn_conv_by_source", name, arguments
        yield "tfn_conv_by_source_backward", name, {"gradients": gradients, **arguments, **wanted}


FREE = {
    "wigner_blocks": ("direction with", "direction in torch.float64"),
    "radial": ("invariants with", "parameters with"),
    "edge_attention": ("messages [1] with",),
    "equivariant_norm": ("features [0] with", "features [1] with", "features reversed"),
    "attention_block": tuple(
        f"{name} with" for name in ("output_weights [0]", "output_weights [1]", "output_weights [2]", "output_parts")
    ),
    "linear": ("parts [2] with", "weights [0] with", "weights [1] with"),
    **{
        f"depthwise_conv{which}": tuple(f"operands [3] with {knots} instead of 5" for knots in (4, 6, 15, 1000))
        for which in ("", "_backward", "_along")
    },
}
"""Changes that may be good: a size that nothing else has (edges, profiles, components, knots), another dtype of the only values."""


def bad_calls() -> Iterator[Call]:
    """All calls but the good ones."""
    for operation, case, arguments in good_calls():
        for name, value in arguments.items():
            for change, changed, is_bad in changes(value):
                is_free = f"{name} {change}".startswith(FREE.get(operation, ("-",)))
                yield Call(operation, f"{case}: {name} {change}", arguments | {name: changed}, is_bad and not is_free)


def changes(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """(what is changed, the changed value, whether it is bad for certain)."""
    if isinstance(value, Tensor):
        yield from tensor_changes(value)
    elif isinstance(value, list) and value and isinstance(value[0], int):
        yield from integer_list_changes(value)
    elif isinstance(value, list) and value and isinstance(value[0], float):
        yield from float_list_changes(value)
    elif isinstance(value, list):
        yield from tensor_list_changes(value)
    elif isinstance(value, bool):
        yield "turned round", not value, False
    elif isinstance(value, int):
        for number in (-HUGE, -1, 0, value - 1, value + 1, 1000, 2**31, HUGE):
            yield f"= {number}", number, number < 0 or number >= 1000
    else:
        for number in (-1.0, float("nan"), float("inf")):
            yield f"= {number}", number, not number >= 0


def tensor_list_changes(tensors: list[Tensor]) -> Iterator[tuple[str, Any, bool]]:
    example = tensors[0] if tensors else torch.zeros(NUM_EDGES, 2, 3, dtype=torch.float64)
    yield "with one more", [*tensors, example], True
    yield "with an empty one more", [*tensors, example.new_empty(0)], True
    if not tensors:
        return
    yield "with one less", tensors[:-1], True
    yield "without any", [], True
    yield "reversed", tensors[::-1], len({tensor.shape for tensor in tensors}) > 1
    for index, tensor in enumerate(tensors):
        for change, changed, is_bad in tensor_changes(tensor):
            yield f"[{index}] {change}", [*tensors[:index], changed, *tensors[index + 1 :]], is_bad


def tensor_changes(tensor: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    shape = list(tensor.shape)
    for axis, size in enumerate(shape):
        for other in {0, size - 1, size + 1, 3 * size, 2**40 if 0 in [*shape[:axis], *shape[axis + 1 :]] else 1000} - {size}:
            yield f"with {other} instead of {size} at axis {axis}", _resized(tensor, axis, other), True
    yield "with one more axis", tensor[None], True
    yield "with one axis at the end", tensor[..., None], True
    yield "without axes", tensor.flatten()[0] if tensor.numel() else tensor.new_zeros(()), True
    yield "of size 0", tensor.new_empty(0), True
    yield "of huge empty shape", tensor.new_empty([0, *([2**20] * (len(shape) - 1))]), True
    if len(shape) > 1:
        yield "flat", tensor.flatten(), True
    for dtype in DTYPES:
        if dtype != tensor.dtype:
            yield f"in {dtype}", tensor.to(dtype), True
    if tensor.numel() > 1:
        yield from layout_changes(tensor)
    if tensor.dtype == torch.int64:
        yield from index_changes(tensor)
    elif tensor.numel():
        for number in (float("nan"), float("inf"), -float("inf"), 1e30):
            yield f"with {number}", _with(tensor, 0, number), False


def layout_changes(tensor: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    shape = tensor.shape
    yield "strided", torch.stack([tensor, tensor], -1)[..., 0], True
    yield "expanded", tensor.flatten()[0].expand(shape), True
    yield "without memory", _without_memory(tensor), True
    if len(shape) > 1 and shape[-1] > 1 and shape[-2] > 1:
        yield "transposed in memory", tensor.transpose(-1, -2).contiguous().transpose(-1, -2), True


def index_changes(tensor: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    for place in (0, len(tensor) // 2, len(tensor) - 1):
        for number in (-(2**63), -1, NUM_EDGES + 1, 1000, 2**32, HUGE, 2**63 - 1):
            yield f"with {number} at place {place}", _with(tensor, place, number), True
    yield "all 0", torch.zeros_like(tensor), False
    yield "all the same", torch.full_like(tensor, int(tensor.max())), False
    yield "reversed", tensor.flip(0), False
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        yield f"shuffled, {number}", tensor[torch.randperm(len(tensor), generator=generator)], False
        yield f"drawn, {number}", torch.randint(int(tensor.max()) + 1, tensor.shape, generator=generator), False


def integer_list_changes(integers: list[int]) -> Iterator[tuple[str, list[int], bool]]:
    for place, integer in enumerate(integers):
        for number in {-1, 0, integer + 1, 7, 2**31, HUGE} - {integer}:
            changed = [*integers[:place], number, *integers[place + 1 :]]
            yield f"with {number} instead of {integer} at place {place}", changed, number < 0 or number >= 1000
        yield f"up to place {place}", integers[:place], True
    yield "with one more", [*integers, 0], True
    yield "with many more", [*integers, *([1] * 1000)], True
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        drawn = torch.randint(-1, 10, (len(integers),), generator=generator).tolist()
        yield f"drawn, {number}", drawn, False


def float_list_changes(floats: list[float]) -> Iterator[tuple[str, list[float], bool]]:
    for change, changed in (("with one less", floats[:-1]), ("without any", []), ("with one more", [*floats, 0.5])):
        yield change, changed, True
    yield "with many more", [*floats, *([0.5] * 1000)], True
    for number in (float("nan"), float("inf"), 1e300):
        yield f"with {number}", [number, *floats[1:]], False


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    shape = [*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]]
    return torch.zeros(shape, dtype=tensor.dtype)


def _with(tensor: Tensor, place: int, number: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[place] = number
    return changed


def _without_memory(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.untyped_storage().resize_(tensor.element_size())
    return changed


def run(call: Call, operation: Callable[..., Any]) -> str:
    """Nothing where the call succeeds, else the type of its error and the message."""
    try:
        operation(**call.arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def good_results() -> list[Tensor]:
    """What all good calls return."""
    results = []
    for operation, _, arguments in good_calls():
        found = getattr(torch.ops.se3_fast_cpp, operation)(**arguments)
        results += [found] if isinstance(found, Tensor) else found
    return results


def main(path: str) -> None:
    """Make all calls; a line for each in the file: before it what is to be called, after it what came."""
    assert library.is_available()
    before = good_results()
    with Path(path).open("w", encoding="utf-8") as file:
        for call in bad_calls():
            file.write(json.dumps([call.operation, call.change, call.is_bad, list(call.arguments)]))
            file.flush()
            outcome = run(call, getattr(torch.ops.se3_fast_cpp, call.operation))
            file.write("\t" + json.dumps(outcome) + "\n")
    assert all(map(torch.equal, before, good_results())), "the bad calls have changed what good ones return"


if __name__ == "__main__":
    main(sys.argv[1])
