"""How the parameters of a model are laid out: the fuse level of every convolution, and what wrappers put before their names.

A convolution's fuse level can be read off the names of its radial profiles. Which level a layer has depends on the version of the
published implementation: some give the last convolution another level than the attention blocks, and ``low_memory`` means PARTIAL
in some and NONE in others. So the level is read for each convolution by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se3_fast.contraction import DegreePair, RadialGroup
from se3_fast.layers.convolution import ConvSE3, ConvSE3FuseLevel, RadialProfile, _radial_groups
from se3_fast.so3 import Y0

_WRAPPERS = ("module", "_orig_mod")
"""What DistributedDataParallel, DataParallel and ``torch.compile`` put before the names of parameters."""

_LEVELS = {
    "conv": ConvSE3FuseLevel.FULL,
    "conv_out": ConvSE3FuseLevel.PARTIAL,
    "conv_in": ConvSE3FuseLevel.PARTIAL,
    "pairs": ConvSE3FuseLevel.NONE,
}
_OF_BLOCK = "to_key_value"


def without_wrappers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters under the names that they have in the model itself, without those of wrappers.

    Raises:
        ValueError: if some names begin with a wrapper's and others do not.
    """
    wrappers = {_leading_wrappers(name) for name in state_dict}
    if len(wrappers) > 1:
        examples = {prefix: next(name for name in state_dict if _leading_wrappers(name) == prefix) for prefix in sorted(wrappers)}
        one, other, *_ = examples.values()
        raise ValueError(f"state_dict: expected all names with the same wrappers before them, got '{one}' and '{other}'")
    plain = {".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in state_dict.items()}
    if len(plain) != len(state_dict):
        raise ValueError("state_dict: expected every parameter once, got some both with and without a wrapper's name in theirs")
    return plain


def wrapper_prefix(names: Iterable[str]) -> str:
    """What a wrapper has put before all of these names, ``module.`` for instance; empty if nothing."""
    prefixes = {_leading_wrappers(name) for name in names}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _leading_wrappers(name: str) -> str:
    parts = name.split(".")
    count = next((number for number, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    return "".join(f"{part}." for part in parts[:count])


def fuse_levels(names: Iterable[str]) -> dict[str, ConvSE3FuseLevel]:
    """The fuse level of each convolution, by its name in the model.

    Raises:
        ValueError: if no parameter of a convolution is among the names.
    """
    return {path: _LEVELS[layout.container] for path, layout in _layouts(names).items()}


def level_of_blocks(names: Iterable[str]) -> ConvSE3FuseLevel:
    """The fuse level of a model's attention blocks: the one that it must be built with.

    A layer may be fused less than was asked for where its fibers do not allow more, so this is the highest level that is there,
    unless blocks of which the fibers would allow that of the last convolution have another.

    Raises:
        ValueError: if no parameter of a convolution is among the names.
    """
    layouts = _layouts(names)
    blocks = [layout for path, layout in layouts.items() if path.endswith(_OF_BLOCK)]
    last = next((layout for path, layout in reversed(layouts.items()) if not path.endswith(_OF_BLOCK)), None)
    if last is not None and last.container in ("conv", "conv_out"):  # the hidden features are uniform
        telling = [layout for layout in blocks if layout.has_all_inputs()]
        return _highest(telling or layouts.values())
    return _highest(layouts.values())


class _Layout(NamedTuple):
    """Which radial profiles a convolution has.

    Attributes:
        container: ``conv``, one for all pairs of degrees; ``conv_out`` and ``conv_in``, one for each output or input degree;
            ``pairs``, one for each pair.
        keys: the degrees, or pairs of degrees, of the profiles.
    """

    container: str
    keys: set[str]

    def has_all_inputs(self) -> bool:
        """Whether the level tells what was asked for: the input, as in all blocks but the first, has all degrees of the output."""
        if self.container == "pairs":
            degrees_in, degrees_out = zip(*(key.split(",") for key in self.keys), strict=True)
            return set(degrees_in) >= set(degrees_out)
        return self.container != "conv_in"  # which is for inputs that are not uniform


def _layouts(names: Iterable[str]) -> dict[str, _Layout]:
    found: dict[str, _Layout] = {}
    for name in names:
        path, separator, _ = name.partition(".radial_func.")
        if not separator:
            continue
        *parents, key = path.split(".")
        container = "conv"
        if key != "conv":
            *parents, container = parents
            container = container if container in ("conv_out", "conv_in") else "pairs"
        found.setdefault(".".join(parents), _Layout(container, set())).keys.add(key)
    if not found:
        raise ValueError("state_dict: expected parameters named '...radial_func...', got none")
    return found


def _highest(layouts: Iterable[_Layout]) -> ConvSE3FuseLevel:
    return max((_LEVELS[layout.container] for layout in layouts), key=lambda level: level.value)


class Profile(NamedTuple):
    """A radial profile of a model: the prefix of its parameters, the pairs it serves, the parameters' names after the prefix."""

    name: str
    group: RadialGroup
    hidden: list[str]
    last: str


def profiles_of(convolution: ConvSE3, path: str, level: ConvSE3FuseLevel | None = None) -> list[Profile]:
    """The radial profiles that a convolution has, or would have if it had been built with another level.

    Args:
        convolution: of any level.
        path: its name in the model, with a dot at the end unless it is empty.
        level: None: that which it has.
    """
    arguments = (convolution.fiber_in, convolution.fiber_out, convolution.fiber_edge, convolution.max_degree)
    _, groups = _radial_groups(*arguments, convolution.used_fuse_level if level is None else level)
    *hidden, last = _own_profile(convolution)
    return [Profile(f"{path}{name}.radial_func", group, hidden, last) for name, group in groups.items()]


def _own_profile(convolution: ConvSE3) -> dict[str, Tensor]:
    """The parameters of one of a convolution's radial profiles; all have those names, and the same shapes but for the last.

    None at all where other modules have taken the profiles' place.
    """
    return next((module.state_dict() for module in convolution.modules() if isinstance(module, RadialProfile)), {})


def convert_profile(wanted: Profile, sources: list[Profile], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one profile from those of the same convolution at another level.

    Raises:
        ValueError: if profiles have to be joined whose hidden layers differ.
    """
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


def _rows(source: Profile, pair: DegreePair, state_dict: Mapping[str, Tensor]) -> Tensor:
    """The rows of a profile's last layer that belong to a pair, for a basis with its harmonic Y_0: [C_out, C_in, paths, K]."""
    group = source.group
    weight = state_dict[f"{source.name}.{source.last}"]
    rows = weight.view(group.channels_out, group.channels_in, group.num_paths, weight.shape[-1])[:, :, pair.start : pair.stop]
    return rows / Y0 if group.is_basis_free else rows


def convert_on_loading(
    model: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Before a model loads parameters: those of convolutions that have another fuse level are converted, in ``state_dict``.

    So parameters of a version in which the level of a layer is another load as they are, and the function is the same to rounding.
    Profiles that would have to be joined and differ are an error. The arguments are those of a
    :meth:`~torch.nn.Module.register_load_state_dict_pre_hook`.
    """
    converted = []
    for path, convolution in model.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(convolution, ConvSE3):
            start = f"{path}." if path else ""
            level = _other_level(convolution, start, state_dict)
            if level is not None and _convert(convolution, start, level, state_dict, error_msgs):
                converted.append(f"{path} from {level.name} to {convolution.used_fuse_level.name}")
    if converted:
        warnings.warn(
            f"state_dict: fuse levels converted, the function is the same: {', '.join(converted)}; build_for_state_dict keeps them",
            stacklevel=2,
        )


def _other_level(convolution: ConvSE3, start: str, state_dict: Mapping[str, Any]) -> ConvSE3FuseLevel | None:
    """The level of a convolution's parameters if it is not its own and all of them are there with the shapes expected."""
    names = [name.removeprefix(start) for name in state_dict if name.startswith(start) and ".radial_func." in name]
    level = fuse_levels(names).get("") if names else None
    own = _own_profile(convolution)
    if level is None or level is convolution.used_fuse_level or not own:
        return None
    for name, group, hidden, last in profiles_of(convolution, start, level):
        rows = group.channels_out * group.channels_in * group.num_paths
        shapes = {key: list(own[key].shape) for key in hidden} | {last: [rows, own[last].shape[-1]]}
        if any(list(getattr(state_dict.get(f"{name}.{key}"), "shape", ())) != shape for key, shape in shapes.items()):
            return None
    return level


def _convert(convolution: ConvSE3, start: str, level: ConvSE3FuseLevel, state_dict: dict[str, Any], error_msgs: list[str]) -> bool:
    sources = profiles_of(convolution, start, level)
    converted: dict[str, Tensor] = {}
    try:
        for wanted in profiles_of(convolution, start):
            converted |= convert_profile(wanted, sources, state_dict)
    except ValueError as error:
        error_msgs.append(str(error))
        return False
    for source in sources:
        for key in (*source.hidden, source.last):
            del state_dict[f"{source.name}.{key}"]
    state_dict |= converted
    return True
