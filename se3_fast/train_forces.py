"""Train a force field on energies and forces: `python -m se3_fast.train_forces --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule, FrameFiles
from se3_fast.forces import ForceField
from se3_fast.training.arguments import (
    FILES_OF_FRAMES,
    add_label_names,
    add_training_arguments,
    fraction,
    label_names,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
    training_options,
)
from se3_fast.training.checkpoint import check_same, read_checkpoint
from se3_fast.training.command import common_seed, train_command
from se3_fast.training.distributed import World
from se3_fast.training.errors import run_command
from se3_fast.training.force_trainer import ForceTrainer, report_forces
from se3_fast.training.kinds import check_written_by
from se3_fast.training.random_state import seed_everything

_MOST_DEGREES = 7  # second derivatives take spherical harmonics up to twice the highest degree, of which e3nn has 12

_DEFAULTS = {
    "epochs": 30,
    "learning_rate": 0.005,
    "min_learning_rate": 5e-5,
    "weight_decay": 0.0,
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
    group.add_argument("--num_degrees", type=positive_int, default=2, help="degrees of the hidden features, from 0")
    group.add_argument("--num_channels", type=positive_int, default=64, help="channels of every degree")
    group.add_argument("--num_radial", type=positive_int, default=8, help="Bessel functions that describe a distance")
    group.add_argument("--radial_width", type=positive_int, default=32, help="width of the radial profiles' hidden layers")


def prepare(arguments: argparse.Namespace, world: World) -> ForceTrainer:
    """Data, model and trainer that the command line asks for.

    Raises:
        ValueError: The data, the checkpoint or an option is at fault.
        OSError: A file cannot be read or written.
        ImportError: An option needs a package that is not installed.
    """
    if arguments.num_degrees > _MOST_DEGREES:
        raise ValueError(f"--num_degrees {arguments.num_degrees}: expected at most {_MOST_DEGREES}")
    checkpoint = read_checkpoint(arguments.load_ckpt_path) if arguments.load_ckpt_path else {}
    check_written_by("se3_fast.train_forces", checkpoint, arguments.load_ckpt_path)
    seed = common_seed(arguments.seed, checkpoint, world)
    seed_everything(seed)
    files = FrameFiles(
        arguments.data or [FORCE_SAMPLE_PATH],
        arguments.validation_data or (),
        arguments.test_data or (),
        index=arguments.index,
        names=label_names(arguments),
        train_fraction=arguments.train_fraction,
    )
    data_module = ForceDataModule(
        files,
        batch_size=arguments.batch_size,
        num_train=arguments.num_train,
        num_validation=arguments.num_validation,
        cutoff=arguments.cutoff,
        num_workers=arguments.num_workers,
        seed=seed,
        batch_edges=arguments.batch_edges,
        dipoles=arguments.dipole_weight > 0,
    )
    names = ("num_layers", "num_degrees", "num_channels", "num_radial", "radial_width", "cutoff")
    chosen = {name: getattr(arguments, name) for name in names}
    model = ForceField(
        data_module.elements, **chosen, average_neighbours=data_module.average_neighbours, dipole=data_module.has_dipoles
    )
    if checkpoint:
        saved, usual = checkpoint.get("model_config"), {"dipole": False}  # which stands there only where it is not so
        check_same(arguments.load_ckpt_path, "model", saved and usual | saved, usual | model.config)
    data = {
        "file": ", ".join(Path(path).name for path in (*files.training, *files.validation, *files.test)),
        "num_train": data_module.num_train,
        "num_validation": data_module.num_validation,
    }
    loss = {
        "energy_weight": arguments.energy_weight,
        "force_weight": arguments.force_weight,
        "stress_weight": arguments.stress_weight,
        **({"dipole_weight": arguments.dipole_weight} if arguments.dipole_weight > 0 else {}),
    }
    return ForceTrainer(
        model,
        data_module,
        training_options(arguments),
        **loss,
        world=world,
        metadata={
            "model_config": model.config,
            "data": data,
            "closest_pairs": data_module.closest_pairs(),
            "loss": loss,
            "seed": seed,
        },
        resume_from=arguments.load_ckpt_path,
    )


def train(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on, or its last checkpoint could not be written.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    train_command(arguments, prepare, report_forces)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run_command(lambda: train(parsed))


if __name__ == "__main__":
    sys.exit(main())
