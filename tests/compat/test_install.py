"""``import se3_transformer`` by one line, by the environment, and under another name; each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import se3_fast.compat
from se3_fast.compat.__main__ import main as print_folders

NAMES = """
import importlib, sys
PREFIX = {prefix!r}
PUBLIC = {{
    "": "Fiber SE3Transformer SE3TransformerPooled LinearModule InteractionModule",
    "fiber": "Fiber",
    "basis": "get_basis",
    "transformer": "SE3Transformer",
    "layers": "AttentionBlockSE3 ConvSE3 GPooling LinearSE3 NormSE3",
    "layers.attention": "AttentionBlockSE3 AttentionSE3",
    "utils": "degree_to_dim",
    "model": "Fiber SE3Transformer SE3TransformerPooled",
    "model.fiber": "Fiber FiberEl",
    "model.basis": "get_basis update_basis_with_fused get_basis_script get_spherical_harmonics get_clebsch_gordon "
    "get_all_clebsch_gordon",
    "model.transformer": "Sequential SE3Transformer SE3TransformerPooled get_populated_edge_features",
    "model.layers": "AttentionBlockSE3 ConvSE3 GPooling LinearSE3 NormSE3",
    "model.layers.attention": "AttentionBlockSE3 AttentionSE3",
    "model.layers.convolution": "ConvSE3 ConvSE3FuseLevel RadialProfile VersatileConvSE3",
    "model.layers.linear": "LinearSE3",
    "model.layers.norm": "NormSE3 clamped_norm rescale",
    "model.layers.pooling": "GPooling",
    "runtime.utils": "aggregate_residual degree_to_dim get_local_rank increase_l2_fetch_granularity init_distributed "
    "rank_zero_only seed_everything str2bool to_cuda unfuse_features using_tensor_cores",
    "model.monitoring": "nvtx_range",
    "runtime.arguments": "PARSER",
    "runtime.callbacks": "BaseCallback LRSchedulerCallback QM9MetricCallback QM9LRSchedulerCallback PerformanceCallback",
    "runtime.gpu_affinity": "Device check_socket_affinities get_socket_affinities get_thread_siblings_list set_affinity "
    "set_single_affinity set_single_unique_affinity set_socket_affinity set_socket_unique_affinity",
    "runtime.inference": "evaluate",
    "runtime.loggers": "Logger LoggerCollection DLLogger WandbLogger",
    "runtime.metrics": "Metric MeanAbsoluteError",
    "runtime.training": "save_state load_state train_epoch train print_parameters_count PARSER",
    "data_loading": "QM9DataModule",
    "data_loading.qm9": "QM9DataModule CachedBasesQM9EdgeDataset _get_relative_pos _get_split_sizes",
    "data_loading.data_module": "DataModule _get_dataloader",
}}
for module, names in PUBLIC.items():
    loaded = importlib.import_module((PREFIX + "." + module).strip("."))
    missing = [name for name in names.split() if not hasattr(loaded, name)]
    assert not missing, (module, missing)
import se3_fast
model = importlib.import_module(PREFIX + ".model")
assert issubclass(model.SE3Transformer, se3_fast.SE3Transformer) and model.Fiber is se3_fast.Fiber
assert "dgl" not in sys.modules
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(se3_fast.__file__).parent.parent)
    paths = [*filter(None, [environment.pop("PYTHONPATH", "")]), root]
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_one_line_and_names(tmp_path: Path) -> None:
    """As a package of its own, and as the copy within another package, whose own folder is there and is not imported."""
    inner = tmp_path / "pipeline" / "SE3Transformer" / "se3_transformer"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("raise RuntimeError('the copy was imported')")
    prefix = "pipeline.SE3Transformer.se3_transformer"
    code = f"import se3_fast.compat as compat; compat.install(); compat.install({prefix!r}); compat.install({prefix!r})"
    code += NAMES.format(prefix="se3_transformer") + NAMES.format(prefix=prefix)
    result = run(code + f"import {prefix}.model.layers.linear as linear; linear.LinearSE3", tmp_path)
    assert result.returncode == 0, result.stderr


def test_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``PYTHONPATH`` from the command comes before an installed ``se3_transformer`` and an installed ``dgl``."""
    installed = tmp_path / "installed"
    for name in ("se3_transformer", "dgl"):
        (installed / name).mkdir(parents=True)
        (installed / name / "__init__.py").write_text("raise RuntimeError('the installed one was imported')")
    monkeypatch.setattr(sys, "argv", ["python -m se3_fast.compat", "--dgl"])
    print_folders()
    printed = capsys.readouterr().out.strip()
    assert printed.split(os.pathsep) == [str(folder) for folder in se3_fast.compat.folders(with_dgl=True)]
    code = """
from se3_transformer.model import SE3Transformer
import dgl, torch, se3_fast, se3_fast.compat
graph = dgl.graph((torch.tensor([0, 1]), torch.tensor([1, 2])), num_nodes=3)
assert isinstance(graph, se3_fast.Graph) and issubclass(SE3Transformer, se3_fast.SE3Transformer)
from dgl import function as fn
from dgl.data import QM9EdgeDataset
from dgl.nn.pytorch.glob import AvgPooling, MaxPooling
from dgl.nn.pytorch.softmax import edge_softmax
from dgl.ops import copy_e_sum
import dgl.nn.functional
graph.ndata["x"] = torch.ones(3, 1)
graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"))
assert graph.ndata["y"].flatten().tolist() == [0, 1, 1]
se3_fast.compat.install(with_dgl=True)
import runpy, sys
sys.argv[1:] = ["--help"]
runpy.run_module("se3_transformer.runtime.training", run_name="__main__")  # as python -m does
"""
    paths = os.pathsep.join([printed, str(installed)])
    result = run(code, tmp_path, PYTHONPATH=paths)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m se3_transformer.runtime.training" in result.stdout


def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "se3_transformer", pytest)
    with pytest.raises(RuntimeError, match=r"install: expected to be called before se3_transformer is imported, .*pytest"):
        se3_fast.compat.install()
