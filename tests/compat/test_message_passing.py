"""Message passing of the stand-in for DGL: evaluated by hand, next to DGL itself where that is installed, differentiated."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber, GPooling, Graph, SE3Transformer
from se3_fast.compat import dgl as stand_in
from tests.support import random_features, random_rotation, relative_error

SRC, DST, NODES = [0, 2, 1, 1, 4, 4, 2], [1, 1, 0, 3, 4, 1, 1], 6  # a loop, an edge twice, nodes without edges


@pytest.fixture(params=["stand-in", "dgl"])
def library(request: pytest.FixtureRequest) -> Any:
    return stand_in if request.param == "stand-in" else pytest.importorskip("dgl")


def graph(library: Any = stand_in) -> Any:
    return library.graph((torch.tensor(SRC), torch.tensor(DST)), num_nodes=NODES)


def values(rows: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *shape, generator=generator, dtype=torch.float64) + 0.5  # no zero that is divided by


OPERATIONS = {
    "add": lambda left, right: left + right,
    "sub": lambda left, right: left - right,
    "mul": lambda left, right: left * right,
    "div": lambda left, right: left / right,
    "dot": lambda left, right: (left * right).sum(-1, keepdim=True),
}
REDUCTIONS = {
    "sum": sum,
    "mean": lambda rows: sum(rows) / len(rows),
    "max": lambda rows: torch.stack(rows).amax(0),
    "min": lambda rows: torch.stack(rows).amin(0),
}


def operand(target: str, *shape: int, seed: int = 0) -> Tensor:
    return values(len(SRC) if target == "e" else NODES, *shape, seed=seed)


def row(data: Tensor, target: str, edge: int) -> Tensor:
    return data[{"u": SRC, "v": DST, "e": range(len(SRC))}[target][edge]]


def by_hand(messages: list[Tensor], reduction: str, empty: float) -> Tensor:
    incoming = [[messages[edge] for edge in range(len(DST)) if DST[edge] == node] for node in range(NODES)]
    return torch.stack([REDUCTIONS[reduction](rows) if rows else torch.full_like(messages[0], empty) for rows in incoming])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_two_operands_on_every_edge(library: Any, operation: str) -> None:
    for left, right in ("uv", "vu", "ue", "eu", "ve", "ev"):
        one, other = operand(left, 3, 2), operand(right, 3, 2, seed=1)
        result = getattr(library.ops, f"{left}_{operation}_{right}")(graph(library), one, other)
        truth = torch.stack([OPERATIONS[operation](row(one, left, edge), row(other, right, edge)) for edge in range(len(SRC))])
        assert relative_error(result, truth) < 1e-15, (left, right)
        combined = library.ops.gsddmm(graph(library), operation, one, other, left, right)
        assert torch.equal(combined, result)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduced_over_incoming_edges(library: Any, reduction: str) -> None:
    empty = {"max": -torch.inf, "min": torch.inf}.get(reduction, 0.0)
    for operation in ("add", "sub", "mul", "div"):
        nodes, edges = operand("u", 2), operand("e", 2, seed=1)
        result = getattr(library.ops, f"u_{operation}_e_{reduction}")(graph(library), nodes, edges)
        messages = [OPERATIONS[operation](nodes[SRC[edge]], edges[edge]) for edge in range(len(SRC))]
        assert torch.allclose(result, by_hand(messages, reduction, empty), rtol=1e-14)
        assert torch.equal(library.ops.gspmm(graph(library), operation, reduction, nodes, edges), result)
    for target in "ue":
        data = operand(target, 2, 3)
        result = getattr(library.ops, f"copy_{target}_{reduction}")(graph(library), data)
        assert torch.allclose(result, by_hand([row(data, target, edge) for edge in range(len(SRC))], reduction, empty), rtol=1e-14)


def test_feature_axes_are_aligned_at_the_end(library: Any) -> None:
    shapes = [((), ()), ((2,), (1,)), ((5,), (3, 5)), ((3, 1), (3, 4)), ((3, 1), (4,)), ((), (3,))]
    for left, right in shapes:
        one, other = operand("u", *left), operand("e", *right, seed=1)
        rows = [torch.broadcast_tensors(one[SRC[edge]], other[edge]) for edge in range(len(SRC))]
        truth = torch.stack([first * second for first, second in rows])
        result = library.ops.u_mul_e(graph(library), one, other)
        assert result.shape == truth.shape and relative_error(result, truth) < 1e-15
        assert relative_error(library.ops.u_mul_e_sum(graph(library), one, other), by_hand(list(truth), "sum", 0.0)) < 1e-14
    assert library.ops.u_dot_v(graph(library), operand("u"), operand("v")).shape == (len(SRC),)


@pytest.mark.parametrize("name", ["copy_u", "copy_v"])
def test_copies(library: Any, name: str) -> None:
    data = operand("u", 2)
    assert torch.equal(getattr(library.ops, name)(graph(library), data), data[SRC if name == "copy_u" else DST])


@pytest.mark.parametrize("norm_by", ["dst", "src"])
def test_softmax_over_edges(library: Any, norm_by: str) -> None:
    node = DST if norm_by == "dst" else SRC
    logits = operand("e", 2, 1) * 40
    truth = torch.stack([logits[edge].exp() / sum(logits[k].exp() for k in range(7) if node[k] == node[edge]) for edge in range(7)])
    assert relative_error(library.ops.edge_softmax(graph(library), logits, norm_by=norm_by), truth) < 1e-13
    softmax = library.nn.functional.edge_softmax
    assert relative_error(softmax(graph(library), logits + 1e4, norm_by=norm_by), truth) < 1e-9  # no overflow
    some = torch.tensor([0, 1, 3])
    part = library.ops.edge_softmax(library.graph((torch.tensor(SRC)[some], torch.tensor(DST)[some]), num_nodes=6), logits[some])
    assert relative_error(library.ops.edge_softmax(graph(library), logits[some], eids=some), part) < 1e-14


def test_everything_can_be_differentiated_twice() -> None:
    g = graph()
    nodes, edges = operand("u", 2).requires_grad_(), operand("e", 2, seed=1).requires_grad_()

    def evaluate(nodes: Tensor, edges: Tensor) -> Tensor:
        weights = stand_in.ops.edge_softmax(g, stand_in.ops.u_dot_v(g, nodes, nodes) * edges)
        parts = [stand_in.ops.u_mul_e_sum(g, nodes, weights), stand_in.ops.copy_e_mean(g, edges)]
        extremes = [stand_in.ops.copy_u_max(g, nodes), stand_in.ops.u_div_e_min(g, nodes, edges)]
        pooled = stand_in.nn.pytorch.MaxPooling()(g, nodes) + stand_in.nn.pytorch.AvgPooling()(g, nodes * nodes)
        return torch.cat([*parts, *(part.nan_to_num(0, 0, 0) for part in extremes), pooled])

    assert torch.autograd.gradcheck(evaluate, (nodes, edges))
    assert torch.autograd.gradgradcheck(evaluate, (nodes, edges))
    g.ndata["x"], g.edata["w"] = nodes, edges
    g.update_all(lambda edges: {"m": edges.src["x"] * edges.data["w"]}, lambda nodes: {"y": nodes.mailbox["m"].prod(1)})
    g.update_all(stand_in.function.u_mul_e("x", "w", "m"), stand_in.function.max("m", "z"))
    gradients = torch.autograd.grad(g.ndata["y"].sum() + g.ndata["z"].sum(), (nodes, edges))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_gradient_of_an_extreme_goes_to_one_edge_and_nan_stays() -> None:
    edges = torch.ones(len(SRC), 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stand_in.ops.copy_e_max(graph(), edges)[[0, 1, 3, 4]].sum(), edges)
    assert gradient.view(-1).tolist() == [1, 0, 1, 1, 1, 0, 0]
    spoilt = edges.detach().clone()
    spoilt[1] = torch.nan
    assert stand_in.ops.copy_e_max(graph(), spoilt).isnan().view(-1).tolist() == [False, True, False, False, False, False]
    assert stand_in.ops.copy_e_max(graph(), torch.arange(7)).tolist()[1] == 6  # integers too


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_messages_by_name(library: Any, reduction: str) -> None:
    function = library.function
    for name, fields in (("u_mul_e", ("x", "w")), ("copy_u", ("x",)), ("copy_e", ("w",)), ("v_sub_u", ("x", "x"))):
        g = graph(library)
        g.ndata["x"], g.edata["w"] = operand("u", 2), operand("e", 2, seed=1)
        g.update_all(getattr(function, name)(*fields, "m"), getattr(function, reduction)("m", "y"))
        g.apply_edges(getattr(function, name)(*fields, "message"))
        messages = g.edata["message"]
        assert torch.allclose(g.ndata["y"], by_hand(list(messages), reduction, 0.0), rtol=1e-14)  # 0 where nothing arrives
        assert "m" not in g.edata
    g.update_all(function.copy_e(e="w", out="m"), function.sum(msg="m", out="y"), lambda nodes: {"y": 2 * nodes.data["y"]})
    assert torch.allclose(g.ndata["y"], 2 * by_hand(list(g.edata["w"]), "sum", 0.0))


def test_messages_by_functions(library: Any) -> None:
    g = graph(library)
    g.ndata["x"], g.edata["w"] = operand("u", 2), operand("e", 2, seed=1)
    degrees: list[int] = []

    def message(edges: Any) -> dict[str, Tensor]:
        assert edges.batch_size() == 7 and edges.edges()[0].tolist() == SRC
        return {"m": edges.src["x"] * edges.data["w"] - edges.dst["x"], "n": edges.src["x"]}

    def reduce(nodes: Any) -> dict[str, Tensor]:
        degrees.append(nodes.mailbox["m"].shape[1])
        assert (g.in_degrees(nodes.nodes()) == degrees[-1]).all() and nodes.batch_size() == len(nodes.nodes())
        return {"y": nodes.mailbox["m"].sort(1).values[:, 0] + nodes.data["x"] + nodes.mailbox["n"].mean(1)}

    g.update_all(message, reduce)
    assert sorted(degrees) == [1, 4]
    x, w = g.ndata["x"], g.edata["w"]
    truth = torch.zeros(NODES, 2, dtype=torch.float64)
    for node in set(DST):
        edges = [edge for edge in range(7) if DST[edge] == node]
        messages = torch.stack([x[SRC[edge]] * w[edge] - x[node] for edge in edges])
        truth[node] = messages.amin(0) + x[node] + torch.stack([x[SRC[edge]] for edge in edges]).mean(0)
    assert relative_error(g.ndata["y"], truth) < 1e-14
    g.update_all(message, library.function.sum("m", "z"))
    assert relative_error(g.ndata["z"], by_hand([x[SRC[k]] * w[k] - x[DST[k]] for k in range(7)], "sum", 0.0)) < 1e-13
    g.apply_edges(lambda edges: {"v": edges.src["x"]}, edges=torch.tensor([3, 1]))
    assert torch.equal(g.edata["v"], torch.stack([x[SRC[k]] if k in (1, 3) else torch.zeros(2) for k in range(7)]))
    g.apply_nodes(lambda nodes: {"x": -nodes.data["x"]}, torch.tensor([2]))
    assert torch.equal(g.ndata["x"][2], -x[2]) and torch.equal(g.ndata["x"][1], x[1])


@pytest.mark.parametrize("call", ["push", "pull", "send_and_recv"])
def test_messages_along_some_edges(library: Any, call: str) -> None:
    """Nodes that receive get what they would of a graph of these edges; others keep their rows."""
    function = library.function
    graph = library.graph((torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 2, 2, 3, 0])), num_nodes=5)
    graph.ndata["x"] = torch.arange(5.0)
    numbers = {"push": 0, "pull": torch.tensor([2, 4]), "send_and_recv": [2, 3]}[call]
    expected = {"push": [-1, 0, 0, -1, -1], "pull": [-1, -1, 1, -1, 0], "send_and_recv": [-1, -1, 1, 2, -1]}[call]
    for message, reduce in (
        (function.copy_u("x", "m"), function.sum("m", "y")),
        (lambda edges: {"m": edges.src["x"]}, lambda nodes: {"y": nodes.mailbox["m"].sum(1)}),
    ):
        graph.ndata["y"] = torch.full((5,), -1.0)
        getattr(graph, call)(numbers, message, reduce)
        assert graph.ndata["y"].tolist() == expected
    graph.ndata["y"] = torch.full((5,), -1.0)
    getattr(graph, call)(numbers, function.copy_u("x", "m"), function.sum("m", "y"), lambda nodes: {"y": nodes.data["y"] + 10})
    assert graph.ndata["y"].tolist() == [value if value == -1 else value + 10 for value in expected]


def test_messages_to_nobody() -> None:
    graph = stand_in.graph((torch.tensor([0, 0]), torch.tensor([1, 2])))
    graph.ndata["x"] = torch.arange(3.0)
    for call in (graph.push, graph.pull, graph.send_and_recv):
        call([], stand_in.function.copy_u("x", "m"), stand_in.function.sum("m", "x"), lambda nodes: {"x": nodes.data["x"] + 1})
    graph.send_and_recv((0, 2), stand_in.function.copy_u("x", "m"), stand_in.function.sum("m", "y"))
    assert graph.ndata["x"].tolist() == [0, 1, 2] and graph.ndata["y"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("typestr", ["in", "out", "both"])
def test_incidence(library: Any, typestr: str) -> None:
    src, dst = torch.tensor([0, 1, 1]), torch.tensor([1, 1, 2])
    found = library.graph((src, dst), num_nodes=4).incidence_matrix(typestr).to_dense()
    into, out = (torch.nn.functional.one_hot(ends, 4).T.float() for ends in (dst, src))
    assert torch.equal(found, {"in": into, "out": out, "both": into - out}[typestr])


def test_parts_with_all_nodes(library: Any) -> None:
    graph = library.graph((torch.tensor([0, 1, 3]), torch.tensor([1, 3, 0])), num_nodes=4)
    graph.ndata["x"], graph.edata["e"] = torch.arange(4.0), torch.arange(3.0)
    part = library.edge_subgraph(graph, [2, 1], relabel_nodes=False)
    assert part.num_nodes() == 4 and torch.equal(part.ndata["x"], graph.ndata["x"]) and "_ID" not in part.ndata
    assert part.edata["e"].tolist() == part.edata["_ID"].tolist() == [2, 1]
    assert [ends.tolist() for ends in part.edges()] == [[3, 1], [0, 3]]
    among = library.node_subgraph(graph, [1, 3], relabel_nodes=False)
    assert among.num_nodes() == 4 and among.edata["_ID"].tolist() == [1]
    bare = library.edge_subgraph(graph, [0], store_ids=False)
    assert bare.num_nodes() == 2 and "_ID" not in bare.ndata and "_ID" not in bare.edata


def test_a_scope_forgets(library: Any) -> None:
    g = graph(library)
    g.ndata["x"] = operand("u", 2)
    with g.local_scope():
        g.ndata["x"] = g.ndata["x"] + 1
        g.edata["w"] = operand("e")
        g.srcdata["y"] = g.dstdata["x"]
        assert torch.equal(g.ndata["y"], operand("u", 2) + 1)
    assert set(g.ndata) == {"x"} and not set(g.edata) and torch.equal(g.ndata["x"], operand("u", 2))
    with pytest.raises(KeyError), g.local_scope():
        g.ndata["y"] = g.ndata["nothing"]
    assert set(g.ndata) == {"x"}
    other = g.local_var()
    other.ndata["y"] = operand("u")
    assert "y" not in g.ndata and other.num_edges() == 7


def test_rows_of_data(library: Any) -> None:
    g = graph(library)
    g.ndata["x"], g.edata["w"] = operand("u", 2), operand("e", 2)
    some = torch.tensor([4, 0])
    assert torch.equal(g.nodes[some].data["x"], operand("u", 2)[some]) and torch.equal(g.nodes[:].data["x"], operand("u", 2))
    g.nodes[some].data["y"] = torch.ones(2, 3)
    assert g.ndata["y"].sum() == 6 and g.ndata["y"][some].sum() == 6
    g.edges[torch.tensor([1, 3])].data["w"] = torch.zeros(2, 2, dtype=torch.float64)
    assert (g.edata["w"] == 0).all(1).tolist() == [False, True, False, True, False, False, False]
    assert set(g.nodes["_N"].data if library is not stand_in else g.nodes.data) == {"x", "y"}
    g.ndata.update({"z": operand("u")})
    assert g.ndata.pop("z").shape == (6,) and "z" not in g.ndata
    for data in (g.ndata, g.edata):
        with pytest.raises(Exception, match=r"rows|features"):
            data["bad"] = torch.ones(3)


def test_what_a_graph_tells_of_its_edges(library: Any) -> None:
    g = graph(library)
    assert [part.tolist() for part in g.edges(form="all")] == [SRC, DST, list(range(7))]
    assert g.edges(form="eid").tolist() == list(range(7)) and g.all_edges(form="uv")[0].tolist() == SRC
    assert [part.tolist() for part in g.edges(form="uv", order="srcdst")] == [[0, 1, 1, 2, 2, 4, 4], [1, 0, 3, 1, 1, 1, 4]]
    assert [part.tolist() for part in g.in_edges(torch.tensor([3, 1]), form="all")] == [
        [1, 0, 2, 4, 2],
        [3, 1, 1, 1, 1],
        [3, 0, 1, 5, 6],
    ]
    assert [part.tolist() for part in g.in_edges(0)] == [[1], [0]] and g.out_edges([4], form="eid").tolist() == [4, 5]
    assert g.in_degrees().tolist() == [1, 4, 0, 1, 1, 0] and g.out_degrees([1, 5]).tolist() == [2, 0]
    assert g.in_degrees(1) == 4 and g.out_degrees(5) == 0
    assert sorted(g.predecessors(1).tolist()) == [0, 2, 2, 4] and g.successors(4).tolist() == [4, 1]
    assert g.has_edges_between(0, 1) is True and g.has_edges_between([0, 1, 1], [1, 1, 3]).tolist() == [True, False, True]
    assert g.edge_ids(1, 3) == 3 and g.edge_ids([1, 0], [3, 1]).tolist() == [3, 0]
    assert [part.tolist() for part in g.find_edges([3, 0])] == [[1, 0], [3, 1]]
    assert g.has_nodes([0, 6]).tolist() == [True, False] and g.has_nodes(5) is True
    assert (
        g.is_multigraph
        and g.is_homogeneous
        and not g.is_block
        and g.ntypes == ["_N"]
        and g.canonical_etypes == [("_N", "_E", "_N")]
    )
    assert g.int().num_edges() == g.long().num_edges() == 7 and g.idtype == torch.int64
    assert g.num_src_nodes() == g.number_of_dst_nodes() == 6 and g.nodes().tolist() == list(range(6))
    with pytest.raises(Exception, match=r"edge"):
        g.edge_ids([5], [0])


def test_graphs_made_of_graphs(library: Any) -> None:
    g = graph(library)
    g.ndata["x"], g.edata["w"] = operand("u", 2), operand("e", 1)
    two = library.batch([g, g])
    plain = library.remove_self_loop(two)
    assert plain.batch_num_nodes().tolist() == [6, 6] and plain.batch_num_edges().tolist() == [6, 6]
    assert plain.edges()[0].tolist()[:6] == [0, 2, 1, 1, 4, 2] and torch.equal(
        plain.edata["w"][:6], g.edata["w"][[0, 1, 2, 3, 5, 6]]
    )
    looped = library.add_self_loop(g)
    assert looped.edges()[0].tolist() == SRC + list(range(6)) and looped.edata["w"][7:].view(-1).tolist() == [1.0] * 6
    assert torch.equal(looped.ndata["x"], g.ndata["x"]) and g.num_edges() == 7 and g.add_self_loop().num_edges() == 13
    reduced = library.add_self_loop(g, fill_data="mean").edata["w"][7:]
    assert relative_error(reduced, by_hand(list(g.edata["w"]), "mean", 0.0)) < 1e-14
    turned = library.reverse(g, copy_edata=True)
    assert turned.edges()[0].tolist() == DST and torch.equal(turned.edata["w"], g.edata["w"]) and not set(library.reverse(g).edata)
    both = library.to_bidirected(g)
    assert [part.tolist() for part in both.edges()] == [[0, 1, 1, 1, 1, 2, 3, 4, 4], [1, 0, 2, 3, 4, 1, 1, 1, 4]]
    assert library.add_reverse_edges(g, copy_edata=True).edata["w"].shape == (13, 1)
    counted = library.to_simple(g)
    assert counted.num_edges() == 6 and counted.edata["count"].tolist() == [1, 1, 1, 2, 1, 1] and "x" in counted.ndata
    part = library.node_subgraph(g, [3, 1, 4])
    assert sorted(zip(*(ends.tolist() for ends in part.edges()), strict=True)) == [(1, 0), (2, 1), (2, 2)]
    assert part.ndata[library.NID].tolist() == [3, 1, 4] and torch.equal(part.edata["w"], g.edata["w"][part.edata[library.EID]])
    assert g.subgraph([3, 1, 4]).num_nodes() == 3 and g.remove_self_loop().num_edges() == 6 and g.reverse().num_edges() == 7
    assert library.edge_subgraph(g, [3, 1]).edata[library.EID].tolist() == [3, 1]
    grown = library.add_edges(library.add_nodes(g, 2), [6, 7], [7, 6], {"w": torch.ones(2, 1, dtype=torch.float64)})
    assert grown.num_nodes() == 8 and grown.num_edges() == 9 and grown.edata["w"][7:].sum() == 2 and grown.ndata["x"][6:].sum() == 0
    assert library.remove_edges(g, [0, 3]).edges()[0].tolist() == [2, 1, 4, 4, 2]
    assert library.remove_nodes(g, [1]).num_nodes() == 5 and library.remove_nodes(g, [1]).num_edges() == 1
    g.add_edges(5, 0)
    assert g.num_edges() == 8 and g.edata["w"][-1] == 0 and g.in_degrees().tolist()[0] == 2
    g.remove_edges([0])
    assert g.num_edges() == 7 and g.in_degrees().tolist()[1] == 3


def test_random_graphs(library: Any) -> None:
    for nodes, edges in ((20, 30), (5, 25), (5, 24), (1, 0)):
        drawn = library.rand_graph(nodes, edges)
        assert drawn.num_nodes() == nodes and drawn.num_edges() == edges
        assert len(set(zip(*(ends.tolist() for ends in drawn.edges()), strict=True))) == edges
    if library is stand_in:
        library.seed(3)
        first = library.rand_graph(9, 9).src
        library.seed(3)
        assert torch.equal(first, library.rand_graph(9, 9).src)
        with pytest.raises(ValueError, match="num_edges: expected at most 4 edges between 2 nodes, got 5"):
            library.rand_graph(2, 5)


def test_over_whole_graphs(library: Any) -> None:
    parts = [graph(library), library.graph(([0], [1]), num_nodes=2)]
    if library is stand_in:
        parts.insert(1, library.graph(([], []), num_nodes=0))
    for number, part in enumerate(parts):
        part.ndata["x"], part.edata["w"] = values(part.num_nodes(), 2, seed=number), values(part.num_edges(), 1, seed=number)
        part.ndata["weight"] = values(part.num_nodes(), 1, seed=number + 5)
    both = library.batch(parts)
    x = [part.ndata["x"] for part in parts]
    pooled = {"Sum": lambda rows: rows.sum(0), "Avg": lambda rows: rows.mean(0), "Max": lambda rows: rows.amax(0)}
    nothing = torch.zeros(2, dtype=torch.float64)
    for name, operation in pooled.items():
        truth = torch.stack([operation(rows) if len(rows) else nothing for rows in x])
        for place in (library.nn.pytorch, library.nn.pytorch.glob):
            assert relative_error(getattr(place, f"{name}Pooling")()(both, both.ndata["x"]), truth) < 1e-14
        nodes = {"Sum": "sum_nodes", "Avg": "mean_nodes", "Max": "max_nodes"}[name]
        assert relative_error(getattr(library, nodes)(both, "x"), truth) < 1e-14
    weighted = torch.stack([(rows * part.ndata["weight"]).sum(0) for rows, part in zip(x, parts, strict=True)])
    assert relative_error(library.sum_nodes(both, "x", "weight"), weighted) < 1e-14
    assert library.sum_edges(both, "w").shape == (len(parts), 1)
    spread = library.broadcast_nodes(both, torch.arange(len(parts)))
    assert spread.tolist() == [number for number, part in enumerate(parts) for _ in range(part.num_nodes())]
    assert library.broadcast_edges(both, torch.arange(len(parts))).shape == (8,)
    softmax = torch.cat([rows.softmax(0) for rows in x])
    assert relative_error(library.softmax_nodes(both, "x"), softmax) < 1e-14
    assert torch.equal(library.ops.segment_reduce(both.batch_num_nodes(), both.ndata["x"]), library.sum_nodes(both, "x"))


def test_sizes_of_a_batch_can_be_said(library: Any) -> None:
    looped = library.add_self_loop(library.batch([graph(library), graph(library)]))
    looped.set_batch_num_nodes(torch.tensor([6, 6]))
    looped.set_batch_num_edges(torch.tensor([7, 19]))
    assert looped.batch_num_nodes().tolist() == [6, 6] and looped.batch_num_edges().tolist() == [7, 19] and looped.batch_size == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: stand_in.heterograph({}), NotImplementedError, "heterograph: expected a graph of one type of nodes"),
        (
            lambda g: stand_in.ops.copy_e_sum(g, torch.ones(6)),
            ValueError,
            r"edge data: expected a tensor of 7 rows, got shape \[6\]",
        ),
        (lambda g: stand_in.ops.copy_u(g, torch.ones(7)), ValueError, r"source data: expected a tensor of 6 rows, got shape \[7\]"),
        (lambda g: stand_in.ops.edge_softmax(g, torch.ones(6)), ValueError, "logits: expected a row for each of 7 edges, got 6"),
        (
            lambda g: stand_in.ops.edge_softmax(g, torch.ones(7), norm_by="x"),
            ValueError,
            "norm_by: expected 'dst' or 'src', got 'x'",
        ),
        (
            lambda g: stand_in.ops.gspmm(g, "mul", "prod", torch.ones(6), torch.ones(7)),
            ValueError,
            "reduce_op: expected one of sum",
        ),
        (lambda g: stand_in.ops.gsddmm(g, "pow", torch.ones(6), torch.ones(6)), ValueError, "op: expected one of add, sub"),
        (
            lambda g: stand_in.ops.gsddmm(g, "add", torch.ones(6), torch.ones(6), "x"),
            ValueError,
            "target: expected 'u', 'v' or 'e'",
        ),
        (
            lambda g: stand_in.ops.segment_reduce(torch.tensor([3]), torch.ones(4)),
            ValueError,
            "seglen: expected lengths that add up",
        ),
        (lambda g: g.ndata.update(x=torch.ones(5)), ValueError, r"ndata\['x'\]: expected a tensor of 6 rows, got shape \[5\]"),
        (lambda g: g.edge_ids([5], [0]), ValueError, "u, v: expected the ends of edges, got no edge from 5 to 0"),
        (lambda g: g.edges("vu"), ValueError, "form: expected 'uv', 'eid' or 'all', got 'vu'"),
        (lambda g: g.edges(order="dst"), ValueError, "order: expected 'eid' or 'srcdst', got 'dst'"),
        (lambda g: g.set_batch_num_nodes([3, 4]), ValueError, "batch_num_nodes: expected sizes that add up to 6, got 7"),
        (
            lambda g: stand_in.add_self_loop(g, fill_data="prod"),
            ValueError,
            "fill_data: expected a number, a tensor, or one of sum",
        ),
        (lambda g: stand_in.batch([g], ndata=["y"]), ValueError, "ndata: expected data that all graphs have, got 'y'"),
        (
            lambda g: g.update_all(stand_in.function.copy_u("x", "m"), stand_in.function.sum("n", "y")),
            ValueError,
            r"reduce_func: expected a message among \['m'\], got 'n'",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    g = graph()
    g.ndata["x"], g.edata["w"] = operand("u"), operand("e")
    with pytest.raises(error, match=message) as raised:
        call(g)
    assert "\n" not in str(raised.value)


def test_batches_of_some_data() -> None:
    g = graph()
    g.ndata["x"], g.ndata["y"], g.edata["w"] = operand("u"), operand("u"), operand("e")
    assert set(stand_in.batch([g, g], ndata=["x"]).ndata) == {"x"} and not stand_in.batch([g, g], edata=None).edata
    own = Graph(torch.tensor([0]), torch.tensor([1]), 2, ndata={"x": torch.ones(2)})
    joined = stand_in.batch([own, own])
    assert isinstance(joined, stand_in.DGLGraph) and joined.ndata["x"].shape == (4,)


def test_it_is_a_graph_everywhere() -> None:
    g = graph()
    g.ndata["x"], g.edata["rel_pos"] = operand("u", 4, 1), operand("e", 3)
    for other in (g.to("cpu"), g.cpu(), g.clone(), g.to("meta"), copy.deepcopy(g), pickle.loads(pickle.dumps(g)), g.int()):
        assert isinstance(other, stand_in.DGLGraph) and other.ndata["x"].shape == (6, 4, 1) and other.num_edges() == 7
        with pytest.raises(ValueError, match="expected a tensor of 6 rows"):
            other.ndata["bad"] = torch.ones(2)
    assert isinstance(g, Graph)
    g = stand_in.remove_self_loop(g)
    convolution = ConvSE3(Fiber({0: 4}), Fiber({0: 4, 1: 2}), Fiber({}), max_degree=1).double()
    length = g.edata["rel_pos"].norm(dim=-1)[:, None, None]
    geometry = EdgeGeometry.from_relative_positions(g.edata["rel_pos"], 1)
    own = Graph(g.src, g.dst, 6)
    results = [convolution({"0": g.ndata["x"]}, {"0": length}, other, geometry) for other in (g, own)]
    assert torch.equal(results[0]["1"], results[1]["1"])
    assert GPooling()({"0": g.ndata["x"]}, g).shape == (1, 4)


def test_the_published_way_to_test_equivariance() -> None:
    """Random edges without loops, relative positions set on the graph, features and positions turned; with and without pooling."""
    torch.manual_seed(0)
    drawn = stand_in.remove_self_loop(stand_in.rand_graph(12, 60))
    assert not (drawn.src == drawn.dst).any()
    rotation = random_rotation()
    positions = values(12, 3)
    nodes = random_features(Fiber.create(2, 4), 12)
    options: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "channels_div": 2, "fiber_edge": Fiber({})}
    fibers = {"fiber_in": Fiber.create(2, 4), "fiber_hidden": Fiber.create(3, 4), "fiber_out": Fiber.create(2, 4)}
    for pooling in ({}, {"pooling": "avg", "return_type": 1}, {"pooling": "max", "return_type": 0}):
        model = SE3Transformer(**fibers, **options, **pooling).double()
        outputs = []
        for turn in (torch.eye(3, dtype=torch.float64), rotation):
            moved = positions @ turn
            drawn.edata["rel_pos"] = moved[drawn.edges()[0]] - moved[drawn.edges()[1]]
            with torch.no_grad():
                outputs.append(model(drawn, {"0": nodes["0"], "1": nodes["1"] @ turn}, {}))
        one, other = (output if isinstance(output, dict) else {str(pooling["return_type"]): output} for output in outputs)
        for degree, value in one.items():
            assert relative_error(other[degree], value @ rotation if degree == "1" else value) < 1e-11


def test_attention_written_with_it_is_the_layer() -> None:
    """Keys on edges, queries on nodes: scores by ``e_dot_v``, ``edge_softmax``, values summed by ``copy_e_sum``."""
    g = graph()
    fiber = Fiber({0: 4, 1: 2})
    attention = se3_fast.AttentionSE3(2, fiber, fiber)
    key, value, query = random_features(fiber, 7), random_features(fiber, 7, seed=2), random_features(fiber, 6, seed=3)
    scores = stand_in.ops.e_dot_v(g, fiber.to_attention_heads(key, 2), fiber.to_attention_heads(query, 2)).squeeze(-1)
    weights = stand_in.ops.edge_softmax(g, scores / fiber.num_features**0.5)
    for degree, result in attention(value, key, query, g).items():
        heads = value[degree].view(7, 2, -1, value[degree].shape[-1])
        truth = stand_in.ops.copy_e_sum(g, weights[..., None, None] * heads).view(6, *value[degree].shape[1:])
        assert relative_error(result, truth) < 1e-12
