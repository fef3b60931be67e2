"""Plays a protein-design pipeline: what it imports, how it makes graphs, what it does to the model and its outputs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import se3_fast
from se3_fast.compat import dgl as stand_in
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("installed")

SHAPES: dict[str, dict[str, int]] = {
    "protein_full": {"l0_in": 8, "l0_out": 8, "num_edge_features": 32, "top_k": 0},
    "protein_refine": {"l0_in": 64, "l0_out": 64, "num_edge_features": 64, "top_k": 64},
}


def backbone() -> Tensor:
    """N, CA and C of every residue, [L, 3, 3] Angstrom: of a real protein where its file is there, else a random chain."""
    path = Path(os.environ.get("SE3_FAST_DATA_DIR", ""), "1qys.npz")
    if path.is_file():
        atoms = np.load(path)
        kept = [atoms["pos"][atoms["name"] == name.encode()] for name in ("N", "CA", "C")]
        return torch.from_numpy(np.stack(kept, 1))
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(70, 3, generator=generator)
    trace = (3.8 * steps / steps.norm(dim=-1, keepdim=True)).cumsum(0)
    return trace[:, None] + torch.randn(70, 3, 3, generator=generator) * torch.tensor([1.0, 0.0, 1.0])[:, None]


def connected(xyz: Tensor, top_k: int) -> Tensor:
    """Which ordered pairs of residues are joined, [L, L]: all, or the nearest ``top_k`` and those under 32 apart in the chain."""
    number = torch.arange(len(xyz))
    separation = (number[:, None] - number).abs()
    if top_k == 0:
        return separation > 0
    distance = torch.cdist(xyz, xyz) + 1000.0 * torch.eye(len(xyz))
    nearest = torch.zeros_like(separation, dtype=torch.bool)
    nearest.scatter_(1, distance.topk(min(top_k, len(xyz) - 1), largest=False).indices, True)
    return nearest | ((separation > 0) & (separation < 32))


def dgl_graph(library: Any, src: Tensor, dst: Tensor, xyz: Tensor) -> Any:
    graph = library.graph((src, dst), num_nodes=len(xyz)).to(xyz.device)
    graph.edata["rel_pos"] = (xyz[dst] - xyz[src]).detach()
    return graph


def pyg_graph(library: Any, src: Tensor, dst: Tensor, xyz: Tensor) -> Any:
    return library.data.Data(pos=xyz.detach(), edge_index=torch.stack([src, dst]))


def own_graph(library: Any, src: Tensor, dst: Tensor, xyz: Tensor) -> Any:
    return library.Graph(src, dst, len(xyz), edata={"rel_pos": (xyz[dst] - xyz[src]).detach()})


GRAPHS: dict[str, Callable[..., Any]] = {"dgl": dgl_graph, "torch_geometric": pyg_graph, "se3_fast": own_graph}


def block(shape: dict[str, int], **more: Any) -> nn.Module:
    """The model as pipelines make it: fused in part, in float32."""
    from se3_transformer.model import SE3Transformer
    from se3_transformer.model.fiber import Fiber

    torch.manual_seed(0)
    return SE3Transformer(
        num_layers=1,
        fiber_in=Fiber({0: shape["l0_in"], 1: 3}),
        fiber_hidden=Fiber.create(2, 32),
        fiber_out=Fiber({0: shape["l0_out"], 1: 2}),
        num_heads=4,
        channels_div=4,
        fiber_edge=Fiber({0: shape["num_edge_features"]}),
        use_layer_norm=True,
        **more,
    )


class Outcome(NamedTuple):
    state: Tensor
    translation: Tensor
    rotation: Tensor
    gradients: list[Tensor]


def design_step(
    se3: nn.Module, shape: dict[str, int], graph_of: Callable[..., Any], library: Any, is_checkpointed: bool = False
) -> Outcome:
    """One update of a structure, and the gradients of a loss on it with respect to all parameters and features."""
    dtype = next(se3.parameters()).dtype
    atoms = backbone().to(dtype)
    length = len(atoms)
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(1, length, length, shape["num_edge_features"], generator=generator).to(dtype).requires_grad_()
    node = torch.randn(1, length, shape["l0_in"], generator=generator).to(dtype).requires_grad_()
    src, dst = torch.where(connected(atoms[:, 1], shape["top_k"]))
    graph = graph_of(library, src, dst, atoms[:, 1])
    offsets = (atoms - atoms[:, 1:2]).reshape(length, -1, 3)

    def update(node: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        shift = se3(graph, {"0": node.reshape(length, -1, 1), "1": offsets}, {"0": pair[0, src, dst][..., None]})
        return shift["0"].reshape(1, length, -1), shift["1"].reshape(1, length, 2, 3)

    state, shift = checkpoint(update, node, pair, use_reentrant=False) if is_checkpointed else update(node, pair)
    shift[:, :5, ...] = 0  # a motif that stays where it is
    translation, rotation = shift[:, :, 0] / 10.0, shift[:, :, 1] / 100.0
    (state.square().mean() + (atoms[:, 1] + translation).square().mean() + rotation.square().mean()).backward()
    leaves = [*se3.parameters(), node, pair]
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return Outcome(state.detach(), translation.detach(), rotation.detach(), gradients)


def assert_equal(one: Outcome, other: Outcome) -> None:
    tensors = zip((*one[:3], *one.gradients), (*other[:3], *other.gradients), strict=True)
    assert all(torch.equal(*pair) for pair in tensors)


@pytest.mark.parametrize("fork", [{}, {"populate_edge": "arcsin", "final_layer": "lin"}], ids=["RFdiffusion", "RoseTTAFold2"])
@pytest.mark.parametrize("name", SHAPES)
def test_graphs_of_all_libraries_give_the_same(name: str, fork: dict[str, Any]) -> None:
    shape = SHAPES[name]
    se3 = block(shape, **fork)
    truth = design_step(se3, shape, own_graph, se3_fast)
    assert truth.state.shape[-1] == shape["l0_out"] and truth.state.isfinite().all() and truth.rotation.abs().sum() > 0
    assert all(gradient.isfinite().all() for gradient in truth.gradients)
    assert sum(float(gradient.norm()) > 0 for gradient in truth.gradients) > len(truth.gradients) - 5
    assert_equal(design_step(se3, shape, dgl_graph, stand_in), truth)
    assert_equal(design_step(copy.deepcopy(se3), shape, own_graph, se3_fast, is_checkpointed=True), truth)
    for library, graph_of in GRAPHS.items():
        if library != "se3_fast":
            assert_equal(design_step(se3, shape, graph_of, pytest.importorskip(library)), truth)


@pytest.mark.parametrize("name", SHAPES)
def test_results_are_those_of_the_published_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = backbone()[:40]  # the formula materialises everything
    monkeypatch.setitem(globals(), "backbone", lambda: short)
    se3 = block(SHAPES[name]).double()
    outcome = design_step(se3, SHAPES[name], own_graph, se3_fast)
    with se3_fast.backend("dense"):
        truth = design_step(se3, SHAPES[name], own_graph, se3_fast)
    for value, expected in zip((*outcome[:3], *outcome.gradients), (*truth[:3], *truth.gradients), strict=True):
        assert relative_error(value, expected) < 1e-11


def test_parameters_are_found_by_the_names_that_pipelines_look_for() -> None:
    se3 = block(SHAPES["protein_full"])
    names = [name for name, _ in se3.named_parameters()]
    radial = [name for name in names if "radial_func" in name]
    last_layers = [name for name in radial if "net.6" in name]
    assert sorted(last_layers) == [
        "graph_modules.0.to_key_value.conv_in.0.radial_func.net.6.weight",
        "graph_modules.0.to_key_value.conv_in.1.radial_func.net.6.weight",
        "graph_modules.2.conv_out.0.radial_func.net.6.weight",
        "graph_modules.2.conv_out.1.radial_func.net.6.weight",
    ]
    assert len(radial) == 9 * len(last_layers)
    last = se3.graph_modules[-1]
    for degree in ("0", "1"):
        nn.init.zeros_(last.to_kernel_self[degree])
    for name, parameter in se3.named_parameters():
        if "net.6" in name:
            nn.init.zeros_(parameter)
    shape = SHAPES["protein_full"]
    assert not design_step(se3, shape, own_graph, se3_fast).state.any()


def test_the_final_linear_layer_is_found_by_its_name() -> None:
    last = block(SHAPES["protein_full"], final_layer="lin").graph_modules[-1]
    assert last.weights["0"].shape == (8, 32) and last.weights["1"].shape == (2, 32)


def test_a_graph_whose_size_is_a_tensor_and_edge_features_that_are_integers() -> None:
    """As RoseTTAFold-All-Atom makes the graph of a small molecule's atoms."""
    xyz = backbone()[:9, 1]
    src, dst = torch.where(connected(xyz, 0))
    se3 = block({**SHAPES["protein_full"], "num_edge_features": 4})
    kind = nn.functional.one_hot((src - dst).abs().clamp(max=3), 4)
    graph = stand_in.graph((src, dst), num_nodes=torch.ones(9, dtype=torch.bool).sum())
    graph.edata["rel_pos"] = xyz[src] - xyz[dst]
    nodes = {"0": torch.ones(9, 8, 1), "1": torch.ones(9, 3, 3)}
    with torch.no_grad():
        outcomes = [se3(graph, nodes, {"0": edges[..., None]}) for edges in (kind, kind.float())]
    assert torch.equal(outcomes[0]["1"], outcomes[1]["1"])
