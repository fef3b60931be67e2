"""The models, with the published way to add their options to a command line."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import Tensor

from se3_fast import model
from se3_fast.command_line import boolean
from se3_fast.fiber import Features, Fiber
from se3_fast.layers import AttentionBlockSE3, ConvSE3, ConvSE3FuseLevel, GPooling, NormSE3
from se3_fast.model import Sequential
from se3_fast.ops.basis import get_basis, update_basis_with_fused
from se3_fast.training.arguments import positive_int

__all__ = [
    "AttentionBlockSE3",
    "ConvSE3",
    "ConvSE3FuseLevel",
    "Fiber",
    "GPooling",
    "NormSE3",
    "SE3Transformer",
    "SE3TransformerPooled",
    "Sequential",
    "get_basis",
    "get_populated_edge_features",
    "update_basis_with_fused",
]


def _without_options_of_a_run(arguments: dict[str, Any], *models: type) -> dict[str, Any]:
    """The arguments without options of the training command that no model takes: the published script passes all of them."""
    taken = {name for model_class in models for name in inspect.signature(model_class).parameters}
    return {name: value for name, value in arguments.items() if name in taken or name not in _options()}


@cache
def _options() -> frozenset[str]:
    from ..runtime.arguments import build_parser  # not at the top: it adds the options of the models

    return frozenset(vars(build_parser().parse_args([])))


class SE3Transformer(model.SE3Transformer):
    """:class:`se3_fast.SE3Transformer`; all options of a command line may be passed to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_without_options_of_a_run(kwargs, model.SE3Transformer))

    @staticmethod
    def add_argparse_args(parser: Any) -> Any:
        """Add the options of the model's architecture to a parser or a group of one, and return it."""
        parser.add_argument("--num_layers", type=positive_int, default=7, help="attention layers")
        parser.add_argument("--num_heads", type=positive_int, default=8, help="attention heads")
        parser.add_argument("--channels_div", type=positive_int, default=2, help="channels are divided by this in the attention")
        parser.add_argument("--pooling", choices=("max", "avg"), default=None, const=None, nargs="?", help="pooling over the nodes")
        for name, text in (
            ("norm", "equivariant normalisation after every layer"),
            ("use_layer_norm", "layer normalisation in the radial profiles"),
            ("low_memory", "a radial profile for every pair of degrees"),
        ):
            parser.add_argument(f"--{name}", type=boolean, nargs="?", const=True, default=False, metavar="BOOL", help=text)
        return parser


class SE3TransformerPooled(model.SE3TransformerPooled):
    """:class:`se3_fast.SE3TransformerPooled`; all options of a command line may be passed to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_without_options_of_a_run(kwargs, model.SE3Transformer, model.SE3TransformerPooled))

    @staticmethod
    def add_argparse_args(parent_parser: Any) -> Any:
        """Add the options of the model's architecture to a parser, as a group, and return the parser."""
        group = parent_parser.add_argument_group("model")
        SE3Transformer.add_argparse_args(group)
        group.add_argument("--num_degrees", type=positive_int, default=4, help="degrees of the hidden features, from 0")
        group.add_argument("--num_channels", type=positive_int, default=32, help="channels of every degree")
        return parent_parser


def get_populated_edge_features(relative_pos: Tensor, edge_features: Features | None = None) -> Features:
    """The edge features with the edge length as last channel of degree 0, [E, C + 1, 1]."""
    return model.with_edge_length(relative_pos, edge_features or {})
