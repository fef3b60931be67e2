"""The QM9 model as a description that checkpoints carry and that rebuilds it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from se3_fast import Fiber, SE3TransformerPooled
from se3_fast.layers import ConvSE3FuseLevel
from se3_fast.model import matching_levels
from se3_fast.parameter_layout import without_wrappers

from .checkpoint import build_from
from .checkpoint_entries import check_sizes, expect, is_size
from .errors import CheckpointError

_FIBERS = ("fiber_in", "fiber_edge", "fiber_out")
_SIZES = ("output_dim", "num_degrees", "num_channels", "num_layers", "num_heads", "channels_div")
_SWITCHES = ("norm", "use_layer_norm", "tensor_cores", "low_memory")


def model_config_from_arguments(
    arguments: argparse.Namespace, node_feature_dim: int, edge_feature_dim: int, output_dim: int = 1
) -> dict[str, Any]:
    """Description of the model that the command line asks for; plain values only.

    The parameterisation follows from `--low_memory` alone, never from the machine.

    Args:
        arguments: From `add_model_arguments`.
        node_feature_dim: Scalar features of a node.
        edge_feature_dim: Scalar features of an edge, without the distance that the model appends.
        output_dim: Properties that are learned.

    Raises:
        ValueError: The heads do not divide the channels of the attention.
    """
    check_channels(arguments)
    return {
        "fiber_in": {0: node_feature_dim},
        "fiber_edge": {0: edge_feature_dim},
        "fiber_out": {0: arguments.num_degrees * arguments.num_channels},
        "output_dim": output_dim,
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


def check_channels(arguments: argparse.Namespace) -> None:
    """Check that `--num_channels`, `--channels_div` and `--num_heads` go together.

    Raises:
        ValueError: They do not.
    """
    channels, remainder = divmod(arguments.num_channels, arguments.channels_div)
    if remainder:
        raise ValueError(
            f"--channels_div {arguments.channels_div}: expected a divisor of --num_channels, which is {arguments.num_channels}"
        )
    if channels % arguments.num_heads:
        raise ValueError(
            f"--num_heads {arguments.num_heads}: expected a divisor of {channels}, which is --num_channels "
            f"{arguments.num_channels} by --channels_div {arguments.channels_div}"
        )


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
    arguments = {**config, **{name: Fiber(config[name]) for name in _FIBERS}}
    if "final_fuse_level" in config:
        arguments["final_fuse_level"] = ConvSE3FuseLevel[config["final_fuse_level"]]
    return arguments


def model_of_checkpoint(path: Path, config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> SE3TransformerPooled:
    """Model that a checkpoint holds.

    Args:
        path: The checkpoint, for the message.
        config: Its description of the model.
        state_dict: Its parameters.

    Raises:
        CheckpointError: The description is not one of `model_config_from_arguments`, or does not fit the parameters.
    """
    try:
        _check_config(config, state_dict)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return build_from(path, state_dict, partial(build_model, config))


def _check_config(config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> None:
    known = {*_FIBERS, *_SIZES, *_SWITCHES, "pooling"}
    expect(
        config.keys() - {"final_fuse_level"} == known,
        "model_config",
        f"the entries {', '.join(sorted(known))}",
        ", ".join(sorted(map(str, config))),
    )
    for name in _FIBERS:
        is_scalar = isinstance(config[name], dict) and list(config[name]) == [0] and is_size(config[name][0])
        expect(is_scalar, f"model_config: {name}", "a number of channels for degree 0", config[name])
    for name in _SWITCHES:
        expect(isinstance(config[name], bool), f"model_config: {name}", "true or false", config[name])
    level, levels = config.get("final_fuse_level", "FULL"), [level.name for level in ConvSE3FuseLevel]
    expect(level in levels, "model_config: final_fuse_level", f"one of {', '.join(levels)}", level)
    expect(config["pooling"] in (None, "max", "avg"), "model_config: pooling", "max or avg", config["pooling"])
    check_sizes(config, _SIZES, state_dict)
