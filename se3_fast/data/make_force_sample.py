"""Make the force-field sample that is shipped with the package: ``python -m se3_fast.data.make_force_sample``.

A few small molecules, each in its GFN2-xTB minimum and in geometries drawn around it from the harmonic ensemble at several
temperatures, with energies (eV) and forces (eV/Angstrom) by GFN2-xTB (tblite). Equal arguments give equal geometries.

Needs the extra ``chem`` (rdkit, tblite). The arrays are those that :mod:`se3_fast.data.force_frames` reads and, beside them,
``smiles`` and ``temperature_K`` of every frame.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib

import numpy as np

try:
    from tblite.interface import Calculator
except ImportError as error:
    raise ImportError("making the force-field sample needs RDKit and tblite: pip install 'se3_fast[chem]'") from error

from se3_fast.commands.make_force_sample import main
from se3_fast.data.make_sample import BOHR_IN_ANGSTROM, POSITION_STEP, conformer, write_sample
from se3_fast.data.tasks import HARTREE_IN_EV

MOLECULES = ("C", "CC", "CO", "CCO", "COC", "C=O", "CC=O", "CN", "NC=O", "CC#N", "CF", "C=C")
"""SMILES of the molecules."""

TEMPERATURES = (300.0, 600.0, 900.0)
"""Kelvin; the geometries of a molecule take turns."""

BOLTZMANN_IN_EV = 8.617333262e-5
"""Per kelvin; CODATA 2018."""

HELD_OUT = 5
"""One frame in so many is marked 1 in ``split``, the others 0."""

DIFFERENCE = 0.005
"""Angstrom, displacement for second derivatives by central differences."""

SOFTEST_MODE = 0.5
"""eV/Angstrom^2; softer modes (torsions, on which a straight line leads astray) are displaced as if they were as stiff as this."""

FREE_MODE = 1e-2
"""eV/Angstrom^2; modes below are translations and rotations, and are not displaced."""


def energy_and_forces(numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy in eV and forces [n, 3] in eV/Angstrom of a neutral closed-shell molecule, by GFN2-xTB.

    Args:
        numbers: Atomic numbers, [n].
        positions: [n, 3], Angstrom.

    Raises:
        RuntimeError: It does not converge.
    """
    calculator = Calculator("GFN2-xTB", numbers, positions / BOHR_IN_ANGSTROM)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    gradient = result.get("gradient") * (HARTREE_IN_EV / BOHR_IN_ANGSTROM)
    return float(result.get("energy")) * HARTREE_IN_EV, -gradient


def second_derivatives(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Second derivatives of the energy, [3n, 3n], eV/Angstrom^2."""
    rows = []
    for coordinate in range(positions.size):
        shift = np.zeros_like(positions)
        shift.flat[coordinate] = DIFFERENCE
        forward, backward = (energy_and_forces(numbers, moved)[1] for moved in (positions + shift, positions - shift))
        rows.append((backward - forward).ravel() / (2 * DIFFERENCE))
    matrix = np.stack(rows)
    return (matrix + matrix.T) / 2


def of_stiffness(matrix: np.ndarray, power: float) -> np.ndarray:
    """A power of the matrix of second derivatives, without its translations and rotations.

    A function of the matrix does not depend on the signs and the mixing of its eigenvectors, which differ between processors.
    """
    stiffness, modes = np.linalg.eigh(matrix)
    kept = np.abs(stiffness) > FREE_MODE
    raised = np.where(kept, np.maximum(stiffness, SOFTEST_MODE) ** power, 0.0)
    return (modes * raised) @ modes.T


def minimum(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The GFN2-xTB minimum near a geometry [n, 3], by Newton's method; largest force left below 0.02 eV/Angstrom."""
    for _ in range(20):
        _, forces = energy_and_forces(numbers, positions)
        if np.abs(forces).max() < 0.02:
            return positions
        step = of_stiffness(second_derivatives(numbers, positions), -1.0) @ forces.ravel()
        positions = positions + step.reshape(positions.shape)
    raise RuntimeError(f"no minimum found for a molecule of atomic numbers {numbers.tolist()}")


def molecule_frames(smiles: str, num_frames: int, seed: int) -> dict[str, np.ndarray]:
    """Frames of one molecule, the minimum first: ``z`` [n], ``pos`` and ``forces`` [num_frames, n, 3], ``energy``, ``temperature``.

    Raises:
        RuntimeError: No sound geometry, or no convergence.
    """
    found = conformer(smiles, seed)
    if found is None:
        raise RuntimeError(f"no sound geometry found for {smiles}")
    molecule, positions = found
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = minimum(numbers, positions)
    amplitude = of_stiffness(second_derivatives(numbers, positions), -0.5)
    # A stream of its own for every molecule: another list of molecules leaves its frames as they are.
    noise = np.random.default_rng((seed, zlib.crc32(smiles.encode()))).standard_normal((num_frames, positions.size))
    temperatures = np.resize(TEMPERATURES, num_frames)
    temperatures[0] = 0.0
    displacements = np.sqrt(BOLTZMANN_IN_EV * temperatures)[:, None] * (noise @ amplitude)
    frames = positions + displacements.reshape(num_frames, *positions.shape)
    frames = np.round(frames / POSITION_STEP) * POSITION_STEP
    energies, forces = zip(*(energy_and_forces(numbers, frame) for frame in frames), strict=True)
    return {"z": numbers, "pos": frames, "forces": np.stack(forces), "energy": np.array(energies), "temperature": temperatures}


def make_force_sample(num_frames: int, seed: int) -> dict[str, np.ndarray]:
    """Make the arrays of the data set.

    Args:
        num_frames: Frames of every molecule.
        seed: Of the conformers and the displacements.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # the order of a threaded sum would show in the last digits
    parts = [molecule_frames(smiles, num_frames, seed) for smiles in MOLECULES]
    # From the second frame on: the minimum trains, and every temperature is in both sets.
    held_out = np.arange(num_frames) % HELD_OUT == HELD_OUT - 1
    return {
        "n_atoms": np.repeat([len(part["z"]) for part in parts], num_frames).astype(np.int32),
        "z": np.concatenate([np.tile(part["z"], num_frames) for part in parts]).astype(np.uint8),
        "pos": np.concatenate([part["pos"].reshape(-1, 3) for part in parts]).astype(np.float32),
        "forces_eV_A": np.concatenate([part["forces"].reshape(-1, 3) for part in parts]).round(5).astype(np.float32),
        "energy_eV": np.concatenate([part["energy"] for part in parts]).round(6),
        "split": np.tile(held_out, len(parts)).astype(np.uint8),
        "smiles": np.repeat(np.array(MOLECULES, dtype=np.bytes_), num_frames),
        "temperature_K": np.concatenate([part["temperature"] for part in parts]).astype(np.float32),
    }


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return write_sample(arguments.output, lambda: make_force_sample(arguments.num_frames, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
