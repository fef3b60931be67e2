from __future__ import annotations

from pathlib import Path

import pytest
import torch

from se3_fast.data import QM9DataModule
from se3_fast.training.checkpoint import write_checkpoint
from se3_fast.training.model_config import build_model
from tests.models import SMALL_CONFIG

CONFIG = SMALL_CONFIG | {"fiber_out": {0: 16}, "num_channels": 8}


@pytest.fixture(scope="session")
def checkpoint() -> dict:
    pytest.importorskip("rdkit")
    data_module = QM9DataModule("unused", task="homo", dataset="sample")
    torch.manual_seed(0)
    return {
        "state_dict": build_model(CONFIG).state_dict(),
        "optimizer_state_dict": {},
        "epoch": 1,
        "model_config": CONFIG,
        "data": {"dataset": "sample", "task": "homo", "mean": data_module.targets_mean, "std": data_module.targets_std},
        "seed": 0,
        **data_module.description(),
    }


@pytest.fixture(scope="session")
def model_path(checkpoint: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pth"
    write_checkpoint(path, checkpoint)
    return path
