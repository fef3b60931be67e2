"""Training throughput against the number of processes, each with the same batch: ``python -m bench.weak_scaling --processes 1 2``.

For each number torchrun starts so many processes of ``se3_fast.train --benchmark`` on this machine, on GPUs one each. Every process
has the same number of batches whatever the number of processes: there are as many measured epochs as processes. The numbers take
turns ``--repeats`` times; the best of each counts. ``bench/results/weak_scaling_<device>.json`` keeps all of them. Options that are
not listed here are the training command's. Several machines: ``docs/several_gpus.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.environment import RESULTS, device_name, environment
from bench.run_log import read_log
from bench.workloads import DEVICE
from se3_fast.training.arguments import positive_int

IS_CUDA = DEVICE.type == "cuda"

PUBLISHED_MODEL = ["--norm", "--use_layer_norm", "--precompute_bases"]
"""The other options of the training command have the published values by default."""

SMALL_MODEL = ["--num_layers", "2", "--num_degrees", "3", "--num_channels", "16", "--num_heads", "4", "--norm", "--use_layer_norm"]
"""That of ``make train``."""

OPTIONS = (
    [*PUBLISHED_MODEL, "--amp", "--batch_size", "240"]
    if IS_CUDA
    else [*SMALL_MODEL, "--dataset", "sample", "--batch_size", "32", "--device", "cpu"]
)
"""What is measured: on GPUs the published training, on a CPU a small one."""

WARM_UP_EPOCHS = 2 if IS_CUDA else 1
"""Those that the command does not measure: recorded steps want a second."""


class RunFailed(RuntimeError):
    """A run ended with an exit code other than 0."""


def measure(processes: int, options: Sequence[str], threads: int) -> float:
    """Molecules per millisecond of all processes together.

    Args:
        processes: how many.
        options: of the training command.
        threads: of each process.

    Raises:
        RunFailed: The run failed; its last message.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        run = ["-m", "se3_fast.train", "--benchmark", "--silent", "--seed", "42", "--num_workers", "0", "--log_dir", folder]
        epochs = ["--epochs", str(WARM_UP_EPOCHS + processes)]
        finished = subprocess.run(
            [sys.executable, *launcher, *run, *epochs, *options],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
            raise RunFailed(f"{processes} processes: {errors[0] if errors else finished.stderr[-2000:]}")
        return read_log(Path(folder) / "dllogger_results.json").figures["throughput_train"]


def rows(processes: Sequence[int], options: Sequence[str], threads: int, repeats: int) -> list[dict[str, Any]]:
    """For each number of processes its throughput, that of a process, and the efficiency against the first number.

    Raises:
        RunFailed: See :func:`measure`.
    """
    found: dict[int, list[float]] = {number: [] for number in processes}
    for _ in range(repeats):
        for number, throughputs in found.items():
            throughputs.append(measure(number, options, threads))
    of_first = max(found[processes[0]]) / processes[0]
    return [
        {
            "processes": number,
            "molecules_per_ms": max(figures),
            "molecules_per_ms_of_a_process": max(figures) / number,
            "efficiency": max(figures) / number / of_first,
            "all_molecules_per_ms": figures,
        }
        for number, figures in found.items()
    ]


def table(measured: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| processes | molecules/ms | per process | efficiency |", "|---|---|---|---|"]
    for row in measured:
        figures = f"{row['molecules_per_ms']:.3g} | {row['molecules_per_ms_of_a_process']:.3g} | {100 * row['efficiency']:.0f} %"
        lines.append(f"| {row['processes']} | {figures} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench.weak_scaling", allow_abbrev=False
    )
    parser.add_argument("--processes", type=positive_int, nargs="+", default=_numbers_of_processes(), help="numbers of processes")
    parser.add_argument("--threads", type=positive_int, default=1, help="threads of each process")
    parser.add_argument("--data_dir", type=Path, default=Path("./data"), help="folder of qm9_edge.npz")
    parser.add_argument("--repeats", type=positive_int, default=3, help="measurements of each number")
    arguments, others = parser.parse_known_args(words)
    options = [*OPTIONS, *others]
    try:
        data = ["--data_dir", str(arguments.data_dir.resolve())]
        measured = rows(arguments.processes, [*options, *data], arguments.threads, arguments.repeats)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(table(measured))
    torch.set_num_threads(arguments.threads)  # what the environment tells of
    results = {
        "environment": environment(),
        "cores": os.cpu_count(),
        "options": options,
        "batches": "the same for every process",
        "rows": measured,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"weak_scaling_{device_name()}.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _numbers_of_processes() -> list[int]:
    """1, 2, 4, ... as many as there are GPUs; on a CPU 1 and 2."""
    most = torch.cuda.device_count() if IS_CUDA else 2
    return [2**power for power in range(most.bit_length())]


if __name__ == "__main__":
    sys.exit(main())
