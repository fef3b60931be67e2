"""What the layers of a model read of their parameters, made for all layers at once where the backend gains by it.

A launch takes about as long as all that a layer does with its parameters alone. So before the first layer begins, the model has
the parameters of its layers put in rows, the hidden layers of all radial profiles evaluated, and all last radial weights aligned;
their gradients come together at the end of the backward pass. A layer that is called by itself does this for itself alone; so does
one that is wrapped, has hooks, or whose parameters are sharded over processes: what they are is known only when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.autograd.compute_dtype import compute_dtype
from se3_fast.backends.choice import own_implementation
from se3_fast.backends.operands import LayerParameters, PreparedRadial, Profiles, profile_parameters
from se3_fast.contraction import RADIAL_WIDTH
from se3_fast.fiber import Features
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph
from se3_fast.layers.attention import AttentionBlockSE3
from se3_fast.layers.convolution import ConvSE3
from se3_fast.layers.linear import LinearSE3
from se3_fast.layers.norm import NormSE3
from se3_fast.layers.plain import is_plain
from se3_fast.ops.tfn_conv import keeps_frames

MAX_HIDDEN_BYTES = 256 << 20
"""Without gradients, h of all layers is made at once where it takes no more: otherwise only one at a time would be there."""


class JointLayers:
    """Rows of parameters, and what convolutions read of their radial profiles, by layer.

    Args:
        rows: [P, n] of each layer.
        radials: of each convolution.
    """

    def __init__(self, rows: dict[nn.Module, Tensor], radials: dict[nn.Module, PreparedRadial]) -> None:
        self._rows = rows
        self._radials = radials

    def row(self, layer: nn.Module) -> Tensor | None:
        """The parameters of a layer in a row, if they are there."""
        return self._rows.get(layer)

    def radial(self, convolution: nn.Module) -> PreparedRadial | None:
        """Hidden radial layers and aligned weights of a convolution, if they are there."""
        return self._radials.get(convolution)


def join_parameters(model: nn.Module, edge_features: Features, graph: Graph, geometry: EdgeGeometry) -> JointLayers | None:
    """Make ready what the layers of a model read of their parameters.

    Args:
        model: all its layers will be called with these edges.
        edge_features: ``{d: [E, C, 2d+1]}``, the edge length appended to degree 0.
        graph: N nodes, E edges.
        geometry: directions of the edges.

    Returns:
        None where the layers better read their parameters themselves: on other backends, in compiled graphs, where second
        derivatives may be asked for, and where parameters differ in dtype.
    """
    backend = own_implementation("joint", graph.device)
    if backend is None or not keeps_frames(geometry, RADIAL_WIDTH):
        return None
    layers = _layers_with_rows(model) if torch.is_grad_enabled() else {}
    convolutions = _joint_convolutions(backend, model, edge_features, graph) if geometry.factor is None else {}
    requests = list(layers.values())
    if convolutions:
        tensors = [tensor for profiles in convolutions.values() for tensor in profile_parameters(profiles)]
        requests.append(("radial", tensors))
    if len({tensor.dtype for _, tensors in requests for tensor in tensors}) != 1:  # none, or several
        return None
    parts = [backend.gradient_parts(operation, graph.device) for operation, _ in requests]
    rows = backend.parameter_rows([LayerParameters(tensors, count) for (_, tensors), count in zip(requests, parts, strict=True)])
    radials = _radials(backend, convolutions, edge_features, rows.pop()) if convolutions else {}
    return JointLayers(dict(zip(layers, rows, strict=True)), radials)


def _layers_with_rows(model: nn.Module) -> dict[nn.Module, tuple[str, list[Tensor]]]:
    """The layers that can take their parameters as a row: the operation that reads it, and the parameters."""
    found: dict[nn.Module, tuple[str, list[Tensor]]] = {}
    for module in _plain_layers(model):
        parameters = module.row_parameters() if isinstance(module, (LinearSE3, NormSE3, ConvSE3)) else []
        if parameters:
            found[module] = ("equivariant_norm" if isinstance(module, NormSE3) else "linear", parameters)
    return found


def takes_joint(module: nn.Module) -> bool:
    """Whether a module is one of the layers as it is, which takes what is made ready; others take what the published ones do."""
    kind = next((kind for kind in (AttentionBlockSE3, ConvSE3, LinearSE3, NormSE3) if isinstance(module, kind)), None)
    return kind is not None and is_plain(module, kind)


def _plain_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that are called as they are, with the parameters that they have now."""
    for child in model.children():
        if takes_joint(child) and all(type(one) in (Tensor, nn.Parameter) for one in child.parameters()):
            yield child
            yield from _plain_layers(child)


def _joint_convolutions(backend: Any, model: nn.Module, edge_features: Features, graph: Graph) -> dict[ConvSE3, Profiles]:
    """The convolutions by edge whose h is kept for the backward pass anyway, and their hidden radial layers.

    Those with radial profiles that were changed are left out; none, where the others' are of several kinds.
    """
    layers = list(_plain_layers(model))
    recomputed = {block.to_key_value for block in layers if isinstance(block, AttentionBlockSE3) and block.low_memory}
    dtype = compute_dtype(edge_features["0"])
    by_edge = [
        module
        for module in layers
        if isinstance(module, ConvSE3)
        and not (module.low_memory or module in recomputed)
        and backend.is_contracted_by_edge(module.plan, graph, RADIAL_WIDTH, dtype, module.contraction_order)
    ]
    profiles = {module: module.profiles() for module in by_edge}
    chosen = {module: layers for module, layers in profiles.items() if layers is not None}
    if len({(first.weight.shape, first.scale is None) for layers in chosen.values() for first, _ in layers}) != 1:
        return {}
    num_values = sum(len(module.plan.groups) for module in chosen) * graph.num_edges() * RADIAL_WIDTH
    return chosen if torch.is_grad_enabled() or num_values * dtype.itemsize <= MAX_HIDDEN_BYTES else {}


def _radials(
    backend: Any, convolutions: dict[ConvSE3, Profiles], edge_features: Features, row: Tensor
) -> dict[nn.Module, PreparedRadial]:
    plans = [convolution.plan for convolution in convolutions]
    invariants = edge_features["0"].squeeze(-1)
    parts = [backend.hidden_gradient_parts(plan, len(invariants)) for plan in plans]
    hidden = backend.radial_of_layers(invariants, list(convolutions.values()), row, parts)
    weights = backend.aligned_weights(plans, [convolution.last_weights() for convolution in convolutions], hidden[0].dtype)
    prepared = (PreparedRadial(*of_one) for of_one in zip(hidden, weights, strict=True))
    return dict(zip(convolutions, prepared, strict=True))
