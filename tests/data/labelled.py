"""Frames of molecules and crystals with random labels, some without one label or another."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator


def labelled(atoms: Atoms, seed: int, without: tuple[str, ...] = ()) -> Atoms:
    """With random numbers for energy, forces and, in a crystal, stress."""
    generator = np.random.default_rng(seed)
    atoms.rattle(0.05, seed=seed)
    labels = {"energy": generator.normal(), "forces": generator.normal(size=(len(atoms), 3))}
    if atoms.pbc.all():
        labels["stress"] = 0.01 * generator.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in labels.items() if name not in without})
    return atoms


def mixed_frames() -> list[Atoms]:
    """Molecules, crystals of cells smaller than a cutoff, a slab; some without one label or another."""
    slab = molecule("CH4", cell=[4.0, 5.0, 0.0], pbc=[True, True, False])
    return [
        labelled(molecule("CH4"), 0),
        labelled(bulk("C"), 1),
        labelled(molecule("C2H6"), 2, without=("forces",)),
        labelled(slab, 3),
        labelled(bulk("C", cubic=True), 4, without=("stress",)),
        labelled(molecule("CH4"), 5, without=("energy",)),
        labelled(bulk("C"), 6, without=("energy", "forces")),
        labelled(molecule("C2H6"), 7),
        labelled(molecule("CH4"), 8),
        labelled(bulk("C"), 9),
    ]
