"""How cases are drawn: simple values first, so that hypothesis shrinks to them; sizes bounded by what a case costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from se3_fast.so3 import num_paths
from tests.fuzz.cases import (
    Attention,
    Block,
    Channels,
    Convolution,
    Edges,
    Energies,
    Linear,
    Model,
    Norm,
    Pooling,
    Run,
    largest,
)


@dataclass(frozen=True)
class Limits:
    """What a case may have at most.

    Attributes:
        degree: of any fiber.
        channels: of a degree.
        weights: radial weights of an edge.
        values: radial weights of all edges; fewer edges are drawn where each has many.
        nodes: of one graph.
        edges: of one graph.
        graphs: of a batch.
        layers: of a model.
    """

    degree: int = 6
    channels: int = 40
    weights: int = 10_000
    values: int = 150_000
    nodes: int = 8
    edges: int = 40
    graphs: int = 3
    layers: int = 2


ORDINARY = Limits()
TINY = Limits(degree=2, channels=3, weights=150, values=900, nodes=3, edges=5, graphs=2, layers=1)


def channel_counts(limits: Limits) -> SearchStrategy[int]:
    """Few, or as many as may be."""
    return st.one_of(st.integers(1, min(4, limits.channels)), st.integers(1, limits.channels))


@st.composite
def uniform_fibers(draw: DrawFn, limits: Limits) -> Channels:
    """The degrees 0, 1, ... with the same channels."""
    channels = draw(channel_counts(limits))
    return tuple((degree, channels) for degree in range(draw(st.integers(0, min(limits.degree, 3))) + 1))


@st.composite
def fibers(draw: DrawFn, limits: Limits) -> Channels:
    """Degrees with gaps and different channels, or all degrees with the same."""
    if draw(st.booleans()):
        return draw(uniform_fibers(limits))
    top = min(draw(st.sampled_from([1, 2, 3, 6])), limits.degree)
    degrees = draw(st.sets(st.integers(0, top), min_size=1, max_size=4))
    return tuple((degree, draw(channel_counts(limits))) for degree in sorted(degrees))


@st.composite
def fibers_with_empty_degrees(draw: DrawFn, limits: Limits) -> Channels:
    """As :func:`fibers`, now and then without channels of the last of several degrees."""
    *others, (degree, channels) = draw(fibers(limits))
    is_empty = others and draw(st.integers(0, 9)) == 9
    return (*others, (degree, 0 if is_empty else channels))


def weights(fiber_in: Channels, fiber_out: Channels) -> int:
    """Radial weights of an edge."""
    return sum(c_in * c_out * num_paths(d_in, d_out) for d_in, c_in in fiber_in for d_out, c_out in fiber_out)


def narrowed(fiber_in: Channels, fiber_out: Channels, limits: Limits) -> tuple[Channels, Channels]:
    """The fibers with their largest channels halved until the weights of an edge are few enough."""
    while weights(fiber_in, fiber_out) > limits.weights:
        most = max(channels for fiber in (fiber_in, fiber_out) for _, channels in fiber)
        fiber_in, fiber_out = (tuple((d, c // 2 if c == most else c) for d, c in fiber) for fiber in (fiber_in, fiber_out))
    return fiber_in, fiber_out


@st.composite
def edge_fibers(draw: DrawFn, fiber_in: Channels) -> Channels:
    """Often none; degrees above 0 also such as the input lacks."""
    degrees = draw(st.sets(st.sampled_from([0, 1, *(degree for degree, _ in fiber_in)]), max_size=2))
    return tuple((degree, draw(st.integers(1, 3))) for degree in sorted(degrees))


@st.composite
def edges(draw: DrawFn, limits: Limits, weights_per_edge: int = 1) -> Edges:
    """Batches with empty members, single nodes, no edges."""
    most = max(min(limits.edges, limits.values // max(weights_per_edge, 1)), 1)
    nodes = tuple(draw(st.lists(st.integers(0, limits.nodes), min_size=1, max_size=limits.graphs)))
    nodes = nodes if any(nodes) else (*nodes[:-1], 1)
    return Edges(
        nodes=nodes,
        edges=tuple(draw(st.integers(0, most)) if number else 0 for number in nodes),
        shape=draw(st.sampled_from(["random", "hub", "fan", "loops", "one"])),
        length=draw(st.sampled_from(["ordinary", "zero", "tiny", "huge"])),
        on_axis=draw(st.booleans()),
        layout=draw(st.sampled_from(["contiguous", "strided", "expanded", "int32"])),
    )


@st.composite
def runs(draw: DrawFn) -> Run:
    """Any way of running; second derivatives are for full precision."""
    dtype, is_autocast = draw(st.sampled_from([("float64", False), ("float32", False), ("float32", True), *RARE_DTYPES]))
    modes = ["first", "second", "no_grad", "again", "first", "second", "inference"]
    kinds = ("parameters", "nodes", "edges", "positions")
    chosen = tuple(kind for kind in kinds if draw(st.booleans())) or kinds
    if "parameters" in chosen and draw(st.booleans()):
        chosen = ("some parameters", *chosen[1:])
    return Run(
        dtype=dtype,
        is_autocast=is_autocast,
        order=draw(st.sampled_from(["auto", "edge", "source"])),
        is_chunked=draw(st.booleans()),
        mode=draw(st.sampled_from([mode for mode in modes if mode != "second" or not (is_autocast or dtype == "bfloat16")])),
        gradients_of=chosen,
        is_pruned=draw(st.booleans()),
        loss=draw(st.sampled_from(["weighted", "sum", "partial"])),
        is_strided=draw(st.booleans()),
        is_poisoned=draw(st.booleans()),
        threads=draw(st.sampled_from([1, 1, 1, 2])),
        scale=draw(
            st.sampled_from([1.0, 0.0, 1e-3, *([1e2] if dtype == "float64" else [])])
        ),  # a softmax of large scores is chaotic
        seed=draw(st.integers(0, 2**16)),
    )


RARE_DTYPES = [("bfloat16", False), ("float64", True)]
FUSE_LEVELS = st.sampled_from(["FULL", "PARTIAL", "NONE"])
BASES = st.sampled_from(["geometry", "dict", "fused dict"])


@st.composite
def convolutions(draw: DrawFn, limits: Limits) -> Convolution:
    """ConvSE3."""
    fiber_in, fiber_out = narrowed(draw(fibers_with_empty_degrees(limits)), draw(fibers_with_empty_degrees(limits)), limits)
    return Convolution(
        graph=draw(edges(limits, weights(fiber_in, fiber_out))),
        run=draw(runs()),
        fiber_in=fiber_in,
        fiber_out=fiber_out,
        fiber_edge=draw(edge_fibers(fiber_in)),
        fuse_level=draw(FUSE_LEVELS),
        basis=draw(BASES),
        pool=draw(st.booleans()),
        layer_norm=draw(st.booleans()),
        self_interaction=draw(st.booleans()),
        fused_output=draw(st.booleans()),
        low_memory=draw(st.booleans()),
        sum_over_edge=draw(st.booleans()),
        spare_degrees=draw(st.integers(0, 1 if largest(fiber_in, fiber_out) < 6 else 0)),  # harmonics beyond 12 are unknown to e3nn
    )


@st.composite
def heads_and_divisors(draw: DrawFn, fiber: Channels, mapping: bool = True) -> tuple[Channels, int, int | Channels | None]:
    """A fiber with channels that heads and divisors divide; ``mapping``: there may be a divisor for each degree."""
    heads = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["one", "number", "none", *(["mapping"] if mapping else [])]))
    common = draw(st.integers(2, 3)) if kind == "number" else 1
    by_degree = {degree: draw(st.integers(1, 3)) if kind == "mapping" else common for degree, _ in fiber}
    fitting = tuple(
        (degree, max(channels // (heads * by_degree[degree]), 1) * heads * by_degree[degree]) for degree, channels in fiber
    )
    if kind == "mapping":
        return fitting, heads, tuple(by_degree.items())
    return fitting, heads, None if kind == "none" else common


@st.composite
def blocks(draw: DrawFn, limits: Limits) -> Block:
    """AttentionBlockSE3; input and output share a degree, else there were no keys."""
    fiber_in, fiber_out = narrowed(draw(fibers(limits)), draw(fibers(limits)), limits)
    fiber_out = sharing(fiber_out, fiber_in)
    fiber_out, heads, divisors = draw(heads_and_divisors(fiber_out))
    return Block(
        graph=draw(edges(limits, 2 * weights(fiber_in, fiber_out))),
        run=draw(runs()),
        fiber_in=fiber_in,
        fiber_out=fiber_out,
        fiber_edge=draw(edge_fibers(fiber_in)),
        fuse_level=draw(FUSE_LEVELS),
        basis=draw(BASES),
        heads=heads,
        divisors=divisors,
        layer_norm=draw(st.booleans()),
        low_memory=draw(st.booleans()),
    )


@st.composite
def attentions(draw: DrawFn, limits: Limits) -> Attention:
    """AttentionSE3; the degrees of the keys are among those of the values, as in a block."""
    value, heads, _ = draw(heads_and_divisors(draw(fibers(limits))))
    in_one_tensor = draw(st.booleans())
    if in_one_tensor:
        value = tuple((degree, value[0][1]) for degree, _ in value)
    number = draw(st.integers(1, len(value)))
    return Attention(
        graph=draw(edges(limits)), run=draw(runs()), heads=heads, key_fiber=value[:number], value_fiber=value,
        in_one_tensor=in_one_tensor,
    )  # fmt: skip


@st.composite
def linears(draw: DrawFn, limits: Limits) -> Linear:
    """LinearSE3; the output has some of the input's degrees."""
    fiber_in = draw(fibers(limits))
    kept = draw(st.sets(st.sampled_from([degree for degree, _ in fiber_in]), min_size=1))
    first = draw(st.integers(0, max(min(channels for _, channels in fiber_in) - 1, 0)))
    return Linear(
        graph=draw(edges(limits)),
        run=draw(runs()),
        fiber_in=fiber_in,
        fiber_out=tuple((degree, draw(st.integers(1, limits.channels))) for degree in sorted(kept)),
        first_channels=first,
    )


def norms(limits: Limits) -> SearchStrategy[Norm]:
    """NormSE3."""
    nonlinearity = st.sampled_from(["ReLU", "Softplus"])
    fiber = fibers_with_empty_degrees(limits)
    return st.builds(Norm, graph=edges(limits), run=runs(), fiber=fiber, nonlinearity=nonlinearity)


@st.composite
def poolings(draw: DrawFn, limits: Limits) -> Pooling:
    """GPooling."""
    degree = draw(st.integers(0, limits.degree))
    pool = draw(st.sampled_from(["avg", "max"])) if degree == 0 else "avg"
    return Pooling(
        graph=draw(edges(limits)), run=draw(runs()), degree=degree, channels=draw(st.integers(1, limits.channels)), pool=pool
    )


def layers(limits: Limits) -> SearchStrategy[Any]:
    """Any layer, convolutions and blocks more often."""
    convolution, block = convolutions(limits), blocks(limits)
    return st.one_of(convolution, block, convolution, block, attentions(limits), norms(limits), linears(limits), poolings(limits))


@st.composite
def models(draw: DrawFn, limits: Limits) -> Model:
    """SE3Transformer and SE3TransformerPooled."""
    limits = replace(limits, degree=min(limits.degree, 4), weights=limits.weights // 4)
    properties = draw(st.sampled_from([0, 0, 1, 3]))
    final_layer = draw(st.sampled_from(["conv", "lin", "att"])) if not properties else "conv"
    hidden = draw(uniform_fibers(limits)) if properties else draw(fibers(limits))
    fiber_in = draw(fibers(limits))
    fiber_out = ((0, draw(st.integers(1, limits.channels))),) if properties else draw(fibers(limits))
    fiber_in, hidden = narrowed(fiber_in, hidden, limits)
    hidden, fiber_out = narrowed(hidden, fiber_out, limits)
    fiber_in = sharing(fiber_in, hidden)
    hidden, heads, divisors = draw(heads_and_divisors(hidden, mapping=not properties))
    if final_layer == "lin":
        fiber_out = tuple(entry for entry in fiber_out if entry[0] in dict(hidden)) or hidden[:1]
    if final_layer == "att":
        fiber_out = sharing(fiber_out, hidden)
        of_scalars = dict(divisors).get(0, 1) if isinstance(divisors, tuple) else divisors or 1
        fiber_out = tuple((degree, channels * (of_scalars if degree == 0 else 1)) for degree, channels in fiber_out)
    return_type = draw(st.sampled_from([None, *(degree for degree, _ in fiber_out)])) if not properties else 0
    pools = ["avg", "max"] if return_type == 0 else ["avg"]
    pooling = draw(st.sampled_from(pools if properties else [None, *pools])) if return_type is not None else None
    total = 2 * (weights(fiber_in, hidden) + weights(hidden, hidden)) + weights(hidden, fiber_out)
    return Model(
        graph=draw(edges(limits, total)),
        run=draw(runs()),
        num_layers=draw(st.integers(1, limits.layers)),
        fiber_in=fiber_in,
        fiber_hidden=hidden,
        fiber_out=fiber_out,
        fiber_edge=draw(edge_fibers(fiber_in)),
        heads=heads,
        divisors=divisors,
        return_type=return_type,
        pooling=pooling,
        properties=properties,
        norm=draw(st.booleans()),
        layer_norm=draw(st.booleans()),
        fuse_level=draw(FUSE_LEVELS),
        low_memory=draw(st.booleans()),
        final_layer=final_layer,
        populate_edge=draw(st.sampled_from(["lin", "arcsin", "log", "zero"])),
        sum_over_edge=draw(st.booleans()),
        basis=draw(st.sampled_from([None, "geometry", "dict", "fused dict"])),
        compute_gradients=draw(st.sampled_from([None, True, False])),
    )


@st.composite
def energies(draw: DrawFn, limits: Limits) -> Energies:
    """ForceField; its kernels are for full precision."""
    run = draw(runs())
    return Energies(
        graph=draw(edges(limits)),
        run=run if run.dtype != "bfloat16" else replace(run, dtype="float32"),
        num_layers=draw(st.integers(1, limits.layers)),
        num_degrees=draw(st.integers(1, min(limits.degree, 3) + 1)),
        num_channels=draw(st.integers(1, limits.channels)),
        num_radial=draw(st.integers(1, 8)),
        radial_width=draw(st.integers(1, 2 * limits.channels)),
        num_knots=draw(st.integers(1, 12)),
        repulsion=draw(st.booleans()),
    )


def sharing(fiber: Channels, other: Channels) -> Channels:
    """A fiber with a degree of another one: attention needs keys."""
    if {degree for degree, _ in fiber} & {degree for degree, _ in other}:
        return fiber
    return tuple(sorted((*fiber, (other[0][0], 1))))
