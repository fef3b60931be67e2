"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.backends.dense.tfn_conv`. Backends read published bases or edge frames; what no frame serves is added by the
formula (:mod:`se3_fast.ops.convolution_messages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, check_dtype, compute_dtype, in_dtype
from se3_fast.backends import choice
from se3_fast.backends.dense import tfn_conv as formula
from se3_fast.backends.operands import AlignedMessages, Convolution, Geometry
from se3_fast.contraction import ConvolutionPlan
from se3_fast.fiber import Features
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph
from se3_fast.ops.compiled_convolution import messages_of_node
from se3_fast.ops.convolution_messages import by_degree, messages_in_frames, with_edges_by_formula, with_scaled_hidden


def tfn_conv(call: Convolution) -> Features:
    """Messages of a TFN convolution.

    Args:
        call: its arguments, in any dtypes.

    Returns:
        ``{d: [N or E, C_d, 2d+1]}`` in the compute dtype.

    Raises:
        ValueError: if the geometry was made for fewer degrees than the plan has, a size does not fit the plan or the graph,
            or a dtype is none that is computed with.
    """
    _check_degrees(call.plan, call.geometry)
    _check_sizes(call)
    call = _in_compute_dtype(call)
    backend = _backend_of(call)
    in_frames = call if backend.FRAMES is None or call.geometry.factor is None else with_scaled_hidden(call)
    if torch.compiler.is_compiling() and backend.FRAMES is not None:
        return messages_of_node(in_frames, backend.FRAMES)
    with torch.autocast(call.hidden[0].device.type, enabled=False):
        if backend.FRAMES is None:
            return by_degree(call, backend.tfn_conv(call))
        messages = messages_in_frames(in_frames, backend)
        return messages if call.geometry.by_formula is None else with_edges_by_formula(messages, call)


def _backend_of(call: Convolution) -> Any:
    if _needs_formula(call.geometry):
        return choice.formula("tfn_conv")
    hidden = call.hidden[0]
    return choice.implementation("tfn_conv", hidden.device, hidden.dtype, hidden.shape[-1])


def tfn_conv_by_formula(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    contractions: Sequence[formula.Contraction],
    pool: bool,
) -> Features:
    """As :func:`tfn_conv`, the messages of each group by a function of the caller: on all backends as ``dense``.

    Args:
        plan: which degrees and channels are coupled by which radial group.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}`` for the degrees of ``plan.edge_channels`` (others are ignored).
        contractions: of each group, see :func:`se3_fast.backends.dense.tfn_conv.messages`.
        pool: sum over the incoming edges of each node; nodes without any get 0.
    """
    _check_degrees(plan, geometry)
    nodes = {str(degree): node_features[str(degree)] for degree, _ in plan.node_channels}
    edges = {str(degree): edge_features[str(degree)] for degree, _ in plan.edge_channels}
    features = formula.gather_features(nodes, edges, graph.src)
    with _by_formula(geometry):
        messages = formula.messages(plan, geometry.basis, features, contractions)
    return formula.sum_over_incoming(messages, graph.dst, graph.num_nodes()) if pool else messages


def keeps_frames(geometry: EdgeGeometry, width: int) -> bool:
    """Whether :func:`aligned_messages` serves a geometry: where the backend can, and every edge has a frame and is constant.

    Args:
        geometry: directions of the edges.
        width: the radial width K.
    """
    rel_pos = geometry.rel_pos
    backend = choice.own_implementation("tfn_conv", rel_pos.device, accumulation_dtype(rel_pos.dtype), width)
    return backend is not None and backend.KEEPS_FRAMES and geometry.has_constant_frames()


def aligned_messages(call: Convolution) -> AlignedMessages:
    """The messages of :func:`tfn_conv` left in the frames of their edges, for a geometry that :func:`keeps_frames`.

    Arguments and errors are those of :func:`tfn_conv`.
    """
    _check_degrees(call.plan, call.geometry)
    _check_sizes(call)
    call = _in_compute_dtype(call)
    if call.geometry.factor is not None:
        call = with_scaled_hidden(call)
    with torch.autocast(call.hidden[0].device.type, enabled=False):
        return _backend_of(call).aligned_messages(call)


def prepare_geometry(plan: ConvolutionPlan, graph: Graph, geometry: EdgeGeometry, by_formula: bool = False) -> None:
    """Make what a convolution will read of graph and geometry, so that all calls with them (also a recomputation) share it.

    Args:
        plan: what is coupled.
        graph: the edges.
        geometry: their directions.
        by_formula: whether it is :func:`tfn_conv_by_formula` that will read them.
    """
    if by_formula or _needs_formula(geometry) or geometry.frames_read() is None:
        with _by_formula(geometry):
            for key in filter(None, map(formula.basis_key, plan.groups)):
                geometry.basis(key)
    elif torch.compiler.is_compiling():
        graph.incoming()
        graph.outgoing()
        geometry.with_frames()


def _needs_formula(geometry: Geometry) -> bool:
    """Whether only the tensors given say what the messages are; in compiled graphs also where that is so of some edges."""
    return geometry.is_given or (geometry.by_formula is not None and torch.compiler.is_compiling())


def _by_formula(geometry: EdgeGeometry) -> AbstractContextManager[None]:
    """Where bases that autograd can follow any number of times are made, if they are to be differentiated."""
    return choice.by_formula() if geometry.rel_pos.requires_grad else nullcontext()


def _in_compute_dtype(call: Convolution) -> Convolution:
    """With what the plan reads of the features, and h, in the dtype of the operands or of autocast."""
    dtype, hidden = compute_dtype(call.hidden[0]), call.hidden
    return call._replace(
        node_features={str(degree): in_dtype(call.node_features[str(degree)], dtype) for degree, _ in call.plan.node_channels},
        edge_features={str(degree): in_dtype(call.edge_features[str(degree)], dtype) for degree, _ in call.plan.edge_channels},
        hidden=in_dtype(hidden, dtype) if isinstance(hidden, Tensor) else [in_dtype(values, dtype) for values in hidden],
    )


def _check_sizes(call: Convolution) -> None:
    plan, hidden, weights = call.plan, call.hidden, call.weights
    num_nodes, num_edges = call.graph.num_nodes(), call.graph.num_edges()
    if call.geometry.num_edges != num_edges:
        raise ValueError(f"geometry: expected one of the graph's {num_edges} edges, got one of {call.geometry.num_edges} edges")
    expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
        (f"{name}['{degree}']", features[str(degree)], (count, channels, 2 * degree + 1))
        for name, features, count, of_plan in (
            ("node_features", call.node_features, num_nodes, plan.node_channels),
            ("edge_features", call.edge_features, num_edges, plan.edge_channels),
        )
        for degree, channels in of_plan
    ]
    if len(hidden) != len(plan.groups) or len(weights) != len(plan.groups):
        raise ValueError(f"hidden, weights: expected {len(plan.groups)} as groups, got {len(hidden)} and {len(weights)}")
    width = weights[0].shape[-1]
    for index, (group, weight) in enumerate(zip(plan.groups, weights, strict=True)):
        expected.append((f"weights[{index}]", weight, (group.channels_out * group.channels_in * group.num_paths, width)))
    if isinstance(hidden, Tensor):
        expected.append(("hidden", hidden, (len(plan.groups), num_edges, width)))
    else:
        expected += [(f"hidden[{index}]", values, (num_edges, width)) for index, values in enumerate(hidden)]
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        check_dtype(name, tensor)


def _check_degrees(plan: ConvolutionPlan, geometry: Geometry) -> None:
    if geometry.max_degree < plan.max_degree:
        raise ValueError(
            f"geometry: expected one for degrees up to {plan.max_degree}, got one for degrees up to {geometry.max_degree}"
        )
