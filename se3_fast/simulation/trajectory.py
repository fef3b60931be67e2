"""Files of frames, in any format that ASE writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import IOFormat, UnknownFileTypeError, filetype, ioformats

from se3_fast.files import check_writable


class Trajectory:
    """A file of frames. Those of `.traj` and `.xyz` are in the file as soon as they are written, others at the end.

    Args:
        path: The file; the ending of its name says the format.

    Raises:
        ValueError: ASE does not write such files, or not more than one frame into one.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kind = _kind(path)
        if kind.single:
            raise ValueError(f"{path}: expected a format of many frames, such as .traj or .xyz, got {kind.name}")
        check_writable(path)
        path.unlink(missing_ok=True)
        self._format = kind.name
        self._open = ase.io.Trajectory(str(path), "w") if self._format == "traj" else None
        self._kept: list[Atoms] = []

    def write(self, atoms: Atoms) -> None:
        """Add a frame, with the energy and the forces that it has."""
        if self._open is not None:
            self._open.write(atoms)
        elif self._format == "extxyz":
            ase.io.write(str(self.path), with_results(atoms), format=self._format, append=True)
        else:
            self._kept.append(with_results(atoms))

    def close(self) -> None:
        """Write what had to wait for the last frame."""
        if self._open is not None:
            self._open.close()
        if self._kept:
            ase.io.write(str(self.path), self._kept, format=self._format)


@contextmanager
def open_trajectory(path: Path | None) -> Iterator[Trajectory | None]:
    """A file of frames that is complete when the block ends, however it ends; None of no path.

    Raises:
        ValueError, OSError: As :class:`Trajectory`.
    """
    trajectory = None if path is None else Trajectory(path)
    try:
        yield trajectory
    finally:
        if trajectory is not None:
            trajectory.close()


def check_format(path: Path, num_frames: int) -> None:
    """Check that so many frames can be written to a file of this name.

    Raises:
        ValueError: They cannot.
        OSError: The file cannot be written.
    """
    if _kind(path).single and num_frames > 1:
        raise ValueError(f"{path}: expected a format of many frames, such as .traj or .xyz, for {num_frames} structures")
    check_writable(path)


def write_structures(path: Path, structures: list[Atoms]) -> None:
    """Write structures.

    Raises:
        OSError: The file cannot be written.
    """
    path.unlink(missing_ok=True)  # to data bases ASE adds
    ase.io.write(str(path), structures, format=_kind(path).name)


def _kind(path: Path) -> IOFormat:
    try:
        name = filetype(str(path), read=False)
    except UnknownFileTypeError:
        name = ""
    kind = ioformats.get(name)
    if kind is None or not kind.can_write:
        raise ValueError(f"{path}: expected the name of a format that ASE writes, such as .traj or .xyz")
    return kind


def with_results(atoms: Atoms) -> Atoms:
    """A copy that keeps what has been calculated, without what is none of ASE's properties."""
    frame = atoms.copy()
    if atoms.calc is not None:
        known = {name: value for name, value in atoms.calc.results.items() if name in atoms.calc.implemented_properties}
        frame.calc = SinglePointCalculator(frame, **known)
    return frame
