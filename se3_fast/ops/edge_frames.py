"""The edges' frames, constants that are made of relative positions. Formula: :mod:`se3_fast.backends.dense.edge_frames`.

Each form is one node of compiled graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype
from se3_fast.autograd.transforms import is_batched, values
from se3_fast.backends.choice import implementation
from se3_fast.backends.dense.edge_frames import edge_directions


def directions(rel_pos: Tensor) -> Tensor:
    """Unit vectors in at least float32, [E, 3] to [E, 3]; (0, 0, 0) for edges of length zero."""
    return edge_directions(_working(rel_pos))


@torch.library.custom_op("se3_fast::wigner_blocks", mutates_args=())
def wigner_blocks(direction: Tensor, max_degree: int) -> Tensor:
    """Wigner D of the frames, all degrees side by side, [E, 3] unit vectors to [E, sum of (2d+1)^2]."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(direction.device.type, enabled=False):
        return implementation("edge_frames", direction.device).wigner_blocks(direction, max_degree)


@wigner_blocks.register_fake
def _(direction: Tensor, max_degree: int) -> Tensor:
    return direction.new_empty(direction.shape[0], sum((2 * degree + 1) ** 2 for degree in range(max_degree + 1)))


@wigner_blocks.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], direction: Tensor, max_degree: int) -> tuple[Tensor, int]:
    batch = direction.movedim(in_dims[0] or 0, 0)  # edges of a batch are as good as others
    return wigner_blocks(batch.flatten(0, 1), max_degree).unflatten(0, batch.shape[:2]), 0


def frame_angles(rel_pos: Tensor) -> Tensor:
    """cos and sin of the two angles of each frame in at least float32, [E, 3] to [4, E]."""
    return _frame_angles(_working(rel_pos))


def edges_without_length(rel_pos: Tensor) -> Tensor:
    """[n] int64, the edges of length zero, which have no frame; to look for them waits for the device.

    Raises:
        ValueError: if there are any within ``vmap``, where their number may differ from entry to entry.
    """
    if not is_batched(rel_pos):
        return (rel_pos.detach() == 0).all(-1).nonzero().squeeze(-1)
    if (values(rel_pos) == 0).all(-1).any():
        raise ValueError(
            "rel_pos: expected no edge of length zero within vmap, got some; backend dense serves them "
            "(with se3_fast.backend('dense'))"
        )
    return torch.empty(0, dtype=torch.int64, device=rel_pos.device)


def _working(rel_pos: Tensor) -> Tensor:
    return rel_pos.detach().to(accumulation_dtype(rel_pos.dtype))


@torch.library.custom_op("se3_fast::frame_angles", mutates_args=())
def _frame_angles(rel_pos: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return implementation("edge_frames", rel_pos.device).frame_angles(rel_pos)


@_frame_angles.register_fake
def _(rel_pos: Tensor) -> Tensor:
    return rel_pos.new_empty(4, rel_pos.shape[0])


@_frame_angles.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], rel_pos: Tensor) -> tuple[Tensor, int]:
    batch = rel_pos.movedim(in_dims[0] or 0, 0)
    return _frame_angles(batch.flatten(0, 1).contiguous()).unflatten(1, batch.shape[:2]), 1
