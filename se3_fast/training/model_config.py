"""The QM9 model as a description that checkpoints carry and that rebuilds it."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from se3_fast import Fiber, SE3TransformerPooled
from se3_fast.layers import ConvSE3FuseLevel
from se3_fast.model import matching_levels
from se3_fast.parameter_layout import without_wrappers


def model_config_from_arguments(arguments: argparse.Namespace, node_feature_dim: int, edge_feature_dim: int) -> dict[str, Any]:
    """Description of the model that the command line asks for; plain values only.

    The parameterisation follows from `--low_memory` alone, never from the machine.

    Args:
        arguments: From `add_model_arguments`.
        node_feature_dim: Scalar features of a node.
        edge_feature_dim: Scalar features of an edge, without the distance that the model appends.
    """
    return {
        "fiber_in": {0: node_feature_dim},
        "fiber_edge": {0: edge_feature_dim},
        "fiber_out": {0: arguments.num_degrees * arguments.num_channels},
        "output_dim": 1,
        "num_degrees": arguments.num_degrees,
        "num_channels": arguments.num_channels,
        "num_layers": arguments.num_layers,
        "num_heads": arguments.num_heads,
        "channels_div": arguments.channels_div,
        "pooling": arguments.pooling,
        "norm": arguments.norm,
        "use_layer_norm": arguments.use_layer_norm,
        "tensor_cores": not arguments.low_memory,
        "low_memory": arguments.low_memory,
    }


def match_parameterisation(config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The description with the parameterisation that a state dict has.

    Published checkpoints carry no description, and theirs depends on the machine they were trained on, and on the version: in some
    the last convolution has another fuse level than the attention blocks.

    Args:
        config: Description from the command line.
        state_dict: Parameters of a published checkpoint.

    Raises:
        ValueError: No parameter of a convolution is there, or the description contradicts itself.
    """
    levels = matching_levels(SE3TransformerPooled, without_wrappers(state_dict), _model_arguments(config))
    level = levels["fuse_level"]
    matched = {**config, "tensor_cores": level is ConvSE3FuseLevel.FULL, "low_memory": level is ConvSE3FuseLevel.NONE}
    if "final_fuse_level" in levels:
        matched["final_fuse_level"] = levels["final_fuse_level"].name
    return matched


def build_model(config: dict[str, Any]) -> SE3TransformerPooled:
    """Model of a description.

    Raises:
        ValueError: The description contradicts itself, for instance heads that do not divide the channels.
    """
    return SE3TransformerPooled(**_model_arguments(config))


def _model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    arguments = {**config, **{name: Fiber(config[name]) for name in ("fiber_in", "fiber_edge", "fiber_out")}}
    if "final_fuse_level" in config:
        arguments["final_fuse_level"] = ConvSE3FuseLevel[config["final_fuse_level"]]
    return arguments
