"""Frames of molecules with energies and forces: reading them with every fault named, and batches of them for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from se3_fast.data.data_module import DataModule, RepeatableLoader, rank_and_size
from se3_fast.data.frame_dataset import FrameBatch, FrameDataset, FrameSubset, closest_pairs, edge_counts
from se3_fast.data.frame_folder import INDEX_NAME, FrameFolder, is_frame_folder
from se3_fast.data.frame_statistics import EnergyFit, FrameStatistics, Suspicions
from se3_fast.data.frames import (
    CHUNK,
    COLLECTIONS,
    LMDB,
    ForceFrames,
    FrameSource,
    JoinedFrames,
    SomeFrames,
    chosen_numbers,
    chunks_of,
)
from se3_fast.data.label_units import DEFAULT_NAMES, LabelNames
from se3_fast.data.molecules import ArrayFile, DataError, open_arrays
from se3_fast.data.samplers import EdgeBatchSampler, RankEdgeBatchSampler
from se3_fast.forces import LARGEST_ATOMIC_NUMBER
from se3_fast.graph import Graph

FORCE_SAMPLE_PATH = Path(__file__).with_name("force_sample.npz")
"""The data set that is shipped with the package (made by ``se3_fast.data.make_force_sample``)."""

FORCE_ARRAY_NAMES = ("n_atoms", "z", "pos", "energy_eV", "forces_eV_A")
"""Arrays that a file must hold; ``dipole_e_A`` and ``split`` may be there too."""

EDGE_BUDGET = 1 << 30
"""Bytes that the edges of all frames may take in every process to be found once; an edge takes 16, in cells 28."""

SAMPLE_FRAMES = 10_000
"""Training frames, at random, that stand for all where edges are found with every batch."""

_OF_CELLS = {"cell", "cells", "lattice", "box", "pbc", "stress", "stresses", "virial", "virials"}
"""Arrays of periodic frames, which ``.npz`` files have no layout for."""

_OF_ATOMS = ("z", "pos", "forces_eV_A")

_log = logging.getLogger(__name__)

AnyFrames_co = TypeVar("AnyFrames_co", bound=FrameSource, covariant=True)


@dataclass(frozen=True)
class FrameFile(Generic[AnyFrames_co]):
    """What a file has, or a part of it.

    Attributes:
        path: The file, or the folder.
        frames: Its frames.
        numbers: What it calls them.
        split: [M], 0 for those that train; None: it does not say.
    """

    path: Path
    frames: AnyFrames_co
    numbers: range | list[int]
    split: Tensor | None = None

    def name_of(self, number: int) -> str:
        """What errors call one of the frames."""
        return _name_of(self.path, self.numbers[number])


def _name_of(path: Path, number: int) -> str:
    return f"{path}: frame {number}"


def read_frame_file(path: str | os.PathLike[str], index: str = ":", names: LabelNames = DEFAULT_NAMES) -> FrameFile[ForceFrames]:
    """Read frames into memory: an ``.npz`` file of :func:`read_force_frames`, a folder, an HDF5 collection, or what ASE reads.

    Nothing is unpickled.

    Args:
        path: The file.
        index: Which frames: a number, or ``start:stop:step``.
        names: Names and units of the labels in files that do not fix them, as ``.npz`` files and folders do.

    Raises:
        DataError: It cannot be used; names the frame.
        ImportError: It is for a package that is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz" and not is_frame_folder(path):
        _check_units(path, names)
        frames, split = read_force_frames(path)
        chosen = chosen_numbers(path, index, len(frames))
        if len(chosen) < len(frames):
            frames, split = frames.select(chosen), None if split is None else split[torch.tensor(chosen)]
        file = FrameFile(path, frames, chosen, split)
    else:
        parts = list(frame_chunks(path, index, names))
        split = None if parts[0].split is None else torch.cat([part.split for part in parts if part.split is not None])
        numbers = [number for part in parts for number in part.numbers]
        file = FrameFile(path, ForceFrames.joined([part.frames for part in parts]), numbers, split)
    suspicions = Suspicions(path)
    for first, chunk in enumerate(chunks_of(file.frames)):
        suspicions.add(chunk, file.numbers[first * CHUNK : (first + 1) * CHUNK])
    warn_of(suspicions)
    return file


def shards_of(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The paths, and of folders with LMDB or HDF5 files instead of frames of their own these files, in the order of their names."""
    files: list[Path] = []
    for path in map(Path, paths):
        has_shards = path.is_dir() and not (path / INDEX_NAME).exists()
        shards = sorted(file for file in path.iterdir() if file.suffix.lower() in (*LMDB, *COLLECTIONS)) if has_shards else []
        files += shards or [path]
    return files


def open_frame_file(
    path: str | os.PathLike[str], index: str = ":", names: LabelNames = DEFAULT_NAMES
) -> FrameFile[ForceFrames] | FrameFile[FrameFolder] | FrameFile[SomeFrames]:
    """The frames of a file as :func:`read_frame_file` reads them; those of a folder stay on disk.

    Raises:
        DataError, ImportError: As :func:`read_frame_file`.
    """
    path = Path(path)
    if not is_frame_folder(path):
        return read_frame_file(path, index, names)
    _check_units(path, names)
    folder = FrameFolder(path)
    chosen = chosen_numbers(path, index, len(folder))
    if len(chosen) == len(folder):
        return FrameFile(path, folder, chosen, folder.split)
    return FrameFile(path, SomeFrames(folder, chosen), chosen, None if folder.split is None else folder.split[torch.tensor(chosen)])


def frame_chunks(path: Path, index: str, names: LabelNames) -> Iterator[FrameFile[ForceFrames]]:
    """The frames of any file, some at a time, never all in memory; arguments and errors are those of :func:`read_frame_file`."""
    kind = path.suffix.lower()
    if is_frame_folder(path):
        yield from _folder_chunks(path, index, names)
    elif kind == ".npz":
        yield from _npz_chunks(path, index, names)
    else:
        # Not at the top: other files do without h5py and ASE.
        if kind in COLLECTIONS:
            from se3_fast.data.hdf5_collections import collection_chunks as read
        else:
            from se3_fast.data.labelled_structures import labelled_chunks as read

        for frames, listed in read(path, index, names):
            yield FrameFile(path, frames, listed)


def _check_units(path: Path, names: LabelNames) -> None:
    """Units of options are not those of a file that fixes its own."""
    if names.units != DEFAULT_NAMES.units:
        raise DataError(f"{path}: expected no units by option for a file in eV and Angstrom, got {names.units}")


def _folder_chunks(path: Path, index: str, names: LabelNames) -> Iterator[FrameFile[ForceFrames]]:
    _check_units(path, names)
    folder = FrameFolder(path)
    folder.check_bytes()
    chosen = chosen_numbers(path, index, len(folder))
    for first in range(0, len(chosen), CHUNK):
        numbers = chosen[first : first + CHUNK]
        yield FrameFile(
            path, folder.select(numbers), numbers, None if folder.split is None else folder.split[torch.tensor(numbers)]
        )


def warn_of(suspicions: Suspicions) -> None:
    """Log what looks wrong in a file."""
    for line in suspicions.lines():
        _log.warning("warning: %s", line)


def read_force_frames(path: str | os.PathLike[str]) -> tuple[ForceFrames, Tensor | None]:
    """Read a file of frames and check it; nothing in it is unpickled.

    Args:
        path: An ``.npz`` file with ``n_atoms`` [M], ``z`` [N] (atomic numbers), ``pos`` [N, 3] (Angstrom), ``energy_eV`` [M],
            ``forces_eV_A`` [N, 3] and, where there are such, ``dipole_e_A`` [M, 3] (e Angstrom) and ``split`` [M] (0: train).

    Returns:
        The frames, and ``split`` [M] int64 or None.

    Raises:
        DataError: The file is missing, damaged, holds pickled objects, or its arrays do not fit together.
    """
    with open_arrays(path, FORCE_ARRAY_NAMES) as file:
        return _frames_of(file, _checked_sizes(file))


def _npz_chunks(path: Path, index: str, names: LabelNames) -> Iterator[FrameFile[ForceFrames]]:
    """All of the file is read, whatever is chosen: its checksum stands at its end."""
    _check_units(path, names)
    with open_arrays(path, FORCE_ARRAY_NAMES) as file:
        n_atoms, first = _checked_sizes(file), 0
        chosen = chosen_numbers(path, index, len(n_atoms))
        for part in file.chunks(n_atoms, _OF_ATOMS, CHUNK):
            frames, split = _frames_of(part, n_atoms[first : first + CHUNK])
            numbers = [number for number in range(first, first + len(frames)) if number in chosen]
            if numbers:
                kept = torch.tensor(numbers) - first
                yield FrameFile(path, frames.select(kept), numbers, None if split is None else split[kept])
            first += len(frames)


def _checked_sizes(file: ArrayFile) -> np.ndarray:
    """Atoms of each frame, [M] int64; the other arrays say that they have as many rows."""
    cells = sorted(name for name in file.names if name.lower() in _OF_CELLS)
    file.check(not cells, f"expected molecules, since .npz files have no cells (extended XYZ has), got the array {cells[:1]}")
    num_frames = file.length("n_atoms")
    file.check(num_frames > 0, "n_atoms must hold one frame at least")
    file.check_shapes(n_atoms=(num_frames,), energy_eV=(num_frames,))
    n_atoms = file.counts("n_atoms", num_frames, at_least=1)
    num_atoms = int(n_atoms.sum())
    file.check_shapes(z=(num_atoms,), pos=(num_atoms, 3), forces_eV_A=(num_atoms, 3))
    if "split" in file.names:
        file.check_shapes(split=(num_frames,))
    if "dipole_e_A" in file.names:
        file.check_shapes(dipole_e_A=(num_frames, 3))
    return n_atoms


def _frames_of(file: ArrayFile, n_atoms: np.ndarray) -> tuple[ForceFrames, Tensor | None]:
    """What :func:`read_force_frames` returns, of a whole file or of a part of it."""
    num_frames, num_atoms = len(n_atoms), int(n_atoms.sum())
    atomic_numbers = file.integers("z", (num_atoms,))
    exists = (atomic_numbers >= 1) & (atomic_numbers <= LARGEST_ATOMIC_NUMBER)
    file.check_rows(exists, n_atoms, f"z must hold atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}")
    pos = file.positions("pos", n_atoms)
    forces = file.labels("forces_eV_A", (num_atoms, 3), n_atoms).astype(np.float32)
    energies = file.labels("energy_eV", (num_frames,), np.ones_like(n_atoms))  # their errors are computed in double precision
    split = torch.from_numpy(file.integers("split", (num_frames,))) if "split" in file.names else None
    dipoles = None
    if "dipole_e_A" in file.names:
        dipoles = torch.from_numpy(file.labels("dipole_e_A", (num_frames, 3), np.ones_like(n_atoms)).astype(np.float32))
    frames = ForceFrames(
        n_atoms=torch.from_numpy(n_atoms),
        atomic_numbers=torch.from_numpy(atomic_numbers),
        pos=torch.from_numpy(pos),
        energies=torch.from_numpy(energies.astype(np.float64)),
        forces=torch.from_numpy(forces),
        dipoles=dipoles,
    )
    return frames, split


@dataclass(frozen=True)
class FrameFiles:
    """Where frames are.

    Attributes:
        training: Files (or folders, :func:`shards_of`) of the frames that train; of those that validate and test
            too, where these have no files.
        validation: Files of the frames that validate.
        test: Files of the frames that test; none: half of those that validate do.
        index: Which frames of each file: a number, or ``start:stop:step``.
        names: Names and units of the labels in files that do not fix them.
        train_fraction: Part of the frames that train, where the files do not say.
    """

    training: Sequence[str | os.PathLike[str]]
    validation: Sequence[str | os.PathLike[str]] = ()
    test: Sequence[str | os.PathLike[str]] = ()
    index: str = ":"
    names: LabelNames = DEFAULT_NAMES
    train_fraction: float = 0.8


@dataclass(frozen=True)
class _Names:
    """What errors call the frames of several files, which are numbered through."""

    files: Sequence[tuple[Path, range | list[int]]]  # without the frames, which may have been joined to others

    @classmethod
    def of(cls, files: Sequence[FrameFile[FrameSource]]) -> _Names:
        return cls([(file.path, file.numbers) for file in files])

    def __call__(self, number: int) -> str:
        for path, numbers in self.files:
            if number < len(numbers):
                return _name_of(path, numbers[number])
            number -= len(numbers)
        raise IndexError(number)


class ForceDataModule(DataModule):
    """Frames for training a force field; a batch is ``(graph, forces [N, 3] in eV/Angstrom, energies [B] in eV)``.

    Where some frame has a stress, a batch goes on with stresses [B, 3, 3] in eV/Angstrom^3 and volumes [B]. Labels that a frame
    does not have are not numbers. With ``dipoles`` it goes on with dipoles [B, 3] in e Angstrom instead.

    Of one file with ``split``, frames with 0 train, the others validate and test. Files without it are divided at random
    (seed 0). Of more frames than asked for, a random choice (seed 0) is taken.

    Frames of folders (:class:`~se3_fast.data.frame_folder.FrameFolder`) stay on disk, others are in memory. Edges are found once
    where those of all frames fit into ``edge_budget``, else with every batch, by the processes that assemble it; batches are the
    same. Then :meth:`closest_pairs` are those of 10,000 of the training frames, at random (seed 0), and so is
    ``average_neighbours`` unless the edges of every frame have been counted.

    Attributes:
        path: The first file.
        num_train: Number of training frames.
        num_validation: Number of validation frames.
        has_stresses: Whether batches have stresses.
        has_dipoles: Whether batches have dipoles.
        statistics: Of the training frames: energies of the elements, mean absolute force.
        elements: Atomic numbers that occur.
        average_neighbours: Of an atom of the training frames, within the cutoff; 1 where there are none.
        unit: Unit of forces.
    """

    unit = "eV/Å"
    _loader_type = RepeatableLoader
    ds_train: FrameSubset
    ds_val: FrameSubset
    ds_test: FrameSubset

    def __init__(
        self,
        files: str | os.PathLike[str] | FrameFiles = FORCE_SAMPLE_PATH,
        batch_size: int = 10,
        num_train: int | None = None,
        num_validation: int | None = None,
        cutoff: float = 5.0,
        num_workers: int = 0,
        seed: int | None = None,
        batch_edges: int | None = None,
        edge_budget: int = EDGE_BUDGET,
        dipoles: bool = False,
    ) -> None:
        """Read the data, and find the neighbours of all atoms, or of those of a sample.

        Args:
            files: Files of :func:`open_frame_file`.
            batch_size: Frames in a batch, on every process.
            num_train: Training frames; None: all that are marked so.
            num_validation: Validation frames; None: half of those that do not train, or all of them if files of others test.
            cutoff: Longest edge, in Angstrom.
            num_workers: Processes that assemble batches; 0 assembles them in the training process.
            seed: Seed of the training order; None means 0.
            batch_edges: Instead of ``batch_size``: batches have as many frames as have at most this many edges together, and one at
                least; see :class:`~se3_fast.data.samplers.EdgeBatchSampler`.
            edge_budget: Bytes that the edges of all frames may take to be kept.
            dipoles: Whether batches have dipoles.

        Raises:
            DataError: A file cannot be used, or there are too few frames, or none with forces that train or validate. Of dipoles:
                a frame is periodic, or none that trains has one.
        """
        files = files if isinstance(files, FrameFiles) else FrameFiles([files])
        self.path = Path(files.training[0])
        self.cutoff = cutoff
        read = [[open_frame_file(path, files.index, files.names) for path in part] for part in _parts(files)]
        split = read[0][0].split if sum(map(len, read)) == 1 else None
        everything = [file for part in read for file in part]
        sources = [file.frames.source if isinstance(file.frames, SomeFrames) else file.frames for file in everything]
        self._folders = [source for source in sources if isinstance(source, FrameFolder)]
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        frames = joined_frames([file.frames for file in everything])
        self._dataset = FrameDataset(frames, cutoff, _Names.of(everything))
        if self._dataset.bytes_of_edges() <= edge_budget:
            self._dataset.keep_edges()
        counts = tuple(sum(len(file.frames) for file in part) for part in read)
        parts = self._divide(counts, split if split is not None else files.train_fraction, num_train, num_validation)
        self.num_train, self.num_validation = len(parts[0]), len(parts[1])
        self.ds_train, self.ds_val, self.ds_test = (FrameSubset(self._dataset, part.numpy()) for part in parts)
        self._training = parts[0]
        self.has_dipoles = dipoles
        self.has_stresses, self.elements = frames.has_stresses and not dipoles, frames.elements
        self.statistics = FrameStatistics.of(frames, self._training)
        self._check_labels(parts[1])
        if dipoles:
            self._check_dipoles()
        self._batch_edges = batch_edges
        self._edges = self._counted_edges()
        self.average_neighbours = self._average_neighbours()

    def prepare_data(self) -> None:
        """Read the files of folders once, and compare them with their checksums.

        Raises:
            DataError: One is damaged.
        """
        for folder in self._folders:
            folder.check_bytes()

    @property
    def train_frames(self) -> ForceFrames:
        """A copy of the training frames, in memory."""
        return self._dataset.frames.select(self._training)

    def _counted_edges(self) -> Tensor | None:
        """The edges of each frame, [M] int64, where they are known or needed."""
        frames, known = self._dataset.frames, self._dataset.counts
        if known is None:
            known = frames.edges_of_frames(self.cutoff)
        if known is None and self._batch_edges is not None:
            known = edge_counts(frames, self.cutoff, self._dataset.name_of)
        return known

    def _average_neighbours(self) -> float:
        if self._edges is not None:
            return float(self._edges[self._training].sum()) / self.statistics.atoms or 1.0
        edges = atoms = 0
        for batch in self._dataset.batches(self._sample()):
            edges, atoms = edges + len(batch.src), atoms + len(batch.frames.pos)
        return edges / atoms or 1.0

    def _sample(self) -> Tensor:
        """Numbers of training frames that stand for all: of all if their edges are kept."""
        return self._training if self._dataset.counts is not None else self._training[:SAMPLE_FRAMES]

    def train_dataloader(self) -> DataLoader[Any]:
        """As :meth:`DataModule.train_dataloader`; of batches by edges ``loader.batch_sampler`` has ``set_epoch``."""
        if self._batch_edges is None:
            return super().train_dataloader()
        edges = self._edges_of(self.ds_train)
        return self._in_batches(self.ds_train, EdgeBatchSampler(edges, self._batch_edges, self.seed, *rank_and_size()))

    def val_dataloader(self) -> DataLoader[Any]:
        """As :meth:`DataModule.val_dataloader`."""
        return super().val_dataloader() if self._batch_edges is None else self._evaluation_loader(self.ds_val, self._batch_edges)

    def test_dataloader(self) -> DataLoader[Any]:
        """As :meth:`DataModule.test_dataloader`."""
        return super().test_dataloader() if self._batch_edges is None else self._evaluation_loader(self.ds_test, self._batch_edges)

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
        remedy = "more frames, files for each purpose, or another split or train_fraction"
        if not len(training):
            raise DataError(f"{self.path}: expected frames that train, got none of {own}: {remedy}")
        if not 1 <= num_train <= len(training):
            raise DataError(f"{self.path}: expected 1 to {len(training)} training frames, got {num_train}")
        if len(others) + bool(tests) < 2:
            purpose = "a frame to validate" if tests else "two frames that do not train, to validate and to test"
            raise DataError(f"{self.path}: expected {purpose}, got {len(others)} beside {len(training)}: {remedy}")
        if not 1 <= num_validation < len(others) + bool(tests):
            most = "at most" if tests else "fewer than"
            raise DataError(
                f"{self.path}: expected from 1 to {most} the {len(others)} frames that do not train to validate, "
                f"got {num_validation}"
            )
        testing = torch.arange(own + validates, own + validates + tests) if tests else others[num_validation:]
        return training[:num_train], others[:num_validation], testing

    def _check_labels(self, validation: Tensor) -> None:
        unseen = sorted(set(self.elements) - set(self.statistics.elements))
        if unseen:
            raise DataError(f"{self.path}: the training frames have no atom of the atomic numbers {unseen} that other frames have")
        validates = any(chunk.forces.isfinite().any() for chunk in chunks_of(self._dataset.frames, validation))
        for name, count, has_forces in (
            ("training", self.num_train, self.statistics.has_forces),
            ("validation", self.num_validation, validates),
        ):
            if not has_forces:
                raise DataError(f"{self.path}: expected forces in some of the {count} {name} frames, got none")

    def _check_dipoles(self) -> None:
        """Raise a DataError where dipoles cannot be trained on."""
        frames, first = self._dataset.frames, 0
        for chunk in chunks_of(frames) if frames.has_cells else ():
            if chunk.pbc is not None and chunk.pbc.any():
                number = first + int(chunk.pbc.any(1).nonzero()[0])
                fault = "expected molecules, whose dipoles are defined, got a periodic cell"
                raise DataError(f"{self._dataset.name_of(number)}: {fault}")
            first += len(chunk)
        known = (chunk.dipoles for chunk in chunks_of(frames, self._training)) if frames.has_dipoles else ()
        if not any(part is not None and bool(part.isfinite().any()) for part in known):
            raise DataError(f"{self.path}: expected dipoles in some of the {self.num_train} training frames, got none")

    def closest_pairs(self) -> dict[str, float]:
        """Shortest distances in the training frames, Angstrom, by pairs of atomic numbers (``"1-6"``), within the cutoff."""
        return closest_pairs(self._dataset, self._sample())

    def _edges_of(self, subset: FrameSubset) -> np.ndarray:
        assert self._edges is not None
        return self._edges.numpy()[subset.indices]

    def _evaluation_loader(self, subset: FrameSubset, batch_edges: int) -> DataLoader[Any]:
        return self._in_batches(subset, RankEdgeBatchSampler(self._edges_of(subset), batch_edges, *rank_and_size()))

    def _in_batches(self, subset: FrameSubset, batches: EdgeBatchSampler | RankEdgeBatchSampler) -> DataLoader[Any]:
        return self._ordered(subset, batch_sampler=batches, batch_size=1)  # 1: DataLoader's word for "as they are"

    def _collate(self, samples: FrameBatch) -> tuple[Any, ...]:
        """Make a batch of what the data set gives for a list of numbers."""
        return _batch(samples, self.has_dipoles)


def frame_batches(
    files: Sequence[FrameFile[ForceFrames]], cutoff: float, batch_size: int, dipoles: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Batches of :class:`ForceDataModule` of all frames of some files, in order."""
    frames = joined_frames([file.frames for file in files])
    dataset = FrameDataset(frames, cutoff, _Names.of(files))
    for numbers in torch.arange(len(frames)).split(batch_size):
        yield _batch(dataset.__getitems__(numbers), dipoles)


def joined_frames(parts: Sequence[FrameSource]) -> FrameSource:
    """All frames of some sources: in memory where all of them are."""
    in_memory = [part for part in parts if isinstance(part, ForceFrames)]
    if len(parts) == 1:
        return parts[0]
    return ForceFrames.joined(in_memory) if len(in_memory) == len(parts) else JoinedFrames(parts)


def _batch(samples: FrameBatch, with_dipoles: bool) -> tuple[Any, ...]:
    frames = samples.frames
    edata = {"rel_pos": samples.rel_pos}
    if samples.offset is not None and not with_dipoles:  # of molecules alone they are all zero
        edata["offset"] = samples.offset
    data = {"pos": frames.pos, "atomic_numbers": frames.atomic_numbers}
    graph = Graph(samples.src, samples.dst, len(frames.pos), frames.n_atoms, samples.counts, data, edata)
    if with_dipoles:
        return graph, frames.forces, frames.energies, frames.completed(False, False, True).dipoles
    if frames.stresses is None:
        return graph, frames.forces, frames.energies
    return graph, frames.forces, frames.energies, frames.stresses, frames.volumes


def _parts(files: FrameFiles) -> tuple[list[Path], ...]:
    return shards_of(files.training), shards_of(files.validation), shards_of(files.test)


def reference_energies(frames: ForceFrames) -> dict[int, float]:
    """Energy of an atom of each element, in eV, that explains most of the known energies of frames (least squares).

    Where the compositions do not settle it (one molecule only) it is the smallest solution.
    """
    fit = EnergyFit()
    fit.add(frames)
    return fit.of_elements()
