"""The models, with the published way to add their options to a command line."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from se3_fast import model
from se3_fast.fiber import Features
from se3_fast.model import Sequential
from se3_fast.training.arguments import add_model_arguments

__all__ = ["SE3Transformer", "SE3TransformerPooled", "Sequential", "get_populated_edge_features"]


class SE3Transformer(model.SE3Transformer):
    """:class:`se3_fast.SE3Transformer`."""

    @staticmethod
    def add_argparse_args(parser: Any) -> Any:
        """Add the options of the model's architecture, and return the parser."""
        add_model_arguments(parser)
        return parser


class SE3TransformerPooled(model.SE3TransformerPooled):
    """:class:`se3_fast.SE3TransformerPooled`."""

    @staticmethod
    def add_argparse_args(parent_parser: Any) -> Any:
        """Add the options of the model's architecture, and return the parser."""
        add_model_arguments(parent_parser)
        return parent_parser


def get_populated_edge_features(relative_pos: Tensor, edge_features: Features | None = None) -> Features:
    """The edge features with the edge length as last channel of degree 0, [E, C + 1, 1]."""
    return model.with_edge_length(relative_pos, edge_features or {})
