"""Which order of contraction is cheaper, by edge or by source node (DESIGN 1.3), on a GPU; on a CPU: ``order_on_cpu.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch

from se3_fast.contraction.aligned import FeatureRows, input_rows, output_rows, pairs_of
from se3_fast.contraction.plan import ConvolutionPlan
from se3_fast.kernels.cost import Cost

ContractionOrder = Literal["auto", "edge", "source"]
"""What may be asked for: ``auto`` is what is cheaper for the graph at hand."""

SPLITS = 7
"""Most programs that share the pairs of a radial group in the gradient of h, so that few edges still fill a GPU."""

ENOUGH_PROGRAMS = 1024
"""Programs that fill a large GPU: with as many blocks of edges nothing is split, and fewer partial sums go through memory."""

FLOP_PER_BYTE = {torch.float16: 150, torch.bfloat16: 150, torch.float32: 20, torch.float64: 10}
"""Operations of matrix products that take as long as one byte, from an H100's data sheet (989, 67 and 34 TFLOP/s; 3.35 TB/s) and
not measured: half the matrix unit's peak in half precision and that of the ordinary cores otherwise, over the bandwidth."""

TF32_FLOP_PER_BYTE = 75
"""The same where PyTorch is told that TF32 will do for float32."""

VECTOR_FLOP_PER_BYTE = 20
"""The same for all other arithmetic."""


def is_by_source(order: ContractionOrder, plan: ConvolutionPlan, is_cheaper: Callable[[], bool]) -> bool:
    """Whether a convolution is contracted by source node.

    Edge features of degree > 0 belong to edges, so they are contracted by edge, whatever was asked for.

    Args:
        order: what was asked for.
        plan: what is coupled.
        is_cheaper: whether it is cheaper that way on the backend at hand; asked where nothing else decides.
    """
    if plan.edge_channels or order == "edge":
        return False
    return order == "source" or is_cheaper()


def is_less_time_by_source(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype) -> bool:
    """Whether the order by source takes less time on a GPU, in a training step, as if arithmetic and memory took turns.

    Counting multiply-adds alone would take the order by source from 6 edges per node on at 4 degrees
    and 32 channels. But T goes through memory, and a matrix unit does 150 FLOP in the time of a byte: R, which never leaves the
    chip, is cheaper there up to about 35 edges per node in half precision and 17 in float32. At the shapes of ``protein_*`` the
    order changes between 7 and 52 edges per node.
    """
    is_tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return _is_less_time(plan, num_nodes, num_edges, width, dtype, is_tf32)


@lru_cache(maxsize=1024)
def _is_less_time(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype, is_tf32: bool) -> bool:
    flop_per_byte = TF32_FLOP_PER_BYTE if is_tf32 else FLOP_PER_BYTE[dtype]
    by_edge, by_source = (
        sum(
            part.matrix_flop / flop_per_byte + part.vector_flop / VECTOR_FLOP_PER_BYTE + part.bytes
            for part in cost(plan, num_nodes, num_edges, width, dtype, is_by_source)
        )
        for is_by_source in (False, True)
    )
    return by_source < by_edge


def hidden_splits(num_edges: int, num_groups: int) -> int:
    """Programs that share the pairs of a group in the gradient of h; a program has 64 edges or half as many."""
    return min(max(ENOUGH_PROGRAMS * 64 // max(num_edges * num_groups, 1), 1), SPLITS)


def cost(
    plan: ConvolutionPlan,
    num_nodes: int,
    num_edges: int,
    width: int,
    dtype: torch.dtype,
    is_by_source: bool,
    pool: bool = True,
) -> tuple[Cost, Cost]:
    """The work of a convolution, forward and backward (without the gradient with respect to positions).

    Every launch is taken to read each of its inputs once, and nothing to stay in a cache between launches.

    Args:
        plan: what is coupled.
        num_nodes: N.
        num_edges: E.
        width: K.
        dtype: that of the features.
        is_by_source: the contraction order.
        pool: whether the messages are summed over incoming edges.

    Returns:
        The costs of the forward and of the backward pass.
    """
    sizes = _Sizes.of(plan, num_nodes, num_edges, width, dtype, pool)
    return (_forward_by_source(sizes), _backward_by_source(sizes)) if is_by_source else (_forward(sizes), _backward(sizes))


@dataclass(frozen=True)
class _Sizes:
    """What the cost of a convolution depends on; counts of values, but for ``item`` and ``sum_item``, bytes of a value."""

    nodes: int
    edges: int
    width: int
    item: int
    sum_item: int
    hidden: int  # of all groups, per edge
    splits: int  # programs that share a group's pairs in the gradient of h
    rows_in: int
    rows_node: int
    rows_out: int
    written: int  # messages, in all
    weights: int
    radial: tuple[int, int]  # values of R per edge, at m = 0 and at m > 0
    products: tuple[int, int]  # values of T per node, at m = 0 and at m > 0
    product_flop: int  # of T, per node
    frames: int  # values of the input degrees' Wigner blocks, per edge
    turns_in: int  # FLOP of the rotations per edge
    turns_out: int

    @staticmethod
    def of(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype, pool: bool) -> _Sizes:
        radial, products, product_flop = _pair_counts(plan, width)
        rows_in, rows_out = input_rows(plan), output_rows(plan)
        item = torch.empty((), dtype=dtype).element_size()
        return _Sizes(
            nodes=num_nodes,
            edges=num_edges,
            width=width,
            item=item,
            sum_item=max(item, 4),
            hidden=len(plan.groups) * width,
            splits=hidden_splits(num_edges, len(plan.groups)),
            rows_in=rows_in.count,
            rows_node=FeatureRows(plan.node_channels).count,
            rows_out=rows_out.count,
            written=rows_out.count * (num_nodes if pool else num_edges),
            weights=width * sum(radial),
            radial=radial,
            products=products,
            product_flop=product_flop,
            frames=sum((2 * degree + 1) ** 2 for degree, _ in plan.node_channels),
            turns_in=_turn_flop(rows_in),
            turns_out=_turn_flop(rows_out),
        )

    def angles(self, rows: int) -> int:
        """Bytes per edge of a rotation that reads and writes some rows: angles, the number of a node, and the rows."""
        return 4 * self.sum_item + 8 + 2 * rows * self.item


@cache
def _pair_counts(plan: ConvolutionPlan, width: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Values of R per edge and of T per node, at m = 0 and at m > 0, and FLOP of T per node."""
    radial, products, product_flop = [0, 0], [0, 0], 0
    for pair in pairs_of(plan, width):
        parities = 1 if pair.m == 0 else 2
        radial[pair.m > 0] += parities * pair.channels_in * pair.channels_out
        values = parities * (2 * pair.degree_in + 1) * width * pair.channels_out
        products[pair.m > 0] += values
        product_flop += 2 * pair.channels_in * values
    return (radial[0], radial[1]), (products[0], products[1]), product_flop


def _turn_flop(rows: FeatureRows) -> int:
    """The blocks are made where they are used: 4 (d+1) (2d+1)^2, and 2 (2d+1)^2 for each channel."""
    return sum((2 * degree + 1) ** 2 * (4 * (degree + 1) + 2 * channels) for degree, channels in rows.channels)


def _forward(sizes: _Sizes) -> Cost:
    even, odd = sizes.radial
    per_edge = sizes.angles(sizes.rows_in) + sizes.angles(0) + (sizes.rows_in + sizes.hidden + 2 * sizes.rows_out) * sizes.item
    return Cost(
        matrix_flop=sizes.edges * 2 * sizes.width * (even + odd),
        vector_flop=sizes.edges * (2 * even + 4 * odd + sizes.turns_in + sizes.turns_out),
        bytes=sizes.edges * per_edge + (sizes.written + sizes.weights) * sizes.item,
    )


def _backward(sizes: _Sizes) -> Cost:
    even, odd = sizes.radial
    rows = 3 * sizes.rows_out + 4 * sizes.rows_in  # g~ read by all three; x~ by two; dx~ written and read
    partial_sums = 2 * sizes.splits * sizes.hidden * sizes.item
    per_edge = sizes.angles(sizes.rows_out) + sizes.angles(0) + (rows + 3 * sizes.hidden) * sizes.item + partial_sums
    return Cost(
        matrix_flop=3 * sizes.edges * 2 * sizes.width * (even + odd),
        vector_flop=sizes.edges * (4 * even + 10 * odd + sizes.turns_in + sizes.turns_out),
        bytes=sizes.edges * per_edge + sizes.nodes * sizes.rows_node * sizes.item + 3 * sizes.weights * sizes.item,
    )


def _forward_by_source(sizes: _Sizes) -> Cost:
    even, odd = sizes.products
    values = sizes.nodes * (even + odd)
    per_edge = sizes.angles(0) + 8 + (2 * sizes.frames + sizes.hidden + 2 * sizes.rows_out) * sizes.item + sizes.angles(0)
    in_all = sizes.written + sizes.weights + sizes.nodes * sizes.rows_node + 2 * values
    return Cost(
        matrix_flop=sizes.nodes * sizes.product_flop + sizes.edges * 2 * (even + odd),
        vector_flop=sizes.edges * ((2 * even + 4 * odd) // sizes.width + sizes.turns_out),
        bytes=sizes.edges * per_edge + in_all * sizes.item,
    )


def _backward_by_source(sizes: _Sizes) -> Cost:
    even, odd = sizes.products
    values = sizes.nodes * (even + odd)
    rows = 2 * sizes.rows_out + 3 * sizes.frames + 2 * sizes.hidden
    per_edge = sizes.angles(sizes.rows_out) + 8 + rows * sizes.item + sizes.angles(0)
    in_all = 2 * sizes.weights + 2 * sizes.nodes * sizes.rows_node + 5 * values  # T written and read, dT written and read twice
    return Cost(
        matrix_flop=3 * sizes.nodes * sizes.product_flop + 2 * sizes.edges * 2 * (even + odd),
        vector_flop=sizes.edges * (2 * (even + 3 * odd) // sizes.width + sizes.turns_out),
        bytes=sizes.edges * per_edge + in_all * sizes.item + sizes.weights * sizes.sum_item,
    )
