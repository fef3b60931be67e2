"""What is read from files of frames, whatever they are, and what it must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from se3_fast.data.force_frames import read_frame_file
from se3_fast.data.frames import ForceFrames
from se3_fast.data.molecules import DataError

from .cases import Failure, Reader
from .mutations import Arrays

FRAMES = 50
"""Frames of each molecule of the sample."""


def molecule_of(sample: ForceFrames, molecule: int, frames: int) -> Arrays:
    part = sample.select(range(FRAMES * molecule, FRAMES * molecule + frames))
    shape = (frames, int(part.n_atoms[0]), 3)
    return {
        "atomic_numbers": part.atomic_numbers[: shape[1]].numpy().astype(np.uint8),
        "positions": part.pos.numpy().reshape(shape),
        "energy": part.energies.numpy(),
        "forces": part.forces.numpy().reshape(shape),
        "dipole": np.ones((frames, 3), np.float32),
    }


class FrameReader(Reader):
    """`read_frame_file`: labels that are not known are not numbers, and nothing is infinite."""

    error = DataError

    def read(self, path: Path) -> ForceFrames:
        return read_frame_file(path).frames

    def use(self, result: ForceFrames) -> None:
        if not result.pos.isfinite().all() or not result.pos.square().sum(1).isfinite().all():
            raise Failure("positions or distances are not finite")
        for labels in (result.energies.float(), result.forces, result.stresses, result.dipoles):
            if labels is not None and labels.isinf().any():
                raise Failure("a label is infinite")
        if not ((result.atomic_numbers >= 1) & (result.atomic_numbers <= 118)).all():
            raise Failure("there are atoms of no element")
        if int(result.n_atoms.sum()) != len(result.pos) or len(result.forces) != len(result.pos):
            raise Failure("numbers of atoms do not add up")
        result.select(range(len(result)))
