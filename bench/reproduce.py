"""The published training run: ``python -m bench.reproduce --data_dir <folder of qm9_edge.npz>``, or ``make reproduce``.

Trains the published configuration on QM9 through the training command (recorded steps on a GPU) and writes
``bench/results/reproduce_<device>.json``, errors, times and the curve beside what was published, and a plot of the curve. Options
that are not listed here are the training command's and replace the published ones; the file says which were replaced.

With ``--minutes`` the command measures an epoch first and then trains for as many as end in time, the published number at most. The
cosine of the learning rate ends with the last one, so the result is that of a shorter schedule, not of a schedule that was cut off.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.environment import RESULTS, device_name, environment
from bench.run_log import read_log
from bench.workloads import DEVICE
from se3_fast import train
from se3_fast.training.arguments import add_flag, natural_int, positive_float
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import run_command

PUBLISHED_OPTIONS = [
    *["--num_layers", "7", "--num_degrees", "4", "--num_channels", "32", "--num_heads", "8", "--channels_div", "2"],
    *["--pooling", "max", "--norm", "--use_layer_norm", "--precompute_bases", "--amp"],
    *["--task", "homo", "--batch_size", "240", "--epochs", "100", "--lr", "0.002", "--weight_decay", "0.1", "--seed", "42"],
]
"""Those of ``scripts/train.sh``, with what is the training command's default written out."""

OUR_OPTIONS = ["--eval_interval", "5", "--log_dir", "results/reproduce"]
"""What changes no weight."""

PUBLISHED: dict[str, Any] = {
    "test_mae": {"amp": 0.0346, "TF32": 0.03456, "later revision": 0.0299},
    "unit": "eV",
    "time_to_train_minutes": {"amp": 63, "TF32": 83},
    "device": "A100 80 GB",
}
"""Of HOMO, one GPU, batch 240: README of SE3Transformer in NVIDIA/DeepLearningExamples; of a later revision the error alone."""

TRIAL_EPOCHS = 3
"""The first compiles and makes tables, the second records, the third is like all that follow."""

SHARE_OF_TRIAL = 0.1
SHARE_PLANNED = 0.95
"""Parts of the time: for the epochs of a trial at most, and what the plan may fill of the time that is left."""


@dataclass(frozen=True)
class Cost:
    """What the parts of a run take, in seconds.

    Attributes:
        start: reading the data, making the model, and what the first epochs take longer than later ones.
        epoch: training for an epoch.
        evaluation: an evaluation on the validation set, or on the test set, which is no larger.
    """

    start: float
    epoch: float
    evaluation: float

    def of_run(self, epochs: int, eval_interval: int) -> float:
        """Seconds of a run: an evaluation after every so many epochs and after the last, and one on the test set."""
        return self.start + epochs * self.epoch + (-(-epochs // eval_interval) + 1) * self.evaluation


def plan_epochs(costs: Sequence[Cost], seconds: float, eval_interval: int, most: int) -> int:
    """The largest number of epochs with which runs of these costs end in time, one after another; at least 1.

    Args:
        costs: of each run.
        seconds: the time that there is.
        eval_interval: epochs between evaluations.
        most: of the epochs.
    """
    fitting = (n for n in range(1, most + 1) if sum(cost.of_run(n, eval_interval) for cost in costs) <= seconds)
    return max(fitting, default=1)


def measure_cost(arguments: argparse.Namespace, seconds: float) -> Cost:
    """Train for a few epochs: :data:`TRIAL_EPOCHS`, or fewer if they take longer than so many seconds."""
    with tempfile.TemporaryDirectory() as folder, open_world(arguments.device) as world:
        trial = _changed(arguments, log_dir=Path(folder), save_ckpt_path=None, silent=True)
        start = time.perf_counter()
        trainer = train.prepare(trial, world)
        loader = trainer.data_module.train_dataloader()
        prepared = time.perf_counter() - start
        epochs: list[float] = []
        while not epochs or (len(epochs) < TRIAL_EPOCHS and sum(epochs) < seconds):
            epochs.append(_seconds(lambda: trainer.train_epoch(loader)))
        evaluation = _seconds(lambda: trainer.evaluate(trainer.data_module.val_dataloader()))
        trainer.close()
    slower = sum(max(0.0, each - epochs[-1]) for each in epochs)
    return Cost(prepared + slower, epochs[-1], evaluation)


def train_once(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the training command; precision, seed, errors, times and curve."""
    arguments.log_dir.mkdir(parents=True, exist_ok=True)
    in_all = _seconds(lambda: train.train(arguments))
    log = read_log(arguments.log_dir / arguments.dllogger_name)
    return {
        "precision": _precision(arguments.amp),
        "seed": arguments.seed,
        "epochs": log.epochs[-1]["epoch"],
        **{name: log.figures[name] for name in ("test_mae", "test_mean_predictor_mae", "validation_mae")},
        "seconds_to_train": log.seconds,
        "seconds_in_all": in_all,
        "curve": log.epochs,
    }


def compare(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors of mixed precision against those of float32, averaged over the seeds: the relative difference.

    With several seeds also its standard error, as those of one precision differ: a smaller difference means nothing.
    """
    found: dict[str, Any] = {}
    for name in ("test_mae", "validation_mae"):
        amp, full = ([run[name] for run in runs if run["precision"] == precision] for precision in ("amp", "float32"))
        found[name] = {"amp": fmean(amp), "float32": fmean(full), "relative_difference": fmean(amp) / fmean(full) - 1}
        if len(amp) > 1:
            found[name]["standard_error"] = math.sqrt((variance(amp) + variance(full)) / len(amp)) / fmean(full)
    return found


def reproduce(own: argparse.Namespace, arguments: argparse.Namespace, replaced: dict[str, Any]) -> dict[str, Any]:
    """Plan, train and compare; the content of the file.

    Args:
        own: ``minutes``, ``compare_precision`` and ``seeds``.
        arguments: those of the training command.
        replaced: options that are not the published ones, with the published value and that of this run.
    """
    start = time.perf_counter()
    precisions = [True, False] if own.compare_precision else [arguments.amp]
    plan = None
    if own.minutes is not None:
        seconds = own.minutes * 60
        trial = seconds * SHARE_OF_TRIAL / len(precisions)
        costs = [measure_cost(_changed(arguments, amp=amp), trial) for amp in precisions]
        left = (seconds - (time.perf_counter() - start)) * SHARE_PLANNED
        epochs = plan_epochs(costs * len(own.seeds), left, arguments.eval_interval, arguments.epochs)
        if epochs != arguments.epochs:
            replaced = {**replaced, "epochs": {"published": _published_arguments().epochs, "here": epochs}}
        arguments = _changed(arguments, epochs=epochs)
        measured = {_precision(amp): asdict(cost) for amp, cost in zip(precisions, costs, strict=True)}
        plan = {"minutes": own.minutes, "epochs": epochs, "measured_seconds": measured}
        print(f"{epochs} epochs fit into {own.minutes:g} minutes; the learning rate falls over them", flush=True)
    runs = []
    for seed, amp in product(own.seeds, precisions):
        folder = arguments.log_dir / f"{_precision(amp)}_seed_{seed}"
        runs.append(train_once(_changed(arguments, amp=amp, seed=seed, log_dir=folder, save_ckpt_path=folder / "model.pth")))
        gc.collect()  # recordings hold memory of the device
    return {
        "environment": environment(),
        "options": {name: str(value) for name, value in sorted(vars(arguments).items()) if name not in _OF_THIS_MACHINE},
        "replaced": replaced,
        "plan": plan,
        "published": PUBLISHED,
        "runs": runs,
        "comparison": compare(runs) if own.compare_precision else None,
        "minutes_in_all": (time.perf_counter() - start) / 60,
    }


_OF_THIS_MACHINE = ("data_dir", "log_dir", "save_ckpt_path", "load_ckpt_path", "dllogger_name", "wandb", "silent", "amp", "seed")
"""Options that the file leaves out: places and what prints; precision and seed are said of each run."""

_CHANGES_NO_WEIGHT = (*_OF_THIS_MACHINE, "device", "num_workers", "eval_interval", "ckpt_interval", "cuda_graphs")


def replaced_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that are not the published ones and may change the result, with both values."""
    published, here = vars(_published_arguments()), vars(arguments)
    names = [name for name in published if name not in _CHANGES_NO_WEIGHT and published[name] != here[name]]
    return {name: {"published": published[name], "here": here[name]} for name in names}


def summary(results: dict[str, Any]) -> str:
    """A line for each run, and what it is to be held against."""
    lines = [
        f"{run['precision']}, seed {run['seed']}: test MAE {run['test_mae']:.4g} eV after {run['epochs']} epochs "
        f"in {run['seconds_to_train']:.0f} s"
        for run in results["runs"]
    ]
    if results["comparison"]:
        found = results["comparison"]["test_mae"]
        error = f", standard error {100 * found['standard_error']:.1f} %" if "standard_error" in found else ""
        lines.append(f"mixed precision against float32: test MAE {100 * found['relative_difference']:+.1f} %{error}")
    mae = PUBLISHED["test_mae"]
    replaced = ", ".join(f"{name} {both['here']}" for name, both in results["replaced"].items())
    note = f"; this run is another: {replaced}" if replaced else ""
    return "\n".join([*lines, f"published: {mae['amp']} eV, later revision {mae['later revision']} eV{note}"])


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Training loss and validation MAE of all runs against the epoch, as a PNG file."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    loss_axes, mae_axes = figure.subplots(1, 2)
    seeds = list(dict.fromkeys(run["seed"] for run in results["runs"]))
    for run in results["runs"]:
        style = {"color": f"C{seeds.index(run['seed'])}", "linestyle": "-" if run["precision"] == "amp" else "--"}
        style["label"], curve = f"{run['precision']}, seed {run['seed']}", run["curve"]
        loss_axes.plot([entry["epoch"] for entry in curve], [entry["train_loss"] for entry in curve], **style)
        evaluated = [(entry["epoch"], entry["validation_mae"]) for entry in curve if "validation_mae" in entry]
        mae_axes.plot(*zip(*evaluated, strict=True), marker=".", **style)
    loss_axes.set(xlabel="epoch", ylabel="training loss (L1, standardised)", yscale="log")
    mae_axes.set(xlabel="epoch", ylabel="validation MAE (eV)", yscale="log")
    if not results["replaced"].keys() - {"epochs"}:
        mae_axes.axhline(PUBLISHED["test_mae"]["amp"], color="black", linestyle=":", label="published test MAE, 100 epochs")
    mae_axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def _changed(arguments: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), **changes})


def _published_arguments() -> argparse.Namespace:
    return train.build_parser().parse_args(PUBLISHED_OPTIONS)


def _precision(amp: bool) -> str:
    return "amp" if amp else "float32"


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parse(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Options of this command, and those of the training command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench.reproduce", allow_abbrev=False
    )
    group = parser.add_argument_group("this command")
    group.add_argument("--minutes", type=positive_float, help="train for as many epochs as end in so many minutes")
    add_flag(group, "compare_precision", "train with mixed precision and with float32, and compare")
    group.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    group.add_argument("--seeds", type=natural_int, nargs="+", help="train once with each of these")
    own, others = parser.parse_known_args(words)
    arguments = train.build_parser().parse_args([*PUBLISHED_OPTIONS, *OUR_OPTIONS, *others])
    if arguments.device not in ("auto", DEVICE.type):
        parser.error(f"--device: expected {DEVICE.type}, whose name the file bears, got {arguments.device}")
    if arguments.cuda_graphs is None:
        arguments.cuda_graphs = DEVICE.type == "cuda"
    own.seeds = own.seeds or [arguments.seed]
    return own, arguments


def write(own: argparse.Namespace, arguments: argparse.Namespace) -> None:
    """Run, print, and write the file and the plot."""
    results = reproduce(own, arguments, replaced_options(arguments))
    own.out.mkdir(exist_ok=True)
    path = own.out / f"reproduce_{device_name()}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    plot_curves(results, path.with_suffix(".png"))
    print(summary(results))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    own, arguments = parse(words)
    return run_command(lambda: write(own, arguments))


if __name__ == "__main__":
    sys.exit(main())
