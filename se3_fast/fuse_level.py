"""Exact changes of a model's fuse level.

A radial profile of FULL serves all pairs of degrees, one of PARTIAL those of one degree, one of NONE a single pair. A profile that
serves many pairs is as good as a copy of it for each of them: the hidden layers are the same in all copies, the last layer keeps
the rows of its own pairs. So FULL converts to PARTIAL and NONE, and PARTIAL to NONE, and the function stays the same to rounding.

The reverse joins profiles, which takes hidden layers that are the same in all of them. After a conversion downwards they are, and
it can be undone; after training they differ, and then no model of the higher level is the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se3_fast.layers import ConvSE3, ConvSE3FuseLevel
from se3_fast.layers.convolution import RadialProfile
from se3_fast.model import check_state_dict, fuse_level_of_state_dict
from se3_fast.plan import DegreePair, RadialGroup
from se3_fast.so3 import Y0


def convert_fuse_level(
    model_class: type[nn.Module], state_dict: Mapping[str, Tensor], fuse_level: ConvSE3FuseLevel, **arguments: Any
) -> dict[str, Tensor]:
    """The parameters with which the model of another fuse level is the same function.

    Args:
        model_class: :class:`~se3_fast.SE3Transformer` or :class:`~se3_fast.SE3TransformerPooled`.
        state_dict: parameters of any fuse level, under the published names.
        fuse_level: the level wanted; a convolution whose fibers do not allow it takes the next lower one, as in the model.
        **arguments: the constructor arguments of the model.

    Returns:
        The parameters of ``model_class(**arguments, fuse_level=fuse_level)``, none of them sharing memory with ``state_dict``. The
        states of an optimizer have no counterpart.

    Raises:
        ValueError: if the parameters do not fit the model, or profiles would have to be joined whose hidden layers differ.
    """
    with torch.device("meta"):
        source = model_class(**arguments, fuse_level=fuse_level_of_state_dict(state_dict))
        target = model_class(**arguments, fuse_level=fuse_level)
    check_state_dict(source, state_dict)
    profiles = _profiles(source)
    radial: dict[str, Tensor] = {}
    for convolution, wanted in _profiles(target).items():
        for profile in wanted:
            radial |= _convert(profile, profiles[convolution], state_dict)
    return {name: radial[name] if name in radial else state_dict[name].clone() for name in target.state_dict()}


class _Profile(NamedTuple):
    """A radial profile of a model: the prefix of its parameters, the pairs it serves, the parameters' names after the prefix."""

    name: str
    group: RadialGroup
    hidden: list[str]
    last: str


def _profiles(model: nn.Module) -> dict[str, list[_Profile]]:
    """The radial profiles of every convolution, by the convolution's name."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if isinstance(module, RadialProfile)}
    profiles: dict[str, list[_Profile]] = {}
    for path, module in model.named_modules():
        if isinstance(module, ConvSE3):
            profiles[path] = []
            for profile, group in zip(module.radial_profiles, module.plan.groups, strict=True):
                *hidden, last = profile.state_dict()
                profiles[path].append(_Profile(names[profile], group, hidden, last))
    return profiles


def _convert(wanted: _Profile, sources: list[_Profile], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one profile from those of the same convolution at another level."""
    source_of = {pair[:2]: (source, pair) for source in sources for pair in source.group.pairs}
    used = [source_of[pair[:2]] for pair in wanted.group.pairs]
    first = used[0][0]
    for source, _ in used[1:]:
        if any(not torch.equal(state_dict[f"{first.name}.{key}"], state_dict[f"{source.name}.{key}"]) for key in first.hidden):
            raise ValueError(
                f"fuse_level: expected '{first.name}' and '{source.name}' to have equal hidden layers, since '{wanted.name}' "
                "has one for both, but they differ: no model of that level is the same function"
            )
    rows = [_rows(source, pair, state_dict) for source, pair in used]
    if wanted.group.is_basis_free:
        rows[0] = rows[0] * Y0
    weight = torch.cat(rows, 2).flatten(0, 2)  # [C_out * C_in * F, K]
    hidden = {f"{wanted.name}.{key}": state_dict[f"{first.name}.{key}"].clone() for key in first.hidden}
    return hidden | {f"{wanted.name}.{wanted.last}": weight}


def _rows(source: _Profile, pair: DegreePair, state_dict: Mapping[str, Tensor]) -> Tensor:
    """The rows of a profile's last layer that belong to a pair, for a basis with its harmonic Y_0: [C_out, C_in, paths, K]."""
    group = source.group
    weight = state_dict[f"{source.name}.{source.last}"]
    rows = weight.view(group.channels_out, group.channels_in, group.num_paths, weight.shape[-1])[:, :, pair.start : pair.stop]
    return rows / Y0 if group.is_basis_free else rows
