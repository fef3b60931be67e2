"""Force fields: an energy that is a sum over atoms, and forces as its negative gradient.

A :class:`ForceField` takes Angstrom and gives eV and eV/Angstrom. :func:`energy_and_forces` takes any model of energies; forces are
then in the model's unit of energy over that of the positions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Fiber
from se3_fast.geometry import edge_lengths
from se3_fast.graph import Graph, as_graph, complete_graph, radius_graph
from se3_fast.layers import ConvSE3FuseLevel
from se3_fast.model import SE3Transformer
from se3_fast.training.checkpoint import build_from, read_checkpoint
from se3_fast.training.checkpoint_entries import check_sizes, expect, is_number
from se3_fast.training.errors import CheckpointError

LARGEST_ATOMIC_NUMBER = 118
FIRST_CENTRE = 0.6
"""Angstrom, centre of the first Gaussian: no bond is shorter (H-H: 0.74)."""

LAST_CENTRE = 6.0
"""Angstrom, centre of the last Gaussian where there is no cutoff; beyond, the plain distance is left."""

_SIZES = ("num_layers", "num_degrees", "num_channels", "num_heads", "channels_div", "num_gaussians")


def molecule_graph(
    pos: Tensor, atomic_numbers: Tensor, batch_num_nodes: Sequence[int] | Tensor | None = None, cutoff: float | None = None
) -> Graph:
    """The graph of one molecule, or of several in a batch, that a :class:`ForceField` takes.

    Args:
        pos: [N, 3], Angstrom.
        atomic_numbers: [N] int64.
        batch_num_nodes: [B] atoms of each molecule; default: one molecule.
        cutoff: longest edge, in Angstrom; None: an edge between any two atoms of a molecule.

    Returns:
        A graph with ``ndata['pos']``, ``ndata['atomic_numbers']`` and ``edata['rel_pos']``.

    Raises:
        ValueError: if shapes do not fit, or the cutoff is not positive.
    """
    if atomic_numbers.shape != pos.shape[:1]:
        raise ValueError(f"atomic_numbers: expected shape [{pos.shape[0]}], got {list(atomic_numbers.shape)}")
    graph = complete_graph(pos, batch_num_nodes) if cutoff is None else radius_graph(pos, cutoff, batch_num_nodes)
    graph.ndata["atomic_numbers"] = atomic_numbers
    return graph


def energy_and_forces(model: nn.Module, graph: Any, *inputs: Any, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Energies of a batch of molecules, and the forces on their atoms: minus the gradient with respect to the positions.

    Args:
        model: called as ``model(graph, *inputs)``; returns an energy per molecule, [B] or [B, 1]. It must read the positions from
            ``graph.edata['rel_pos']`` or ``graph.ndata['pos']`` alone.
        graph: Graph, DGLGraph or PyTorch Geometric data with ``ndata['pos']`` [N, 3]. It is left as it is; edges stay those it has.
        *inputs: what else the model takes, for example node and edge features.
        create_graph: keep what a loss on the results needs to be differentiated (training). Otherwise both are detached.

    Returns:
        Energies [B] and forces [N, 3].

    Raises:
        ValueError: if the graph has no positions, or the energies carry no gradient.
    """
    graph = as_graph(graph)
    if "pos" not in graph.ndata:
        raise ValueError(f"graph: expected ndata['pos'] of shape [N, 3], got ndata with {sorted(graph.ndata)}")
    moved = copy.copy(graph)
    with torch.enable_grad():
        pos = graph.ndata["pos"].detach().requires_grad_()
        rel_pos = pos.index_select(0, graph.dst) - pos.index_select(0, graph.src)
        moved.ndata, moved.edata = {**graph.ndata, "pos": pos}, {**graph.edata, "rel_pos": rel_pos}
        energies = model(moved, *inputs).view(-1)
        if not energies.requires_grad:
            raise ValueError("model: expected energies that depend on the positions, got ones without a gradient")
        (gradient,) = torch.autograd.grad(energies.sum(), pos, create_graph=create_graph, materialize_grads=True)
    return (energies if create_graph else energies.detach()), -gradient


class ForceField(nn.Module):
    """The energy of molecules: an SE(3)-Transformer on elements and distances, and a perceptron for the energy of each atom.

        E = sum over atoms i of  reference[element of i] + scale * e_i

    An edge carries its length, Gaussians of it, and the elements of its two atoms. The energy does not depend on where or how a
    molecule lies, nor on the order of its atoms.

    Args:
        elements: atomic numbers of the elements that molecules may have.
        num_layers: attention blocks.
        num_degrees: hidden features have the degrees 0..num_degrees-1.
        num_channels: channels of each hidden degree.
        num_heads: attention heads; must divide ``num_channels / channels_div``.
        channels_div: keys and values have this many times fewer channels.
        num_gaussians: Gaussians of the distance, with centres from 0.6 Angstrom to the cutoff.
        cutoff: longest edge of the graphs it is trained on, in Angstrom; None: they are complete (the last centre is at 6). With a
            cutoff the energy jumps where an atom crosses it, because attention divides by a sum over neighbours.

    Attributes:
        elements: the atomic numbers, ascending.
        config: the arguments, as plain values.
        reference_energies: [119] float64, eV, by atomic number.
        scale: [], eV.

    Raises:
        ValueError: if there is no such element, or the sizes do not fit each other.
    """

    reference_energies: Tensor
    scale: Tensor
    column_of_element: Tensor
    centres: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        num_layers: int = 2,
        num_degrees: int = 2,
        num_channels: int = 16,
        num_heads: int = 4,
        channels_div: int = 2,
        num_gaussians: int = 16,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        elements = sorted(set(elements))
        if not elements or not 1 <= elements[0] <= elements[-1] <= LARGEST_ATOMIC_NUMBER:
            raise ValueError(f"elements: expected atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}, got {elements}")
        if num_gaussians < 2:
            raise ValueError(f"num_gaussians: expected at least 2, got {num_gaussians}")
        if cutoff is not None and not cutoff > FIRST_CENTRE:
            raise ValueError(f"cutoff: expected more than {FIRST_CENTRE} Angstrom, got {cutoff}")
        self.elements = elements
        self.config = {
            "elements": elements,
            "num_layers": num_layers,
            "num_degrees": num_degrees,
            "num_channels": num_channels,
            "num_heads": num_heads,
            "channels_div": channels_div,
            "num_gaussians": num_gaussians,
            "cutoff": cutoff,
        }
        width = num_degrees * num_channels
        self.transformer = SE3Transformer(
            num_layers=num_layers,
            fiber_in=Fiber({0: len(elements)}),
            fiber_hidden=Fiber.create(num_degrees, num_channels),
            fiber_out=Fiber({0: width}),
            num_heads=num_heads,
            channels_div=channels_div,
            fiber_edge=Fiber({0: num_gaussians + 2 * len(elements)}),
            return_type=0,
            fuse_level=ConvSE3FuseLevel.FULL,
        )
        self.energy_of_atom = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        column_of_element = torch.full((LARGEST_ATOMIC_NUMBER + 1,), -1)
        column_of_element[elements] = torch.arange(len(elements))
        centres = torch.linspace(FIRST_CENTRE, LAST_CENTRE if cutoff is None else cutoff, num_gaussians)
        self.register_buffer("column_of_element", column_of_element, persistent=False)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("reference_energies", torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(()))

    def set_scale(self, reference_energies: Mapping[int, float], scale: float) -> None:
        """Choose the energies that atoms have before the network adds to them, and the size of what it adds.

        Args:
            reference_energies: eV by atomic number.
            scale: eV; the mean absolute force of the training set times 1 Angstrom is a good choice.
        """
        for element, energy in reference_energies.items():
            self.reference_energies[element] = energy
        self.scale.fill_(scale)

    def forward(self, graph: Any) -> Tensor:
        """Evaluate the energy.

        Args:
            graph: as from :func:`molecule_graph`: ``ndata['atomic_numbers']`` [N] and ``edata['rel_pos']`` [E, 3], Angstrom.

        Returns:
            [B] float64 (a total energy has more digits than single precision holds), eV.

        Raises:
            ValueError: if the graph lacks the data, or has an element that the force field does not know.
        """
        graph = as_graph(graph)
        if "atomic_numbers" not in graph.ndata:
            raise ValueError(f"graph: expected ndata['atomic_numbers'] of shape [N], got ndata with {sorted(graph.ndata)}")
        kinds = self._kinds(graph.ndata["atomic_numbers"])  # [N, elements]
        invariants = self.transformer(graph, {"0": kinds[:, :, None]}, {"0": self._edge_features(graph, kinds)})  # [N, C, 1]
        own = self.energy_of_atom(invariants.squeeze(-1)).squeeze(-1)  # [N]
        return self.reference_energy(graph) + _sum_over_atoms((self.scale * own).double(), graph)

    def reference_energy(self, graph: Graph) -> Tensor:
        """The sum of the reference energies of each molecule's atoms, [B] float64, eV."""
        return _sum_over_atoms(self.reference_energies[graph.ndata["atomic_numbers"]], graph)

    def _kinds(self, atomic_numbers: Tensor) -> Tensor:
        """One-hot elements, [N, elements]."""
        columns = self.column_of_element[atomic_numbers]
        if len(columns) and int(columns.min()) < 0:
            unknown = atomic_numbers[columns < 0].unique().tolist()
            raise ValueError(f"graph: expected the elements {self.elements}, got {unknown} in ndata['atomic_numbers']")
        return nn.functional.one_hot(columns, len(self.elements)).to(self.centres.dtype)

    def _edge_features(self, graph: Graph, kinds: Tensor) -> Tensor:
        """Gaussians of the length, elements of source and destination, [E, ., 1]."""
        length = edge_lengths(graph.edata["rel_pos"])[:, None]  # [E, 1]
        spacing = self.centres[1] - self.centres[0]
        gaussians = torch.exp(-0.5 * ((length - self.centres) / spacing).square())
        return torch.cat([gaussians, kinds[graph.src], kinds[graph.dst]], 1)[:, :, None]


def _sum_over_atoms(values: Tensor, graph: Graph) -> Tensor:
    """Sum [N] over the atoms of each molecule, [B]."""
    sizes = graph.batch_num_nodes()
    molecule = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=len(values))
    return values.new_zeros(len(sizes)).index_add(0, molecule, values)


def load_force_field(path: str | Path) -> ForceField:
    """The force field of a checkpoint that ``python -m se3_fast.train_forces`` wrote, on the CPU, ready to be evaluated.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds another model.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("model_config", {})
    if "elements" not in config:
        raise CheckpointError(f"{path}: expected a checkpoint of se3_fast.train_forces, got one of another model")
    try:
        _check_config(config, checkpoint["state_dict"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return build_from(path, checkpoint["state_dict"], partial(ForceField, **config)).eval()


def _check_config(config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> None:
    known = {*_SIZES, "elements", "cutoff"}
    expect(config.keys() == known, "model_config", f"the entries {', '.join(sorted(known))}", ", ".join(sorted(config)))
    elements, cutoff = config["elements"], config["cutoff"]
    is_list = isinstance(elements, list) and all(type(element) is int for element in elements)
    expect(is_list, "model_config: elements", "a list of atomic numbers", elements)
    expect(cutoff is None or is_number(cutoff), "model_config: cutoff", "a finite number or None", cutoff)
    check_sizes(config, _SIZES, state_dict)
