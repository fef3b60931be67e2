"""Frames of molecules with energies and forces: reading them with every fault named, and batches of them for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from se3_fast.data.data_module import DataModule
from se3_fast.data.molecules import DataError, open_arrays, ragged_indices
from se3_fast.forces import LARGEST_ATOMIC_NUMBER
from se3_fast.graph import Graph
from se3_fast.neighbours import neighbours_of_batch

FORCE_SAMPLE_PATH = Path(__file__).with_name("force_sample.npz")
"""The data set that is shipped with the package (made by ``se3_fast.data.make_force_sample``)."""

FORCE_ARRAY_NAMES = ("n_atoms", "z", "pos", "energy_eV", "forces_eV_A")
"""Arrays that a file must hold; ``split`` may be there too."""


@dataclass(frozen=True)
class ForceFrames:
    """M frames (a molecule in a geometry) with N atoms in all, one after the other.

    Attributes:
        n_atoms: [M] int64, atoms of each frame.
        atomic_numbers: [N] int64.
        pos: [N, 3] float32, Angstrom.
        energies: [M] float64, eV.
        forces: [N, 3] float32, eV/Angstrom.
    """

    n_atoms: Tensor
    atomic_numbers: Tensor
    pos: Tensor
    energies: Tensor
    forces: Tensor

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.n_atoms)

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        first_atom = self.n_atoms.cumsum(0) - self.n_atoms
        atoms = ragged_indices(first_atom[chosen], self.n_atoms[chosen])
        return ForceFrames(
            self.n_atoms[chosen], self.atomic_numbers[atoms], self.pos[atoms], self.energies[chosen], self.forces[atoms]
        )


@dataclass(frozen=True)
class FrameBatch:
    """Some frames, and the edges between their atoms.

    Attributes:
        frames: The frames.
        src: [E] int64, counted over all atoms.
        dst: [E] int64.
        counts: [M] int64, edges of each frame.
    """

    frames: ForceFrames
    src: Tensor
    dst: Tensor
    counts: Tensor


class _FrameDataset(Dataset[FrameBatch]):
    """Frames with the edges that are shorter than a cutoff; found once."""

    def __init__(self, frames: ForceFrames, cutoff: float) -> None:
        self.frames = frames
        found = neighbours_of_batch(frames.pos, frames.n_atoms, cutoff)
        self.counts = torch.tensor(found.counts)
        first_atom = (frames.n_atoms.cumsum(0) - frames.n_atoms).repeat_interleave(self.counts)
        self._src, self._dst = found.src - first_atom, found.dst - first_atom  # counted within their frames
        self._first_edge = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> FrameBatch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> FrameBatch:
        frames = self.frames.select(numbers)
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        counts = self.counts[chosen]
        edges = ragged_indices(self._first_edge[chosen], counts)
        first_atom = (frames.n_atoms.cumsum(0) - frames.n_atoms).repeat_interleave(counts)
        return FrameBatch(frames, self._src[edges] + first_atom, self._dst[edges] + first_atom, counts)


def read_force_frames(path: str | os.PathLike[str]) -> tuple[ForceFrames, Tensor | None]:
    """Read a file of frames and check it; nothing in it is unpickled.

    Args:
        path: An ``.npz`` file with ``n_atoms`` [M], ``z`` [N] (atomic numbers), ``pos`` [N, 3] (Angstrom), ``energy_eV`` [M],
            ``forces_eV_A`` [N, 3] and, if the file says what to train on, ``split`` [M] (0: train).

    Returns:
        The frames, and ``split`` [M] int64 or None.

    Raises:
        DataError: The file is missing, damaged, holds pickled objects, or its arrays do not fit together.
    """
    with open_arrays(path, FORCE_ARRAY_NAMES) as file:
        num_frames = file.length("n_atoms")
        file.check(num_frames > 0, "n_atoms must hold one frame at least")
        file.check_shapes(n_atoms=(num_frames,), energy_eV=(num_frames,))
        n_atoms = file.counts("n_atoms", num_frames, at_least=1)
        num_atoms = int(n_atoms.sum())
        file.check_shapes(z=(num_atoms,), pos=(num_atoms, 3), forces_eV_A=(num_atoms, 3))

        atomic_numbers = file.integers("z", (num_atoms,))
        exists = (atomic_numbers >= 1) & (atomic_numbers <= LARGEST_ATOMIC_NUMBER)
        file.check_rows(exists, n_atoms, f"z must hold atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}")
        pos = file.positions("pos", n_atoms)
        forces = file.as_float32("forces_eV_A", file.numbers("forces_eV_A", (num_atoms, 3)), n_atoms)
        energies = file.numbers("energy_eV", (num_frames,))
        file.as_float32("energy_eV", energies, np.ones_like(n_atoms))  # errors of energies are computed in double precision
        split = torch.from_numpy(file.integers("split", (num_frames,))) if "split" in file.names else None
    frames = ForceFrames(
        n_atoms=torch.from_numpy(n_atoms),
        atomic_numbers=torch.from_numpy(atomic_numbers),
        pos=torch.from_numpy(pos),
        energies=torch.from_numpy(energies.astype(np.float64)),
        forces=torch.from_numpy(forces),
    )
    return frames, split


class ForceDataModule(DataModule):
    """Frames for training a force field; a batch is ``(graph, forces [N, 3] in eV/Angstrom, energies [B] in eV)``.

    Frames with ``split`` 0 train, the others validate and test. A file without ``split`` is divided at random (seed 0): four fifths
    train. Of more frames than asked for, a random choice (seed 0) is taken.

    Attributes:
        path: The file.
        train_frames: The training frames.
        num_train: Number of them.
        num_validation: Number of validation frames.
        elements: Atomic numbers that occur.
        average_neighbours: Of an atom of the training frames, within the cutoff; 1 where there are none.
        unit: Unit of forces.
    """

    unit = "eV/Å"

    def __init__(
        self,
        path: str | os.PathLike[str] = FORCE_SAMPLE_PATH,
        batch_size: int = 10,
        num_train: int | None = None,
        num_validation: int | None = None,
        cutoff: float = 5.0,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        """Read the data, and find the neighbours of all atoms.

        Args:
            path: File of :func:`read_force_frames`.
            batch_size: Frames in a batch, on every process.
            num_train: Training frames; None: all that are marked so.
            num_validation: Validation frames; None: half of those that do not train. What is left tests.
            cutoff: Longest edge, in Angstrom.
            num_workers: Processes that assemble batches; 0 assembles them in the training process.
            seed: Seed of the training order; None means 0.

        Raises:
            DataError: The file cannot be used, or has too few frames.
        """
        self.path = Path(path)
        self.cutoff = cutoff
        frames, split = read_force_frames(self.path)
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        everything = _FrameDataset(frames, cutoff)
        parts = self._divide(len(frames), split, num_train, num_validation)
        self.num_train, self.num_validation = len(parts[0]), len(parts[1])
        self.ds_train, self.ds_val, self.ds_test = (Subset(everything, part.tolist()) for part in parts)
        self.train_frames = frames.select(parts[0])
        self.average_neighbours = float(everything.counts[parts[0]].sum()) / len(self.train_frames.pos) or 1.0
        self.elements = frames.atomic_numbers.unique().tolist()
        unseen = sorted(set(self.elements) - set(self.train_frames.atomic_numbers.tolist()))
        if unseen:
            raise DataError(f"{self.path}: the training frames have no atom of the atomic numbers {unseen} that other frames have")

    def _divide(self, count: int, split: Tensor | None, num_train: int | None, num_validation: int | None) -> tuple[Tensor, ...]:
        """Numbers of the frames that train, validate and test."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        trains = (torch.arange(count) < count * 4 // 5) if split is None else (split[order] == 0)
        training, others = order[trains], order[~trains]
        if num_train is None:
            num_train = len(training)
        if num_validation is None:
            num_validation = len(others) // 2
        if not 1 <= num_train <= len(training):
            raise DataError(f"{self.path}: expected 1 to {len(training)} training frames, got {num_train}")
        if not 1 <= num_validation < len(others):
            raise DataError(
                f"{self.path}: expected from 1 to fewer than the {len(others)} frames that do not train to validate, "
                f"got {num_validation}"
            )
        return training[:num_train], others[:num_validation], others[num_validation:]

    def _collate(self, samples: FrameBatch) -> tuple[Graph, Tensor, Tensor]:
        """Make a batch of what the data set gives for a list of numbers."""
        frames, pos = samples.frames, samples.frames.pos
        rel_pos = pos.index_select(0, samples.dst) - pos.index_select(0, samples.src)
        data = {"pos": pos, "atomic_numbers": frames.atomic_numbers}
        graph = Graph(samples.src, samples.dst, len(pos), frames.n_atoms, samples.counts, data, {"rel_pos": rel_pos})
        return graph, frames.forces, frames.energies


def reference_energies(frames: ForceFrames) -> dict[int, float]:
    """Energy of an atom of each element, in eV, that explains most of the energies of molecules (least squares).

    Where the compositions do not settle it (one molecule only) it is the smallest solution.
    """
    elements = frames.atomic_numbers.unique()
    frame_of_atom = torch.arange(len(frames)).repeat_interleave(frames.n_atoms)
    kinds = (frames.atomic_numbers[:, None] == elements).double()  # [N, elements]
    counts = torch.zeros(len(frames), len(elements), dtype=torch.float64).index_add(0, frame_of_atom, kinds)
    # By NumPy: torch's solver for matrices without full rank differs between devices.
    solution, *_ = np.linalg.lstsq(counts.numpy(), frames.energies.numpy(), rcond=None)
    return dict(zip(elements.tolist(), solution.tolist(), strict=True))
