"""The convolution by the CUDA kernels of ``csrc/tfn_conv.cu``: the launches of one convolution.

Rows of aligned features and int64 tables are those of the Triton convolution (:mod:`se3_fast.backends.launch_tables`); what
differs is who launches, and the order of the aligned weights' axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.cuda import library
from se3_fast.backends.launch_tables import contraction_items, group_spans, int64_table, pair_rows, with_places
from se3_fast.backends.operands import Convolution, FrameForm
from se3_fast.backends.protocol import Support
from se3_fast.backends.torch.second_derivatives import Edges, Setting
from se3_fast.backends.triton.tfn_conv import FusedConvolution, in_one_tensor
from se3_fast.backends.triton.tfn_conv_by_edge import Launches, WithGradient
from se3_fast.contraction import ConvolutionPlan, FeatureRows, aligned_weight
from se3_fast.graph import EdgeOrder
from se3_fast.kernels.table_rows import Item, PairRow, Term
from se3_fast.so3 import generators

if TYPE_CHECKING:
    from se3_fast.kernels.frame_rotations import DegreeBlock

FRAMES: FrameForm = "angles"
KEEPS_FRAMES = False

WIDTH = 32  # of h
_SPLITS = 4  # programs that share the pairs of a radial group in the gradient of h

DTYPES = (torch.float16, torch.float32)
"""What the kernels read and write; they sum in float32."""

# As in csrc/tfn_conv.cu: threads of a block, columns of a tile, edges of a block of products, input channels of a block of dW.
_THREADS = 256
_COLUMNS = 32
_EDGES = {torch.float16: 128, torch.float32: 64}
_INPUTS = {torch.float16: 4, torch.float32: 2}
_ROW_MULTIPLE = 8  # the length of a row of aligned features
_ROTATION_EDGES = 32
_ROTATION_BYTES = 48 << 10


_KINDS = ("m0", "odd")  # orders m = 0 and m > 0: the kernels have a launch for each, and read no field that says which
_ITEM_FIELDS, _PAIR_FIELDS = Item._fields.index("has_odd"), PairRow._fields.index("has_odd")


class _ContractionTable(NamedTuple):
    """Items [n, 5] and terms [t, 6] as :func:`contraction_items` has them; most channels."""

    items: Tensor
    terms: Tensor
    channels: int


class _PairTable(NamedTuple):
    """Pairs [p, 9] as :func:`pair_rows` has them, spans [groups * _SPLITS, 2], and the most channels of either side."""

    pairs: Tensor
    spans: Tensor
    channels_in: int
    channels_out: int


@constant
def _contraction_table(plan: ConvolutionPlan, is_transposed: bool, has_odd: bool, device: torch.device) -> _ContractionTable:
    items, terms = with_places(contraction_items(plan, WIDTH, is_transposed, has_odd))
    rows = [item[:_ITEM_FIELDS] for item in items]
    largest = max((item.channels for item in items), default=0)
    return _ContractionTable(int64_table(rows, _ITEM_FIELDS, device), int64_table(terms, Term, device), largest)


@constant
def _pair_table(plan: ConvolutionPlan, has_odd: bool, device: torch.device) -> _PairTable:
    rows = pair_rows(plan, WIDTH, has_odd)
    spans = group_spans(rows, len(plan.groups), _SPLITS)
    pairs = int64_table([row[:_PAIR_FIELDS] for row in rows], _PAIR_FIELDS, device)
    most_in, most_out = (
        max(channels, default=0) for channels in ([row.channels_in for row in rows], [row.channels_out for row in rows])
    )
    return _PairTable(pairs, int64_table(spans, 2, device), most_in, most_out)


def support(is_compiled: bool, dtype: torch.dtype, width: int) -> Support:
    """One radial width, and not float64."""
    if width != WIDTH:
        return Support.no(f"the kernels are made for a radial width of {WIDTH}, not {width}")
    return Support.no("the kernels know no float64") if dtype == torch.float64 else Support()


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`; in float16 or float32: these devices have no bfloat16."""
    given = call.hidden[0].dtype
    dtype = torch.float16 if given == torch.float16 else torch.float32
    make = partial(CudaLaunches, call.plan, call.graph, pool=call.pool, dtype=dtype)
    groups = zip(call.plan.groups, call.weights, strict=True)
    weights = torch.cat([aligned_weight(group, weight).flatten() for group, weight in groups])
    hidden, weights = in_one_tensor(call.hidden).to(dtype)[None], weights.to(dtype)
    features = (tensor.to(dtype) for tensor in (*call.node_features.values(), *call.edge_features.values()))
    setting = Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, dtype)
    convolution = FusedConvolution(setting, make, Edges.of(call.graph))
    messages = convolution.apply(call.geometry.angles.float(), call.geometry.rel_pos, hidden, weights, None, *features)
    return tuple(message.to(given) for message in messages)


class CudaLaunches(Launches):
    """What the :class:`~se3_fast.backends.triton.tfn_conv_by_edge.Launches` do, by the CUDA kernels; features in one of
    :data:`DTYPES`."""

    def empty_rows(self, rows: FeatureRows) -> Tensor:
        """Memory for aligned features, [rows, E rounded up so that rows begin on 16 bytes]."""
        num_edges = self.graph.num_edges()
        return self.empty(rows.count, -(-num_edges // _ROW_MULTIPLE) * _ROW_MULTIPLE)

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]."""
        return self._contract(aligned_features, hidden, self._reordered(weights, (0, 1, 3, 2)), False)

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor, transposed: Tensor | None) -> Tensor:
        """The gradient of x~, [rows, E]; these kernels have their own order of the transposed weights."""
        return self._contract(gradient, hidden, self._reordered(weights, (0, 3, 1, 2)), True)

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor, splits: int
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h, in one part, and of the aligned weights."""
        num_groups, num_edges, width = hidden.shape
        of_hidden = hidden.new_empty(2 * _SPLITS, num_groups, num_edges, width, dtype=torch.float32)
        of_weights = weights.new_empty(len(weights), dtype=torch.float32)
        for number, kind in enumerate(_KINDS):
            table = _pair_table(self.plan, kind == "odd", hidden.device)
            self._launch(
                f"hidden_gradient_{self._element}_{kind}",
                (self._edge_blocks(), num_groups * _SPLITS, 1),
                [
                    *(aligned_features, gradient, weights, of_hidden, table.pairs, table.spans),
                    *(num_edges, _SPLITS, num_groups, number * _SPLITS),
                ],
            )
            blocks_in, blocks_out = -(-table.channels_in // _INPUTS[self.dtype]), -(-table.channels_out // _COLUMNS)
            self._launch(
                f"weight_gradient_{self._element}_{kind}",
                (len(table.pairs), blocks_in, blocks_out),
                [aligned_features, gradient, hidden, of_weights, table.pairs, num_edges],
            )
        return of_hidden.sum(0, keepdim=True).to(self.dtype), of_weights.to(self.dtype)

    def position_gradient(self, rel_pos: Tensor, outputs: WithGradient, inputs: WithGradient) -> Tensor:
        """The gradient of rel_pos through the directions, [E, 3], by the torque identity in the frames (DESIGN 1.2)."""
        torque = self._torque(outputs) - self._torque(inputs)
        turned = torch.stack([-torque[1], torch.zeros_like(torque[0]), torque[0]])  # [3, E]: torque x polar axis
        output = rel_pos.new_empty(len(rel_pos), 1, 3, dtype=torch.float32)
        self._launch_rotation("rotate_float", [turned, self.angles], 1, output, (0, 1))
        largest = rel_pos.abs().amax(-1, keepdim=True)
        has_length = largest > 0
        scaled = rel_pos / torch.where(has_length, largest, 1.0)  # whose square neither overflows nor vanishes
        length = largest * scaled.norm(dim=-1, keepdim=True)
        return (output.squeeze(1) / torch.where(has_length, length, 1.0)).to(rel_pos.dtype)

    def _torque(self, of: WithGradient) -> Tensor:
        """<g, G_a v> about the axes x and z, [2, E] float32."""
        torque = torch.zeros(2, of.values.shape[1], device=of.values.device)
        for degree, channels in of.rows.channels:
            part = slice(of.rows.starts[degree], of.rows.starts[degree] + (2 * degree + 1) * channels)
            left, right = (tensor[part].float().view(2 * degree + 1, channels, -1) for tensor in (of.gradient, of.values))
            overlaps = torch.einsum("ice,jce->eij", left, right)
            torque += torch.einsum("eij,aij->ae", overlaps, generators(degree)[[0, 2]].to(torque))
        return torque

    def _contract(self, inputs: Tensor, hidden: Tensor, weights: Tensor, is_transposed: bool) -> Tensor:
        outputs = self.empty_rows(self.rows_in if is_transposed else self.rows_out)
        for kind in _KINDS:
            table = _contraction_table(self.plan, is_transposed, kind == "odd", hidden.device)
            self._launch(
                f"contract_{self._element}_{kind}",
                (self._edge_blocks(), len(table.items), -(-table.channels // _COLUMNS)),
                [inputs, hidden, weights, outputs, table.items, table.terms, hidden.shape[1], -1.0 if is_transposed else 1.0],
            )
        return outputs

    def _reordered(self, weights: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The aligned weights, in a row, with their axes [.., C_in, K, C_out] in another order."""
        parts, start = [], 0
        for group in self.plan.groups:
            size = group.num_paths * group.channels_in * WIDTH * group.channels_out
            block = weights[start : start + size].view(-1, group.channels_in, WIDTH, group.channels_out)
            parts.append(block.permute(axes).flatten())
            start += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _launch_align(self, blocks: list[DegreeBlock], index: Tensor | None, into: Tensor) -> None:
        for degree, features, row, row_stride in blocks:
            before, channels = [features, index, self.angles], features.shape[1]
            self._launch_rotation(f"align_{self._element}", before, degree, into, (row, row_stride), channels=channels)

    def _launch_rotate(self, values: Tensor, block: DegreeBlock) -> None:
        degree, output, row, row_stride = block
        self._launch_rotation(f"rotate_{self._element}", [values, self.angles], degree, output, (row, row_stride))

    def _launch_rotate_sum(self, blocks: list[DegreeBlock], values: Tensor, edges: EdgeOrder) -> None:
        for degree, output, row, row_stride in blocks:
            before, place = [values, self.angles], (row, row_stride)
            self._launch_rotation(f"rotate_sum_{self._element}", before, degree, output, place, order=edges)

    def _launch_rotation(
        self,
        name: str,
        before: Sequence[Tensor | None],
        degree: int,
        output: Tensor,
        place: tuple[int, int],
        channels: int | None = None,
        order: tuple[Tensor, ...] = (),
    ) -> None:
        """Launch a rotation kernel: its arguments are ``before``, the Wigner table, ``order``, ``output``, sizes and ``place``."""
        channels = output.shape[1] if channels is None else channels
        size = 2 * degree + 1
        per_edge = not order
        edge_bytes = 4 * (size * size + 4 * (degree + 1))
        block_edges = min(_ROTATION_EDGES if per_edge else _ROTATION_EDGES // 2, _ROTATION_BYTES // edge_bytes)
        num_edges = self.graph.num_edges()
        grid = (-(-num_edges // block_edges), 1, 1) if per_edge else (len(output), -(-channels * size // _THREADS), 1)
        table = self.wigner_table(degree)
        sizes = [num_edges, channels, *place, degree, table.shape[-1], block_edges]
        if channels > 0:
            self._launch(name, grid, [*before, table, *order, output, *sizes], block_edges * edge_bytes)

    def _launch(self, name: str, grid: tuple[int, int, int], arguments: list[library.Argument], shared_bytes: int = 0) -> None:
        library.launch(name, grid, _THREADS, shared_bytes, arguments, self.angles.device)

    def _edge_blocks(self) -> int:
        return -(-self.graph.num_edges() // _EDGES[self.dtype])

    @property
    def _element(self) -> str:
        return "half" if self.dtype == torch.float16 else "float"
