"""Force fields: an energy that is a sum over atoms, and forces as its gradient.

Units: positions in Angstrom, energies in eV, forces in eV/Angstrom, for :class:`ForceField`; :func:`energy_and_forces` takes a model
of any units, and its forces are in the model's unit of energy over that of the positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Fiber
from se3_fast.graph import Graph, as_graph, complete_graph, radius_graph
from se3_fast.layers import ConvSE3FuseLevel
from se3_fast.model import SE3Transformer

LARGEST_ATOMIC_NUMBER = 118
SHORTEST_DISTANCE = 0.6
"""Angstrom; where the Gaussians of the distance begin. Few bonds are shorter than H-H, 0.74."""


class ForceField(nn.Module):
    """The energy of molecules: an SE(3)-Transformer on elements and distances, and a perceptron for the energy of each atom.

        E = sum_i ( reference[element of i] + scale * e_i )

    Every edge carries Gaussians of its length and the elements of its two atoms. Energy and forces are those of an isolated molecule
    and do not depend on where or how it lies, or on the order of atoms of the same element.

    Args:
        elements: atomic numbers of the elements that the molecules may have.
        num_layers: attention blocks.
        num_degrees: hidden features have the degrees 0..num_degrees-1.
        num_channels: channels of each hidden degree.
        num_heads: attention heads; must divide ``num_channels / channels_div``.
        channels_div: keys and values have this many times fewer channels.
        num_gaussians: Gaussians that describe a distance.
        cutoff: atoms further apart than this, in Angstrom, have no edge; None: all pairs of a molecule have one. The energy jumps a
            little where an atom crosses a cutoff, since attention divides by a sum over neighbours.
        longest_distance: Angstrom, centre of the last Gaussian; by default the cutoff, or 6.

    Attributes:
        reference_energies: [118 + 1] float64, eV, energy of an atom by atomic number; set by :meth:`set_scale`.
        scale: [] float32, eV; set by :meth:`set_scale`.

    Raises:
        ValueError: if an element does not exist, or sizes do not fit each other.
    """

    reference_energies: Tensor
    scale: Tensor
    column_of_element: Tensor
    centres: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        num_layers: int = 2,
        num_degrees: int = 3,
        num_channels: int = 16,
        num_heads: int = 4,
        channels_div: int = 2,
        num_gaussians: int = 16,
        cutoff: float | None = None,
    ) -> None:
        super().__init__()
        self.elements = sorted(set(elements))
        self.cutoff = cutoff
        width = num_degrees * num_channels
        self.transformer = SE3Transformer(
            num_layers=num_layers,
            fiber_in=Fiber({0: len(self.elements)}),
            fiber_hidden=Fiber.create(num_degrees, num_channels),
            fiber_out=Fiber({0: width}),
            num_heads=num_heads,
            channels_div=channels_div,
            fiber_edge=Fiber({0: num_gaussians + 2 * len(self.elements)}),
            return_type=0,
            norm=NORM,
            use_layer_norm=LN,
            fuse_level=ConvSE3FuseLevel.FULL,
        )
        self.energy_of_atom = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        column_of_element = torch.full((LARGEST_ATOMIC_NUMBER + 1,), -1)
        column_of_element[self.elements] = torch.arange(len(self.elements))
        self.register_buffer("column_of_element", column_of_element, persistent=False)
        self.register_buffer("centres", torch.linspace(SHORTEST_DISTANCE, cutoff or 6.0, num_gaussians), persistent=False)
        self.register_buffer("reference_energies", torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, graph: Any) -> Tensor:
        z = graph.ndata["atomic_numbers"]
        kinds = nn.functional.one_hot(self.column_of_element[z], len(self.elements)).to(self.centres.dtype)
        distances = graph.edata["rel_pos"].norm(dim=-1, keepdim=True)
        width = 1.0 * (self.centres[1] - self.centres[0])
        gaussians = torch.exp(-0.5 * ((distances - self.centres) / width) ** 2)
        edges = torch.cat([gaussians, kinds[graph.src], kinds[graph.dst]], -1)
        inv = self.transformer(graph, {"0": kinds[:, :, None]}, {"0": edges[:, :, None]})
        e = self.energy_of_atom(inv.squeeze(-1)).squeeze(-1)
        e = self.reference_energies[z] + (self.scale * e).double()
        sizes = graph.batch_num_nodes()
        g = torch.arange(len(sizes)).repeat_interleave(sizes)
        return e.new_zeros(len(sizes)).index_add(0, g, e)
NORM = True
LN = True

def energy_and_forces(model: nn.Module, graph: Any, *inputs: Any, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    graph = copy.copy(as_graph(graph))
    with torch.enable_grad():
        pos = graph.ndata["pos"].detach().requires_grad_()
        graph.ndata = {**graph.ndata, "pos": pos}
        graph.edata = {**graph.edata, "rel_pos": pos.index_select(0, graph.dst) - pos.index_select(0, graph.src)}
        energies = model(graph, *inputs)
        (gradient,) = torch.autograd.grad(energies.sum(), pos, create_graph=create_graph)
    return (energies, -gradient) if create_graph else (energies.detach(), -gradient)
