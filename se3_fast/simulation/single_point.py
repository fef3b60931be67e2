"""Energies, forces and stress of structures in double precision, by a force field of any precision."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se3_fast.devices import device_of
from se3_fast.energy_derivatives import check_volumes, energy_and_forces, energy_forces_and_dipoles, strained, sum_over_atoms
from se3_fast.forces import ForceField
from se3_fast.graph import Graph


class Evaluated(NamedTuple):
    """What a force field says of a batch of B structures with N atoms in all; float64.

    Attributes:
        energies: [B], eV.
        atomic_energies: [N], eV.
        forces: [N, 3], eV/Angstrom.
        stress: [B, 3, 3], eV/Angstrom^3; None where it was not asked for.
        dipoles: [B, 3], e Angstrom; None where they were not asked for.
    """

    energies: Tensor
    atomic_energies: Tensor
    forces: Tensor
    stress: Tensor | None
    dipoles: Tensor | None = None


def check_dtype(dtype: object) -> None:
    """Raise a ValueError for what structures are not evaluated in; None, as parameters are, is right."""
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r:.50}")


class SinglePoint(nn.Module):
    """A copy of a force field that is evaluated, not trained.

    Positions stay in double precision up to the distances of atoms, so that far from the origin, and in large cells, no digits are
    lost.

    Args:
        force_field: it is left as it is.
        device: where it runs.
        dtype: what it computes in, ``torch.float32`` or ``torch.float64``; None: as its parameters are.

    Raises:
        ValueError: for another argument, or a device that is not there.
    """

    def __init__(self, force_field: ForceField, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(force_field, ForceField):
            raise ValueError(f"force_field: expected a ForceField, got an object of type {type(force_field).__name__}")
        check_dtype(dtype)
        self.force_field = copy.deepcopy(force_field).eval().requires_grad_(False)
        self.force_field.to(device_of(device), dtype)
        self.dtype = next(self.force_field.parameters()).dtype
        self._atomic_energies = self.force_field.reference_energies.new_zeros(0)

    def forward(self, graph: Graph, with_dipoles: bool = False) -> Any:
        """The energies [B] of a graph with ``ndata['atomic_numbers']`` and ``edata['rel_pos']``, float64, eV; and its dipoles."""
        rounded = self._rounded(graph)
        dipoles = None
        if with_dipoles:
            energies, dipoles = self.force_field.atomic_energies_and_dipoles(rounded)
        else:
            energies = self.force_field.atomic_energies(rounded)
        self._atomic_energies = energies.detach()
        total = sum_over_atoms(energies, graph)
        return (total, dipoles.double()) if dipoles is not None else total

    def energies_and_gradient(self, graph: Graph, create_graph: bool = False) -> tuple[Tensor, Tensor] | None:
        """As of the force field: energies of atoms [N], and the gradient by the relative positions [E, 3], in their dtype."""
        found = self.force_field.energies_and_gradient(self._rounded(graph), create_graph)
        if found is None:
            return None
        self._atomic_energies, gradient = found
        return self._atomic_energies, gradient.to(graph.edata["rel_pos"].dtype)

    def _rounded(self, graph: Graph) -> Graph:
        rounded = copy.copy(graph)
        rounded.edata = {**graph.edata, "rel_pos": graph.edata["rel_pos"].to(self.dtype)}
        return rounded

    def evaluate(self, graph: Graph, volumes: Tensor | None = None, with_dipoles: bool = False) -> Evaluated:
        """Evaluate structures.

        Args:
            graph: as from :func:`se3_fast.forces.molecule_graph`, with float64 positions, on the device of the force field.
            volumes: [B] of the cells, Angstrom^3, where the stress is asked for.
            with_dipoles: whether dipoles are asked for, of molecules; then there is no stress.

        Raises:
            ValueError: as :func:`se3_fast.forces.energy_forces_and_stress`.
        """
        if with_dipoles:
            molecules = copy.copy(graph)
            molecules.edata = {name: values for name, values in graph.edata.items() if name != "offset"}
            energies, forces, dipoles = energy_forces_and_dipoles(self, molecules)
            return Evaluated(energies, self._atomic_energies, forces, None, dipoles)
        if volumes is not None:
            check_volumes(volumes, graph.batch_size)
        return self.evaluate_unchecked(graph, volumes)

    def evaluate_unchecked(self, graph: Graph, volumes: Tensor | None = None) -> Evaluated:
        """As :meth:`evaluate` without dipoles, for volumes that were checked: nothing waits for the device."""
        if volumes is None:
            energies, forces = energy_and_forces(self, graph)
            stress = None
        else:
            energies, forces, stress = strained(self, graph, volumes)
        return Evaluated(energies, self._atomic_energies, forces, stress)
