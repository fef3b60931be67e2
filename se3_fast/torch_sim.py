"""Force fields in torch-sim: ``SE3FastModel("force_field.pth")`` (needs the package ``torch-sim-atomistic``)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from se3_fast.devices import device_of
from se3_fast.files import path_of
from se3_fast.forces import ForceField, load_force_field, molecule_graph
from se3_fast.simulation.single_point import SinglePoint, check_dtype


class SE3FastModel(ModelInterface):  # type: ignore[misc]  # its package need not be there
    """A force field as torch-sim takes it: many systems at once, in eV and Angstrom.

    Args:
        force_field: a checkpoint of ``se3-fast train-forces``, or a :class:`~se3_fast.forces.ForceField`.
        device: where it runs.
        dtype: of the states that come and of the results; the network computes in that of its parameters.
        compute_forces: whether it gives forces.
        compute_stress: whether it gives the stress; for systems that are periodic in three directions.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        ValueError: for another argument that cannot be.
    """

    def __init__(
        self,
        force_field: str | os.PathLike[str] | ForceField,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        loaded = force_field if isinstance(force_field, ForceField) else load_force_field(path_of("force_field", force_field))
        check_dtype(dtype)
        self._device, self._dtype = device_of(device), dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._evaluated = SinglePoint(loaded, self._device)

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Evaluate systems.

        Args:
            state: a ``SimState``, or a mapping of its entries.

        Returns:
            ``energy`` [B], ``forces`` [N, 3], ``stress`` [B, 3, 3] and ``energies`` [N], in the dtype of the model.

        Raises:
            ValueError: for elements that are not known, positions that are not finite, or cells without volume.
        """
        entries = state if isinstance(state, dict) else vars(state)
        pos, cells = entries["positions"].detach().double(), entries["cell"].detach().double().mT
        pbc = torch.as_tensor(entries["pbc"])
        system = entries.get("system_idx")
        sizes = torch.bincount(system) if system is not None else torch.tensor([len(pos)])
        graph = molecule_graph(pos, entries["atomic_numbers"].long(), sizes, self._evaluated.force_field.cutoff, cells, pbc)
        has_stress = self._compute_stress and bool(pbc.all())
        found = self._evaluated.evaluate(graph, torch.linalg.det(cells).abs() if has_stress else None)
        results = {"energy": found.energies, "energies": found.atomic_energies}
        if self._compute_forces:
            results["forces"] = found.forces
        if found.stress is not None:
            results["stress"] = found.stress
        return {name: values.to(self._dtype) for name, values in results.items()}
