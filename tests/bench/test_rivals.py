"""The convolution by others: each is brought to ours, and one that computes something else is found out."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

import se3_fast
import se3_fast.compat
from bench import rivals
from bench.convolution import convolution, random_graph
from bench.rivals import (
    BACKENDS,
    E3nnConvolution,
    OriginalConvolution,
    RivalError,
    TensorProductConvolution,
    difference,
    matched_paths,
    workload_of,
)
from bench.workloads import Workload
from se3_fast import Graph

NUM_EDGES = 34


def ours(max_degree: int = 2, dtype: torch.dtype = torch.float64) -> Workload:
    return convolution(NUM_EDGES, max_degree, channels=5, dtype=dtype)


def made(rival: type, workload: Workload) -> Workload:
    return Workload(rival(workload.model, workload.graph), workload.inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("max_degree", [0, 1, 3])
def test_e3nn_is_ours(max_degree: int, dtype: torch.dtype) -> None:
    workload = ours(max_degree, dtype)
    assert difference(made(E3nnConvolution, workload), workload) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ["cuEquivariance", "OpenEquivariance"])
def test_other_libraries_are_ours(name: str) -> None:
    rival = rivals.RIVALS[name]
    if rival.missing or (name == "OpenEquivariance" and not torch.cuda.is_available()):
        pytest.skip(f"{name}: {rival.missing or 'needs a GPU'}")
    workload = ours(dtype=torch.float32)
    difference(made(rival.make, workload), workload)  # type: ignore[arg-type]


def test_original_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter of the published implementation, with what stands in for it."""
    pytest.importorskip("dgl")
    for name in [name for name in sys.modules if name.partition(".")[0] == "se3_transformer"]:
        monkeypatch.delitem(sys.modules, name)
    se3_fast.compat.install()
    try:
        workload = ours()
        assert difference(made(OriginalConvolution, workload), workload) < 1e-12
        assert rivals.Rival("se3-transformer", "se3_transformer", OriginalConvolution).missing == "not installed"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "se3_transformer"]:
            del sys.modules[name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_are_compared_alike(backend: str) -> None:
    assert difference(workload_of(backend, NUM_EDGES, 1), workload_of(BACKENDS[-1], NUM_EDGES, 1)) < 1e-5


class WithOneScaleWrong(E3nnConvolution):
    """Its weights of one path are 1 % too large."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        is_probed = not hasattr(self, "last_weight")
        if not is_probed:
            weights = torch.cat([1.01 * weights[:, : self.channels**2], weights[:, self.channels**2 :]], 1)
        return super().convolve(nodes, harmonics, weights, graph)


class WithEdgesTurned(E3nnConvolution):
    """It sends messages from destinations to sources."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        if hasattr(self, "last_weight"):
            graph = Graph(graph.dst, graph.src, graph.num_nodes())
        return super().convolve(nodes, harmonics, weights, graph)


class WithoutGradient(E3nnConvolution):
    """Its result is right, the gradient of its node features is not."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        return super().convolve(0.5 * nodes + 0.5 * nodes.detach(), harmonics, weights, graph)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [(WithOneScaleWrong, "output 0"), (WithEdgesTurned, "output 0"), (WithoutGradient, "gradient 0")],
)
def test_wrong_rival_is_found_out(wrong: type[TensorProductConvolution], what: str) -> None:
    workload = ours(dtype=torch.float32)
    with pytest.raises(RivalError, match=f"{what}: expected ours to 0.0001, got a relative difference"):
        difference(made(wrong, workload), workload)


class WithAnotherBasis(E3nnConvolution):
    """It orders the components of degree 1 otherwise."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        harmonics = torch.cat([harmonics[:, :1], harmonics[:, 1:4].flip(1), harmonics[:, 4:]], 1)
        return super().convolve(nodes, harmonics, weights, graph)


def test_paths_of_another_basis_are_none_of_ours() -> None:
    with pytest.raises(RivalError, match=r"paths: expected those of ours, got \d+ of 19 that are none"):
        made(WithAnotherBasis, ours())


class WithReorderedWeights(E3nnConvolution):
    """It takes its weights backwards, and says so."""

    def weight_order(self, count: int) -> Tensor:
        return torch.arange(count).flip(0)

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        return super().convolve(nodes, harmonics, weights.flip(1), graph)


def test_order_of_weights_is_followed() -> None:
    workload = ours()
    assert difference(made(WithReorderedWeights, workload), workload) < 1e-12


class WithOwnPaths(E3nnConvolution):
    """It normalises every path by itself, and begins with the second."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        factors = torch.arange(1.0, 1.0 + weights.shape[1] // self.channels**2).to(weights)
        weights = weights * factors.repeat_interleave(self.channels**2)
        return super().convolve(nodes, harmonics, weights.roll(self.channels**2, 1), graph)


def test_paths_and_scales_are_found() -> None:
    workload = ours(1)
    rival = made(WithOwnPaths, workload)
    paths, scales = matched_paths(rival.model, 6)
    assert paths.tolist() == [2, 1, 3, 4, 5, 0]  # theirs by input degree, ours by output degree
    assert scales.abs().tolist() == pytest.approx([1, 2, 3, 4, 5, 6])
    assert difference(rival, workload) < 1e-12


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_rival", raising=False)
    return "a_rival"


def test_absent_and_broken_packages_say_so(module: str, tmp_path: Path) -> None:
    assert rivals.Rival("a-rival", module, E3nnConvolution).missing == "not installed"
    (tmp_path / f"{module}.py").write_text("import no_such_dependency\n")
    missing = rivals.Rival("a-rival", module, E3nnConvolution).missing
    assert missing == "does not import: No module named 'no_such_dependency'"
    assert rivals.Rival("a-rival", module, E3nnConvolution).version is None


def test_rows_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name has a row: measured, not installed, or with its error."""
    absent = types.SimpleNamespace(missing="not installed", version=None)
    broken = types.SimpleNamespace(missing=None, version="1.0", make=WithoutGradient)
    monkeypatch.setattr(rivals, "RIVALS", {"absent": absent, "broken": broken})
    monkeypatch.setattr(rivals, "BACKENDS", BACKENDS[:1])
    monkeypatch.setattr(rivals, "peaks", lambda name, points: [2**20])
    monkeypatch.setattr(rivals, "ROUNDS", 1)
    rows = list(rivals.rows(NUM_EDGES))
    assert [row["name"] for row in rows] == [BACKENDS[0], "absent", "broken"]
    assert rows[0]["difference"] < 1e-5 and rows[0]["step_ms"] > 0 and rows[0]["peak_MiB"] == 1
    assert rows[1]["reason"] == "not installed" and rows[2]["reason"].startswith("RivalError: gradient 0")
    text = rivals.table(rows)
    assert len(text.splitlines()) == 5 and "| absent |  | not installed |" in text


def test_random_graph_has_every_edge_both_ways() -> None:
    graph = random_graph(64)
    edges = sorted(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
    assert edges == sorted((dst, src) for src, dst in edges) and all(src != dst for src, dst in edges)
    with pytest.raises(ValueError, match="num_edges: expected a positive even number, got 5"):
        random_graph(5)
