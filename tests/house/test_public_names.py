"""The names that users import, written down by hand: what moves inside the package moves under none of them."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "se3_fast": "AttentionBlockSE3 AttentionSE3 ConvSE3 ConvSE3FuseLevel EdgeGeometry Fiber GPooling Graph LinearSE3 NormSE3 "
    "Predictor SE3Transformer SE3TransformerPooled backend build_for_state_dict check_state_dict complete_graph convert_fuse_level "
    "fuse_level_of_state_dict fuse_levels_of_state_dict get_basis nearest_neighbour_graph radius_graph update_basis_with_fused",
    "se3_fast.layers": "AttentionBlockSE3 AttentionSE3 ConvSE3 ConvSE3FuseLevel GPooling LinearSE3 NormSE3",
    "se3_fast.graph": "EdgeOrder Graph as_graph complete_graph nearest_neighbour_graph radius_graph",
    "se3_fast.fiber": "Features Fiber FiberEl",
    "se3_fast.model": "SE3Transformer SE3TransformerPooled Sequential",
    "se3_fast.fuse_level": "convert_fuse_level",
    "se3_fast.forces": "energy_and_forces load_force_field molecule_graph",
    "se3_fast.checkpoints": "convert_file read_state_dict",
    "se3_fast.compat": "folders install",
    "se3_fast.data": "DataError DataModule DownloadError QM9DataModule TASKS TASK_UNITS",
    "se3_fast.training": "Trainer TrainingOptions open_world",
    "se3_fast.kernels": "",
    "se3_fast.train": "main",
    "se3_fast.train_forces": "main",
    "se3_fast.inference": "main",
    "se3_fast.predict": "Prediction Predictor Record read_file",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    loaded = importlib.import_module(module)
    names = PUBLIC[module].split()
    assert [name for name in names if not hasattr(loaded, name)] == []
    if module == "se3_fast":
        assert sorted(loaded.__all__) == names
