"""Two modules that a variant of the published package has beside the models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from se3_fast.fiber import Features
from se3_fast.layers import LinearSE3, NormSE3

from .model import Fiber, SE3Transformer

__all__ = ["InteractionModule", "LinearModule"]


class LinearModule(nn.Module):
    """Linear maps, each after a norm, on every node by itself.

    Args:
        fiber_in: structure of the input.
        fiber_hidden: structure between the maps.
        fiber_out: structure of the output.
        n_layer: number of maps.
        use_norm: a :class:`NormSE3` before each map.
        nonlinearity: of the norms; default: ReLU.
        **kwargs: ignored.
    """

    def __init__(
        self,
        fiber_in: Any,
        fiber_hidden: Any,
        fiber_out: Any,
        n_layer: int = 2,
        use_norm: bool = True,
        nonlinearity: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        fibers = [Fiber(fiber) for fiber in (fiber_in, *[fiber_hidden] * (n_layer - 1), fiber_out)]
        modules: list[nn.Module] = []
        for before, after in pairwise(fibers):
            if use_norm:
                modules.append(NormSE3(before, nonlinearity=nonlinearity))
            modules.append(LinearSE3(before, after))
        self.linear_module = nn.Sequential(*modules)

    def forward(self, x: Features) -> Features:
        """Apply it: ``{d: [N, C, 2d+1]}`` with ``fiber_in`` to the same with ``fiber_out``."""
        return self.linear_module(x)


class InteractionModule(nn.Module):
    """An :class:`SE3Transformer` whose keys and values have half the channels.

    Args:
        fiber_in: structure of the node features.
        fiber_hidden: structure between the layers.
        fiber_out: structure of the output.
        fiber_edge: structure of the edge features, without the edge length.
        n_layer: number of attention blocks.
        n_head: number of attention heads.
        use_norm: a norm after each block.
        use_layer_norm: layer normalisation in the radial profiles.
        nonlinearity: takes the place of every ReLU.
        low_memory: see :class:`se3_fast.SE3Transformer`.
        **kwargs: ignored.
    """

    def __init__(
        self,
        fiber_in: Any,
        fiber_hidden: Any,
        fiber_out: Any,
        fiber_edge: Any = None,
        n_layer: int = 2,
        n_head: int = 2,
        use_norm: bool = True,
        use_layer_norm: bool = True,
        nonlinearity: nn.Module | None = None,
        low_memory: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.graph_module = SE3Transformer(
            num_layers=n_layer,
            fiber_in=Fiber(fiber_in),
            fiber_hidden=Fiber(fiber_hidden),
            fiber_out=Fiber(fiber_out),
            fiber_edge=Fiber(fiber_edge or {}),
            num_heads=n_head,
            channels_div=2,
            norm=use_norm,
            use_layer_norm=use_layer_norm,
            nonlinearity=nonlinearity,
            low_memory=low_memory,
        )

    def forward(self, batch: Any, node_feats: Features, edge_feats: Features | None = None) -> Any:
        """Evaluate the network, see :meth:`se3_fast.SE3Transformer.forward`."""
        return self.graph_module(batch, node_feats=node_feats, edge_feats=edge_feats)
