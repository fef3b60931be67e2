"""Which atoms are near each other, in molecules and in periodic cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import DTYPES
from se3_fast.autograd.modes import is_readable

Periodicity = bool | Sequence[bool] | Tensor

_MOST_PARTS = 50_000
"""Of space; the library has 100,000 at most."""

_SAME_PLACE = 1e-6


class Neighbours(NamedTuple):
    """Pairs of nodes, ordered by source, then by destination, then by shift.

    Attributes:
        src: [E] int64.
        dst: [E] int64.
        shift: [E, 3] int64: the destination is the image of its node that lies so many lattice vectors away.
    """

    src: Tensor
    dst: Tensor
    shift: Tensor


def neighbour_list(pos: Tensor, cutoff: float, cell: Tensor | None = None, pbc: Periodicity = True) -> Neighbours:
    """All ordered pairs of nodes at most ``cutoff`` apart, in time and memory proportional to their number.

    Args:
        pos: [N, 3] positions; of any device, they are read on the CPU.
        cutoff: largest distance, in the unit of ``pos``.
        cell: [3, 3], a lattice vector in each row; None: not periodic. A cell may be smaller than the cutoff: a node then has
            several images of another, and of itself, as neighbours.
        pbc: in the direction of which lattice vectors it is periodic: all or none, or one for each. A vector of another direction
            may be zero.

    Raises:
        ValueError: if the cutoff is not positive, a position not finite, or the cell without volume.
    """
    _check_search(pos, cutoff)
    if len(pos) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=pos.device)
        return Neighbours(nothing, nothing, nothing.new_zeros(0, 3))
    (*pairs, distances), cells = _search(pos, cutoff, cell, pbc, "ijSd")
    is_near = torch.from_numpy(distances <= cutoff)
    src, dst, shift = (torch.from_numpy(part.astype(np.int64))[is_near] for part in pairs)
    found = Neighbours(src, dst, shift + cells[src] - cells[dst])
    order = _order(found, len(pos))
    return Neighbours(*(part[order].to(pos.device) for part in found))


def neighbour_distances(pos: Tensor, cutoff: float, cell: Tensor | None = None, pbc: Periodicity = True) -> np.ndarray:
    """Distances of the pairs of :func:`neighbour_list`, [E] float64, in no order: to count them takes a part of its time.

    Raises:
        ValueError: as :func:`neighbour_list`.
    """
    _check_search(pos, cutoff)
    if len(pos) == 0:
        return np.zeros(0)
    (distances,), _ = _search(pos, cutoff, cell, pbc, "d")
    return distances[distances <= cutoff]


def _check_search(pos: Tensor, cutoff: float) -> None:
    check_positions(pos)
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff: expected a positive length, got {cutoff}")


def _search(
    pos: Tensor, cutoff: float, cell: Tensor | None, pbc: Periodicity, quantities: str
) -> tuple[Sequence[np.ndarray], Tensor]:
    """What the library finds of pairs of nodes, with some that are further apart than the cutoff.

    It divides the space that nodes span, however empty, and ends the process by a division by zero where that is long or flat. So
    the nodes that it gets are in the cell of the first one, and not far apart, and the search reaches as far as it takes.

    Returns:
        The quantities of these nodes; and the cells, [N, 3] int64, that the nodes themselves lie in.
    """
    # Not at the top: only who searches for neighbours needs its library.
    from vesin import NeighborList

    box, periodic = _box(cell, pbc)
    points = pos.detach().cpu().double().numpy()
    cells = np.zeros(points.shape)
    cells[:, periodic] = np.rint((points - points[0]) @ np.linalg.pinv(box[periodic]))
    directions = box[~periodic] if periodic.any() else np.eye(3)
    gathered = _without_gaps(points - cells @ box, directions, cutoff)
    of_cell = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)[periodic] if periodic.any() else np.zeros(0)
    reach = _reach(np.concatenate([of_cell, np.ptp(gathered @ directions.T, axis=0)]), cutoff)
    # It takes distances below its cutoff; those that equal ours are taken too. One thread: the same order every time.
    search = NeighborList(cutoff=reach * (1 + 1e-9), full_list=True, n_threads=1)
    return search.compute(gathered, box, periodic, quantities), torch.from_numpy(cells.astype(np.int64))


def _reach(heights: np.ndarray, cutoff: float) -> float:
    """How far to search: the cutoff, or farther where space of some heights [3] would have too many parts for the library.

    It makes them fewer in all directions alike, down to none in one that has a single part.
    """
    reach = float(cutoff)
    while True:
        parts = np.floor(heights / reach).clip(min=1)
        if parts.min() >= np.cbrt(parts.prod() / _MOST_PARTS):
            return reach
        reach *= 1.1


def _without_gaps(points: np.ndarray, directions: np.ndarray, cutoff: float) -> np.ndarray:
    """Points [N, 3] with at most four cutoffs of empty space along orthonormal directions [k, 3]: wider gaps become two."""
    for direction in directions:
        heights = points @ direction
        order = heights.argsort()
        gaps = np.diff(heights[order], prepend=heights[order[0]])
        excess = np.where(gaps > 4 * cutoff, gaps - 2 * cutoff, 0.0)
        if excess.any():
            moves = np.empty(len(points))
            moves[order] = excess.cumsum()
            points = points - moves[:, None] * direction
    return points


def _box(cell: Tensor | None, pbc: Periodicity) -> tuple[np.ndarray, np.ndarray]:
    """Lattice vectors and periodic directions; vectors of other directions are made to span space with them."""
    if cell is None:
        return np.zeros((3, 3)), np.zeros(3, dtype=bool)
    _check_is_tensor("cell", cell)
    if cell.shape != (3, 3):
        raise ValueError(f"cell: expected shape [3, 3], got {list(cell.shape)}")
    vectors = cell.detach().cpu().double().numpy().copy()
    of_directions = _directions(pbc)
    if of_directions.shape not in ((), (3,)):
        raise ValueError(f"pbc: expected one for all directions or three, got shape {list(of_directions.shape)}")
    periodic = of_directions.cpu().expand(3).bool().numpy()
    if not np.isfinite(vectors).all():
        raise ValueError(f"cell: expected finite lattice vectors, got {vectors.tolist()}")
    if not periodic.any():
        return np.zeros((3, 3)), periodic
    if not periodic.all():
        # The rest of an orthonormal basis whose first vectors span the periodic directions.
        basis = np.linalg.svd(vectors[periodic])[2]
        vectors[~periodic] = basis[periodic.sum() :]
    lengths = np.linalg.norm(vectors, axis=1)
    if not abs(np.linalg.det(vectors)) > 1e-6 * lengths.prod():
        raise ValueError(f"cell: expected lattice vectors that span a volume, got {vectors.tolist()}")
    return vectors, periodic


def _order(found: Neighbours, num_nodes: int) -> Tensor:
    """The pairs in the order of :class:`Neighbours`, [E] int64."""
    if not len(found.src):
        return found.src
    least, most = found.shift.aminmax(dim=0)
    spans = (most - least + 1).tolist()
    if num_nodes**2 * math.prod(spans) >= 2**63:  # nodes that are very many cells away from each other
        keys = (*found.shift.T.flip(0), found.dst, found.src)
        return torch.from_numpy(np.lexsort([key.numpy() for key in keys]))
    rank = found.src * num_nodes + found.dst
    for shift, first, span in zip(found.shift.T, least, spans, strict=True):
        rank = rank * span + (shift - first)
    return rank.argsort()


class Translated(NamedTuple):
    """The edges of a batch of graphs.

    Attributes:
        src: [E] int64, counted over the batch.
        dst: [E] int64.
        offset: [E, 3], the lattice translation of the destination, differentiable in the cell; None where nothing is periodic.
        counts: edges of each graph.
    """

    src: Tensor
    dst: Tensor
    offset: Tensor | None
    counts: list[int]


def neighbours_of_batch(
    pos: Tensor, sizes: Tensor, cutoff: float, cell: Tensor | None = None, pbc: Periodicity = True
) -> Translated:
    """The neighbours of :func:`neighbour_list` for each graph of a batch.

    Args:
        pos: [N, 3].
        sizes: [B], nodes of each graph.
        cutoff: largest distance.
        cell: [3, 3], or one for each graph, [B, 3, 3].
        pbc: for all, [3], or [B, 3].

    Raises:
        ValueError: as :func:`neighbour_list`, or if a shape does not fit the others.
    """
    cells = _of_each("cell", cell, (3, 3), len(sizes))
    periodic = _directions(pbc)
    periodic = periodic.expand(3) if periodic.ndim == 0 else periodic
    of_each = _of_each("pbc", periodic, (3,), len(sizes))
    found, start = [], 0
    for number, size in enumerate(sizes.tolist()):
        block = pos[start : start + size].detach()
        box = None if cells is None or of_each is None else (cells[number], of_each[number])
        src, dst, shift = _neighbours(block, cutoff, box)
        found.append((src + start, dst + start, shift))
        start += size
    none = (sizes.new_zeros(0), sizes.new_zeros(0), sizes.new_zeros(0, 3))
    src, dst, shift = (torch.cat(parts) for parts in zip(none, *found, strict=True))
    counts = [len(part[0]) for part in found]
    if cells is None:
        return Translated(src, dst, None, counts)
    of_edge = cells.to(pos).repeat_interleave(torch.tensor(counts, dtype=torch.int64, device=pos.device), 0)  # [E, 3, 3]
    return Translated(src, dst, (shift.to(pos)[:, None] @ of_edge).squeeze(1), counts)


def _directions(pbc: Periodicity) -> Tensor:
    try:
        return torch.as_tensor(pbc)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"pbc: expected one for all directions or three, got {pbc!r}") from None


def check_positions(pos: Tensor) -> None:
    """Raise a ValueError for anything but finite positions, [N, 3]."""
    if not isinstance(pos, Tensor) or pos.ndim != 2 or pos.shape[1] != 3 or pos.dtype not in DTYPES:
        came = f"{list(pos.shape)}, {pos.dtype}" if isinstance(pos, Tensor) else f"an object of type {type(pos).__name__}"
        raise ValueError(f"pos: expected a floating-point tensor of shape [N, 3], got {came}")
    if is_readable(pos) and not pos.isfinite().all():
        node = int((~pos.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"pos: expected finite positions, got {pos[node].tolist()} at node {node}")


def check_places(name: str, pos: Tensor, edges: tuple[Tensor, Tensor], lengths: Tensor) -> None:
    """Raise a ValueError where two atoms lie on one place.

    Args:
        name: of the positions, for the message.
        pos: [N, 3], Angstrom.
        edges: sources and destinations, each [E].
        lengths: [E], Angstrom; or the largest of the components of each edge.
    """
    if len(lengths) and float(lengths.min()) < _SAME_PLACE:
        src, dst = (int(ends[lengths.argmin()]) for ends in edges)
        place = [round(x, 6) for x in pos[src].tolist()]
        raise ValueError(f"{name}: expected atoms at different places, got atoms {src} and {dst} at {place}")


def _check_is_tensor(name: str, values: object) -> None:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: expected a tensor, got an object of type {type(values).__name__}")


def _neighbours(block: Tensor, cutoff: float, box: tuple[Tensor, Tensor] | None) -> Neighbours:
    """Of one graph. On other devices than the CPU molecules stay there: all distances are made."""
    if box is not None:
        return neighbour_list(block, cutoff, *box)
    if block.device.type == "cpu" and is_readable(block):
        return neighbour_list(block, cutoff)
    wide = block if block.dtype == torch.float64 else block.float()
    distances = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    src, dst = ((distances <= cutoff) & ~torch.eye(len(block), dtype=torch.bool, device=block.device)).nonzero(as_tuple=True)
    return Neighbours(src, dst, src.new_zeros(len(src), 3))


def _of_each(name: str, values: Tensor | None, shape: tuple[int, ...], count: int) -> Tensor | None:
    """[B, ...] from values for all graphs or for each."""
    if values is None:
        return None
    _check_is_tensor(name, values)
    if tuple(values.shape) not in (shape, (count, *shape)):
        raise ValueError(f"{name}: expected shape {list(shape)} or {[count, *shape]}, got {list(values.shape)}")
    return values.expand(count, *shape)
