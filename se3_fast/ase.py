"""Force fields in ASE: ``atoms.calc = SE3FastCalculator("force_field.pth")`` (needs the extra ``ase``)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from se3_fast.devices import device_of
from se3_fast.files import path_of
from se3_fast.forces import ForceField, load_force_field
from se3_fast.graph import Graph
from se3_fast.layers.inputs import check_number
from se3_fast.neighbours import check_places
from se3_fast.simulation.compiled import CompiledSinglePoint
from se3_fast.simulation.domain import ClosestPairs, OutsideDomainError, OutsideDomainWarning
from se3_fast.simulation.recorded import RecordedSinglePoint, Structure
from se3_fast.simulation.single_point import Evaluated, SinglePoint, check_dtype
from se3_fast.simulation.skin import NeighboursWithSkin
from se3_fast.training.checkpoint import read_checkpoint
from se3_fast.training.recorded import CudaRecorder

Source = str | os.PathLike[str] | ForceField

__all__ = ["OutsideDomainError", "OutsideDomainWarning", "SE3FastCalculator"]


class SE3FastCalculator(Calculator):
    """An ASE calculator of a force field, or of the mean of several (a committee).

    It gives ``energy`` and ``free_energy`` (the same), ``energies`` of the atoms, ``forces``, and ``stress`` where all three
    directions are periodic; eV and Angstrom. Where all members were trained on dipoles it gives the ``dipole`` of what has no
    periodic direction, in e Angstrom. Of a committee, ``calc.results`` also has ``energy_spread`` (standard deviation over
    its members, eV) and ``forces_spread`` ([N], the root mean square of how far the members' forces on an atom are from their
    mean, eV/Angstrom).

    Args:
        force_fields: a checkpoint of ``se3-fast train-forces``, a :class:`~se3_fast.forces.ForceField`, or several of these.
        device: where it runs.
        dtype: ``torch.float32`` or ``torch.float64``; None: as the parameters are, which is float32 for checkpoints.
        skin: how much farther than the cutoff neighbours are searched for, Angstrom; the search is repeated once an atom has moved
            by half of it, or the cell has changed.
        largest_spread: of a committee, a force's spread above which a structure is outside what it knows, eV/Angstrom; None: any.
        outside: what happens with a structure outside of what was trained on, that is with atoms closer than there, as far as
            the checkpoint tells, or with a larger spread: ``"warn"`` (an :class:`OutsideDomainWarning` when a simulation leaves
            it), ``"stop"`` (an :class:`OutsideDomainError`) or ``"ignore"``.
        repulsion: whether nuclei repel each other where atoms are closer than in the training frames of a checkpoint
            (:meth:`se3_fast.forces.ForceField.set_repulsion`).
        compiled: the package that ``se3-fast export-forces`` has made of the force field, one on the CPU. It is machine code: load
            those alone that you have made. It runs where a structure has at most 128 edges, beyond which it is the slower way.
        cuda_graphs: whether steps are recorded on a CUDA device, and replayed while the atoms stay the same (an optimiser's,
            molecular dynamics'); those with a dipole of a molecule are not. It takes memory for a fifth more edges, and for
            all within the skin. Not measured.

    Raises:
        CheckpointError: if a checkpoint cannot be used.
        ValueError: for another argument that cannot be. When it calculates: for elements that are not known, positions that are
            not finite, atoms on one place, or a periodic cell without volume.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "dipole"]  # noqa: RUF012 (ASE has a list)

    def __init__(
        self,
        force_fields: Source | Sequence[Source],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        skin: float = 0.5,
        largest_spread: float | None = None,
        outside: str = "warn",
        repulsion: bool = False,
        cuda_graphs: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        if outside not in ("warn", "stop", "ignore"):
            raise ValueError(f"outside: expected 'warn', 'stop' or 'ignore', got {outside!r}")
        sources = _sources(force_fields)
        if largest_spread is not None and len(sources) < 2:
            raise ValueError(f"largest_spread: expected several force fields to compare, got {len(sources)}")
        if largest_spread is not None:
            check_number("largest_spread", largest_spread, "a number above 0")
        self.device = device_of(device)
        loaded = [_load(source, repulsion) for source in sources]
        self.members = [SinglePoint(force_field, self.device, dtype) for force_field, _ in loaded]
        self.has_dipole = all(member.force_field.has_dipole for member in self.members)
        if not self.has_dipole:
            self.implemented_properties = [name for name in type(self).implemented_properties if name != "dipole"]
        self.domains = [domain for _, domain in loaded if domain is not None]
        self.largest_spread, self.outside = largest_spread, outside
        self.neighbours = NeighboursWithSkin(max(force_field.cutoff for force_field, _ in loaded), skin)
        self._is_outside = False
        self._recorded = self._recordings() if cuda_graphs else None
        self._compiled = None if compiled is None else self._package(path_of("compiled", compiled))

    def _package(self, path: Path) -> CompiledSinglePoint:
        if self.device.type != "cpu" or len(self.members) != 1:
            raise ValueError(f"compiled: expected one force field on the CPU, got {len(self.members)} on {self.device}")
        return CompiledSinglePoint(self.members[0], path)

    def _recordings(self) -> list[RecordedSinglePoint]:
        if self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: expected a CUDA device to record on, got {self.device}")
        recorder = CudaRecorder(self.device)
        return [RecordedSinglePoint(member, recorder) for member in self.members]

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last step, of all that a force field reads; called by ASE, three times in a step of dynamics.

        Compared to the bit, whatever `tol` is: ASE's comparison takes as long as the forces on a small molecule.
        """
        known = self.atoms
        if not isinstance(known, Atoms):
            return list(all_changes)
        pairs = {
            "positions": (known.positions, atoms.positions),
            "numbers": (known.numbers, atoms.numbers),
            "cell": (known.cell.array, atoms.cell.array),
            "pbc": (known.pbc, atoms.pbc),
        }
        return [name for name, pair in pairs.items() if not np.array_equal(*pair)]

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = all_changes
    ) -> None:
        """Evaluate everything at once, whatever is asked for; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        assert isinstance(structure, Atoms)
        cell = torch.from_numpy(structure.cell.array.copy())
        pbc = torch.from_numpy(structure.pbc.copy())
        graph, lengths = self.neighbours.graph(torch.from_numpy(structure.positions.copy()), cell, pbc)
        graph.ndata["atomic_numbers"] = torch.from_numpy(structure.numbers.astype(np.int64))
        check_places("positions", graph.ndata["pos"], graph.edges(), lengths)
        volumes = cell.det().abs()[None].to(self.device) if bool(pbc.all()) and len(structure) else None
        with_dipole = self.has_dipole and not bool(pbc.any()) and len(structure) > 0
        if self._recorded is not None and len(structure) and not with_dipole:
            numbers, pos = graph.ndata["atomic_numbers"], graph.ndata["pos"]
            step = Structure(numbers, pos, cell, volumes is not None, self.neighbours.searched)
            found = [recorded.evaluate(step) for recorded in self._recorded]
        elif self._compiled is not None and not with_dipole and self._compiled.serves(graph):
            found = [self._compiled.evaluate(graph, volumes)]
        else:
            on_device = graph.to(self.device)
            found = [member.evaluate(on_device, volumes, with_dipole) for member in self.members]
        self.results = _results(found)
        self._check_domain(graph, lengths)

    def _check_domain(self, graph: Graph, lengths: Tensor) -> None:
        """Warn of a structure unlike those that were trained on, once until one is like them again; or raise."""
        if self.outside == "ignore":
            return
        reasons = [domain.reason_outside(graph, lengths) for domain in self.domains]
        if self.largest_spread is not None and self.results["forces_spread"].max(initial=0.0) > self.largest_spread:
            atom = int(self.results["forces_spread"].argmax())
            spread = self.results["forces_spread"][atom]
            reasons.append(
                f"the forces on atom {atom} differ by {spread:.3g} eV/Angstrom in the committee, more than {self.largest_spread:g}"
            )
        reason = next(filter(None, reasons), None)
        if reason is not None and self.outside == "stop":
            self.results = {}
            raise OutsideDomainError(reason)
        if reason is not None and not self._is_outside:
            warnings.warn(reason, OutsideDomainWarning, stacklevel=2)
        self._is_outside = reason is not None


def _sources(force_fields: object) -> list[Source]:
    """What members of a committee are made of, one at least."""
    is_several = isinstance(force_fields, Iterable) and not isinstance(force_fields, str)
    sources: list[Any] = list(force_fields) if is_several else [force_fields]  # type: ignore[call-overload]
    if not sources:
        raise ValueError("force_fields: expected one at least, got none")
    for source in sources:
        if not isinstance(source, (str, os.PathLike, ForceField)):
            raise ValueError(f"force_fields: expected checkpoints or ForceFields, got an object of type {type(source).__name__}")
    return sources


def _load(source: Source, repulsion: bool) -> tuple[ForceField, ClosestPairs | None]:
    """A force field, and the shortest distances that it was trained on where its checkpoint has them."""
    if isinstance(source, ForceField):
        if repulsion and source.repulsion is None:
            raise ValueError(
                "repulsion: expected a checkpoint, which says where it begins, or a ForceField that has one, got one without"
            )
        return source, None
    path = Path(source)
    force_field = load_force_field(path, repulsion)
    distances = read_checkpoint(path).get("closest_pairs")
    return force_field, None if distances is None else ClosestPairs(distances, force_field.elements, force_field.cutoff)


def _results(found: Sequence[Evaluated]) -> dict[str, Any]:
    """What ASE keeps: the mean over the members, and how far they are apart."""
    energies = torch.stack([one.energies[0] for one in found]).cpu()
    forces = torch.stack([one.forces for one in found]).cpu()
    results: dict[str, Any] = {
        "energy": float(energies.mean()),
        "free_energy": float(energies.mean()),
        "energies": torch.stack([one.atomic_energies for one in found]).mean(0).cpu().numpy(),
        "forces": forces.mean(0).numpy(),
    }
    stresses = [one.stress for one in found if one.stress is not None]
    if stresses:
        results["stress"] = full_3x3_to_voigt_6_stress(torch.stack(stresses).mean(0)[0].cpu().numpy())
    dipoles = [one.dipoles for one in found if one.dipoles is not None]
    if dipoles:
        results["dipole"] = torch.stack(dipoles).mean(0)[0].cpu().numpy()
    if len(found) > 1:
        results["energy_spread"] = float(energies.std(correction=0))
        results["forces_spread"] = (forces - forces.mean(0)).square().sum(2).mean(0).sqrt().numpy()
    return results
