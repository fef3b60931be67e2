"""Options of a command from a YAML file, and those of a run as such a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from se3_fast.error_text import one_line
from se3_fast.files import atomic_file

CONFIG_NAME = "config.yaml"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="YAML file of options by their names; the command line's override"
    )


def parse_with_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the options of its `--config` file are taken as if they stood before all others.

    A file that cannot be read, an option that there is not, or a value that it does not take, ends the program as a wrong command
    line does, with status 2.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_config(first)
    path = first.parse_known_args(arguments)[0].config
    if path is None:
        return parser.parse_args(arguments)
    try:
        words = list(_words(_read(path), dict(_options(parser))))
    except (OSError, ValueError, ImportError) as error:
        parser.error(f"argument --config: {path}: {one_line(error)}")
    return parser.parse_args([*words, *arguments])


def write_config(path: Path, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Write the options of a run, those at their defaults too, as a file for `--config`; where that fails a warning says so."""
    values = {name: getattr(arguments, action.dest) for name, action in _options(parser)}
    # JSON is YAML too; texts and paths are texts.
    lines = [f"{name}: {json.dumps(value, default=str)}" for name, value in values.items() if value is not None]
    try:
        with atomic_file(path) as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        print(f"warning: the options could not be written ({one_line(error)})", file=sys.stderr)


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Options by the names that they have in a file."""
    for action in parser._actions:  # argparse has no public list of them
        names = [name for name in action.option_strings if name.startswith("--")]
        if names and action.dest not in ("help", "config"):
            yield names[0].lstrip("-"), action


def _read(path: Path) -> dict[Any, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("reading YAML needs PyYAML: pip install PyYAML") from error
    with open(path, encoding="utf-8") as file:
        try:
            options = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML ({one_line(error)})") from None
    if not isinstance(options, dict):
        raise ValueError("expected options by their names")
    return options


def _words(options: dict[Any, Any], known: dict[str, argparse.Action]) -> Iterator[str]:
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"no option {name!r:.50}")
        if isinstance(value, list) and known[name].nargs == "+":
            if not value or any(isinstance(each, dict | list) or str(each).startswith("-") for each in value):
                raise ValueError(f"{name}: expected values that do not begin with a dash, got {value!r:.50}")
            yield from (f"--{name}", *map(str, value))
            continue
        if isinstance(value, dict | list):
            raise ValueError(f"{name}: expected one value, got {value!r:.50}")
        if value is not None:
            # In one word: a value may begin with a dash.
            yield f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
