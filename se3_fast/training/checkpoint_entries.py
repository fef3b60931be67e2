"""What the entries of a checkpoint must be, whoever wrote it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .random_state import check_random_state

PUBLISHED_KEYS = ("state_dict", "optimizer_state_dict", "epoch")
FORMAT_VERSION = 1

_DEEPEST = 50
_LONGEST_NAME = 1000
_LARGEST_COUNT = 2**53
_LARGEST_SIZE = 2**20
_PROJECTION = ".project.weights."
_ATOMIC_NUMBERS = frozenset(map(str, range(1, 119)))
_SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def check_entries(checkpoint: Any, most_values: int) -> None:
    """Check all entries that this package reads; others may be any tensors and plain values.

    Args:
        checkpoint: What a file holds.
        most_values: Values that it may have, counted as often as they are met. A pickle may name a list many times, and lists of
            it many times, so that few bytes describe more values than can ever be visited.

    Raises:
        ValueError: In one line: which entry, what was expected and what came.
    """
    _check_extent(checkpoint, most_values)
    missing = [key for key in PUBLISHED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"expected the keys {', '.join(PUBLISHED_KEYS)}; missing: {', '.join(missing)}")
    for key, check in _CHECKS.items():
        if key in checkpoint:
            check(key, checkpoint[key])


def shortened(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def expect(condition: bool, name: str, expected: str, got: Any) -> None:
    """Report a value that is not as it should be, unless a condition holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {shortened(got)}")


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 on, of a size that things can be counted with."""
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and abs(value) < math.inf


def is_size(value: Any) -> bool:
    """Whether it is a whole number from 1 on that a part of a model may have as its size."""
    return type(value) is int and 1 <= value <= _LARGEST_SIZE


def check_sizes(
    config: Mapping[str, Any], names: Iterable[str], state_dict: Mapping[str, Any], projection: str = _PROJECTION
) -> None:
    """Check the sizes in the description of a model, and that a state dict has parameters for its layers and degrees.

    Without that a few wrong bytes describe a model that takes hours to build.

    Args:
        config: The description; its entries are by name.
        names: Those that are sizes, `num_layers` and `num_degrees` among them.
        state_dict: The parameters.
        projection: Part of the names of those that each layer has one of for each degree.

    Raises:
        ValueError: In one line: which entry, what was expected and what came.
    """
    for name in names:
        expect(is_size(config.get(name)), f"model_config: {name}", f"a whole number from 1 to {_LARGEST_SIZE}", config.get(name))
    layers, degrees = config["num_layers"], config["num_degrees"]
    projections = sum(projection in key for key in state_dict)
    if layers * degrees != projections:
        raise ValueError(
            f"model_config: expected num_layers times num_degrees to be the {projections} projections of the parameters, "
            f"got {layers} times {degrees}"
        )


def _check_extent(checkpoint: Any, most_values: int) -> None:
    """Check that values are not nested more deeply, nor more of them, than can be visited."""
    pending: list[Iterator[Any]] = [iter((checkpoint,))]
    count = 0
    while pending:
        value = next(pending[-1], _END)
        if value is _END:
            pending.pop()
            continue
        count += 1
        if len(pending) > _DEEPEST or count > most_values:
            raise ValueError(f"expected at most {most_values} values, nested {_DEEPEST} deep at most, got more")
        if isinstance(value, dict):
            # Attributes of an ordered dictionary could stand in for its methods.
            hidden = set(vars(value)) - {"_metadata"} if isinstance(value, OrderedDict) else set()
            expect(not hidden, "a dictionary", "no attributes", sorted(map(str, hidden)))
            pending.append(_keys_and_values(value))
        elif isinstance(value, list | tuple | set):
            pending.append(iter(value))


_END = object()


def _keys_and_values(entries: dict[Any, Any]) -> Iterator[Any]:
    for key, value in entries.items():
        yield key
        yield value


def _check_state_dict(name: str, parameters: Any) -> None:
    expect(isinstance(parameters, dict), name, "a dictionary of parameters", parameters)
    for key, tensor in parameters.items():
        is_name = isinstance(key, str) and key.isprintable() and len(key) <= _LONGEST_NAME
        expect(is_name, name, "names of parameters", key)
        is_plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_complex()
        expect(is_plain, f"{name}: {key!r}", "a tensor of real numbers", tensor)


def _check_optimizer_state(name: str, state: Any) -> None:
    expect(isinstance(state, dict), name, "a dictionary", state)
    if not state:
        return
    entries, groups = state.get("state"), state.get("param_groups")
    expect(isinstance(entries, dict), f"{name}: state", "a dictionary by the parameters' numbers", entries)
    for number, entry in entries.items():
        expect(is_count(number), f"{name}: state", "the parameters' numbers", number)
        expect(_is_named(entry), f"{name}: state of parameter {number}", "a dictionary by names", entry)
    expect(isinstance(groups, list) and all(map(_is_named, groups)), f"{name}: param_groups", "a list of dictionaries", groups)
    for group in groups:
        numbers = group.get("params")
        is_list = isinstance(numbers, list) and all(map(is_count, numbers))
        expect(is_list, f"{name}: param_groups: params", "a list of the parameters' numbers", numbers)


def _check_scaler(name: str, state: Any) -> None:
    expect(isinstance(state, dict), name, "a dictionary", state)
    if state:
        is_whole = set(state) == _SCALER_KEYS and all(map(is_number, state.values()))
        expect(is_whole, name, f"numbers for {', '.join(sorted(_SCALER_KEYS))}", state)
        are_positive = all(state[key] > 0 for key in _SCALER_KEYS - {"_growth_tracker"}) and is_count(state["_growth_tracker"])
        expect(are_positive and is_count(state["growth_interval"]), name, "factors above 0", state)


def _check_random_states(name: str, states: Any) -> None:
    expect(isinstance(states, list), name, "a list with the random state of each process", states)
    for process, state in enumerate(states):
        try:
            check_random_state(state)
        except ValueError as error:
            raise ValueError(f"{name}: process {process}: {error}") from None


def _check_position(name: str, position: Any) -> None:
    expect(_is_named(position), name, "a dictionary by names", position)
    _check_random_states(f"{name}: rng", position.get("rng", []))


def _check_history(name: str, records: Any) -> None:
    expect(isinstance(records, list), name, "a list of records", records)
    for record in records:
        is_record = _is_named(record) and all(type(value) in (int, float) for value in record.values())
        is_record = is_record and is_count(record.get("epoch")) and "train_loss" in record
        expect(is_record, name, "records of numbers with epoch and train_loss", record)


def _check_schedule(name: str, state: Any) -> None:
    expect(_is_named(state), name, "a dictionary by names", state)
    for key in ("T_0", "eta_min"):
        expect(key not in state or is_number(state[key]), f"{name}: {key}", "a number", state.get(key))
    rates = state.get("base_lrs", [])
    expect(isinstance(rates, list) and all(map(is_number, rates)), f"{name}: base_lrs", "a list of numbers", rates)


def _check_data(name: str, description: Any) -> None:
    _check_description(name, description)
    for key in ("dataset", "task", "file", "unit"):
        expect(isinstance(description.get(key, ""), str), f"{name}: {key}", "a name", description.get(key))
    expect(is_number(description.get("mean", 0)), f"{name}: mean", "a finite number", description.get("mean"))
    scale = description.get("std", 1)
    expect(is_number(scale) and scale > 0, f"{name}: std", "a finite number above 0", scale)
    if "objective" in description:
        _check_objective(f"{name}: objective", description["objective"])


def _check_objective(name: str, description: Any) -> None:
    known = {"name", "version", "properties"}
    expect(_is_named(description) and set(description) == known, name, f"the entries {', '.join(sorted(known))}", description)
    expect(isinstance(description["name"], str), f"{name}: name", "a name", description["name"])
    expect(is_count(description["version"]), f"{name}: version", "a whole number from 0 on", description["version"])
    properties = description["properties"]
    expect(isinstance(properties, list) and bool(properties), f"{name}: properties", "a list of properties", properties)
    for one in properties:
        expect(_is_named(one) and set(one) == {"name", "unit", "mean", "std"}, name, "name, unit, mean and std", one)
        expect(isinstance(one["name"], str) and isinstance(one["unit"], str), name, "texts for name and unit", one)
        are_numbers = is_number(one["mean"]) and is_number(one["std"]) and one["std"] > 0
        expect(are_numbers, name, "finite numbers for mean and std, above 0 for std", one)


def _check_featuriser(name: str, description: Any) -> None:
    expect(_is_named(description) and set(description) == {"name", "version"}, name, "a name and a version", description)
    expect(isinstance(description["name"], str), f"{name}: name", "a name", description["name"])
    expect(is_count(description["version"]), f"{name}: version", "a whole number from 0 on", description["version"])


def _check_domain(name: str, description: Any) -> None:
    counts = ("fewest_heavy_atoms", "most_heavy_atoms", "most_atoms")
    known = {*counts, "elements", "atom_kinds", "charge"}
    is_whole = _is_named(description) and set(description) - {"most_pieces"} == known
    expect(is_whole, name, f"the entries {', '.join(sorted(known))}", description)
    for key in (*counts, *(description.keys() & {"most_pieces"})):
        expect(is_count(description[key]), f"{name}: {key}", "a whole number from 0 on", description[key])
    charge = description["charge"]
    expect(type(charge) is int, f"{name}: charge", "a whole number", charge)
    _check_counts(f"{name}: elements", description["elements"])
    kinds = description["atom_kinds"]
    expect(isinstance(kinds, list), f"{name}: atom_kinds", "a list of kinds of atoms", kinds)
    for kind in kinds:
        _check_counts(f"{name}: atom_kinds", kind)


def _check_closest_pairs(name: str, distances: Any) -> None:
    expect(_is_named(distances), name, "a dictionary by names", distances)
    for pair, distance in distances.items():
        numbers = pair.split("-")
        is_pair = len(numbers) == 2 and all(number in _ATOMIC_NUMBERS for number in numbers)
        is_length = is_number(distance) and distance > 0
        expect(is_pair and is_length, name, "lengths by pairs of atomic numbers", {pair: distance})


def _check_uncertainty(name: str, description: Any) -> None:
    if not (_is_named(description) and set(description) == {"name", "version", "each"}):
        _check_uncertainty_of_one(name, description)
        return
    _check_name(f"{name}: name", description["name"])
    _check_count(f"{name}: version", description["version"])
    expect(isinstance(description["each"], list), f"{name}: each", "a list with one for each property", description["each"])
    for one in description["each"]:
        if one is not None:
            _check_uncertainty_of_one(f"{name}: each", one)


def _check_uncertainty_of_one(name: str, description: Any) -> None:
    numbers = ("scale", "floor", "farthest")
    known = {*numbers, "name", "version", "mean", "slope", "factor"}
    expect(_is_named(description) and set(description) == known, name, f"the entries {', '.join(sorted(known))}", description)
    expect(isinstance(description["name"], str), f"{name}: name", "a name", description["name"])
    expect(is_count(description["version"]), f"{name}: version", "a whole number from 0 on", description["version"])
    for key in numbers:
        is_positive = is_number(description[key]) and description[key] >= 0
        expect(is_positive, f"{name}: {key}", "a finite number of at least 0", description[key])
    rows = description["factor"]
    expect(isinstance(rows, list), f"{name}: factor", "a list of rows", rows)
    for key in ("mean", "slope"):
        _check_numbers(f"{name}: {key}", description[key], len(rows))
    for length, row in enumerate(rows, 1):
        _check_numbers(f"{name}: factor", row, length)


def _check_numbers(name: str, values: Any, count: int) -> None:
    is_whole = isinstance(values, list) and len(values) == count and all(map(is_number, values))
    expect(is_whole, name, f"a list of {count} finite numbers", values)


def _check_counts(name: str, values: Any) -> None:
    expect(isinstance(values, list) and all(map(is_count, values)), name, "a list of whole numbers from 0 on", values)


def _check_description(name: str, description: Any) -> None:
    """A description consists of plain values by name."""
    expect(_is_named(description), name, "a dictionary by names", description)
    pending = list(description.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list | tuple):
            pending += ((key, part) for part in value)
        else:
            expect(value is None or isinstance(value, str | int | float), f"{name}: {shortened(key)}", "plain values", value)


def _check_count(name: str, value: Any) -> None:
    expect(is_count(value), name, "a whole number from 0 on", value)


def _check_seed(name: str, value: Any) -> None:
    expect(type(value) is int and 0 <= value < 2**64, name, "a whole number from 0 to 2^64 - 1", value)


def _check_version(_: str, version: Any) -> None:
    if type(version) is not int or version > FORMAT_VERSION:
        raise ValueError(f"expected a checkpoint format of at most {FORMAT_VERSION}, got {shortened(version)}")


def _check_name(name: str, value: Any) -> None:
    expect(isinstance(value, str), name, "a name", value)


def _is_named(entries: Any) -> bool:
    return isinstance(entries, dict) and all(isinstance(key, str) for key in entries)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "version": _check_version,
    "state_dict": _check_state_dict,
    "optimizer_state_dict": _check_optimizer_state,
    "epoch": _check_count,
    "step": _check_count,
    "scheduler_state_dict": _check_schedule,
    "scaler_state_dict": _check_scaler,
    "rng": _check_random_states,
    "position": _check_position,
    "history": _check_history,
    "optimizer": _check_name,
    "model_config": _check_description,
    "data": _check_data,
    "featuriser": _check_featuriser,
    "domain": _check_domain,
    "training_set": _check_name,
    "closest_pairs": _check_closest_pairs,
    "uncertainty": _check_uncertainty,
    "loss": _check_description,
    "results": _check_description,
    "seed": _check_seed,
}
