"""The depthwise convolution by Triton kernels (``kernels/depthwise_conv.py``): first and second derivatives by hand.

What the knots count for each edge is made by PyTorch, [E, K]; the radial weights, which are larger than all else, on chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from se3_fast.autograd.along import FormulaAlong
from se3_fast.autograd.compute_dtype import accumulation_dtype, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.dense.depthwise_conv import knot_shares, of_shares
from se3_fast.backends.protocol import Support
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph
from se3_fast.kernels import depthwise_conv as kernels
from se3_fast.kernels.depthwise_conv import Couplings, Ends, Rows

_NUM_OF_ROWS = 3
_MOST_TERMS = 400
"""Every term is an instruction of its own in the kernels: degrees up to 2."""
_MOST_KNOTS = 64
"""The kernels hold all of them at once: twice as many would not fit into the registers."""


def support(is_compiled: bool, num_terms: int, num_knots: int) -> Support:
    """Not in compiled graphs, which the formula serves as well, and not for large degrees, without knots or with many."""
    if is_compiled:
        return Support.no("compiled graphs take the formula")
    if num_terms > _MOST_TERMS:
        return Support.no(f"the kernels are unrolled, for at most {_MOST_TERMS} coefficients")
    return Support() if 1 <= num_knots <= _MOST_KNOTS else Support.no(f"the kernels hold 1 to {_MOST_KNOTS} knots at once")


def depthwise_conv(plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """See :func:`se3_fast.ops.depthwise_conv.depthwise_conv`."""
    dtype = accumulation_dtype(features.dtype)
    operands = (features.to(dtype), harmonics.to(dtype), knot_shares(places.to(dtype), len(table)), table.to(dtype))
    (sums,) = TritonDepthwise(plan, graph).apply(*(operand.contiguous() for operand in operands))
    return sums.to(features.dtype)


@dataclass(frozen=True, eq=False)
class TritonDepthwise(Operation):
    """The convolution, from what the knots count for each edge; keeps its operands only.

    Operands: features [N, components, C], harmonics [E, .], shares [E, K], table [K, P C]. Result: [N, components, C].
    """

    plan: DepthwisePlan
    graph: Graph

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.graph.src, self.graph.dst

    @property
    def _by_destination(self) -> Ends:
        return Ends(*self.graph.incoming(), self.graph.src)

    @property
    def _by_source(self) -> Ends:
        return Ends(*self.graph.outgoing(), self.graph.dst)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The sums."""
        *rows, table = operands
        return [kernels.sums(couplings(self.plan), Rows(*rows), table, self._by_destination)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of all operands that are wanted."""
        *rows, table = operands
        arguments = (couplings(self.plan), gradients[0].contiguous(), Rows(*rows), table)
        of_features = kernels.source_gradient(*arguments, self._by_source) if wanted[0] else None
        of_edges = kernels.edge_gradients(*arguments, self._by_destination, wanted[3]) if any(wanted[1:]) else None
        if of_edges is None:
            return [of_features, None, None, None]
        of_table = None if of_edges.weights is None else operands[2].T @ of_edges.weights
        return [of_features, of_edges.harmonics, of_edges.shares, of_table]

    def along(self, direction: list[Tensor], gradient: Tensor, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """See :mod:`se3_fast.autograd.along`."""
        *rows_of_operands, table = operands
        rows, moving = Rows(*rows_of_operands), Rows(*(part.contiguous() for part in direction))
        arguments = (couplings(self.plan), gradient.contiguous(), rows, table)
        of_edges = kernels.edge_gradients(*arguments, self._by_destination, True, moving)
        assert of_edges.weights is not None and of_edges.weights_along is not None
        return [
            kernels.sums(couplings(self.plan), rows, table, self._by_destination, moving),
            kernels.source_gradient(*arguments, self._by_source, moving),
            of_edges.harmonics,
            of_edges.shares,
            rows.shares.T @ of_edges.weights_along + moving.shares.T @ of_edges.weights,
        ]

    @property
    def formula(self) -> PlainFormula:
        """Its second derivatives by hand too."""
        return FormulaAlong(in_at_least_float32(of_shares, self.plan, self.graph), self.along, _NUM_OF_ROWS)


@cache
def couplings(plan: DepthwisePlan) -> Couplings:
    """The plan as the kernels take it."""
    runs: list[tuple[int, int, int, int]] = []
    pairs: list[tuple[int, int, int]] = []
    terms: list[tuple[int, float]] = []
    for number, component_out, by_component_in in plan.runs():
        first_pair = len(pairs)
        for component_in, of_pair in by_component_in:
            pairs.append((component_in, len(terms), len(terms) + len(of_pair)))
            terms += [(term.harmonic, term.coefficient) for term in of_pair]
        runs.append((number, component_out, first_pair, len(pairs)))
    sizes = (len(plan.paths), plan.components_in, plan.components_out, plan.num_harmonics)
    return Couplings(tuple(runs), tuple(pairs), tuple(terms), *sizes)
