"""Command-line arguments that training and inference share, with the published names and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from se3_fast.command_line import boolean
from se3_fast.data.label_units import DEFAULT_UNITS, LabelNames, LabelUnits, dipole_unit, energy_unit, forces_unit, length_unit
from se3_fast.files import check_writable

from .options import AMP_DTYPES, OPTIMIZERS, TrainingOptions

FILES_OF_FRAMES = (
    "frames: .npz, extended XYZ, any file that ASE reads, HDF5 collection, .aselmdb, folder of these shards or of pack-frames"
)
"""What the commands of force fields read."""

LOG_LEVELS = ("debug", "info", "warning", "error")


def positive_int(text: str) -> int:
    """Read an integer above zero.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    return _bounded(text, int, lambda value: value > 0, "an integer above 0")


def natural_int(text: str) -> int:
    """Read an integer that is not negative.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    return _bounded(text, int, lambda value: value >= 0, "an integer of at least 0")


def positive_float(text: str) -> float:
    """Read a finite number above zero.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    return _bounded(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def natural_float(text: str) -> float:
    """Read a finite number that is not negative.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    return _bounded(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Read a number from 0 to below 1.

    Raises:
        argparse.ArgumentTypeError: Anything else.
    """
    return _bounded(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _bounded(text: str, kind: Any, accepts: Any, expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accepts(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def add_flag(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    """Add a boolean option that is off by default: `--name`, `--name true` and `--name false` all work."""
    group.add_argument(f"--{name}", type=boolean, nargs="?", const=True, default=False, metavar="BOOL", help=text)


def add_log_level(group: argparse._ArgumentGroup | argparse.ArgumentParser, default: str) -> None:
    """Add `--log_level`."""
    group.add_argument("--log_level", choices=LOG_LEVELS, default=default, help="least important messages that are shown")


def add_cuda_graphs(group: argparse._ArgumentGroup, text: str) -> None:
    """Add `--cuda_graphs`, which is None unless given."""
    group.add_argument("--cuda_graphs", type=boolean, nargs="?", const=True, default=None, metavar="BOOL", help=text)


def add_label_names(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add which frames of files are read, what their labels are called there, and in which units they are."""
    group.add_argument("--index", default=":", metavar="INDEX", help="which frames of each file: a number, or start:stop:step")
    for name, default, more in (
        ("energy", "energy", ""),
        ("forces", "forces", "; one with `gradient` in it is that of minus the forces"),
        ("stress", "stress", ""),
        ("virial", None, ", minus stress times volume (default: virial or virials)"),
        ("dipole", "dipole", ""),
        ("positions", None, " in HDF5 files (default: conformations, coordinates or positions)"),
    ):
        group.add_argument(f"--{name}_name", default=default, metavar="NAME", help=f"name of the {name} in files{more}")
    for name, check, more in (
        ("energy", energy_unit, "eV, meV, hartree, kcal/mol or kJ/mol"),
        ("length", length_unit, "Angstrom, bohr or nm"),
        ("dipole", dipole_unit, "e*Angstrom, e*bohr or debye"),
        ("forces", forces_unit, "such as hartree/bohr (default: that of energies over that of lengths)"),
    ):
        group.add_argument(
            f"--{name}_unit",
            type=_unit(check),
            default=getattr(DEFAULT_UNITS, name),
            metavar="UNIT",
            help=f"unit of files that do not state it, {more}",
        )


def label_names(arguments: argparse.Namespace) -> LabelNames:
    """What :func:`add_label_names` has added, of parsed arguments."""
    units = LabelUnits(arguments.energy_unit, arguments.length_unit, arguments.forces_unit, arguments.dipole_unit)
    return LabelNames(
        energy=arguments.energy_name,
        forces=arguments.forces_name,
        stress=arguments.stress_name,
        virial=arguments.virial_name,
        dipole=arguments.dipole_name,
        positions=arguments.positions_name,
        units=units,
    )


def _unit(check: Callable[[str], float]) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return read


def add_run_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add where the data are, how they are read, and what computes."""
    data = parser.add_argument_group("data loading")
    data.add_argument("--data_dir", type=Path, default=Path("./data"), metavar="FOLDER", help="folder of qm9_edge.npz")
    data.add_argument("--batch_size", type=positive_int, default=batch_size, help="molecules per batch and process")
    data.add_argument("--num_workers", type=natural_int, default=8, help="processes that load a data set of your own; 0: none")
    compute = parser.add_argument_group("computation")
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    add_flag(compute, "amp", "automatic mixed precision")
    compute.add_argument(
        "--amp_dtype", choices=AMP_DTYPES, default="auto", help="type of --amp; auto: fp16 on CUDA, bf16 elsewhere"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the architecture of the published QM9 model."""
    group = parser.add_argument_group("model")
    group.add_argument("--num_layers", type=positive_int, default=7, help="attention layers")
    group.add_argument("--num_heads", type=positive_int, default=8, help="attention heads")
    group.add_argument("--num_degrees", type=positive_int, default=4, help="degrees of the hidden features, from 0")
    group.add_argument("--num_channels", type=positive_int, default=32, help="channels of every degree")
    group.add_argument("--channels_div", type=positive_int, default=2, help="channels are divided by this inside the attention")
    group.add_argument("--pooling", choices=("max", "avg"), default="max", help="pooling over the atoms")
    add_flag(group, "norm", "equivariant normalisation after every layer")
    add_flag(group, "use_layer_norm", "layer normalisation in the radial profiles")
    add_flag(group, "low_memory", "a radial profile for every pair of degrees (the published low-memory model)")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the training loop; defaults are those of `TrainingOptions`."""
    default = TrainingOptions()
    loop = parser.add_argument_group("training")
    loop.add_argument("--epochs", type=positive_int, default=default.epochs, help="passes over the training set")
    loop.add_argument(
        "--max_steps",
        type=positive_int,
        default=default.max_steps,
        help="stop after this many optimizer steps (default: no limit)",
    )
    loop.add_argument("--seed", type=natural_int, default=None, help="seed of the run (default: drawn)")
    loop.add_argument(
        "--accumulate_grad_batches",
        type=positive_int,
        default=default.accumulate_grad_batches,
        help="batches that make one optimizer step",
    )
    loop.add_argument(
        "--gradient_clip", type=positive_float, default=default.gradient_clip, help="largest norm of the gradient (default: any)"
    )
    loop.add_argument("--eval_interval", type=positive_int, default=default.eval_interval, help="epochs between evaluations")
    add_flag(loop, "benchmark", "measure the throughput: no evaluation, no checkpoint")
    add_cuda_graphs(loop, "record training steps on the GPU and replay them (default: with --benchmark, where it is possible)")
    _add_optimizer_arguments(parser, default)
    _add_output_arguments(parser, default)


def _add_optimizer_arguments(parser: argparse.ArgumentParser, default: TrainingOptions) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default=default.optimizer, help="optimizer")
    group.add_argument(
        "--learning_rate", "--lr", type=positive_float, default=default.learning_rate, help="rate of the first epoch"
    )
    group.add_argument(
        "--min_learning_rate",
        "--min_lr",
        type=natural_float,
        default=default.min_learning_rate,
        help="rate that the cosine falls to (default: a tenth of the learning rate)",
    )
    group.add_argument("--momentum", type=fraction, default=default.momentum, help="momentum of sgd, first beta of the others")
    group.add_argument("--weight_decay", type=natural_float, default=default.weight_decay, help="weight decay")


def _add_output_arguments(parser: argparse.ArgumentParser, default: TrainingOptions) -> None:
    group = parser.add_argument_group("checkpoints and logs")
    group.add_argument(
        "--save_ckpt_path", type=Path, default=default.save_ckpt_path, metavar="FILE", help="checkpoint to write (default: none)"
    )
    group.add_argument(
        "--load_ckpt_path", type=Path, default=None, metavar="FILE", help="checkpoint to resume from (default: none)"
    )
    group.add_argument(
        "--ckpt_interval", type=int, default=default.ckpt_interval, help="epochs between checkpoints; -1: only the last"
    )
    group.add_argument("--log_dir", type=Path, default=default.log_dir, metavar="FOLDER", help="folder of logs and plots")
    group.add_argument("--dllogger_name", default=default.dllogger_name, metavar="NAME", help="JSON-lines log in the log folder")
    add_flag(group, "wandb", "log to Weights & Biases too")
    add_flag(group, "silent", "no progress bar and no line for every epoch")
    add_log_level(group, "info")


def add_starting_model(parser: argparse.ArgumentParser) -> None:
    """Add `--from`."""
    parser.add_argument(
        "--from",
        dest="starting_model",
        default=None,
        metavar="NAME",
        help="begin with the parameters of a trained model, by name (se3-fast models lists them) or file; its options of the "
        "model hold",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add `--report`."""
    parser.add_argument(
        "--report",
        type=Path,
        default=None,
        metavar="FILE",
        help="page to write about the test set: figures, plots, drawings, table, view in space (needs RDKit)",
    )


def check_report(path: Path) -> None:
    """Check that a report can be made and written, before there is anything to lose.

    Raises:
        ImportError: RDKit is not installed.
        OSError: The page cannot be written.
    """
    if find_spec("rdkit") is None:
        raise ImportError("--report needs RDKit: pip install 'se3_fast[chem]'")
    check_writable(path)


def training_options(arguments: argparse.Namespace) -> TrainingOptions:
    """The options of the training loop among parsed arguments."""
    return TrainingOptions(**{field.name: getattr(arguments, field.name) for field in fields(TrainingOptions)})
