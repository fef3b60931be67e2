"""The regression tasks of QM9, in the published order, and their units."""

from __future__ import annotations

TASK_UNITS: dict[str, str] = {
    "mu": "D",
    "alpha": "bohr^3",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "r2": "bohr^2",
    "zpve": "eV",
    "U0": "eV",
    "U": "eV",
    "H": "eV",
    "G": "eV",
    "Cv": "cal/(mol K)",
    "U0_atom": "eV",
    "U_atom": "eV",
    "H_atom": "eV",
    "G_atom": "eV",
    "A": "GHz",
    "B": "GHz",
    "C": "GHz",
}
"""Unit of every task; the order is that of the columns of ``targets``."""

TASKS: tuple[str, ...] = tuple(TASK_UNITS)
"""Task names in the order of the columns of ``targets``."""

HARTREE_IN_EV = 27.211386245988
"""CODATA 2018."""
