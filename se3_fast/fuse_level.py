"""Exact changes of a model's fuse level.

A radial profile of FULL serves all pairs of degrees, one of PARTIAL those of one degree, one of NONE a single pair. A profile that
serves many pairs is as good as a copy of it for each of them: the hidden layers are the same in all copies, the last layer keeps
the rows of its own pairs. So FULL converts to PARTIAL and NONE, and PARTIAL to NONE, and the function stays the same to rounding.

The reverse joins profiles, which takes hidden layers that are the same in all of them. After a conversion downwards they are, and
it can be undone; after training they differ, and then no model of the higher level is the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.layers import ConvSE3, ConvSE3FuseLevel
from se3_fast.model import check_state_dict, matching_levels
from se3_fast.parameter_layout import convert_profile, profiles_of, without_wrappers


def convert_fuse_level(
    model_class: type[nn.Module], state_dict: Mapping[str, Tensor], fuse_level: ConvSE3FuseLevel, **arguments: Any
) -> dict[str, Tensor]:
    """The parameters with which the model of another fuse level is the same function.

    Args:
        model_class: :class:`~se3_fast.SE3Transformer` or :class:`~se3_fast.SE3TransformerPooled`.
        state_dict: parameters of any fuse level, or of one level for each layer, under the published names.
        fuse_level: the level wanted of all layers; a convolution whose fibers do not allow it takes the next lower one, as in the
            model.
        **arguments: the constructor arguments of the model.

    Returns:
        The parameters of ``model_class(**arguments, fuse_level=fuse_level)``, none of them sharing memory with ``state_dict``. The
        states of an optimizer have no counterpart.

    Raises:
        ValueError: if the parameters do not fit the model, or profiles would have to be joined whose hidden layers differ.
    """
    state_dict = without_wrappers(state_dict)
    with torch.device("meta"):
        source = model_class(**{**arguments, **matching_levels(model_class, state_dict, arguments)})
        target = model_class(**arguments, fuse_level=fuse_level)
    check_state_dict(source, state_dict)
    convolutions = {path: module for path, module in source.named_modules() if isinstance(module, ConvSE3)}
    radial: dict[str, Tensor] = {}
    for path, convolution in target.named_modules():
        if isinstance(convolution, ConvSE3):
            sources = profiles_of(convolutions[path], f"{path}.")
            for wanted in profiles_of(convolution, f"{path}."):
                radial |= convert_profile(wanted, sources, state_dict)
    return {name: radial[name] if name in radial else state_dict[name].clone() for name in target.state_dict()}
