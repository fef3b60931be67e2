"""What `python -m se3_fast.train` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from se3_fast.data import QM9DataModule
from se3_fast.data.molecule_data import MoleculeDataModule
from se3_fast.data.objective import Objective
from se3_fast.error_text import one_line
from se3_fast.model import SE3TransformerPooled
from se3_fast.train import OF_OWN_MOLECULES, build_parser
from se3_fast.training.arguments import check_report, training_options
from se3_fast.training.checkpoint import check_same, check_training_set, read_checkpoint
from se3_fast.training.command import common_seed, train_command
from se3_fast.training.distributed import World
from se3_fast.training.errors import run_command
from se3_fast.training.kinds import check_written_by
from se3_fast.training.model_config import build_model, match_parameterisation, model_config_from_arguments
from se3_fast.training.property_trainer import PropertyEvaluation, PropertyTrainer, report_properties
from se3_fast.training.random_state import seed_everything
from se3_fast.training.report import report_training
from se3_fast.training.run_config import CONFIG_NAME, write_config
from se3_fast.training.starting_model import StartingModel
from se3_fast.training.trainer import Trainer, TrainingResult
from se3_fast.training.uncertainty import FEWEST_MOLECULES, LastLayerUncertainty, last_layer_uncertainties, uncertainty_entry


def prepare(arguments: argparse.Namespace, world: World) -> Trainer:
    """Data, model and trainer that the command line asks for.

    Raises:
        ValueError: The data, the checkpoint or an option is at fault.
        OSError: A file cannot be read or written.
        ImportError: An option needs a package that is not installed.
    """
    _check_data_options(arguments)
    if arguments.report is not None:
        check_report(arguments.report)
    checkpoint = read_checkpoint(arguments.load_ckpt_path) if arguments.load_ckpt_path else {}
    check_written_by("se3_fast.train", checkpoint, arguments.load_ckpt_path)
    seed = common_seed(arguments.seed, checkpoint, world)
    seed_everything(seed)
    start = StartingModel.read(arguments.starting_model) if arguments.starting_model is not None else None
    config = _model_config(arguments, start)
    if start is not None and world.is_main:
        start.tell_unused(arguments, build_parser())
    if checkpoint and "model_config" not in checkpoint:
        config = match_parameterisation(config, checkpoint["state_dict"])
    data = {"dataset": _dataset(arguments), "task": _task(arguments)}
    if checkpoint:
        # Before the data are read: a wrong checkpoint should not cost that wait.
        check_same(arguments.load_ckpt_path, "data set", checkpoint.get("data"), data)
        check_same(arguments.load_ckpt_path, "model", checkpoint.get("model_config"), config)
    data_module = _data_module(arguments, config["num_degrees"], seed, world)
    objective, described = data_module.objective, data_module.description()
    metadata = {
        "model_config": config,
        "data": {**data, **_described(objective, is_own=arguments.data is not None)},
        "seed": seed,
        **described,
    }
    model = build_model(config) if start is None else start.model(objective)
    trainer = (Trainer if objective.is_one_number else PropertyTrainer)(
        model,
        data_module,
        training_options(arguments),
        world=world,
        metadata=metadata,
        resume_from=arguments.load_ckpt_path,
    )
    if checkpoint:
        check_training_set(arguments.load_ckpt_path, checkpoint, described)
    if world.is_main and not arguments.benchmark:
        write_config(arguments.log_dir / CONFIG_NAME, build_parser(), argparse.Namespace(**{**vars(arguments), "seed": seed}))
    return trainer


def _model_config(arguments: argparse.Namespace, start: StartingModel | None) -> dict[str, Any]:
    """Description of the model that is trained."""
    num_properties = 1 if arguments.data is None else len(arguments.target)
    if start is not None:
        return {**start.config, "output_dim": num_properties}
    sizes = (QM9DataModule.NODE_FEATURE_DIM, QM9DataModule.EDGE_FEATURE_DIM)
    return model_config_from_arguments(arguments, *sizes, num_properties)


def _described(objective: Objective, is_own: bool) -> dict[str, Any]:
    """What is learned, for the entry `data` of checkpoints; one number as it has always been there."""
    if not objective.is_one_number:
        return {"objective": objective.description()}
    (learned,) = objective.properties
    return {**({"unit": learned.unit} if is_own else {}), "mean": learned.mean, "std": learned.std}


def train(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on, or its last checkpoint could not be written.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    train_command(arguments, prepare, partial(_finish, arguments.report))


def _finish(report_path: Path | None, trainer: Trainer, result: TrainingResult) -> None:
    """Report, and put the uncertainty of the trained model, and its errors, into its checkpoint."""
    if isinstance(trainer, PropertyTrainer):
        report_properties(trainer, result)
    else:
        report_training(trainer, result, trainer.data_module.task)
    checkpoint = trainer.options.save_ckpt_path
    if checkpoint is None and report_path is None:
        return
    entry: dict[str, Any] = {}
    uncertainties = last_layer_uncertainties(cast(SE3TransformerPooled, trainer.model), trainer.data_module, trainer.world)
    if trainer.world.is_main:
        if checkpoint is not None and not all(uncertainties):
            _tell_no_uncertainty(trainer)
        entry = uncertainty_entry(uncertainties) | {"results": _results(trainer, result)}
        if report_path is not None:
            _write_report(report_path, trainer, uncertainties)
    if checkpoint is not None:
        trainer.add_metadata(entry)


def _write_report(path: Path, trainer: Trainer, uncertainties: Sequence[LastLayerUncertainty | None]) -> None:
    """Write the page of a finished run; where that fails a warning says so, since what was trained is worth more."""
    # Not at the top: it needs RDKit.
    from se3_fast.report.predictions import Subject
    from se3_fast.report.test_set import write_test_report

    data_module, model = trainer.data_module, cast(SE3TransformerPooled, trainer.model)
    facts = [
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("epochs", str(trainer.epochs_done)),
        ("molecules trained on", f"{len(data_module.ds_train):,}"),
    ]
    name = str(trainer.options.save_ckpt_path or "not saved")
    subject = Subject(name, data_module.objective, facts, trainer.history, of_which="test molecules")
    try:
        write_test_report(path, model, data_module, subject, uncertainties, trainer.world.device)
    except OSError as error:
        print(f"warning: the report could not be written ({one_line(error)})", file=sys.stderr)


def _results(trainer: Trainer, result: TrainingResult) -> dict[str, Any]:
    """Errors on the test set by the names of the properties, and the number of molecules that trained."""
    test = result.test
    if isinstance(test, PropertyEvaluation):
        scores = test.scores
    else:
        score = {"mae": test.mae, "mean_predictor_mae": test.mean_predictor_mae, "known": float(test.targets.size)}
        scores = {trainer.data_module.task: score}
    return {"test": scores, "num_train": len(trainer.data_module.ds_train)}


def _tell_no_uncertainty(trainer: Trainer) -> None:
    data_module, width = trainer.data_module, trainer.metadata["model_config"]["fiber_out"][0]
    print(
        f"warning: predictions of this model have no uncertainty: that takes at least {FEWEST_MOLECULES} molecules to validate on "
        f"and more than {width} to train on, got {len(data_module.ds_val)} and {len(data_module.ds_train)}",
        file=sys.stderr,
    )


def _check_data_options(arguments: argparse.Namespace) -> None:
    if arguments.data is not None and arguments.target is None:
        raise ValueError(f"--data {arguments.data}: expected --target, the column or property to learn")
    if arguments.split_column is not None and arguments.split != OF_OWN_MOLECULES["split"]:
        raise ValueError(f"--split_column {arguments.split_column}: expected no --split beside it, got {arguments.split}")
    if arguments.data is None:
        # Before anything is downloaded that was not asked for.
        for name, value in OF_OWN_MOLECULES.items():
            given = getattr(arguments, name)
            if given != value:
                shown = " ".join(given) if isinstance(given, list) else given
                raise ValueError(f"--{name} {shown}: expected --data as well, the table or SDF that it is about")


def _task(arguments: argparse.Namespace) -> str:
    return str(arguments.task) if arguments.data is None else ", ".join(arguments.target)


def _dataset(arguments: argparse.Namespace) -> str:
    return str(arguments.dataset if arguments.data is None else arguments.data)


def _data_module(arguments: argparse.Namespace, num_degrees: int, seed: int, world: World) -> MoleculeDataModule:
    if arguments.data is not None:
        # Not at the top: it needs RDKit.
        from se3_fast.data.own_molecules import OwnMoleculesDataModule

        return OwnMoleculesDataModule(
            arguments.data,
            arguments.target,
            units=arguments.unit or (),
            smiles_column=arguments.smiles,
            is_classification=arguments.classification,
            split=arguments.split,
            split_column=arguments.split_column,
            batch_size=arguments.batch_size,
            seed=seed,
            num_degrees=num_degrees,
            precompute_bases=arguments.precompute_bases,
            device=world.device,
        )
    return QM9DataModule(
        data_dir=arguments.data_dir,
        task=arguments.task,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        num_degrees=num_degrees,
        precompute_bases=arguments.precompute_bases,
        seed=seed,
        dataset=arguments.dataset,
        device=world.device,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: train(arguments))
