"""What `python -m se3_fast.train_forces` runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule, FrameFiles
from se3_fast.forces import ForceField
from se3_fast.training.arguments import label_names, training_options
from se3_fast.training.checkpoint import check_same, check_training_set, read_checkpoint
from se3_fast.training.command import common_seed, train_command
from se3_fast.training.distributed import World
from se3_fast.training.errors import run_command
from se3_fast.training.force_trainer import ForceTrainer, report_forces
from se3_fast.training.kinds import check_written_by
from se3_fast.training.random_state import seed_everything

_MOST_DEGREES = 7  # second derivatives take spherical harmonics up to twice the highest degree, of which e3nn has 12


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
    names = ("num_layers", "num_degrees", "num_channels", "num_radial", "radial_width", "num_knots", "cutoff")
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
    described = {"closest_pairs": data_module.closest_pairs(), "training_set": data_module.statistics.checksum}
    trainer = ForceTrainer(
        model,
        data_module,
        training_options(arguments),
        **loss,
        world=world,
        metadata={"model_config": model.config, "data": data, **described, "loss": loss, "seed": seed},
        resume_from=arguments.load_ckpt_path,
    )
    if checkpoint:
        check_training_set(arguments.load_ckpt_path, checkpoint, described)
    return trainer


def train(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on, or its last checkpoint could not be written.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    train_command(arguments, prepare, report_forces)


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: train(arguments))
