"""What training asks of all frames, found chunk by chunk: energies of the elements, the size of forces, what looks wrong."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

import numpy as np
from torch import Tensor

from se3_fast.data.frames import ForceFrames, FrameSource, chunks_of

_SUSPICIOUS_FORCE = 100.0
_SUSPICIOUS_SPREAD = 0.2
_FEWEST_FOR_SPREAD = 10
_FORCE_CONSTANT = 30.0
"""eV/Angstrom^2, between those of stretched and of bent bonds."""


class FrameStatistics:
    """Sums over frames, which come in chunks.

    Attributes:
        atoms: Number of atoms.
        elements: Atomic numbers that occur, ascending.
        energies: What the known energies say of the elements.
        checksum: Of all that the frames hold, chunk after chunk; as text, since a data module goes to other processes.
    """

    def __init__(self) -> None:
        self.atoms = 0
        self.checksum = ""
        self.energies = EnergyFit()
        self._elements: set[int] = set()
        self._forces, self._absolute, self._squares = 0, 0.0, 0.0

    @classmethod
    def of(cls, frames: FrameSource, numbers: Tensor) -> FrameStatistics:
        """Those of some frames."""
        found = cls()
        for chunk in chunks_of(frames, numbers):
            found.add(chunk)
        return found

    def add(self, frames: ForceFrames) -> None:
        """Take more frames into account."""
        self.atoms += len(frames.pos)
        self._elements |= set(frames.elements)
        self.energies.add(frames)
        known = frames.forces[frames.forces.isfinite()].double()
        self._forces += len(known)
        self._absolute += float(known.abs().sum())
        self._squares += float(known.square().sum())
        self.checksum = _checksum(self.checksum, frames)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return sorted(self._elements)

    @property
    def has_forces(self) -> bool:
        """Whether some force is known."""
        return self._forces > 0

    @property
    def mean_absolute_force(self) -> float:
        """Of the components that are known, eV/Angstrom; 0 where none is."""
        return self._absolute / max(self._forces, 1)

    def spread_of_energies(self) -> float:
        """Standard deviation of the energies, over what it would be of atoms that swing with usual force constants.

        Of such atoms it is the root of 3N/2, times the mean square of the force components over the force constant. About 1 to 4
        for molecules at 300 to 1200 K. Infinite where there is too little to tell.
        """
        fit = self.energies
        if fit.frames < _FEWEST_FOR_SPREAD or not self._forces:
            return float("inf")
        spread = fit.spread_of_rest()
        usual = (1.5 * fit.atoms / fit.frames) ** 0.5 * self._squares / self._forces / _FORCE_CONSTANT
        return spread / usual if spread > 0 and usual > 0 else float("inf")


def _checksum(before: str, frames: ForceFrames) -> str:
    """That of frames that come after others."""
    digest = hashlib.sha256(before.encode())
    for field in fields(frames):
        values = getattr(frames, field.name)
        if values is not None:
            digest.update(values.contiguous().numpy())
    return digest.hexdigest()[:16]


class EnergyFit:
    """Energies of the elements that explain most of the known energies of frames (least squares), which come in chunks.

    Of the equations, one for each frame, it keeps the triangle of a QR decomposition: as many rows as there are elements, and one
    for the energies. Normal equations would be as few, and lose half of the digits.

    Attributes:
        frames: Frames with a known energy.
        atoms: Their atoms.
    """

    def __init__(self) -> None:
        self.frames = self.atoms = 0
        self._elements = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, 1))  # the columns are the elements' and, last, the energies'
        self._sums = np.zeros(1)  # of the columns of all equations

    def add(self, frames: ForceFrames) -> None:
        """Take the known energies of more frames into account."""
        known = frames.energies.isfinite()
        if not known.all():
            frames = frames.select(known.nonzero().squeeze(1))
        if not len(frames):
            return
        self._make_room(frames.atomic_numbers.unique().numpy())
        columns, width = np.searchsorted(self._elements, frames.atomic_numbers.numpy()), len(self._elements)
        places = frames.frame_of_atoms().numpy() * width + columns
        counts = np.bincount(places, minlength=len(frames) * width).reshape(len(frames), width)
        equations = np.column_stack([counts, frames.energies.numpy()])
        self._rows = np.asarray(np.linalg.qr(np.concatenate([self._rows, equations]), mode="r"))
        self._sums += equations.sum(0)
        self.frames, self.atoms = self.frames + len(frames), self.atoms + len(frames.pos)

    def of_elements(self) -> dict[int, float]:
        """The energy of an atom of each element, eV. Where the compositions do not settle it, it is the smallest solution."""
        return dict(zip(self._elements.tolist(), self._solution().tolist(), strict=True))

    def spread_of_rest(self) -> float:
        """Standard deviation of the energies less those of the elements, eV; of two frames at least."""
        weights = np.append(-self._solution(), 1.0)
        mean = float(self._sums @ weights) / self.frames
        squares = float(np.square(self._rows @ weights).sum()) - self.frames * mean**2
        return (max(squares, 0.0) / (self.frames - 1)) ** 0.5

    def _solution(self) -> np.ndarray:
        # As of all equations at once. By NumPy: torch's solver for matrices without full rank differs between devices.
        precision = np.finfo(np.float64).eps * max(self.frames, len(self._elements))
        solution, *_ = np.linalg.lstsq(self._rows[:, :-1], self._rows[:, -1], rcond=precision)
        return solution

    def _make_room(self, elements: np.ndarray) -> None:
        """Columns for elements that earlier frames have not."""
        old, self._elements = self._elements, np.union1d(self._elements, elements)
        if len(old) == len(self._elements):
            return
        places = np.append(np.searchsorted(self._elements, old), len(self._elements))
        rows, sums = np.zeros((len(self._rows), len(self._elements) + 1)), np.zeros(len(self._elements) + 1)
        rows[:, places], sums[places] = self._rows, self._sums
        self._rows, self._sums = rows, sums


class Suspicions:
    """What in a file looks as if it were in another unit, or under another name; its frames come in chunks.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._statistics = FrameStatistics()
        self._force = ""

    def add(self, frames: ForceFrames, numbers: range | list[int]) -> None:
        """Look at more frames; `numbers` are theirs in the file."""
        self._statistics.add(frames)
        sizes = frames.forces.norm(dim=1).nan_to_num(0.0)
        if not self._force and float(sizes.max()) > _SUSPICIOUS_FORCE:
            atom = int((sizes > _SUSPICIOUS_FORCE).nonzero()[0])
            number = numbers[int(frames.frame_of_atoms()[atom])]
            self._force = (
                f"{self._path}: frame {number}: a force of {float(sizes[atom]):.3g}, more than atoms near each other have "
                "in eV/Angstrom: is it in that unit?"
            )

    def lines(self) -> list[str]:
        """A line for each."""
        found = self._statistics
        labels = (("energy", "a known energy", found.energies.frames > 0), ("forces", "known forces", found.has_forces))
        missing = [
            f"{self._path}: none of its frames has {what}: is it called otherwise there (--{name}_name)?"
            for name, what, is_there in labels
            if not is_there
        ]
        ratio = found.spread_of_energies()
        energies = f"{self._path}: energies that differ {1 / ratio:.2g} times less than the forces say: are they in hartree?"
        return [*missing, *filter(None, [self._force]), *([energies] if ratio < _SUSPICIOUS_SPREAD else [])]
