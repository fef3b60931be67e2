"""Errors of a force field on labelled frames: `se3-fast evaluate-forces --help`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from se3_fast.commands.evaluate_forces import main
from se3_fast.data.force_frames import FrameFile, frame_batches, read_frame_file, shards_of
from se3_fast.data.frames import ForceFrames
from se3_fast.data.molecules import DataError
from se3_fast.files import atomic_file, check_apart, check_writable
from se3_fast.forces import ForceField, load_force_field
from se3_fast.training.arguments import label_names
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.force_trainer import ForceEvaluation, errors_on_one_line, evaluate_forces
from se3_fast.training.plots import plot_parity
from se3_fast.training.signals import StopSignal


def evaluate(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    with StopSignal().watched(), open_world(arguments.device) as world, user_errors():
        shards = shards_of(arguments.data)
        check_apart([("the table", arguments.output), ("the plot", arguments.plot)], [("the frames", path) for path in shards])
        model = load_force_field(arguments.load_ckpt_path, arguments.repulsion)
        for path in filter(None, (arguments.output, arguments.plot)):
            check_writable(path)
        names = label_names(arguments)
        files = [read_frame_file(path, arguments.index, names) for path in shards]
        for file in files:
            _check_elements(file, model)
        frames = ForceFrames.joined([file.frames for file in files])
        is_periodic = frames.pbc is not None and bool(frames.pbc.any())
        has_dipoles = model.has_dipole and frames.has_dipoles
        batches = frame_batches(files, model.cutoff, arguments.batch_size, dipoles=has_dipoles and not is_periodic)
        evaluation = evaluate_forces(model.to(world.device), batches, world)
        if arguments.output is not None:
            _write_table(arguments.output, files, frames, evaluation)
        if arguments.plot is not None:
            plot_parity(evaluation.predictions, evaluation.targets, "force", "eV/Å", arguments.plot, counted="force components")
    print(errors_on_one_line(evaluation))
    if has_dipoles and is_periodic:
        print("dipoles: not compared, since some of the frames are periodic")


def _check_elements(file: FrameFile[ForceFrames], model: ForceField) -> None:
    numbers = file.frames.atomic_numbers
    unknown = ~torch.isin(numbers, torch.tensor(model.elements))
    if unknown.any():
        atom = int(unknown.nonzero()[0])
        frame = file.numbers[int((file.frames.n_atoms.cumsum(0) <= atom).sum())]
        raise DataError(f"{file.path}: frame {frame}: expected the elements {model.elements}, got {int(numbers[atom])}")


def _write_table(path: Path, files: Sequence[FrameFile[ForceFrames]], frames: ForceFrames, evaluation: ForceEvaluation) -> None:
    """A line for each frame: its energy, what is predicted, and errors of its forces; empty where nothing is known."""
    energies = _where_known(frames.energies, evaluation.energies.predictions)
    errors = np.abs(_where_known(frames.forces.flatten(), evaluation.predictions) - frames.forces.flatten().numpy())
    of_frames = np.split(errors, 3 * np.cumsum(frames.n_atoms.numpy())[:-1])
    origins = [(file.path, number) for file in files for number in file.numbers]
    with atomic_file(path) as stream:
        table = csv.writer(text := io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        table.writerow(("file", "frame", "atoms", "energy_eV", "predicted_energy_eV", "force_mae_eV_A", "largest_force_error_eV_A"))
        rows = zip(origins, frames.n_atoms.tolist(), frames.energies.tolist(), energies.tolist(), of_frames, strict=True)
        for (file, number), count, known, predicted, error in rows:
            figures = (known, predicted, error.mean(), error.max())
            table.writerow((file, number, count, *("" if np.isnan(value) else f"{value:.6f}" for value in figures)))
        text.flush()
        text.detach()


def _where_known(known: Tensor, predictions: np.ndarray) -> np.ndarray:
    """Predictions at the places where something is known, not a number elsewhere."""
    is_known = known.isfinite().numpy()
    values = np.full(len(is_known), np.nan)
    values[is_known] = predictions
    return values


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
