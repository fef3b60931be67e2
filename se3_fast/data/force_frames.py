"""Frames of molecules with energies and forces: reading them with every fault named, and batches of them for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from se3_fast.data.data_module import DataModule
from se3_fast.data.frames import DEFAULT_NAMES, ForceFrames, LabelNames
from se3_fast.data.molecules import DataError, open_arrays, ragged_indices
from se3_fast.forces import LARGEST_ATOMIC_NUMBER
from se3_fast.graph import Graph
from se3_fast.neighbours import neighbours_of_batch

FORCE_SAMPLE_PATH = Path(__file__).with_name("force_sample.npz")
"""The data set that is shipped with the package (made by ``se3_fast.data.make_force_sample``)."""

FORCE_ARRAY_NAMES = ("n_atoms", "z", "pos", "energy_eV", "forces_eV_A")
"""Arrays that a file must hold; ``split`` may be there too."""

_SAME_PLACE = 1e-6
_SUSPICIOUS_FORCE = 100.0
_SUSPICIOUS_SPREAD = 0.2
_FEWEST_FOR_SPREAD = 10
_FORCE_CONSTANT = 30.0
"""eV/Angstrom^2, between those of stretched and of bent bonds."""

_log = logging.getLogger(__name__)


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


class _FrameDataset(Dataset[FrameBatch]):
    """Frames with the edges that are shorter than a cutoff; found once."""

    def __init__(self, frames: ForceFrames, cutoff: float) -> None:
        self.frames = frames
        periodic = () if frames.cells is None or frames.pbc is None else (frames.cells, frames.pbc)
        found = neighbours_of_batch(frames.pos, frames.n_atoms, cutoff, *periodic)
        self.counts = torch.tensor(found.counts)
        rel_pos = _relative_positions(frames.pos, found.src, found.dst, found.offset)
        self.lengths = rel_pos.norm(dim=1)
        first_atom = (frames.n_atoms.cumsum(0) - frames.n_atoms).repeat_interleave(self.counts)
        self._src, self._dst = found.src - first_atom, found.dst - first_atom  # counted within their frames
        self._offset = found.offset
        self._first_edge = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> FrameBatch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int] | Tensor) -> FrameBatch:
        frames = self.frames.select(numbers)
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        counts = self.counts[chosen]
        edges = self.edges_of(chosen)
        first_atom = (frames.n_atoms.cumsum(0) - frames.n_atoms).repeat_interleave(counts)
        offset = None if self._offset is None else self._offset[edges]
        return FrameBatch(frames, self._src[edges] + first_atom, self._dst[edges] + first_atom, counts, offset)

    def edges_of(self, numbers: Tensor) -> Tensor:
        """Numbers of the edges of some frames, among those of all."""
        return ragged_indices(self._first_edge[numbers], self.counts[numbers])


@dataclass(frozen=True)
class FrameFile:
    """What a file has.

    Attributes:
        path: The file.
        frames: Its frames.
        numbers: What it calls them.
        split: [M], 0 for those that train; None: it does not say.
    """

    path: Path
    frames: ForceFrames
    numbers: Sequence[int]
    split: Tensor | None = None


def read_frame_file(path: str | os.PathLike[str], index: str = ":", names: LabelNames = DEFAULT_NAMES) -> FrameFile:
    """Read an ``.npz`` file of :func:`read_force_frames`, or any file that ASE reads; nothing in it is unpickled.

    Args:
        path: The file.
        index: Which frames of a file that ASE reads: a number, or ``start:stop:step``.
        names: Names of the labels in it.

    Raises:
        DataError: It cannot be used; names the frame.
        ImportError: It is for ASE, which is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        frames, split = read_force_frames(path)
        file = FrameFile(path, frames, range(len(frames)), split)
    else:
        # Not at the top: `.npz` files do without ASE.
        from se3_fast.data.labelled_structures import read_labelled_structures

        file = FrameFile(path, *read_labelled_structures(path, index, names))
    for line in suspicions(file):
        _log.warning("warning: %s", line)
    return file


def suspicions(file: FrameFile) -> list[str]:
    """What in a file looks as if it were in another unit, a line each."""
    found, frames = [], file.frames
    sizes = frames.forces.norm(dim=1).nan_to_num(0.0)
    if len(sizes) and float(sizes.max()) > _SUSPICIOUS_FORCE:
        atom = int((sizes > _SUSPICIOUS_FORCE).nonzero()[0])
        frame = int((frames.n_atoms.cumsum(0) <= atom).sum())
        found.append(
            f"{file.path}: frame {file.numbers[frame]}: a force of {float(sizes[atom]):.3g}, more than atoms near each other have "
            f"in eV/Angstrom: is it in that unit?"
        )
    ratio = _spread_of_energies(frames)
    if ratio < _SUSPICIOUS_SPREAD:
        found.append(f"{file.path}: energies that differ {1 / ratio:.2g} times less than the forces say: are they in hartree?")
    return found


def _spread_of_energies(frames: ForceFrames) -> float:
    """Standard deviation of the energies, over what it would be of atoms that swing with usual force constants.

    Of such atoms it is the root of 3N/2, times the mean square of the force components over the force constant. About 1 to 4 for
    molecules at 300 to 1200 K. Infinite where there is too little to tell.
    """
    known = frames.energies.isfinite()
    squares = frames.forces.double().square()
    if int(known.sum()) < _FEWEST_FOR_SPREAD or not squares.isfinite().any():
        return float("inf")
    some = frames.select(known.nonzero().squeeze(1))
    references = torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.float64)
    for element, energy in reference_energies(some).items():
        references[element] = energy
    frame_of_atom = torch.arange(len(some)).repeat_interleave(some.n_atoms)
    rest = some.energies.index_add(0, frame_of_atom, -references[some.atomic_numbers])
    usual = (1.5 * float(some.n_atoms.double().mean())) ** 0.5 * float(squares[squares.isfinite()].mean()) / _FORCE_CONSTANT
    spread = float(rest.std())
    return spread / usual if spread > 0 and usual > 0 else float("inf")


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


@dataclass(frozen=True)
class FrameFiles:
    """Where frames are.

    Attributes:
        training: Files of the frames that train; of those that validate and test too, where these have no files.
        validation: Files of the frames that validate.
        test: Files of the frames that test; none: half of those that validate do.
        index: Which frames of files that ASE reads: a number, or ``start:stop:step``.
        names: Names of the labels in them.
        train_fraction: Part of the frames that train, where the files do not say.
    """

    training: Sequence[str | os.PathLike[str]]
    validation: Sequence[str | os.PathLike[str]] = ()
    test: Sequence[str | os.PathLike[str]] = ()
    index: str = ":"
    names: LabelNames = DEFAULT_NAMES
    train_fraction: float = 0.8


class ForceDataModule(DataModule):
    """Frames for training a force field; a batch is ``(graph, forces [N, 3] in eV/Angstrom, energies [B] in eV)``.

    Where some frame has a stress, a batch goes on with stresses [B, 3, 3] in eV/Angstrom^3 and volumes [B]. Labels that a frame
    does not have are not numbers.

    Of one ``.npz`` file with ``split``, frames with 0 train, the others validate and test. Files without it are divided at random
    (seed 0). Of more frames than asked for, a random choice (seed 0) is taken.

    Attributes:
        path: The first file.
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
        files: str | os.PathLike[str] | FrameFiles = FORCE_SAMPLE_PATH,
        batch_size: int = 10,
        num_train: int | None = None,
        num_validation: int | None = None,
        cutoff: float = 5.0,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        """Read the data, and find the neighbours of all atoms.

        Args:
            files: Files of :func:`read_frame_file`.
            batch_size: Frames in a batch, on every process.
            num_train: Training frames; None: all that are marked so.
            num_validation: Validation frames; None: half of those that do not train, or all of them if files of others test.
            cutoff: Longest edge, in Angstrom.
            num_workers: Processes that assemble batches; 0 assembles them in the training process.
            seed: Seed of the training order; None means 0.

        Raises:
            DataError: A file cannot be used, or there are too few frames, or none with forces that train or validate.
        """
        files = files if isinstance(files, FrameFiles) else FrameFiles([files])
        self.path = Path(files.training[0])
        self.cutoff = cutoff
        read = [[read_frame_file(path, files.index, files.names) for path in part] for part in _parts(files)]
        split = read[0][0].split if sum(map(len, read)) == 1 else None
        everything = [file for part in read for file in part]
        frames = ForceFrames.joined([file.frames for file in everything])
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self._dataset = dataset = _FrameDataset(frames, cutoff)
        _check_places(dataset, everything)
        counts = tuple(sum(len(file.frames) for file in part) for part in read)
        parts = self._divide(counts, split if split is not None else files.train_fraction, num_train, num_validation)
        self.num_train, self.num_validation = len(parts[0]), len(parts[1])
        self.ds_train, self.ds_val, self.ds_test = (Subset(dataset, part.tolist()) for part in parts)
        self._training = parts[0]
        self.train_frames = frames.select(self._training)
        self.average_neighbours = float(dataset.counts[self._training].sum()) / len(self.train_frames.pos) or 1.0
        self.elements = frames.atomic_numbers.unique().tolist()
        self._check_labels(frames, parts)

    def _divide(
        self, counts: tuple[int, ...], training_part: Tensor | float, num_train: int | None, num_validation: int | None
    ) -> tuple[Tensor, ...]:
        """Numbers of the frames that train, validate and test.

        Args:
            counts: Frames of the files for training, validation and test; numbers run through them in this order.
            training_part: Of the first, [M], 0 for those that train; or which fraction trains.
            num_train: Those that train, or None.
            num_validation: Those that validate, or None.
        """
        generator = torch.Generator().manual_seed(0)
        own, validates, tests = counts
        training = torch.randperm(own, generator=generator)
        others = own + torch.randperm(validates, generator=generator)
        if not validates:
            is_training = (
                training_part[training] == 0
                if isinstance(training_part, Tensor)
                else torch.arange(own) < int(own * training_part + 1e-9)
            )
            training, others = training[is_training], training[~is_training]
        if num_train is None:
            num_train = len(training)
        if num_validation is None:
            num_validation = len(others) if tests else len(others) // 2
        if not 1 <= num_train <= len(training):
            raise DataError(f"{self.path}: expected 1 to {len(training)} training frames, got {num_train}")
        if not 1 <= num_validation < len(others) + bool(tests):
            most = "at most" if tests else "fewer than"
            raise DataError(
                f"{self.path}: expected from 1 to {most} the {len(others)} frames that do not train to validate, "
                f"got {num_validation}"
            )
        testing = torch.arange(own + validates, own + validates + tests) if tests else others[num_validation:]
        return training[:num_train], others[:num_validation], testing

    def _check_labels(self, frames: ForceFrames, parts: Sequence[Tensor]) -> None:
        unseen = sorted(set(self.elements) - set(self.train_frames.atomic_numbers.tolist()))
        if unseen:
            raise DataError(f"{self.path}: the training frames have no atom of the atomic numbers {unseen} that other frames have")
        for name, part in zip(("training", "validation"), parts, strict=False):
            if not frames.select(part).forces.isfinite().any():
                raise DataError(f"{self.path}: expected forces in some of the {len(part)} {name} frames, got none")

    def closest_pairs(self) -> dict[str, float]:
        """Shortest distances in the training frames, Angstrom, by pairs of atomic numbers (``"1-6"``), within the cutoff."""
        batch = self._dataset.__getitems__(self._training)
        lengths = self._dataset.lengths[self._dataset.edges_of(self._training)]
        ends = batch.frames.atomic_numbers[torch.stack([batch.src, batch.dst])]
        least = np.full((LARGEST_ATOMIC_NUMBER + 1, LARGEST_ATOMIC_NUMBER + 1), np.inf)
        np.minimum.at(least, tuple(ends.numpy()), lengths.numpy())
        pairs = np.argwhere(least < np.inf).tolist()
        return {f"{first}-{second}": float(least[first, second]) for first, second in pairs if first <= second}

    def _collate(self, samples: FrameBatch) -> tuple[Any, ...]:
        """Make a batch of what the data set gives for a list of numbers."""
        return _batch(samples)


def frame_batches(frames: ForceFrames, cutoff: float, batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Batches of :class:`ForceDataModule` of all frames, in order."""
    dataset = _FrameDataset(frames, cutoff)
    for numbers in torch.arange(len(frames)).split(batch_size):
        yield _batch(dataset.__getitems__(numbers))


def _batch(samples: FrameBatch) -> tuple[Any, ...]:
    frames, pos = samples.frames, samples.frames.pos
    edata = {"rel_pos": _relative_positions(pos, samples.src, samples.dst, samples.offset)}
    if samples.offset is not None:
        edata["offset"] = samples.offset
    data = {"pos": pos, "atomic_numbers": frames.atomic_numbers}
    graph = Graph(samples.src, samples.dst, len(pos), frames.n_atoms, samples.counts, data, edata)
    if frames.stresses is None:
        return graph, frames.forces, frames.energies
    return graph, frames.forces, frames.energies, frames.stresses, frames.volumes


def _parts(files: FrameFiles) -> tuple[Sequence[str | os.PathLike[str]], ...]:
    return files.training, files.validation, files.test


def _relative_positions(pos: Tensor, src: Tensor, dst: Tensor, offset: Tensor | None) -> Tensor:
    rel_pos = pos.index_select(0, dst) - pos.index_select(0, src)
    return rel_pos if offset is None else rel_pos + offset


def _check_places(dataset: _FrameDataset, files: Sequence[FrameFile]) -> None:
    """Raise a DataError that names file and frame where two atoms lie on one place."""
    if not len(dataset.lengths) or float(dataset.lengths.min()) > _SAME_PLACE:
        return
    edge = int(dataset.lengths.argmin())
    frame = int((dataset.counts.cumsum(0) <= edge).sum())
    for file in files:
        if frame < len(file.frames):
            raise DataError(f"{file.path}: frame {file.numbers[frame]}: expected atoms at different places, got two at one")
        frame -= len(file.frames)


def reference_energies(frames: ForceFrames) -> dict[int, float]:
    """Energy of an atom of each element, in eV, that explains most of the known energies of frames (least squares).

    Where the compositions do not settle it (one molecule only) it is the smallest solution.
    """
    frames = frames.select(frames.energies.isfinite().nonzero().squeeze(1))
    elements = frames.atomic_numbers.unique()
    frame_of_atom = torch.arange(len(frames)).repeat_interleave(frames.n_atoms)
    kinds = (frames.atomic_numbers[:, None] == elements).double()  # [N, elements]
    counts = torch.zeros(len(frames), len(elements), dtype=torch.float64).index_add(0, frame_of_atom, kinds)
    # By NumPy: torch's solver for matrices without full rank differs between devices.
    solution, *_ = np.linalg.lstsq(counts.numpy(), frames.energies.numpy(), rcond=None)
    return dict(zip(elements.tolist(), solution.tolist(), strict=True))
