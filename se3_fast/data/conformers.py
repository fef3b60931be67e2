"""Positions of molecules of which only the bonds are known (needs the extra ``chem``)."""

from __future__ import annotations

import numpy as np

try:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
except ImportError as error:
    raise ImportError("making conformers needs RDKit: pip install 'se3_fast[chem]'") from error

_MOST_ITERATIONS = 5000
_SEEDS = 2**31
_SEED_STEP = 7919


class ConformerError(ValueError):
    """No positions are found; the message says why, in one line."""


def conformers(molecule: Chem.Mol, count: int, seed: int) -> list[np.ndarray]:
    """Make conformers as those of the sample data set: ETKDG (version 3), then MMFF94 until it converges.

    Args:
        molecule: With explicit hydrogens; it is left with these conformers alone.
        count: How many to try.
        seed: Of the embedding; equal seeds and equal orders of the atoms give equal conformers.

    Returns:
        One to `count` arrays [n, 3] in Angstrom: those that converged.

    Raises:
        ConformerError: None did, or the force field has no parameters for some atom.
    """
    embedded = [number for number in range(count) if _embed(molecule, (seed + number * _SEED_STEP) % _SEEDS, is_first=number == 0)]
    if not embedded:
        raise ConformerError("no conformer: ETKDG found no positions")
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        raise ConformerError("no conformer: MMFF94 has no parameters for it")
    outcomes = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=_MOST_ITERATIONS)
    found = [
        conformer.GetPositions() for conformer, (outcome, _) in zip(molecule.GetConformers(), outcomes, strict=True) if outcome == 0
    ]
    if not found:
        raise ConformerError("no conformer: MMFF94 did not converge")
    return found


def _embed(molecule: Chem.Mol, seed: int, is_first: bool) -> bool:
    """Add a conformer, or make it the only one; returns whether one was found.

    One at a time, since RDKit multiplies the seed by the conformer's number: with seed 0 all would be the same.
    """
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed  # type: ignore[assignment]  # RDKit's stubs give it the type of its owner
    parameters.clearConfs = is_first  # type: ignore[assignment]
    return rdDistGeom.EmbedMolecule(molecule, parameters) >= 0
