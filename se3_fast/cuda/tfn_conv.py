"""The convolution by the CUDA kernels of ``csrc/tfn_conv.cu``: the launches of one convolution.

Rows of aligned features and int64 tables are those of the Triton convolution (:mod:`se3_fast.fused.tfn_conv`); what differs is who
launches, and the order of the aligned weights' axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from se3_fast.cuda import library
from se3_fast.fused.tfn_conv import FeatureRows, Launches, pair_tables
from se3_fast.graph import EdgeOrder
from se3_fast.so3 import generators

if TYPE_CHECKING:
    from se3_fast.kernels.tfn_conv import DegreeBlock

WIDTH = 32  # of h

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


class CudaLaunches(Launches):
    """The launches of :class:`~se3_fast.fused.tfn_conv.Launches`, by the CUDA kernels; features in one of :data:`DTYPES`."""

    def empty_rows(self, rows: FeatureRows) -> Tensor:
        """Memory for aligned features, [rows, E rounded up so that rows begin on 16 bytes]."""
        num_edges = self.graph.num_edges()
        return self.empty(rows.count, -(-num_edges // _ROW_MULTIPLE) * _ROW_MULTIPLE)

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]."""
        return self._contract(aligned_features, hidden, self.reordered(weights, WIDTH, (0, 1, 3, 2)), False)

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """The gradient of x~, [rows, E]."""
        return self._contract(gradient, hidden, self.reordered(weights, WIDTH, (0, 3, 1, 2)), True)

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h and of the aligned weights."""
        num_groups, num_edges, width = hidden.shape
        tables = pair_tables(self.plan, width, hidden.device)
        splits = sum(table.splits for table in tables)
        of_hidden = hidden.new_empty(splits, num_groups, num_edges, width, dtype=torch.float32)
        of_weights = weights.new_empty(len(weights), dtype=torch.float32)
        first_split = 0
        for table in tables:
            kind = "odd" if table.has_odd else "m0"
            self._launch(
                f"hidden_gradient_{self._element}_{kind}",
                (self._edge_blocks(), num_groups * table.splits, 1),
                [
                    *(aligned_features, gradient, weights, of_hidden, table.pairs, table.spans),
                    *(num_edges, table.splits, num_groups, first_split),
                ],
            )
            first_split += table.splits
            blocks_in, blocks_out = -(-table.channels_in // _INPUTS[self.dtype]), -(-table.channels_out // _COLUMNS)
            self._launch(
                f"weight_gradient_{self._element}_{kind}",
                (len(table.pairs), blocks_in, blocks_out),
                [aligned_features, gradient, hidden, of_weights, table.pairs, num_edges],
            )
        return of_hidden.sum(0).to(self.dtype), of_weights.to(self.dtype)

    def position_gradient(
        self,
        rel_pos: Tensor,
        gradient: Tensor,
        messages: Tensor,
        input_gradient: Tensor,
        inputs: Tensor,
        input_rows: FeatureRows | None = None,
    ) -> Tensor:
        """The gradient of rel_pos through the directions, [E, 3], by the torque identity in the frames (DESIGN 1.2)."""
        torque = self._torque(self.rows_out, gradient, messages)
        torque = torque - self._torque(input_rows or self.rows_in, input_gradient, inputs)
        turned = torch.stack([-torque[1], torch.zeros_like(torque[0]), torque[0]])  # [3, E]: torque x polar axis
        output = rel_pos.new_empty(len(rel_pos), 1, 3, dtype=torch.float32)
        self._launch_rotation("rotate_float", [turned, self.angles], 1, output, (0, 1), per_edge=True)
        largest = rel_pos.abs().amax(-1, keepdim=True)
        has_length = largest > 0
        scaled = rel_pos / torch.where(has_length, largest, 1.0)  # whose square neither overflows nor vanishes
        length = largest * scaled.norm(dim=-1, keepdim=True)
        return (output.squeeze(1) / torch.where(has_length, length, 1.0)).to(rel_pos.dtype)

    def _torque(self, rows: FeatureRows, gradient: Tensor, values: Tensor) -> Tensor:
        """<g, G_a v> about the axes x and z, [2, E] float32."""
        torque = torch.zeros(2, values.shape[1], device=values.device)
        for degree, channels in rows.channels:
            part = slice(rows.starts[degree], rows.starts[degree] + (2 * degree + 1) * channels)
            left, right = (tensor[part].float().view(2 * degree + 1, channels, -1) for tensor in (gradient, values))
            overlaps = torch.einsum("ice,jce->eij", left, right)
            torque += torch.einsum("eij,aij->ae", overlaps, generators(degree)[[0, 2]].to(torque))
        return torque

    def _contract(self, inputs: Tensor, hidden: Tensor, weights: Tensor, is_transposed: bool) -> Tensor:
        outputs = self.empty_rows(self.rows_in if is_transposed else self.rows_out)
        for table in self._contraction(hidden, is_transposed):
            self._launch(
                f"contract_{self._element}_{'odd' if table.has_odd else 'm0'}",
                (self._edge_blocks(), len(table.items), -(-table.channels // _COLUMNS)),
                [inputs, hidden, weights, outputs, table.items, table.terms, hidden.shape[1], -1.0 if is_transposed else 1.0],
            )
        return outputs

    def _launch_align(self, blocks: list[DegreeBlock], index: Tensor | None, into: Tensor) -> None:
        for degree, features, _, row, row_stride in blocks:
            before, channels = [features, index, self.angles], features.shape[1]
            self._launch_rotation(
                f"align_{self._element}", before, degree, into, (row, row_stride), per_edge=True, channels=channels
            )

    def _launch_rotate(self, values: Tensor, output: Tensor, degree: int, place: tuple[int, int]) -> None:
        self._launch_rotation(f"rotate_{self._element}", [values, self.angles], degree, output, place, per_edge=True)

    def _launch_rotate_sum(self, blocks: list[DegreeBlock], values: Tensor, edges: EdgeOrder) -> None:
        for degree, output, _, row, row_stride in blocks:
            before, place = [values, self.angles], (row, row_stride)
            self._launch_rotation(f"rotate_sum_{self._element}", before, degree, output, place, per_edge=False, order=edges)

    def _launch_rotation(
        self,
        name: str,
        before: Sequence[Tensor | None],
        degree: int,
        output: Tensor,
        place: tuple[int, int],
        per_edge: bool,
        channels: int | None = None,
        order: tuple[Tensor, ...] = (),
    ) -> None:
        """Launch a rotation kernel: its arguments are ``before``, the Wigner table, ``order``, ``output``, sizes and ``place``."""
        channels = output.shape[1] if channels is None else channels
        size = 2 * degree + 1
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
