"""Train an SE(3)-Transformer on a molecular property: `python -m se3_fast.train --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from se3_fast.command_line import HelpFormatter
from se3_fast.data import QM9DataModule
from se3_fast.data.molecule_data import SPLITS, MoleculeDataModule
from se3_fast.model import SE3TransformerPooled
from se3_fast.training.arguments import (
    add_model_arguments,
    add_run_arguments,
    add_training_arguments,
    training_options,
)
from se3_fast.training.checkpoint import check_same, read_checkpoint
from se3_fast.training.command import common_seed, train_command
from se3_fast.training.distributed import World
from se3_fast.training.errors import run_command
from se3_fast.training.evaluation import TargetScale
from se3_fast.training.kinds import check_written_by
from se3_fast.training.model_config import build_model, match_parameterisation, model_config_from_arguments
from se3_fast.training.random_state import seed_everything
from se3_fast.training.report import report_training
from se3_fast.training.run_config import CONFIG_NAME, add_config, parse_with_config, write_config
from se3_fast.training.starting_model import StartingModel, add_starting_model
from se3_fast.training.trainer import Trainer, TrainingResult
from se3_fast.training.uncertainty import FEWEST_MOLECULES, last_layer_uncertainty

_BATCH_SIZE = 240
_OF_OWN_MOLECULES = {"smiles": "smiles", "target": None, "unit": "", "split": "random"}
"""Options that say something about `--data` alone, with their defaults."""


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast train",
        description="Train an SE(3)-Transformer on a molecular property.",
        formatter_class=HelpFormatter,
    )
    QM9DataModule.add_argparse_args(parser)
    add_run_arguments(parser, batch_size=_BATCH_SIZE)
    add_model_arguments(parser)
    add_training_arguments(parser)
    add_starting_model(parser)
    add_own_molecules(parser)
    add_config(parser)
    return parser


def prepare(arguments: argparse.Namespace, world: World) -> Trainer:
    """Data, model and trainer that the command line asks for.

    Raises:
        ValueError: The data, the checkpoint or an option is at fault.
        OSError: A file cannot be read or written.
        ImportError: An option needs a package that is not installed.
    """
    _check_data_options(arguments)
    checkpoint = read_checkpoint(arguments.load_ckpt_path) if arguments.load_ckpt_path else {}
    check_written_by("se3_fast.train", checkpoint, arguments.load_ckpt_path)
    seed = common_seed(arguments.seed, checkpoint, world)
    seed_everything(seed)
    start = StartingModel.read(arguments.starting_model) if arguments.starting_model is not None else None
    if start is not None:
        config = start.config
        if world.is_main:
            start.tell_unused(arguments, build_parser())
    else:
        config = model_config_from_arguments(arguments, QM9DataModule.NODE_FEATURE_DIM, QM9DataModule.EDGE_FEATURE_DIM)
    if checkpoint and "model_config" not in checkpoint:
        config = match_parameterisation(config, checkpoint["state_dict"])
    if checkpoint:
        # Before the data are read: a wrong checkpoint should not cost that wait.
        data = {"dataset": _dataset(arguments), "task": _task(arguments)}
        check_same(arguments.load_ckpt_path, "data set", checkpoint.get("data"), data)
        check_same(arguments.load_ckpt_path, "model", checkpoint.get("model_config"), config)
    data_module = _data_module(arguments, seed, world)
    metadata = {
        "model_config": config,
        "data": {
            "dataset": _dataset(arguments),
            "task": _task(arguments),
            **({} if arguments.data is None else {"unit": arguments.unit}),
            "mean": float(data_module.targets_mean),
            "std": float(data_module.targets_std),
        },
        "seed": seed,
        **data_module.description(),
    }
    model = build_model(config) if start is None else start.model(_task(arguments), TargetScale.of(data_module))
    trainer = Trainer(
        model,
        data_module,
        training_options(arguments),
        world=world,
        metadata=metadata,
        resume_from=arguments.load_ckpt_path,
    )
    if world.is_main and not arguments.benchmark:
        write_config(arguments.log_dir / CONFIG_NAME, build_parser(), argparse.Namespace(**{**vars(arguments), "seed": seed}))
    return trainer


def train(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on, or its last checkpoint could not be written.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    train_command(arguments, prepare, _finish)


def _finish(trainer: Trainer, result: TrainingResult) -> None:
    """Report, and put the uncertainty of the trained model into its checkpoint."""
    report_training(trainer, result, trainer.data_module.task)
    if trainer.options.save_ckpt_path is None:
        return
    model = cast(SE3TransformerPooled, trainer.model)
    # The main process alone writes, and what it has of the data is enough.
    uncertainty = last_layer_uncertainty(model, trainer.data_module, trainer.world.device) if trainer.world.is_main else None
    if trainer.world.is_main and uncertainty is None:
        _tell_no_uncertainty(trainer)
    trainer.add_metadata({} if uncertainty is None else {"uncertainty": uncertainty.description()})


def _tell_no_uncertainty(trainer: Trainer) -> None:
    data_module, width = trainer.data_module, trainer.metadata["model_config"]["fiber_out"][0]
    print(
        f"warning: predictions of this model have no uncertainty: that takes at least {FEWEST_MOLECULES} molecules to validate on "
        f"and more than {width} to train on, got {len(data_module.ds_val)} and {len(data_module.ds_train)}",
        file=sys.stderr,
    )


def add_own_molecules(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is read of a file of one's own."""
    group = parser.add_argument_group("molecules of your own")
    group.add_argument("--data", type=Path, default=None, metavar="FILE", help="CSV with SMILES, or SDF, in place of --dataset")
    group.add_argument("--smiles", "--smiles_column", metavar="COLUMN", help="column of the SMILES")
    group.add_argument("--target", metavar="NAME", help="column, or property of the SDF, to learn")
    group.add_argument("--unit", help="unit of the target, for messages (default: none)")
    group.add_argument("--split", choices=SPLITS, help="how molecules to validate and to test on are chosen")
    parser.set_defaults(**_OF_OWN_MOLECULES)


def _check_data_options(arguments: argparse.Namespace) -> None:
    if arguments.data is not None and arguments.target is None:
        raise ValueError(f"--data {arguments.data}: expected --target, the column or property to learn")
    if arguments.data is None:
        # Before anything is downloaded that was not asked for.
        for name, value in _OF_OWN_MOLECULES.items():
            given = getattr(arguments, name)
            if given != value:
                raise ValueError(f"--{name} {given}: expected --data as well, the table or SDF that it is about")


def _task(arguments: argparse.Namespace) -> str:
    return str(arguments.task if arguments.data is None else arguments.target)


def _dataset(arguments: argparse.Namespace) -> str:
    return str(arguments.dataset if arguments.data is None else arguments.data)


def _data_module(arguments: argparse.Namespace, seed: int, world: World) -> MoleculeDataModule:
    if arguments.data is not None:
        # Not at the top: it needs RDKit.
        from se3_fast.data.own_molecules import OwnMoleculesDataModule

        return OwnMoleculesDataModule(
            arguments.data,
            arguments.target,
            unit=arguments.unit,
            smiles_column=arguments.smiles,
            split=arguments.split,
            batch_size=arguments.batch_size,
            seed=seed,
            num_degrees=arguments.num_degrees,
            precompute_bases=arguments.precompute_bases,
            device=world.device,
        )
    return QM9DataModule(
        data_dir=arguments.data_dir,
        task=arguments.task,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        num_degrees=arguments.num_degrees,
        precompute_bases=arguments.precompute_bases,
        seed=seed,
        dataset=arguments.dataset,
        device=world.device,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parsed = parse_with_config(build_parser(), sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: train(parsed))


if __name__ == "__main__":
    sys.exit(main())
