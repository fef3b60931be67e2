"""Single points by a package of AOTInductor (``se3-fast export-forces``), which runs without Python."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from se3_fast.error_text import one_line
from se3_fast.forces import ForceField
from se3_fast.graph import Graph
from se3_fast.simulation.single_point import Evaluated, SinglePoint

MOST_EDGES = 128
"""Beyond it the compiled operation of this package is faster than what AOTInductor makes of the formula
(docs/molecular_dynamics.md)."""

_TOLERANCE = 1e-3
"""Of forces, of the largest one or of 1 eV/Angstrom: more than rounding, less than another force field's."""


_MOVES = 0.1
"""Angstrom."""


def describe(force_field: ForceField, dtype: torch.dtype) -> dict[str, str]:
    """What a package says of itself."""
    elements = " ".join(map(str, force_field.elements))
    reaches = [] if force_field.repulsion is None else force_field.repulsion.reach.to(dtype).flatten().tolist()
    return {
        "se3_fast_dtype": str(dtype),
        "se3_fast_elements": elements,
        "se3_fast_cutoff": repr(force_field.cutoff),
        # Usual structures do not show it when they are compared.
        "se3_fast_repulsion": " ".join(f"{reach:.4g}" for reach in reaches) or "none",
    }


class CompiledSinglePoint:
    """Evaluates small structures by a package, which is compared with its force field when it is first used.

    Args:
        evaluated: the force field that it was made of, on the CPU.
        path: the package; it is machine code that runs.

    Raises:
        ValueError: it cannot be loaded, or is that of another force field.
    """

    def __init__(self, evaluated: SinglePoint, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            self._package = torch._inductor.aoti_load_package(str(path))
            found = self._package.loader.get_metadata()
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path}: expected a package of se3-fast export-forces, got another file ({one_line(error)})"
            ) from error
        wanted = describe(evaluated.force_field, evaluated.dtype)
        for name, value in wanted.items():
            if found.get(name) != value:
                kind = name.removeprefix("se3_fast_")
                raise ValueError(f"{path}: expected a package of {kind} {value} as the force field has, got {found.get(name)}")
        self._evaluated, self._path = evaluated, path
        self._is_compared = False

    def serves(self, graph: Graph) -> bool:
        """Whether it can evaluate a structure, and faster; the elements of others are looked at elsewhere."""
        known = self._evaluated.force_field.column_of_element[graph.ndata["atomic_numbers"]] >= 0
        return graph.num_nodes() >= 2 and 2 <= graph.num_edges() <= MOST_EDGES and bool(known.all())

    def evaluate(self, graph: Graph, volumes: torch.Tensor | None) -> Evaluated:
        """Evaluate one structure; as :meth:`SinglePoint.evaluate`.

        Raises:
            ValueError: the package is that of another force field.
        """
        if not self._is_compared:
            for like in (graph, _moved(graph)):
                self._compare(self._found(like, volumes), self._evaluated.evaluate(like, volumes))
            self._is_compared = True
        return self._found(graph, volumes)

    def _found(self, graph: Graph, volumes: torch.Tensor | None) -> Evaluated:
        numbers, rel_pos = graph.ndata["atomic_numbers"], graph.edata["rel_pos"].to(self._evaluated.dtype)
        energies, forces, virial = self._package(rel_pos, graph.src, graph.dst, numbers)
        stress = None if volumes is None else virial.double()[None] / volumes[:, None, None]
        return Evaluated(energies.sum()[None], energies, forces.double(), stress)

    def _compare(self, found: Evaluated, expected: Evaluated) -> None:
        difference = float((found.forces - expected.forces).abs().max())
        largest = max(1.0, float(expected.forces.abs().max()))
        energy = float((found.energies - expected.energies).abs())
        if not (difference <= _TOLERANCE * largest and energy <= _TOLERANCE * largest * len(found.forces)):
            raise ValueError(
                f"{self._path}: expected a package of this force field, got one whose forces are {difference:.3g} eV/Angstrom off"
            )


def _moved(graph: Graph) -> Graph:
    """The same atoms and edges, every atom moved: in a crystal all force fields may have the same forces, none."""
    generator = torch.Generator().manual_seed(0)
    moves = _MOVES * torch.randn(graph.num_nodes(), 3, generator=generator, dtype=torch.float64)
    moved = copy.copy(graph)
    moved.ndata = {**graph.ndata, "pos": graph.ndata["pos"] + moves}
    moved.edata = {**graph.edata, "rel_pos": graph.edata["rel_pos"] + moves[graph.dst] - moves[graph.src]}
    return moved
