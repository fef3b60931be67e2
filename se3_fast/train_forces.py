"""Train a force field on energies and forces: `python -m se3_fast.train_forces --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.lazy import lazy_names
from se3_fast.training.arguments import (
    FILES_OF_FRAMES,
    add_label_names,
    add_training_arguments,
    fraction,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
)

if TYPE_CHECKING:
    from se3_fast.training.force_command import prepare, train

__all__ = ["build_parser", "main", "prepare", "train"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(["prepare", "train"], "se3_fast.training.force_command"))

_DEFAULTS = {
    "epochs": 30,
    "optimizer": "soap",
    "momentum": 0.95,
    "learning_rate": 0.005,
    "min_learning_rate": 5e-5,
    "weight_decay": 0.03,
    "gradient_clip": 10.0,
    "eval_interval": 5,
}


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast train-forces",
        description="Train a force field on energies (eV) and forces (eV/Angstrom) of molecules.",
        formatter_class=HelpFormatter,
    )
    _add_data_arguments(parser)
    _add_model_arguments(parser)
    add_training_arguments(parser)
    loss = parser.add_argument_group("loss")
    loss.add_argument("--energy_weight", type=natural_float, default=0.1, help="weight of the error of a molecule's energy, eV")
    loss.add_argument(
        "--force_weight", type=natural_float, default=1.0, help="weight of the error of force components, eV/Angstrom"
    )
    loss.add_argument(
        "--stress_weight",
        type=natural_float,
        default=0.0,
        help="weight of the error of stress components, eV/Angstrom^3, of frames that are periodic and have a stress",
    )
    loss.add_argument(
        "--dipole_weight",
        type=natural_float,
        default=0.0,
        help="weight of the error of dipole components, e*Angstrom; above 0 the force field gives dipoles of molecules too",
    )
    parser.set_defaults(**_DEFAULTS, amp=False, amp_dtype="auto")
    return parser


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=None,
        metavar="FILE",
        help=f"{FILES_OF_FRAMES} (default: the sample in the package)",
    )
    for name, use in (("validation", "validate"), ("test", "test")):
        text = f"frames that {use} (default: some of those of --data)"
        group.add_argument(f"--{name}_data", type=Path, nargs="+", default=None, metavar="FILE", help=text)
    add_label_names(group)
    group.add_argument(
        "--train_fraction", type=fraction, default=0.8, help="part of the frames of --data that train, where no file says which"
    )
    group.add_argument("--num_train", type=positive_int, default=None, help="training frames (default: all that are marked so)")
    group.add_argument(
        "--num_validation",
        type=positive_int,
        default=None,
        help="validation frames, the rest tests (default: half of what is left)",
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--batch_size", type=positive_int, default=10, help="frames per batch and process")
    size.add_argument(
        "--batch_edges",
        type=positive_int,
        default=None,
        help="as many frames per batch and process as have at most this many edges together, instead of a number of frames",
    )
    group.add_argument("--num_workers", type=natural_int, default=0, help="processes that load data; 0: none")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--cutoff", type=positive_float, default=5.0, help="beyond it atoms do not act on each other, Angstrom")
    group.add_argument("--num_layers", type=positive_int, default=3, help="layers, each of which passes messages once")
    group.add_argument("--num_degrees", type=positive_int, default=3, help="degrees of the hidden features, from 0")
    group.add_argument("--num_channels", type=positive_int, default=32, help="channels of every degree")
    group.add_argument("--num_radial", type=positive_int, default=8, help="Bessel functions that describe a distance")
    group.add_argument("--radial_width", type=positive_int, default=32, help="width of the radial profiles' hidden layers")
    group.add_argument(
        "--num_knots", type=positive_int, default=32, help="distances at which radial profiles are evaluated, joined by splines"
    )


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run("se3_fast.training.force_command", parsed)


if __name__ == "__main__":
    sys.exit(main())
