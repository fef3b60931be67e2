"""A small regression problem that trains in milliseconds, and a file of a few real molecules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from se3_fast.data import DataModule
from se3_fast.training import Trainer, TrainingOptions

REPOSITORY = Path(__file__).parents[2]
TINY_MODEL = ["--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2"]


class LinearModel(nn.Module):
    """One weight per feature, no bias; training may draw noise."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, features: Tensor) -> Tensor:
        noise = self.noise * torch.randn(len(features)) if self.training and self.noise else 0.0
        return features @ self.weight + noise  # [B]


class LinearData(DataModule):
    """Features [M, 3] and the targets that a known linear function gives them, in units of 2 eV."""

    targets_mean = 1.0
    targets_std = 2.0
    unit = "eV"

    def __init__(self, samples: int = 24, batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size, seed=3)
        features = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
        self.ds_train = TensorDataset(features, features @ torch.tensor([1.0, 1.0, 1.0]))
        self.ds_val = self.ds_test = TensorDataset(*self.ds_train[:7])

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        return tuple(torch.stack(column) for column in zip(*samples, strict=True))


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(data: DataModule | None = None, resume_from: Path | None = None, noise: float = 0.0, **options: Any) -> Trainer:
        options = {"epochs": 3, "silent": True, "log_dir": tmp_path / "log", **options}
        return Trainer(LinearModel(noise), data or LinearData(), TrainingOptions(**options), resume_from=resume_from)

    return make


@pytest.fixture(scope="session")
def few_molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `qm9_edge.npz` of 64 molecules of the sample data set."""
    folder = tmp_path_factory.mktemp("molecules")
    write_few_molecules(folder)
    return folder


def write_few_molecules(folder: Path, molecules: int = 64) -> None:
    """Write a `qm9_edge.npz` of some molecules of the sample data set; of 64 of them 48 train."""
    with resources.as_file(resources.files("se3_fast.data") / "sample.npz") as path, np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    nodes, edges = arrays["n_node"][:molecules].sum(), arrays["n_edge"][:molecules].sum()
    lengths = {"node_attr": nodes, "node_pos": nodes, "edge_attr": edges, "src": edges, "dst": edges}
    cut = {name: values[: lengths.get(name, molecules)] for name, values in arrays.items()}
    np.savez(folder / "qm9_edge.npz", **cut)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with one thread, in a folder of its own, with the package importable."""
    folder = tmp_path_factory.mktemp("run_python")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)

    return run
