"""Steps of a simulation that are recorded once and replayed: one launch of a CUDA graph instead of hundreds of kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from se3_fast.edge_orders import EdgeOrder
from se3_fast.graph import Graph
from se3_fast.simulation.single_point import Evaluated, SinglePoint
from se3_fast.simulation.skin import Searched
from se3_fast.training.recorded import RecordedOnce, Recorder

_SPARE = 1.2
"""How many more edges a recording has room for than the search found that it was made for."""


@dataclass(frozen=True)
class Structure:
    """What is evaluated, on the CPU.

    Attributes:
        numbers: [N] int64, atomic numbers.
        pos: [N, 3] float64, Angstrom.
        cell: [3, 3] float64, lattice vectors in rows, Angstrom.
        has_stress: whether the stress is asked for; then the cell has a volume.
        searched: the neighbours, those farther than the cutoff too.
    """

    numbers: Tensor
    pos: Tensor
    cell: Tensor
    has_stress: bool
    searched: Searched


class RecordedSinglePoint:
    """Evaluates structures one after the other, of which most have the same atoms and neighbours.

    An edge beyond the cutoff adds nothing. So all that a search with a skin has found are taken, step after step, and what there is
    room for beyond stands for edges from the first atom to itself that are twice the cutoff long. A recording serves until the
    atoms change, or a search finds more edges than it has room for.

    Args:
        evaluated: what is recorded, on a device.
        recorder: records it.
    """

    def __init__(self, evaluated: SinglePoint, recorder: Recorder) -> None:
        self._evaluated, self._recorder = evaluated, recorder
        self._room: _Room | None = None

    def evaluate(self, structure: Structure) -> Evaluated:
        """Evaluate one structure.

        Raises:
            ValueError: as :meth:`~se3_fast.simulation.single_point.SinglePoint.evaluate`.
            TrainingError: it cannot be recorded.
        """
        if self._room is None or not self._room.fits(structure):
            self._room = _Room(self._evaluated, structure, self._recorder)
        return self._room.evaluate(structure)


class _Room:
    """The tensors on the device that a recording reads and writes."""

    def __init__(self, evaluated: SinglePoint, structure: Structure, recorder: Recorder) -> None:
        self._evaluated, self._recorder = evaluated, recorder
        self._has_stress = structure.has_stress
        self._numbers = structure.numbers.clone()
        self._search: Searched | None = None
        self._found: Evaluated | None = None
        device, count = evaluated.force_field.scale.device, len(structure.numbers)
        self._size = int(_SPARE * len(structure.searched.src)) + 1
        self._on_device = {
            "atomic_numbers": structure.numbers.to(device),
            "pos": torch.zeros(count, 3, dtype=torch.float64, device=device),
            "cell": torch.zeros(3, 3, dtype=torch.float64, device=device),
            "volumes": torch.ones(1, dtype=torch.float64, device=device),
            "sizes": torch.tensor([count], device=device),
            "edges": torch.tensor([self._size], device=device),
            **{name: values.to(device) for name, values in self._edges(structure.searched).items()},
        }
        self._run = RecordedOnce(self._compute, recorder)

    def fits(self, structure: Structure) -> bool:
        """Whether a structure has the same atoms, and edges that there is room for."""
        is_same = self._has_stress == structure.has_stress and torch.equal(self._numbers, structure.numbers)
        return is_same and len(structure.searched.src) < self._size

    def evaluate(self, structure: Structure) -> Evaluated:
        """Copy in, run, copy out."""
        new = {"pos": structure.pos, "cell": structure.cell}
        if structure.has_stress:
            new["volumes"] = structure.cell.det().abs()[None]
        if self._search is not structure.searched:
            new |= self._edges(structure.searched)
            self._search = structure.searched
        for name, values in new.items():
            self._on_device[name].copy_(values)
        with self._recorder.stream():
            self._run()
        assert self._found is not None
        return _copied(self._found)

    def _edges(self, searched: Searched) -> dict[str, Tensor]:
        """Ends, offsets and orders of as many edges as there is room for, on the CPU."""
        spare = self._size - len(searched.src)
        zeros = torch.zeros(spare, dtype=torch.int64)
        src, dst = torch.cat([searched.src, zeros]), torch.cat([searched.dst, zeros])
        beyond = torch.zeros(self._size, 3, dtype=torch.float64)
        beyond[self._size - spare :, 0] = 2 * self._evaluated.force_field.cutoff
        graph = Graph(src, dst, len(self._numbers))
        shift = torch.cat([searched.shift.double(), torch.zeros(spare, 3, dtype=torch.float64)])
        return {
            "src": src,
            "dst": dst,
            "shift": shift,
            "beyond": beyond,
            "incoming_order": graph.incoming().order,
            "incoming_offsets": graph.incoming().offsets,
            "outgoing_order": graph.outgoing().order,
            "outgoing_offsets": graph.outgoing().offsets,
        }

    def _compute(self) -> None:
        """What is recorded; no value is looked at on the host."""
        here = self._on_device
        offset = here["shift"] @ here["cell"] + here["beyond"]
        rel_pos = here["pos"].index_select(0, here["dst"]) - here["pos"].index_select(0, here["src"]) + offset
        graph = Graph.from_orders(
            here["src"],
            here["dst"],
            EdgeOrder(here["incoming_order"], here["incoming_offsets"]),
            EdgeOrder(here["outgoing_order"], here["outgoing_offsets"]),
            here["sizes"],
            here["edges"],
            {"pos": here["pos"], "atomic_numbers": here["atomic_numbers"]},
            {"rel_pos": rel_pos, "offset": offset},
        )
        found = self._evaluated.evaluate_unchecked(graph, here["volumes"] if self._has_stress else None)
        if self._found is None:
            self._found = _copied(found)
            return
        for kept, values in zip(self._found, found, strict=True):
            if kept is not None and values is not None:
                kept.copy_(values)


def _copied(found: Evaluated) -> Evaluated:
    stress = None if found.stress is None else found.stress.clone()
    return Evaluated(found.energies.clone(), found.atomic_energies.clone(), found.forces.clone(), stress)
