"""Force fields: an energy that is a sum over atoms, and forces as its negative gradient.

A :class:`ForceField` takes Angstrom and gives eV and eV/Angstrom. :func:`energy_and_forces` takes any model of energies; forces are
then in the model's unit of energy over that of the positions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se3_fast.autograd.modes import is_readable
from se3_fast.backends.operands import ForceNetwork
from se3_fast.energy_derivatives import (
    EnergyForcesDipoles,
    EnergyForcesStress,
    energy_and_forces,
    energy_forces_and_dipoles,
    energy_forces_and_stress,
    graph_of_nodes,
    sum_over_atoms,
)
from se3_fast.files import path_of
from se3_fast.graph import Graph, as_graph, complete_graph, radius_graph
from se3_fast.layers.dipole import DipoleHead
from se3_fast.layers.edge_embedding import EdgeEmbedding
from se3_fast.layers.inputs import check_number, check_whole
from se3_fast.layers.interaction import Interaction, interact, largest_harmonic
from se3_fast.layers.plain import is_called_plainly, is_plain
from se3_fast.layers.repulsion import NuclearRepulsion
from se3_fast.neighbours import check_places, check_positions
from se3_fast.ops.force_network import force_network, may_be_whole, trained_force_network
from se3_fast.training.checkpoint import build_from, read_checkpoint
from se3_fast.training.checkpoint_entries import check_sizes, expect, is_number
from se3_fast.training.errors import CheckpointError

__all__ = [
    "EnergyForcesDipoles",
    "EnergyForcesStress",
    "ForceField",
    "energy_and_forces",
    "energy_forces_and_dipoles",
    "energy_forces_and_stress",
    "load_force_field",
    "molecule_graph",
]

LARGEST_ATOMIC_NUMBER = 118
_HEAD_WIDTH = 32
_SIZES = ("num_layers", "num_degrees", "num_channels", "num_radial", "radial_width", "num_knots")


def molecule_graph(
    pos: Tensor,
    atomic_numbers: Tensor,
    batch_num_nodes: Sequence[int] | Tensor | None = None,
    cutoff: float | None = None,
    cell: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor = True,
) -> Graph:
    """The graph of a structure, or of several in a batch, that a :class:`ForceField` takes.

    Args:
        pos: [N, 3], Angstrom.
        atomic_numbers: [N] int64 or int32.
        batch_num_nodes: [B] atoms of each structure; default: one structure.
        cutoff: longest edge, in Angstrom; None: an edge between any two atoms, for molecules only. A force field takes both, and
            gives the same.
        cell: [3, 3] or [B, 3, 3], lattice vectors in rows, Angstrom; None: not periodic.
        pbc: the periodic directions, see :func:`se3_fast.graph.radius_graph`.

    Returns:
        A graph with ``ndata['pos']``, ``ndata['atomic_numbers']`` and ``edata['rel_pos']``, and where there is a cell
        ``edata['offset']``.

    Raises:
        ValueError: if shapes do not fit, the cutoff is not positive, a cell comes without one, or two atoms lie on one place (seen
            for tensors on the CPU).
    """
    check_positions(pos)
    if not isinstance(atomic_numbers, Tensor):
        raise ValueError(f"atomic_numbers: expected a tensor, got an object of type {type(atomic_numbers).__name__}")
    if atomic_numbers.shape != pos.shape[:1]:
        raise ValueError(f"atomic_numbers: expected shape [{pos.shape[0]}], got {list(atomic_numbers.shape)}")
    _check_integers("atomic_numbers", atomic_numbers)
    if cutoff is None and cell is not None:
        raise ValueError("cutoff: expected a length, since a periodic cell has edges without end, got None")
    graph = complete_graph(pos, batch_num_nodes) if cutoff is None else radius_graph(pos, cutoff, batch_num_nodes, cell, pbc)
    rel_pos = graph.edata["rel_pos"].detach()
    if is_readable(rel_pos) and len(rel_pos):
        check_places("pos", pos, graph.edges(), rel_pos.abs().amax(1))
    graph.ndata["atomic_numbers"] = atomic_numbers
    return graph


class ForceField(nn.Module):
    """The energy of atoms in molecules and in periodic cells. It is smooth; at the cutoff it has two continuous derivatives.

        E = sum over atoms i of  reference[element of i] + scale * e_i

    Every atom begins as its element. In each layer (:class:`~se3_fast.layers.interaction.Interaction`) it hears of its neighbours
    by a depthwise convolution, and products of what arrives tell what several neighbours are together; a perceptron makes the
    energy of what the last layer leaves. An edge acts through harmonics of its direction and Bessel functions of its length that
    are zero at the cutoff, so that it makes no difference whether a graph has edges beyond. The energy does not depend on where or
    how a molecule lies, on the order of its atoms, nor on which of two mirror images it is.

    Args:
        elements: atomic numbers of the elements that there may be.
        num_layers: layers; an atom hears of others at most ``num_layers * cutoff`` away.
        num_degrees: hidden features have the degrees 0..num_degrees-1.
        num_channels: channels of each hidden degree.
        num_radial: Bessel functions of the distance.
        radial_width: of the hidden layers of the radial profiles.
        num_knots: at which the radial profiles are evaluated; between them stand cubic splines.
        cutoff: beyond it two atoms do not act on each other directly, Angstrom.
        average_neighbours: of an atom in the training set, within the cutoff.
        repulsion: whether nuclei repel each other where atoms are closer than known (:meth:`set_repulsion`).
        dipole: whether it gives dipoles of molecules too.

    Attributes:
        elements: the atomic numbers, ascending.
        config: the arguments, as plain values.
        reference_energies: [119] float64, eV, by atomic number.
        scale: [], eV.

    Raises:
        ValueError: if there is no such element, or a size is no positive number.
    """

    reference_energies: Tensor
    scale: Tensor
    column_of_element: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        num_layers: int = 3,
        num_degrees: int = 3,
        num_channels: int = 32,
        num_radial: int = 8,
        radial_width: int = 32,
        num_knots: int = 32,
        cutoff: float = 5.0,
        average_neighbours: float = 10.0,
        repulsion: bool = False,
        dipole: bool = False,
    ) -> None:
        super().__init__()
        try:
            elements = sorted({operator.index(element) for element in elements})
        except TypeError:
            raise ValueError(f"elements: expected atomic numbers, got {elements!r:.50}") from None
        if not elements or not 1 <= elements[0] <= elements[-1] <= LARGEST_ATOMIC_NUMBER:
            raise ValueError(f"elements: expected atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}, got {elements}")
        for name, size in zip(_SIZES, (num_layers, num_degrees, num_channels, num_radial, radial_width, num_knots), strict=True):
            check_whole(name, size, 1)
        check_number("cutoff", cutoff, "a positive length")
        check_number("average_neighbours", average_neighbours, "a finite number above 0")
        num_layers, num_degrees, num_channels = map(operator.index, (num_layers, num_degrees, num_channels))
        num_radial, radial_width, num_knots = map(operator.index, (num_radial, radial_width, num_knots))
        cutoff, average_neighbours = float(cutoff), float(average_neighbours)
        self.elements = elements
        self.config = {
            "elements": elements,
            "num_layers": num_layers,
            "num_degrees": num_degrees,
            "num_channels": num_channels,
            "num_radial": num_radial,
            "radial_width": radial_width,
            "num_knots": num_knots,
            "cutoff": cutoff,
            "average_neighbours": average_neighbours,
            **({"repulsion": True} if repulsion else {}),
            **({"dipole": True} if dipole else {}),
        }
        self.repulsion = NuclearRepulsion(elements, cutoff) if repulsion else None
        largest = num_degrees - 1
        last = min(largest, 1) if dipole else 0
        self.edge_embedding = EdgeEmbedding(num_radial, largest_harmonic(largest), cutoff, num_knots)
        self.atom_embedding = nn.Parameter(torch.randn(len(elements), num_channels))
        self.layers = nn.ModuleList(
            Interaction(
                (largest if number else 0, largest, largest if number < num_layers - 1 else last),
                num_channels,
                len(elements),
                (num_radial, radial_width),
                average_neighbours,
            )
            for number in range(num_layers)
        )
        self.energy_of_atom = nn.Sequential(nn.Linear(num_channels, _HEAD_WIDTH), nn.SiLU(), nn.Linear(_HEAD_WIDTH, 1))
        self.dipole_of_molecule = DipoleHead(num_channels, has_vectors=last == 1) if dipole else None
        column_of_element = torch.full((LARGEST_ATOMIC_NUMBER + 2,), -1)  # -1 at both ends, for numbers of no element
        column_of_element[elements] = torch.arange(len(elements))
        self.register_buffer("column_of_element", column_of_element, persistent=False)
        self.register_buffer("reference_energies", torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(()))

    @property
    def cutoff(self) -> float:
        """Angstrom."""
        return self.edge_embedding.cutoff

    @property
    def has_dipole(self) -> bool:
        """Whether it gives dipoles of molecules."""
        return self.dipole_of_molecule is not None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ForceField:
        """As of any module, but the reference energies stay in double precision: total energies have more digits than others."""
        references = self.reference_energies
        super()._apply(fn, recurse)
        if self.reference_energies.dtype != references.dtype:
            self.reference_energies = references.to(self.reference_energies.device)
        return self

    def set_scale(self, reference_energies: Mapping[int, float], scale: float) -> None:
        """Choose the energies that atoms have before the network adds to them, and the size of what it adds.

        Args:
            reference_energies: eV by atomic number.
            scale: eV; the mean absolute force of the training set times 1 Angstrom is a good choice.

        Raises:
            ValueError: for an element that does not exist, or a number that is not finite.
        """
        check_number("scale", scale, "a finite number above 0")
        _check_mapping("reference_energies", reference_energies, "energies by atomic number")
        for element, energy in reference_energies.items():
            if not (_is_element(element) and _is_finite(energy)):
                raise ValueError(f"reference_energies: expected finite energies of elements to 118, got {energy!r} for {element}")
        for element, energy in reference_energies.items():
            self.reference_energies[element] = energy
        self.scale.fill_(scale)

    def set_repulsion(self, closest_pairs: Mapping[str, float]) -> None:
        """Have nuclei repel each other where atoms are closer than in the training frames, of which the network knows nothing.

        Frames without such pairs keep their energies to the last bit. It goes into checkpoints and exported files. The distances of
        a checkpoint that was trained on a folder too large to keep its edges are those of a sample of 10,000 frames.

        Args:
            closest_pairs: shortest distances in the training frames, Angstrom, by pairs of atomic numbers (``"1-6"``), as
                checkpoints have them; longer ones than the cutoff, where there need be no edge, are taken for it. Pairs that are
                not named repel each other from 1.5 Angstrom on.

        Raises:
            ValueError: if a name is no pair of atomic numbers, or a distance not positive.
        """
        _check_mapping("closest_pairs", closest_pairs, "distances by pairs of atomic numbers such as '1-6'")
        repulsion = NuclearRepulsion(self.elements, self.cutoff)
        repulsion.set_reach(closest_pairs)
        self.repulsion = repulsion.to(self.scale.device)
        self.config["repulsion"] = True

    def forward(self, graph: Any, with_dipoles: bool = False) -> Any:
        """Evaluate the energy.

        Args:
            graph: as from :func:`molecule_graph`: ``ndata['atomic_numbers']`` [N] and ``edata['rel_pos']`` [E, 3], Angstrom, with
                all edges that are shorter than the cutoff.
            with_dipoles: whether dipoles are asked for; of molecules, with ``ndata['pos']`` [N, 3].

        Returns:
            [B] float64 (a total energy has more digits than single precision holds), eV; with dipoles a pair of that and of
            [B, 3] in the dtype of the parameters, e Angstrom.

        Raises:
            ValueError: if the graph lacks the data, or has an element that the force field does not know; or if it has no dipoles.
        """
        graph = as_graph(graph)
        if not with_dipoles:
            return sum_over_atoms(self.atomic_energies(graph), graph)
        energies, dipoles = self.atomic_energies_and_dipoles(graph)
        return sum_over_atoms(energies, graph), dipoles

    def atomic_energies(self, graph: Any, exchange: Callable[[list[Tensor]], list[Tensor]] | None = None) -> Tensor:
        """What each atom adds to the energy.

        Args:
            graph: as for :meth:`forward`.
            exchange: gives the features [N, 2d+1, C] that a layer but the first reads for those that the one before has left. For
                programs that divide space among processes, whose atoms near a border are copies of others'.

        Returns:
            [N] float64, eV.

        Raises:
            ValueError: as :meth:`forward`.
        """
        graph = as_graph(graph)
        self._check(graph)
        # Mixed precision has no place here: forces are derivatives, and its steps in the energy would be in them.
        with torch.autocast(graph.edata["rel_pos"].device.type, enabled=False):
            return self._energies_of(self._features(graph, exchange), graph)

    def atomic_energies_and_dipoles(self, graph: Any) -> tuple[Tensor, Tensor]:
        """What each atom adds to the energy, and the dipole of each molecule.

        Args:
            graph: as for :meth:`forward`, of molecules alone, with ``ndata['pos']`` [N, 3].

        Returns:
            [N] float64, eV; [B, 3] in the dtype of the parameters, e Angstrom.

        Raises:
            ValueError: as :meth:`forward`.
        """
        graph = as_graph(graph)
        self._check(graph)
        if self.dipole_of_molecule is None:
            raise ValueError("with_dipoles: expected a force field that was trained on dipoles, got one without")
        if "pos" not in graph.ndata:
            raise ValueError(f"graph: expected ndata['pos'] of shape [N, 3], got ndata with {sorted(graph.ndata)}")
        with torch.autocast(graph.edata["rel_pos"].device.type, enabled=False):
            features = self._features(graph, None)
            dipoles = self.dipole_of_molecule(features, graph.ndata["pos"], graph_of_nodes(graph), graph.batch_size)
            return self._energies_of(features, graph), dipoles

    def energies_and_gradient(self, graph: Any, create_graph: bool = False) -> tuple[Tensor, Tensor] | None:
        """What each atom adds to the energy, and the gradient of the sum by the edges, at once and without autograd.

        Args:
            graph: as for :meth:`forward`.
            create_graph: whether a loss on both is to be differentiated by the weights.

        Returns:
            [N] float64, eV, and [E, 3] of ``rel_pos``, eV/Angstrom, which carry no gradient, or that by the weights alone. None
            where no backend has it, or where hooks are to see the layers, or they are others: :meth:`atomic_energies` and autograd
            then find the same.

        Raises:
            ValueError: as :meth:`forward`.
        """
        graph = as_graph(graph)
        self._check(graph)
        rel_pos = graph.edata["rel_pos"].detach()
        if not may_be_whole(rel_pos) or not self._is_as_made():
            return None
        columns = self._columns(graph.ndata["atomic_numbers"])
        with torch.autocast(rel_pos.device.type, enabled=False), torch.set_grad_enabled(create_graph):
            network = self._network()
            if create_graph:
                by_parts = partial(self._by_parts, network, graph, rel_pos)
                found = trained_force_network(network, graph, rel_pos, columns, by_parts)
            else:
                found = force_network(network, graph, rel_pos, columns)
            if found is None:
                return None
            own, gradient = (values * self.scale for values in found)
            if self.repulsion is not None:
                leaf = rel_pos.detach().requires_grad_()
                with torch.enable_grad():
                    repulsion = self._repulsion(graph, leaf)
                    (of_repulsion,) = torch.autograd.grad(repulsion.sum(), leaf)
                own, gradient = own + repulsion.detach(), gradient + of_repulsion
            return own.double() + self.reference_energies[graph.ndata["atomic_numbers"]], gradient

    def _by_parts(self, network: ForceNetwork, graph: Graph, rel_pos: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the operation of the whole network finds with other tensors, by layers and autograd."""
        network = network.with_tensors(tensors)
        kinds = self._kinds(graph.ndata["atomic_numbers"])
        first, first_bias, last, last_bias = network.head
        with torch.enable_grad():
            leaf = rel_pos.detach().requires_grad_()
            embedding = self.edge_embedding(leaf)
            features = [(kinds @ network.atom_embedding)[:, None]]  # [N, 1, C]
            for layer in network.layers:
                features = interact(layer, features, graph, embedding, kinds)
            hidden = F.silu(F.linear(features[0].squeeze(1), first, first_bias))
            energies = F.linear(hidden, last, last_bias).squeeze(1)  # [N]
            (gradient,) = torch.autograd.grad(energies.sum(), leaf, create_graph=True)
        return [energies, gradient]

    def _is_as_made(self) -> bool:
        """Whether the modules are such as the constructor makes, and nobody looks on."""
        modules = [(self.edge_embedding, EdgeEmbedding), *((layer, Interaction) for layer in self.layers)]
        kinds = (nn.Linear, nn.SiLU, nn.Linear)
        if type(self) is not ForceField or not is_called_plainly(self):
            return False
        if not is_plain(self.energy_of_atom, nn.Sequential) or len(self.energy_of_atom) != len(kinds):
            return False
        if any(module.bias is None for module in self.energy_of_atom if isinstance(module, nn.Linear)):
            return False
        return all(is_plain(*module) for module in [*modules, *zip(self.energy_of_atom, kinds, strict=True)])

    def _network(self) -> ForceNetwork:
        embedding, (first, _, last) = self.edge_embedding, self.energy_of_atom
        radial = embedding.radial.to(self.atom_embedding.dtype)
        return ForceNetwork(
            embedding.max_harmonic,
            embedding.cutoff,
            self.atom_embedding,
            [layer.operands(radial) for layer in self.layers],  # type: ignore[operator]
            (first.weight, first.bias, last.weight, last.bias),  # type: ignore[arg-type]
        )

    def _check(self, graph: Graph) -> None:
        for data, name, shape in ((graph.ndata, "ndata['atomic_numbers']", "[N]"), (graph.edata, "edata['rel_pos']", "[E, 3]")):
            if name.split("'")[1] not in data:
                raise ValueError(f"graph: expected {name} of shape {shape}, got {name[:5]} with {sorted(data)}")
        rel_pos, dtype = graph.edata["rel_pos"], self.atom_embedding.dtype
        if dtype.itemsize == 2 and rel_pos.dtype != dtype:
            raise ValueError(
                f"force field: expected parameters of {rel_pos.dtype} as edata['rel_pos'], got {dtype}; load it anew, without "
                "half() or bfloat16()"
            )
        if rel_pos.dtype != dtype:
            raise ValueError(f"graph: expected edata['rel_pos'] of {dtype}, as the parameters are, got {rel_pos.dtype}")

    def _features(self, graph: Graph, exchange: Callable[[list[Tensor]], list[Tensor]] | None) -> list[Tensor]:
        """What the last layer leaves, [N, 2d+1, C]."""
        kinds = self._kinds(graph.ndata["atomic_numbers"])  # [N, elements]
        embedding = self.edge_embedding(graph.edata["rel_pos"])
        radial = self.edge_embedding.radial.to(self.atom_embedding.dtype)  # [K, num_radial]
        features = [(kinds @ self.atom_embedding)[:, None]]  # [N, 1, C]
        for number, layer in enumerate(self.layers):
            if number and exchange is not None:
                features = exchange(features)
            features = layer(features, graph, embedding, kinds, radial)
        return features

    def _energies_of(self, features: list[Tensor], graph: Graph) -> Tensor:
        own = self.scale * self.energy_of_atom(features[0].squeeze(1)).squeeze(-1)  # [N]
        if self.repulsion is not None:
            own = own + self._repulsion(graph, graph.edata["rel_pos"])
        return own.double() + self.reference_energies[graph.ndata["atomic_numbers"]]

    def _repulsion(self, graph: Graph, rel_pos: Tensor) -> Tensor:
        columns = self.column_of_element[graph.ndata["atomic_numbers"].long()].clamp(min=0)
        found: Tensor = self.repulsion(rel_pos, graph.src, graph.dst, columns)  # type: ignore[misc]
        return found

    def reference_energy(self, graph: Graph) -> Tensor:
        """The sum of the reference energies of each molecule's atoms, [B] float64, eV."""
        return sum_over_atoms(self.reference_energies[graph.ndata["atomic_numbers"]], graph)

    def _kinds(self, atomic_numbers: Tensor) -> Tensor:
        """One-hot elements, [N, elements]."""
        columns = self._columns(atomic_numbers)
        return (columns[:, None] == torch.arange(len(self.elements), device=columns.device)).to(self.atom_embedding.dtype)

    def _columns(self, atomic_numbers: Tensor) -> Tensor:
        """The number of each atom's element, [N] int64."""
        _check_integers("graph.ndata['atomic_numbers']", atomic_numbers)
        columns = self.column_of_element[atomic_numbers.clamp(0, LARGEST_ATOMIC_NUMBER + 1).long()]
        is_recorded = columns.is_cuda and torch.cuda.is_current_stream_capturing()  # after a run in which it was looked at
        if type(columns) is Tensor and len(columns) and not is_recorded and int(columns.min()) < 0:  # what is traced has no values
            unknown = atomic_numbers[columns < 0].unique().tolist()
            raise ValueError(f"graph: expected the elements {self.elements}, got {unknown} in ndata['atomic_numbers']")
        return columns


def _is_element(value: object) -> bool:
    return isinstance(value, Integral) and 1 <= int(value) <= LARGEST_ATOMIC_NUMBER


def _is_finite(value: object) -> bool:
    return isinstance(value, (Real, Tensor)) and math.isfinite(value)


def _check_mapping(name: str, values: object, expected: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected {expected}, got an object of type {type(values).__name__}")


def _check_integers(name: str, values: Tensor) -> None:
    """Raise a ValueError for what PyTorch would take for something else than indices: bytes count as a mask."""
    if values.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected int64 or int32, got {values.dtype}")


def load_force_field(path: str | Path, repulsion: bool = False) -> ForceField:
    """The force field of a checkpoint that ``python -m se3_fast.train_forces`` wrote, on the CPU, ready to be evaluated.

    Args:
        path: the checkpoint.
        repulsion: whether nuclei repel each other where atoms are closer than in the training frames
            (:meth:`ForceField.set_repulsion`).

    Raises:
        CheckpointError: if the file is missing or damaged, holds another model, or does not say how close atoms were.
        ValueError: if ``path`` is no path.
    """
    path = path_of("path", path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("model_config", {})
    if "elements" not in config:
        raise CheckpointError(f"{path}: expected a checkpoint of se3_fast.train_forces, got one of another model")
    try:
        _check_config(config, checkpoint["state_dict"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    force_field = build_from(path, checkpoint["state_dict"], partial(ForceField, **config)).eval()
    if repulsion and force_field.repulsion is None:
        if "closest_pairs" not in checkpoint:
            raise CheckpointError(f"{path}: expected closest_pairs, the distances below which nuclei repel each other, got none")
        force_field.set_repulsion(checkpoint["closest_pairs"])
    return force_field


def _check_config(config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> None:
    known = {*_SIZES, "elements", "cutoff", "average_neighbours"}
    names = config.keys() - {"repulsion", "dipole"}
    if names == known - {"num_knots"}:
        raise ValueError("model_config: expected num_knots, got a force field of an earlier version, which is to be trained anew")
    expect(names == known, "model_config", f"the entries {', '.join(sorted(known))}", ", ".join(sorted(config)))
    for name in ("repulsion", "dipole"):
        expect(type(config.get(name, False)) is bool, f"model_config: {name}", "True or False", config.get(name))
    elements = config["elements"]
    is_list = isinstance(elements, list) and all(type(element) is int for element in elements)
    expect(is_list, "model_config: elements", "a list of atomic numbers", elements)
    for name in ("cutoff", "average_neighbours"):
        expect(is_number(config[name]) and config[name] > 0, f"model_config: {name}", "a number above 0", config[name])
    check_sizes(config, _SIZES, state_dict, projection=".after.")
