"""Small force fields."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from se3_fast.forces import ForceField
from se3_fast.training.checkpoint import write_checkpoint


def small_force_field(seed: int = 0, **arguments: float) -> ForceField:
    """Of hydrogen, carbon and oxygen, with random parameters that make forces of some eV/Angstrom."""
    torch.manual_seed(seed)
    force_field = ForceField([1, 6, 8], **{"num_layers": 2, "num_channels": 8, **arguments})
    force_field.set_scale({1: -13.3712345, 6: -1031.1234567, 8: -2043.7654321}, 6.0)
    return force_field


def write_force_field(path: Path, force_field: ForceField, **more: object) -> Path:
    """A checkpoint as training writes it, as far as those who use it read it."""
    entries = {"state_dict": force_field.state_dict(), "optimizer_state_dict": {}, "epoch": 1, "model_config": force_field.config}
    write_checkpoint(path, {**entries, **more})
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small force field whose training frames had no two hydrogens closer than 1.4 Angstrom."""
    path = tmp_path_factory.mktemp("force_field") / "force_field.pth"
    return write_force_field(path, small_force_field(), closest_pairs={"1-1": 1.4, "1-6": 1.0, "6-6": 1.3, "1-8": 0.9, "6-8": 1.2})
