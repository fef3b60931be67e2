from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import se3_fast
from se3_fast import (
    ConvSE3FuseLevel,
    EdgeGeometry,
    Fiber,
    Graph,
    SE3Transformer,
    SE3TransformerPooled,
    build_for_state_dict,
    check_state_dict,
    complete_graph,
    fuse_level_of_state_dict,
    get_basis,
    update_basis_with_fused,
)
from tests.support import BACKENDS, random_features, relative_error

ARGUMENTS: dict[str, Any] = {
    "num_layers": 2,
    "fiber_in": Fiber({0: 3}),
    "fiber_hidden": Fiber.create(3, 4),
    "fiber_out": Fiber({0: 4, 1: 4, 2: 4}),
    "num_heads": 2,
    "channels_div": 2,
    "fiber_edge": Fiber({0: 2}),
}
POOLED: dict[str, Any] = {
    "fiber_in": Fiber({0: 3}),
    "fiber_out": Fiber({0: 8}),
    "fiber_edge": Fiber({0: 2}),
    "num_degrees": 3,
    "num_channels": 4,
    "output_dim": 1,
    "num_layers": 2,
    "num_heads": 2,
    "channels_div": 2,
}


def problem(dtype: torch.dtype = torch.float32) -> tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    graph = complete_graph(torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=dtype), [4, 3])
    nodes = {key: value.to(dtype) for key, value in random_features(Fiber({0: 3}), 7).items()}
    edges = {key: value.to(dtype) for key, value in random_features(Fiber({0: 2}), graph.num_edges()).items()}
    return graph, nodes, edges


@pytest.mark.parametrize("level", ConvSE3FuseLevel)
def test_fuse_level_is_read_from_a_state_dict(level: ConvSE3FuseLevel) -> None:
    torch.manual_seed(0)
    model = SE3Transformer(**ARGUMENTS, fuse_level=level)
    assert fuse_level_of_state_dict(model.state_dict()) is level
    rebuilt = build_for_state_dict(SE3Transformer, model.state_dict(), **ARGUMENTS)
    graph, nodes, edges = problem()
    with torch.no_grad():
        for key, truth in model(graph, nodes, edges).items():
            assert torch.equal(rebuilt(graph, nodes, edges)[key], truth)
    pooled = SE3TransformerPooled(**POOLED, fuse_level=level)
    assert build_for_state_dict(SE3TransformerPooled, pooled.state_dict(), **POOLED).transformer.fuse_level is level


def test_published_choice_of_fuse_level() -> None:
    assert SE3Transformer(**ARGUMENTS).fuse_level is ConvSE3FuseLevel.PARTIAL
    assert SE3Transformer(**ARGUMENTS, tensor_cores=True).fuse_level is ConvSE3FuseLevel.FULL
    assert SE3Transformer(**ARGUMENTS, tensor_cores=True, low_memory=True).fuse_level is ConvSE3FuseLevel.NONE


def test_state_dict_errors_name_the_parameter() -> None:
    model = SE3Transformer(**ARGUMENTS)
    state = model.state_dict()
    name = next(iter(state))
    with pytest.raises(ValueError, match=f"expected '{name}' of shape .*, it is missing"):
        check_state_dict(model, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=rf"expected '{name}' of shape .*, got \[5\]"):
        check_state_dict(model, {**state, name: torch.zeros(5)})
    with pytest.raises(ValueError, match="expected no parameter 'more'"):
        check_state_dict(model, {**state, "more": torch.zeros(5)})
    with pytest.raises(ValueError, match="radial_func"):
        fuse_level_of_state_dict({"weight": torch.zeros(1)})


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("level", ConvSE3FuseLevel)
def test_precomputed_bases_and_geometry(level: ConvSE3FuseLevel, backend: str) -> None:
    torch.manual_seed(0)
    model = SE3Transformer(**ARGUMENTS, fuse_level=level).double()
    graph, nodes, edges = problem(torch.float64)
    rel_pos = graph.edata["rel_pos"]
    pairwise = get_basis(rel_pos, 2)
    with se3_fast.backend(backend), torch.no_grad():
        truth = model(graph, nodes, edges)
        for basis in (
            EdgeGeometry.from_relative_positions(rel_pos, 2),
            pairwise,
            update_basis_with_fused(pairwise, 2, use_pad_trick=False, fully_fused=True),
            update_basis_with_fused(get_basis(rel_pos, 2, use_pad_trick=True), 2, use_pad_trick=True, fully_fused=True),
        ):
            for key, value in model(graph, nodes, edges, basis).items():
                assert relative_error(value, truth[key]) < 1e-12


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])  # which takes a minute for what all have
@pytest.mark.parametrize("level", ConvSE3FuseLevel)
def test_a_geometry_made_for_more_degrees(level: ConvSE3FuseLevel, backend: str) -> None:
    """As models of different degrees share it; with an edge of no length, which backends with frames add by the formula too."""
    torch.manual_seed(0)
    model = SE3Transformer(**ARGUMENTS, fuse_level=level).double()
    graph, nodes, edges = problem(torch.float64)
    graph.edata["rel_pos"][0] = 0.0
    rel_pos = graph.edata["rel_pos"].requires_grad_()
    with se3_fast.backend("dense"):
        truth = model(graph, nodes, edges)["1"]
        (of_positions,) = torch.autograd.grad(truth.square().sum(), rel_pos)
    pairwise = {key: 1.0 * basis for key, basis in get_basis(rel_pos, 3, compute_gradients=True).items()}
    with se3_fast.backend(backend):
        for geometry in (
            EdgeGeometry.from_relative_positions(rel_pos, 3),
            EdgeGeometry.from_bases(pairwise, 3, rel_pos),
            EdgeGeometry.from_bases(update_basis_with_fused(pairwise, 3, use_pad_trick=False, fully_fused=True), 3, rel_pos),
        ):
            found = model(graph, nodes, edges, geometry)["1"]
            assert relative_error(found, truth) < 1e-11
            (gradient,) = torch.autograd.grad(found.square().sum(), rel_pos, retain_graph=True)
            assert relative_error(gradient, of_positions) < 1e-10


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_differentiable_published_bases(backend: str) -> None:
    model = SE3Transformer(**ARGUMENTS).double()
    graph, nodes, edges = problem(torch.float64)
    gradients = []
    for is_dict in (True, False):
        rel_pos = graph.edata["rel_pos"].clone().requires_grad_()
        basis = get_basis(rel_pos, 2, compute_gradients=True) if is_dict else None
        moved = Graph(graph.src, graph.dst, graph.num_nodes(), edata={"rel_pos": rel_pos})
        with se3_fast.backend(backend):
            model(moved, nodes, edges, basis)["1"].square().sum().backward()
        gradients.append(rel_pos.grad)
    assert relative_error(gradients[0], gradients[1]) < 1e-11


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_trains(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    model = SE3TransformerPooled(**POOLED, tensor_cores=True)
    graph, nodes, edges = problem()
    with se3_fast.backend(backend):
        truth = model(graph, nodes, edges)
        with torch.autocast("cpu", dtype=dtype):
            value = model(graph, nodes, edges)
        value.float().sum().backward()
    assert relative_error(value, truth) < 0.1
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert sum(float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None) > 0


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_low_memory_equals_the_same_parameters_kept(backend: str) -> None:
    torch.manual_seed(0)
    low = SE3TransformerPooled(**POOLED, low_memory=True).double()
    kept = SE3TransformerPooled(**POOLED, fuse_level=ConvSE3FuseLevel.NONE).double()
    kept.load_state_dict(low.state_dict())
    graph, nodes, edges = problem(torch.float64)
    with se3_fast.backend(backend):
        for model in (low, kept):
            model(graph, nodes, edges).sum().backward()
    for (name, one), other in zip(low.named_parameters(), kept.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert relative_error(one.grad, other.grad) < 1e-11, name


def test_backward_of_low_memory_outside_the_backend_block() -> None:
    torch.manual_seed(0)
    model = SE3TransformerPooled(**POOLED, low_memory=True)
    graph, nodes, edges = problem()
    with se3_fast.backend("dense"):
        loss = model(graph, nodes, edges).sum()
    loss.backward()


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_graphs_without_edges(backend: str, num_nodes: int) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    graph = Graph(empty, empty, num_nodes, edata={"rel_pos": torch.zeros(0, 3)})
    model = SE3TransformerPooled(**POOLED)
    with se3_fast.backend(backend):
        value = model(graph, random_float(num_nodes), {"0": torch.zeros(0, 2, 1)})
        value.sum().backward()
    assert value.shape == (1,) and value.isfinite().all()


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_gradients_on_two_threads_are_identical(backend: str) -> None:
    """Large enough that PyTorch shares the work among threads: no sum may depend on which one comes first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        fiber = Fiber({0: 16, 1: 16})
        model = SE3Transformer(1, fiber, fiber, fiber, num_heads=4, channels_div=1)
        graph = complete_graph(torch.randn(60, 3, requires_grad=True))
        pos = graph.ndata["pos"]
        nodes = {key: value.float().requires_grad_() for key, value in random_features(fiber, 60).items()}
        leaves = [pos, *nodes.values(), *model.parameters()]
        with se3_fast.backend(backend):
            runs = [torch.autograd.grad(loss_of(model(complete_graph(pos), nodes)), leaves) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def loss_of(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([output.square().sum() for output in outputs.values()]).sum()


def random_float(count: int) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in random_features(Fiber({0: 3}), count).items()}


@pytest.mark.parametrize("library", ["dgl", "torch_geometric"])
def test_other_libraries_graphs(library: str) -> None:
    module = pytest.importorskip(library)
    torch.manual_seed(0)
    model = SE3TransformerPooled(**POOLED)
    ours, nodes, edges = problem()
    if library == "dgl":
        parts = [module.graph((ours.src[:12], ours.dst[:12])), module.graph((ours.src[12:] - 4, ours.dst[12:] - 4))]
        theirs = module.batch(parts)
        theirs.edata["rel_pos"] = ours.edata["rel_pos"]
    else:
        pointer = torch.tensor([0, 4, 7])
        theirs = module.data.Data(pos=ours.ndata["pos"], edge_index=torch.stack(ours.edges()), ptr=pointer, num_nodes=7)
    with torch.no_grad():
        assert torch.equal(model(theirs, nodes, edges), model(ours, nodes, edges))


def test_errors() -> None:
    model = SE3Transformer(**ARGUMENTS)
    graph, nodes, edges = problem()
    with pytest.raises(ValueError, match=r"node_feats\['0'\]: expected shape \[N, 3, 1\], got \[7, 2, 1\]"):
        model(graph, {"0": nodes["0"][:, :2]}, edges)
    with pytest.raises(ValueError, match=r"edge_feats\['0'\]: expected shape \[N, 2, 1\], got"):
        model(graph, nodes, {"0": edges["0"][:, :1]})
    with pytest.raises(ValueError, match="edge_feats: expected features of degrees"):
        model(graph, nodes)
    with pytest.raises(ValueError, match="node_feats: expected features of the graph's 7 nodes, got 6"):
        model(graph, {"0": nodes["0"][:6]}, edges)
    with pytest.raises(ValueError, match=r"graph: expected edata\['rel_pos'\]"):
        model(Graph(graph.src, graph.dst, 7), nodes, edges)
    with pytest.raises(ValueError, match=rf"graph: expected edata\['rel_pos'\] of shape \[{graph.num_edges()}, 3\], got \[2, 3\]"):
        model(Graph(graph.src, graph.dst, 7, edata={"rel_pos": torch.zeros(2, 3)}), nodes, edges)
    graph.edata["rel_pos"][3, 1] = torch.nan
    with pytest.raises(ValueError, match="rel_pos: expected finite relative positions"):
        model(graph, nodes, edges)
    with pytest.raises(ValueError, match="return_type"):
        SE3Transformer(**ARGUMENTS, pooling="max")
    with pytest.raises(ValueError, match="num_heads: expected a divisor"):
        SE3Transformer(**{**ARGUMENTS, "num_heads": 3})
    with pytest.raises(ValueError, match="channels_div: expected a divisor"):
        SE3Transformer(**{**ARGUMENTS, "channels_div": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": -1}, "num_layers: expected a whole number, 0 or more, got -1"),
        ({"num_layers": 1.5}, "num_layers: expected a whole number, 0 or more, got 1.5"),
        ({"num_heads": 0}, "num_heads: expected a whole number, 1 or more, got 0"),
        ({"num_heads": -2}, "num_heads: expected a whole number, 1 or more, got -2"),
        ({"return_type": 3}, r"return_type: expected a degree of fiber_out, one of \[0, 1, 2\], got 3"),
        ({"return_type": "0"}, r"return_type: expected a degree of fiber_out, one of \[0, 1, 2\], got '0'"),
        ({"fuse_level": "full"}, "fuse_level: expected a ConvSE3FuseLevel, got 'full'"),
        ({"final_fuse_level": 2}, "fuse_level: expected a ConvSE3FuseLevel, got 2"),
        ({"fiber_in": {0: 3}}, "fiber_in: expected a Fiber, got {0: 3}"),
        ({"fiber_out": None}, "fiber_out: expected a Fiber, got None"),
        ({"fiber_edge": {0: 2}}, "fiber_edge: expected a Fiber, got {0: 2}"),
    ],
)
def test_arguments_that_no_model_can_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SE3Transformer(**{**ARGUMENTS, **arguments})


@pytest.mark.parametrize("fiber_out", [{0: 8, 1: 2}, {1: 8}])
def test_what_is_pooled_is_of_degree_0_alone(fiber_out: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="fiber_out: expected degree 0 alone, which is pooled, got "):
        SE3TransformerPooled(**{**POOLED, "fiber_out": Fiber(fiber_out)})


def test_edge_features_that_the_model_does_not_have() -> None:
    model = SE3Transformer(**{**ARGUMENTS, "fiber_edge": None})
    graph, nodes, edges = problem()
    with pytest.raises(ValueError, match=r"edge_feats: expected no '0', as fiber_edge has no degree 0, got shape \[18, 2, 1\]"):
        model(graph, nodes, edges)


def test_unknown_arguments_are_named_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="ignores the arguments epochs, task"):
        SE3Transformer(**ARGUMENTS, task="homo", epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SE3Transformer(**ARGUMENTS)


def test_layers_get_the_edges_and_no_data() -> None:
    graph, nodes, edges = problem()
    seen: list[Graph] = []
    model = SE3TransformerPooled(**POOLED)
    for module in model.transformer.graph_modules:
        module.register_forward_pre_hook(lambda module, inputs, keywords: seen.append(keywords["graph"]), with_kwargs=True)
    with torch.no_grad():
        model(graph, nodes, edges)
    assert seen and all(not one.edata and not one.ndata and one.incoming() is graph.incoming() for one in seen)
