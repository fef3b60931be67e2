"""The scripts of ``scripts/``, each run once in the smallest setting on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODEL = ["--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2"]
TRAINING = [*MODEL, "--dataset", "sample", "--num_workers", "0", "--epochs", "1", "--max_steps", "2", "--batch_size", "8"]


def _run(name: str, *arguments: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PROCESSES": "2", "BATCH_SIZE": "8", "AMP": "false", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPTS / name), *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout + finished.stderr


def test_training_and_what_follows(tmp_path: Path) -> None:
    _run("train.sh", *TRAINING, "--amp", "false", folder=tmp_path)
    assert (tmp_path / "model_qm9.pth").exists()
    _run("predict.sh", "--amp", "false", "--num_workers", "0", folder=tmp_path)
    assert (tmp_path / "predictions.csv").read_text().count("\n") > 10
    assert "molecules" in _run("benchmark_inference.sh", "--num_workers", "0", folder=tmp_path)


@pytest.mark.parametrize("name", ["train_multi_gpu.sh", "benchmark_train.sh", "benchmark_train_multi_gpu.sh"])
def test_other_trainings(name: str, tmp_path: Path) -> None:
    output = _run(name, *TRAINING, "--amp", "false", folder=tmp_path)
    assert (tmp_path / "model_qm9.pth").exists() == ("benchmark" not in name)
    assert "benchmark" not in name or "molecules" in output
