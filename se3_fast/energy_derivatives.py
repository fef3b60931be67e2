"""Forces, stress and dipoles of any model of energies, by its derivatives.

Units are those of the model: of :class:`se3_fast.forces.ForceField` eV, Angstrom, and what is made of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se3_fast.autograd.modes import is_of_inference_mode, is_readable, not_in_inference_mode
from se3_fast.graph import Graph, as_graph

_ROUNDED_STEPS = 64


def energy_and_forces(model: nn.Module, graph: Any, *inputs: Any, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Energies of a batch of molecules, and the forces on their atoms: minus the gradient with respect to the positions.

    Args:
        model: called as ``model(graph, *inputs)``; returns an energy per molecule, [B] or [B, 1]. It must read the positions from
            ``graph.edata['rel_pos']`` or ``graph.ndata['pos']`` alone.
        graph: Graph, DGLGraph or PyTorch Geometric data with ``ndata['pos']`` [N, 3], and in a periodic cell ``edata['offset']``
            [E, 3]. It is left as it is; edges stay those it has. ``edata['rel_pos']`` may be missing: it is made of these two.
        *inputs: what else the model takes, for example node and edge features.
        create_graph: keep what a loss on the results needs to be differentiated (training). Otherwise both are detached.

    Returns:
        Energies [B] and forces [N, 3].

    Raises:
        ValueError: if the graph has no positions, the energies carry no gradient, or ``edata['rel_pos']`` is there and, beyond
            rounding, not what positions and offsets give (seen for tensors on the CPU).
    """
    with not_in_inference_mode(), torch.enable_grad():
        moved, pos = _with_leaf_positions(graph)
        whole = None if inputs else _as_a_whole(model, moved, create_graph)
        if whole is not None:
            return whole.energies, -_by_positions(moved, whole.of_rel_pos)
        energies = _energies(model, moved, inputs)
        (gradient,) = _gradients(energies, [pos], create_graph)
    return (energies if create_graph else energies.detach()), -gradient


class EnergyForcesStress(NamedTuple):
    """What :func:`energy_forces_and_stress` gives.

    Attributes:
        energies: [B].
        forces: [N, 3].
        stress: [B, 3, 3], symmetric; energy over volume, positive where the cell would rather shrink (ASE's sign).
    """

    energies: Tensor
    forces: Tensor
    stress: Tensor


def energy_forces_and_stress(
    model: nn.Module, graph: Any, volumes: Tensor, *inputs: Any, create_graph: bool = False
) -> EnergyForcesStress:
    """As :func:`energy_and_forces`, with the stress: the derivative of the energy by the strain of everything, over the volume.

        stress[a, b] = 1 / V  d E / d strain[a, b],   every relative position r becomes r + strain r

    Args:
        model: as for :func:`energy_and_forces`; it must read ``graph.edata['rel_pos']`` alone.
        graph: with ``edata['offset']`` where it is periodic.
        volumes: [B], of the cells.
        *inputs: what else the model takes.
        create_graph: keep what a loss on the results needs to be differentiated.

    Raises:
        ValueError: as :func:`energy_and_forces`, or if there is not a positive volume for each graph.
    """
    graph = as_graph(graph)
    check_volumes(volumes, graph.batch_size)
    return strained(model, graph, volumes, *inputs, create_graph=create_graph)


def check_volumes(volumes: Tensor, count: int) -> None:
    """Raise a ValueError unless there is a positive volume for each of so many graphs."""
    if not isinstance(volumes, Tensor) or volumes.shape != (count,) or not bool((volumes > 0).all()):
        came = volumes.tolist() if isinstance(volumes, Tensor) else volumes
        raise ValueError(f"volumes: expected a positive volume for each of the {count} graphs, got {came}")


def strained(model: nn.Module, graph: Graph, volumes: Tensor, *inputs: Any, create_graph: bool = False) -> EnergyForcesStress:
    """:func:`energy_forces_and_stress` with volumes that were checked: nothing waits for a device."""
    count = graph.batch_size
    with not_in_inference_mode(), torch.enable_grad():
        moved, pos = _with_leaf_positions(graph)
        whole = None if inputs else _as_a_whole(model, moved, create_graph)
        if whole is not None:
            of_strain = _by_strain(moved, whole.of_rel_pos)
            stress = of_strain / volumes[:, None, None].to(of_strain)
            return EnergyForcesStress(whole.energies, -_by_positions(moved, whole.of_rel_pos), stress)
        strain = pos.new_zeros(count, 3, 3).requires_grad_()
        symmetric = (strain + strain.mT) / 2
        rel_pos = moved.edata["rel_pos"]
        of_edge = symmetric.index_select(0, graph_of_nodes(graph).index_select(0, graph.dst))  # [E, 3, 3]
        moved.edata["rel_pos"] = rel_pos + (rel_pos[:, None] @ of_edge).squeeze(1)
        energies = _energies(model, moved, inputs)
        of_pos, of_strain = _gradients(energies, [pos, strain], create_graph)
    stress = of_strain / volumes[:, None, None].to(of_strain)
    return EnergyForcesStress(energies if create_graph else energies.detach(), -of_pos, stress)


class EnergyForcesDipoles(NamedTuple):
    """What :func:`energy_forces_and_dipoles` gives.

    Attributes:
        energies: [B] float64, eV.
        forces: [N, 3], eV/Angstrom.
        dipoles: [B, 3], e Angstrom.
    """

    energies: Tensor
    forces: Tensor
    dipoles: Tensor


def energy_forces_and_dipoles(model: nn.Module, graph: Any, create_graph: bool = False) -> EnergyForcesDipoles:
    """As :func:`energy_and_forces`, with the dipoles of molecules.

    Args:
        model: a :class:`ForceField` that gives dipoles, or what calls one.
        graph: of molecules without a cell, as from :func:`molecule_graph`.
        create_graph: keep what a loss on the results needs to be differentiated.

    Raises:
        ValueError: as :func:`energy_and_forces`; or if it gives no dipoles, or the graph has offsets of periodic cells.
    """
    if "offset" in as_graph(graph).edata:
        raise ValueError("graph: expected molecules, whose dipoles are defined, got edata['offset'] of periodic cells")
    with not_in_inference_mode(), torch.enable_grad():
        moved, pos = _with_leaf_positions(graph)
        energies, dipoles = model(moved, True)
        (gradient,) = _gradients(energies, [pos], create_graph)
    if create_graph:
        return EnergyForcesDipoles(energies, -gradient, dipoles)
    return EnergyForcesDipoles(energies.detach(), -gradient, dipoles.detach())


def _with_leaf_positions(graph: Any) -> tuple[Graph, Tensor]:
    """The graph with positions that nothing else depends on, and edges that depend on them."""
    graph = as_graph(graph)
    if "pos" not in graph.ndata:
        raise ValueError(f"graph: expected ndata['pos'] of shape [N, 3], got ndata with {sorted(graph.ndata)}")
    moved = copy.copy(graph)
    moved.ndata, moved.edata = ({name: _plain(value) for name, value in data.items()} for data in (graph.ndata, graph.edata))
    pos = moved.ndata["pos"] = moved.ndata["pos"].detach().requires_grad_()
    rel_pos = pos.index_select(0, graph.dst) - pos.index_select(0, graph.src)
    moved.edata["rel_pos"] = rel_pos + moved.edata["offset"] if "offset" in moved.edata else rel_pos
    if "rel_pos" in graph.edata:
        _check_relative_positions(graph.edata["rel_pos"], moved.edata["rel_pos"].detach(), pos.detach())
    return moved, pos


def _check_relative_positions(given: Tensor, made: Tensor, pos: Tensor) -> None:
    """Raise a ValueError where relative positions [E, 3] are not those that were made of pos [N, 3], but for rounding.

    Whoever drops the offsets of a periodic graph would get forces of a molecule. Seen where it takes no waiting for a device.
    """
    if not (is_readable(given) and is_readable(made) and is_readable(pos)) or given.shape != made.shape or not len(made):
        return
    if given.dtype == made.dtype and torch.equal(given, made):
        return
    dtypes = [torch.float32, *(tensor.dtype for tensor in (given, made) if tensor.is_floating_point())]  # once float32, or still
    rounding = _ROUNDED_STEPS * max(torch.finfo(dtype).eps for dtype in dtypes)
    differs = ((given.detach() - made).abs() > rounding * (pos.abs().max() + made.abs())).any(1)  # not where both are NaN
    if bool(differs.any()):
        edge = int(differs.nonzero()[0])
        raise ValueError(
            f"graph: expected edata['rel_pos'] as ndata['pos'] and edata['offset'] give it, {_rounded(made[edge])} at edge {edge}, "
            f"got {_rounded(given[edge])}; keep the offset of a periodic graph, or leave rel_pos out where atoms were moved"
        )


def _rounded(vector: Tensor) -> list[float]:
    return [round(x, 6) for x in vector.tolist()]


class _Whole(NamedTuple):
    """Energies [B], and the gradient of their sum by the relative positions [E, 3]; differentiable, if at all, by weights alone."""

    energies: Tensor
    of_rel_pos: Tensor


def _as_a_whole(model: nn.Module, graph: Graph, create_graph: bool) -> _Whole | None:
    """What a model finds by itself, without autograd; None where it does not."""
    find = getattr(model, "energies_and_gradient", None)
    found = None if find is None else find(graph, create_graph)
    return None if found is None else _Whole(sum_over_atoms(found[0], graph), found[1])


def _by_positions(graph: Graph, of_rel_pos: Tensor) -> Tensor:
    """The gradient by the positions [N, 3] from that by their differences."""
    return of_rel_pos.new_zeros(graph.num_nodes(), 3).index_add_(0, graph.dst, of_rel_pos).index_add_(0, graph.src, -of_rel_pos)


def _by_strain(graph: Graph, of_rel_pos: Tensor) -> Tensor:
    """The gradient by a symmetric strain of each structure [B, 3, 3] from that by the relative positions."""
    products = graph.edata["rel_pos"].detach()[:, :, None] * of_rel_pos[:, None, :]  # [E, 3, 3]
    structure = graph_of_nodes(graph).index_select(0, graph.dst)
    found = of_rel_pos.new_zeros(graph.batch_size, 3, 3).index_add_(0, structure, products)
    return (found + found.mT) / 2


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that may be kept for a backward pass."""
    return tensor.clone() if is_of_inference_mode(tensor) else tensor


def _gradients(energies: Tensor, variables: Sequence[Tensor], create_graph: bool) -> Sequence[Tensor]:
    """Of the sum of the energies; a backward pass is not a place for mixed precision, whatever the model's forward had."""
    with torch.autocast(energies.device.type, enabled=False):
        return torch.autograd.grad(energies.sum(), variables, create_graph=create_graph, materialize_grads=True)


def _energies(model: nn.Module, graph: Graph, inputs: Sequence[Any]) -> Tensor:
    energies: Tensor = model(graph, *inputs).view(-1)
    if not energies.requires_grad:
        raise ValueError("model: expected energies that depend on the positions, got ones without a gradient")
    return energies


def sum_over_atoms(values: Tensor, graph: Graph) -> Tensor:
    """Sum [N] over the atoms of each molecule, [B]."""
    if graph.batch_size == 1:
        return values.sum()[None]
    return values.new_zeros(graph.batch_size).index_add(0, graph_of_nodes(graph), values)


def graph_of_nodes(graph: Graph) -> Tensor:
    """The number of the graph that each node belongs to, [N]."""
    sizes = graph.batch_num_nodes()
    return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=graph.num_nodes())
