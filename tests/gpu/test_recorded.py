"""Training and inference recorded as CUDA graphs on a GPU, against the same launched kernel by kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from se3_fast.data import QM9DataModule
from se3_fast.training import Trainer, TrainingError, TrainingOptions, World
from se3_fast.training.evaluation import DirectPredictions, RecordedPredictions, evaluate
from se3_fast.training.model_config import build_model
from se3_fast.training.recorded import CANNOT_BE_RECORDED, CudaRecorder
from tests.models import SMALL_CONFIG
from tests.training.test_recorded import weights

DEVICE = torch.device("cuda", 0)
BATCH_SIZE = 240


def make(folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    data = QM9DataModule("", dataset="sample", batch_size=BATCH_SIZE, num_degrees=2, seed=1, device=DEVICE)
    chosen = {"epochs": 3, "silent": True, "log_dir": folder / "log", "optimizer": "sgd", "learning_rate": 0.02, **options}
    return Trainer(build_model(SMALL_CONFIG), data, TrainingOptions(**chosen), World(DEVICE))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-3),
        ({"accumulate_grad_batches": 2, "gradient_clip": 0.5}, 1e-3),
        ({"max_steps": 40}, 1e-3),
        ({"amp": True, "amp_dtype": "fp16"}, 0.05),
        ({"amp": True, "amp_dtype": "bf16", "optimizer": "adam", "learning_rate": 0.001}, 0.05),
    ],
    ids=str,
)
def test_training(tmp_path: Path, options: dict[str, Any], tolerance: float) -> None:
    direct, recorded = (make(tmp_path, cuda_graphs=choice, **options) for choice in (False, True))
    for trainer in (direct, recorded):
        trainer.fit()
    assert recorded.is_recorded
    assert not direct.is_recorded
    for one, other in zip(direct.history, recorded.history, strict=True):
        assert other == pytest.approx(one, rel=tolerance)
    assert (weights(direct) - weights(recorded)).norm() < tolerance * weights(direct).norm()


def test_predictions(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    loader = trainer.data_module.train_dataloader()
    direct = DirectPredictions(trainer.model, loader, trainer.precision, DEVICE)
    recorded = RecordedPredictions(direct, loader, CudaRecorder(DEVICE))
    for _ in range(3):
        expected, found = (evaluate(trainer.model, each, trainer.scale, trainer.world) for each in (direct, recorded))
        assert found.predictions == pytest.approx(expected.predictions, rel=1e-4, abs=1e-4)


def test_work_that_waits_is_refused() -> None:
    tensor = torch.ones(3, device=DEVICE)
    with pytest.raises(TrainingError, match=CANNOT_BE_RECORDED):
        CudaRecorder(DEVICE)(lambda: print(tensor.sum().item()))
    assert tensor.sum().item() == 3.0
