"""Batches of frames with the edges between their atoms, which are found once where they fit into memory, else with every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from se3_fast.data.frames import CHUNK, ForceFrames, FrameError, FrameSource, chunks_of
from se3_fast.data.molecules import first_of_each, ragged_indices
from se3_fast.forces import LARGEST_ATOMIC_NUMBER
from se3_fast.neighbours import neighbour_distances, neighbours_of_batch

_SAME_PLACE = 1e-6
_FRAMES_TO_ESTIMATE = 256
_FRAMES_TOGETHER = 64
"""Frames whose edges are found together where those of many are: a frame may have a hundred thousand."""

_BYTES_OF_EDGE, _BYTES_OF_OFFSET = 16, 12
_KINDS = LARGEST_ATOMIC_NUMBER + 1


@dataclass(frozen=True)
class FrameBatch:
    """Some frames, and the edges between their atoms.

    Attributes:
        frames: The frames.
        src: [E] int64, counted over all atoms.
        dst: [E] int64.
        counts: [M] int64, edges of each frame.
        offset: [E, 3], the lattice translation of the destination; None: no frame is periodic.
    """

    frames: ForceFrames
    src: Tensor
    dst: Tensor
    counts: Tensor
    offset: Tensor | None

    @property
    def rel_pos(self) -> Tensor:
        """[E, 3], destination less source."""
        pos = self.frames.pos
        rel_pos = pos.index_select(0, self.dst) - pos.index_select(0, self.src)
        return rel_pos if self.offset is None else rel_pos + self.offset


class _KeptEdges(NamedTuple):
    """The edges of all frames; ends are counted within their frame."""

    src: Tensor
    dst: Tensor
    counts: Tensor
    offset: Tensor | None
    first: Tensor


class FrameDataset(Dataset[FrameBatch]):
    """Frames with the edges that are shorter than a cutoff, found for every batch unless :meth:`keep_edges` was called.

    Args:
        frames: The frames.
        cutoff: Longest edge, in Angstrom.
        name_of: What errors call a frame of a number.

    Attributes:
        frames: The frames.
        name_of: As given.
    """

    def __init__(self, frames: FrameSource, cutoff: float, name_of: Callable[[int], str]) -> None:
        self.frames = frames
        self._cutoff = cutoff
        self.name_of = name_of
        self._kept: _KeptEdges | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, number: int) -> FrameBatch:
        """Return a frame."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int] | Tensor) -> FrameBatch:
        """Return frames in the order of their numbers.

        Raises:
            FrameError: One has two atoms at one place, or a cell without volume.
        """
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        frames = self.frames.select(chosen)
        return self._found(frames, chosen) if self._kept is None else _chosen(self._kept, frames, chosen)

    @property
    def counts(self) -> Tensor | None:
        """[M] int64, edges of each frame, where they are kept."""
        return None if self._kept is None else self._kept.counts

    def bytes_of_edges(self) -> int:
        """What the edges of all frames would take in memory, from those of 256 frames evenly among them."""
        sample = torch.arange(0, len(self), -(-len(self) // _FRAMES_TO_ESTIMATE))
        edges = sum(len(batch.src) for batch in self.batches(sample))
        return len(self) * edges * (_BYTES_OF_EDGE + _BYTES_OF_OFFSET * self.frames.has_cells) // len(sample)

    def batches(self, numbers: Tensor) -> Iterator[FrameBatch]:
        """Some frames, a few at a time."""
        return map(self.__getitems__, numbers.split(_FRAMES_TOGETHER))

    def keep_edges(self) -> None:
        """Find the edges of all frames now.

        Raises:
            FrameError: As for a batch.
        """
        parts = [_ends_within_frames(batch) for batch in self.batches(torch.arange(len(self)))]
        src, dst, counts = (torch.cat(part) for part in list(zip(*parts, strict=True))[:3])
        offset = torch.cat([part[3] for part in parts]) if self.frames.has_cells else None
        self._kept = _KeptEdges(src, dst, counts, offset, first_of_each(counts))

    def _found(self, frames: ForceFrames, numbers: Tensor) -> FrameBatch:
        try:
            found = neighbours_of_batch(frames.pos, frames.n_atoms, self._cutoff, *_periodic(frames))
        except ValueError as error:
            if len(frames) == 1:
                raise FrameError(f"{self.name_of(int(numbers[0]))}: {error}") from None
            for number in range(len(frames)):
                self._found(frames.select([number]), numbers[number : number + 1])
            raise
        batch = FrameBatch(frames, found.src, found.dst, torch.tensor(found.counts, dtype=torch.int64), found.offset)
        lengths = batch.rel_pos.norm(dim=1)
        if len(lengths) and float(lengths.min()) <= _SAME_PLACE:
            frame = int((batch.counts.cumsum(0) <= int(lengths.argmin())).sum())
            raise _two_at_one_place(self.name_of(int(numbers[frame])))
        return batch


class FrameSubset(Dataset[FrameBatch]):
    """Some of the frames of a data set, in an order of their own.

    Args:
        dataset: The data set.
        indices: [m] int64, their numbers in it.

    Attributes:
        dataset: As given.
        indices: As given.
    """

    def __init__(self, dataset: FrameDataset, indices: np.ndarray) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.indices)

    def __getitem__(self, number: int) -> FrameBatch:
        """Return a frame."""
        return self.dataset[int(self.indices[number])]

    def __getitems__(self, numbers: Sequence[int]) -> FrameBatch:
        """Return frames in the order of their numbers in this subset."""
        return self.dataset.__getitems__(torch.from_numpy(self.indices[np.asarray(numbers)]))


def edge_counts(frames: FrameSource, cutoff: float, name_of: Callable[[int], str]) -> Tensor:
    """The edges of each frame, [M] int64, counted chunk by chunk.

    Raises:
        FrameError: As :class:`FrameDataset`.
    """
    firsts = range(0, len(frames), CHUNK)
    return torch.cat([counted_edges(chunk, cutoff, name_of, first) for first, chunk in zip(firsts, chunks_of(frames), strict=True)])


def counted_edges(frames: ForceFrames, cutoff: float, name_of: Callable[[int], str], first: int = 0) -> Tensor:
    """The edges of each frame, [M] int64; `name_of` names them, from the number `first` on.

    Raises:
        FrameError: As :class:`FrameDataset`.
    """
    periodic, counts = _periodic(frames), []
    for number, pos in enumerate(frames.pos.split(frames.n_atoms.tolist())):
        try:
            distances = neighbour_distances(pos, cutoff, *(part[number] for part in periodic))
        except ValueError as error:
            raise FrameError(f"{name_of(first + number)}: {error}") from None
        if len(distances) and distances.min() <= _SAME_PLACE:
            raise _two_at_one_place(name_of(first + number))
        counts.append(len(distances))
    return torch.tensor(counts, dtype=torch.int64)


def _two_at_one_place(frame: str) -> FrameError:
    return FrameError(f"{frame}: expected atoms at different places, got two at one")


def closest_pairs(dataset: FrameDataset, numbers: Tensor) -> dict[str, float]:
    """Shortest distances in some frames, Angstrom, by pairs of atomic numbers (``"1-6"``), within the cutoff."""
    least = torch.full((_KINDS * _KINDS,), torch.inf)
    for batch in dataset.batches(numbers):
        kinds = batch.frames.atomic_numbers
        pairs = kinds[batch.src] * _KINDS + kinds[batch.dst]
        least.scatter_reduce_(0, pairs, batch.rel_pos.norm(dim=1), "amin")
    found = [(*divmod(pair, _KINDS), float(least[pair])) for pair in least.isfinite().nonzero().flatten().tolist()]
    return {f"{first}-{second}": length for first, second, length in found if first <= second}


def _periodic(frames: ForceFrames) -> tuple[Tensor, ...]:
    return () if frames.cells is None or frames.pbc is None else (frames.cells, frames.pbc)


def _ends_within_frames(batch: FrameBatch) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Sources and destinations, edges of each frame, and offsets; nothing that keeps the frames in memory."""
    first_atom = batch.frames.first_atom.repeat_interleave(batch.counts)
    return batch.src - first_atom, batch.dst - first_atom, batch.counts, batch.offset


def _chosen(kept: _KeptEdges, frames: ForceFrames, numbers: Tensor) -> FrameBatch:
    """A batch of kept edges."""
    counts = kept.counts[numbers]
    edges = ragged_indices(kept.first[numbers], counts)
    first_atom = frames.first_atom.repeat_interleave(counts)
    offset = None if kept.offset is None else kept.offset[edges]
    return FrameBatch(frames, kept.src[edges] + first_atom, kept.dst[edges] + first_atom, counts, offset)
