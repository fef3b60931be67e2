"""Training and inference throughput of the published QM9 model in the published layout: ``python -m bench.throughput``.

Through the code of the commands ``se3_fast.train --benchmark`` and ``se3_fast.inference --benchmark``, loading included. On a GPU
the published batch sizes, on QM9 where its file is there, else on the sample's molecules repeated to as many; on a CPU a few small
batches of the sample, which the rows say.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import se3_fast
from bench.timing import keep_freed_memory
from bench.workloads import BACKENDS, DEVICE
from se3_fast import inference, train
from se3_fast.data import QM9DataModule
from se3_fast.data.qm9 import PUBLISHED_MOLECULES, SAMPLE_PATH
from se3_fast.training.model_config import build_model, model_config_from_arguments

IS_CUDA = DEVICE.type == "cuda"
MODEL = ["--norm", "--use_layer_norm"]
"""The published configuration; the other options of the commands have its values by default."""

COMPARED = (BACKENDS[0], BACKENDS[-1])
"""The materialised algorithm and ours."""

PRECISIONS = ("amp", "float32") if IS_CUDA else ("float32",)
"""On a GPU float32 is TF32, as published."""

BATCHES = {"training": (240, 120), "inference": (1600, 800, 400)} if IS_CUDA else {"training": (32,), "inference": (100,)}
STEPS = {BACKENDS[0]: 40 if IS_CUDA else 2, BACKENDS[-1]: None if IS_CUDA else 12}
"""Measured training steps after a short run that warms up; None: one epoch after another."""

PUBLISHED: dict[tuple[str, int, str], tuple[float, ...]] = {
    ("training", 240, "float32"): (2.21,),
    ("training", 240, "amp"): (2.92,),
    ("training", 120, "float32"): (1.81,),
    ("training", 120, "amp"): (2.04,),
    ("inference", 1600, "amp"): (11.60, 140.94, 138.29, 140.12, 386.40),
    ("inference", 800, "amp"): (10.74, 75.69, 75.74, 76.50, 79.77),
    ("inference", 400, "amp"): (8.86, 45.57, 46.11, 46.60, 49.97),
    ("inference", 1600, "float32"): (8.58, 189.20, 186.39, 187.71, 420.28),
    ("inference", 800, "float32"): (8.28, 97.56, 97.20, 97.73, 101.13),
    ("inference", 400, "float32"): (7.55, 53.38, 53.72, 54.48, 56.62),
}
"""By mode, batch size and precision: molecules per millisecond; of inference also the latencies of a batch in milliseconds, average
and 90th, 95th and 99th percentile. One A100 80 GB; float32 is TF32, AMP float16. From the README of SE3Transformer in
NVIDIA/DeepLearningExamples."""

FIGURES = ("molecules_per_ms", "latency_mean", "latency_p90", "latency_p95", "latency_p99")
"""Of our rows, in the order of :data:`PUBLISHED`."""


@dataclass(frozen=True)
class Data:
    """What the commands read.

    Attributes:
        name: for the rows.
        options: for the command lines.
    """

    name: str
    options: list[str]


@contextmanager
def data_set(data_dir: Path | None) -> Iterator[Data]:
    """QM9 in ``data_dir`` if it is there; else the sample, on a GPU repeated to the size of QM9."""
    if data_dir is not None and (data_dir / "qm9_edge.npz").exists():
        yield Data("QM9", ["--dataset", "qm9", "--data_dir", str(data_dir)])
    elif not IS_CUDA:
        yield Data("sample", ["--dataset", "sample"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield repeated_sample(Path(folder))


def repeated_sample(folder: Path) -> Data:
    """The sample repeated to the size of QM9, in a file in this folder, which is written where it is not there yet."""
    path = folder / "qm9_edge.npz"
    if not path.exists():
        partial = path.with_name("partial.npz")
        write_repeated_sample(partial, PUBLISHED_MOLECULES)
        partial.replace(path)
    return Data("sample repeated to the size of QM9", ["--dataset", "qm9", "--data_dir", str(folder)])


def write_repeated_sample(path: Path, least: int) -> int:
    """Write the sample's molecules again and again, at least so many, in the format of QM9's file; return their number."""
    with np.load(SAMPLE_PATH, allow_pickle=False) as sample:
        arrays = {name: sample[name] for name in sample}
    times = -(-least // len(arrays["n_node"]))
    np.savez(path, **{name: np.concatenate([array] * times) for name, array in arrays.items()})
    return times * len(arrays["n_node"])


def cases() -> Iterator[dict[str, Any]]:
    """What is measured; ours first, for where time runs out."""
    for backend, mode in product(reversed(COMPARED), BATCHES):
        for precision, batch in product(PRECISIONS, BATCHES[mode]):
            yield {"mode": mode, "batch": batch, "precision": precision, "backend": backend}


def measure(data: Data, mode: str, batch: int, precision: str, backend: str) -> dict[str, Any]:
    """One of :func:`cases`: ``molecules_per_ms``, for inference latencies of a batch in ms; what it was measured on."""
    keep_freed_memory()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with se3_fast.backend(backend), tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            run = _training if mode == "training" else _inference
            figures = run(Path(folder), [*data.options, "--batch_size", str(batch), "--amp", str(precision == "amp")], backend)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    published = PUBLISHED.get((mode, batch, precision))
    return {"data": data.name, **figures, "published": dict(zip(FIGURES, published, strict=False)) if published else None}


def _training(folder: Path, options: Sequence[str], backend: str) -> dict[str, Any]:
    steps = STEPS[backend]
    if steps is None:
        return _trained(folder, [*options, "--epochs", "2"], backend) | {"measured": "an epoch after one that warms up"}
    _trained(folder / "warm_up", [*options, "--max_steps", "1"], backend)
    return _trained(folder, [*options, "--max_steps", str(steps)], backend) | {"measured": f"{steps} steps after a run of one"}


def _trained(folder: Path, options: Sequence[str], backend: str) -> dict[str, Any]:
    fixed = ["--benchmark", "--silent", "--seed", "0", "--num_workers", "0", "--log_dir", str(folder), *MODEL]
    arguments = train.build_parser().parse_args([*fixed, *options])
    arguments.cuda_graphs = _wants_graphs(backend)
    train.train(arguments)
    return {"molecules_per_ms": _logged(folder)["throughput_train"]}


def _inference(folder: Path, options: Sequence[str], backend: str) -> dict[str, Any]:
    checkpoint = folder / "untrained.pth"
    fixed = ["--load_ckpt_path", str(checkpoint), "--task", "homo", "--output", str(folder / "predictions.csv"), "--silent", *MODEL]
    fixed += ["--num_workers", "0", "--log_dir", str(folder), "--benchmark", str(IS_CUDA)]
    arguments = inference.build_parser().parse_args([*fixed, *options])
    arguments.cuda_graphs = _wants_graphs(backend)
    torch.manual_seed(0)
    config = model_config_from_arguments(arguments, QM9DataModule.NODE_FEATURE_DIM, QM9DataModule.EDGE_FEATURE_DIM)
    torch.save({"state_dict": build_model(config).state_dict(), "optimizer_state_dict": {}, "epoch": 0}, checkpoint)
    inference.infer(arguments)
    logged = _logged(folder)
    figures = {name: logged[name] for name in FIGURES if name in logged}
    passes = "a pass over the test set" + (" after one that warms up" if IS_CUDA else "")
    return {"molecules_per_ms": logged["throughput_inference"], **figures, "measured": passes}


def _wants_graphs(backend: str) -> bool | None:
    """The materialised algorithm runs as published, every step launched; ours as the commands do by default."""
    return False if backend == BACKENDS[0] else None


def _logged(folder: Path) -> dict[str, float]:
    """All figures that a command logged."""
    figures: dict[str, float] = {}
    for line in (folder / "dllogger_results.json").read_text().splitlines():
        record = json.loads(line.removeprefix("DLLL "))
        if record["step"] != "PARAMETER":
            figures |= record["data"]
    return figures


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The published tables in Markdown: training with both precisions side by side, inference a table for each."""
    rows = sorted(rows, key=lambda row: (-row["batch"], COMPARED.index(row["backend"])))
    precisions = [precision for precision in ("amp", "float32") if precision in {row["precision"] for row in rows}]
    return "\n\n".join([_training_table(rows), *(_inference_table(rows, precision) for precision in precisions)])


def _training_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| backend | batch size | float32/TF32, mol/ms | AMP, mol/ms | AMP to float32 | published TF32 | published AMP |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = [row for row in rows if row["mode"] == "training"]
    for batch, backend in dict.fromkeys((row["batch"], row["backend"]) for row in chosen):
        same = [row for row in chosen if (row["batch"], row["backend"]) == (batch, backend)]
        found = {row["precision"]: row.get("molecules_per_ms") for row in same}
        full, mixed = found.get("float32"), found.get("amp")
        ratio = f"{mixed / full:.2f}x" if full and mixed else ""
        published = [_published("training", batch, precision, 0) for precision in ("float32", "amp")]
        lines.append("| " + " | ".join([backend, str(batch), _figure(full), _figure(mixed), ratio, *published]) + " |")
    return "Training\n\n" + "\n".join(lines)


def _inference_table(rows: Sequence[dict[str, Any]], precision: str) -> str:
    names = ("mol/ms", "latency average, ms", "90 %", "95 %", "99 %")
    lines = [
        "| backend | batch size | " + " | ".join(names) + " | " + " | ".join(f"published {name}" for name in names) + " |",
        "|" + "---|" * (2 + 2 * len(names)),
    ]
    for row in rows:
        if (row["mode"], row["precision"]) == ("inference", precision):
            cells = [row["backend"], str(row["batch"]), *(_figure(row.get(name)) for name in FIGURES)]
            cells += [_published("inference", row["batch"], precision, number) for number in range(len(FIGURES))]
            lines.append("| " + " | ".join(cells) + " |")
    return f"Inference, {'AMP' if precision == 'amp' else 'float32/TF32'}\n\n" + "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _published(mode: str, batch: int, precision: str, number: int) -> str:
    figures = PUBLISHED.get((mode, batch, precision))
    return "" if figures is None else f"{figures[number]:g}"


def main() -> int:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz")
    arguments = parser.parse_args()
    with data_set(arguments.data_dir) as data:
        rows = [case | measure(data, **case) for case in cases()]
    print(tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
