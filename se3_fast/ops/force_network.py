"""The network of a force field with the gradient of its energies as one operation, where a backend has it.

What it computes is what :class:`se3_fast.forces.ForceField` computes part by part, and autograd after it; the formula is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.transforms import are_alike, is_forward, is_transformed
from se3_fast.backends.choice import own_implementation
from se3_fast.backends.operands import ForceNetwork
from se3_fast.graph import Graph

ByParts = Callable[[Sequence[Tensor]], list[Tensor]]
"""From all tensors of a network, what :func:`force_network` finds, as autograd can follow it."""


def may_be_whole(rel_pos: Tensor) -> bool:
    """Whether :func:`force_network` may serve as it is called now.

    Args:
        rel_pos: [E, 3].
    """
    if own_implementation("force_network", rel_pos.device) is None:
        return False
    return type(rel_pos) is Tensor and not (is_transformed() or is_forward() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def force_network(network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor] | None:
    """The energy of each atom, and the gradient of their sum.

    Args:
        network: its weights, of the dtype of ``rel_pos``.
        graph: N nodes, E edges.
        rel_pos: [E, 3], where :func:`may_be_whole`.
        kinds: [N] int64, the row of each atom's element in the embedding.

    Returns:
        [N] and [E, 3], which carry no gradient; None where the parts are to be called instead.
    """
    backend = _that_serves(network, rel_pos)
    if backend is None:
        return None
    found: tuple[Tensor, Tensor] = backend.force_network(network, graph, rel_pos, kinds)
    return found


def trained_force_network(
    network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor, by_parts: ByParts
) -> tuple[Tensor, Tensor] | None:
    """As :func:`force_network`, for a loss on both.

    Args:
        network, graph, rel_pos, kinds: as there.
        by_parts: the formula, for derivatives of derivatives by the weights.

    Returns:
        [N] and [E, 3], differentiable by the weights any number of times, not by ``rel_pos``; None as there.
    """
    backend = _that_serves(network, rel_pos)
    if backend is None:
        return None
    found: tuple[Tensor, Tensor] = backend.trained_force_network(network, graph, rel_pos, kinds, by_parts)
    return found


def _that_serves(network: ForceNetwork, rel_pos: Tensor) -> Any:
    """The backend, None where there is none."""
    backend = own_implementation("force_network", rel_pos.device)
    is_served = backend is not None and are_alike([rel_pos, *network.tensors()]) and backend.serves(network)
    return backend if is_served else None
