"""DGLGraph: a :class:`se3_fast.Graph` with message passing, and what makes graphs and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from se3_fast.compat.message_passing.frames import EdgeBatch, EdgeView, Frame, NodeBatch, NodeView
from se3_fast.compat.message_passing.function import MessageFunction, ReduceFunction
from se3_fast.compat.message_passing.ops import ALL, gsddmm, reduce_groups
from se3_fast.graph import EdgeOrder, Graph

Number = int
"""A name for it within :class:`DGLGraph`, which has a method ``int``."""

Sizes = Tensor | Sequence[int]
Ids = int | Sequence[int] | Tensor
MessageFunctions = MessageFunction | Callable[[EdgeBatch], dict[str, Tensor]]
ReduceFunctions = ReduceFunction | Callable[[NodeBatch], dict[str, Tensor]]


class DGLGraph(Graph):
    """A batch of directed graphs, one type of nodes and one of edges.

    Everything that takes a :class:`se3_fast.Graph` takes it. Node and edge data have a row for each node or edge. Numbers of nodes
    and edges are int64: :meth:`int` and :meth:`long` give the graph itself.

    Args:
        As for :class:`se3_fast.Graph`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch_data()

    @staticmethod
    def adopt(graph: Graph) -> DGLGraph:
        """A :class:`se3_fast.Graph` as one of these, sharing its tensors."""
        if isinstance(graph, DGLGraph):
            return graph
        adopted = object.__new__(DGLGraph)
        adopted.__dict__.update(graph.__dict__)
        adopted._watch_data()
        return adopted

    def _watch_data(self) -> None:
        self.ndata = Frame("ndata", self.num_nodes(), self.ndata)
        self.edata = Frame("edata", self.num_edges(), self.edata)

    def _map(self, function: Any) -> DGLGraph:
        return DGLGraph.adopt(super()._map(function))

    @staticmethod
    def batch(graphs: Sequence[Graph]) -> DGLGraph:
        """As :meth:`se3_fast.Graph.batch`."""
        return DGLGraph.adopt(Graph.batch(graphs))

    # What there is.

    @property
    def nodes(self) -> NodeView:
        """``nodes()``: [N] int64; ``nodes[numbers].data``: rows of the node data."""
        return NodeView(self)

    @property
    def edges(self) -> EdgeView:
        """``edges(form='uv', order='eid')``: the edges; ``edges[numbers].data``: rows of the edge data."""
        return EdgeView(self)

    def all_edges(self, form: str = "uv", order: str = "eid") -> Any:
        """As ``edges()``."""
        return self.edges(form, order)

    @property
    def srcdata(self) -> dict[str, Tensor]:
        """The node data."""
        return self.ndata

    @property
    def dstdata(self) -> dict[str, Tensor]:
        """The node data."""
        return self.ndata

    @property
    def idtype(self) -> torch.dtype:
        """The dtype of numbers of nodes and edges."""
        return torch.int64

    @property
    def ntypes(self) -> list[str]:
        """The types of nodes: one."""
        return ["_N"]

    @property
    def etypes(self) -> list[str]:
        """The types of edges: one."""
        return ["_E"]

    @property
    def canonical_etypes(self) -> list[tuple[str, str, str]]:
        """The types of edges with those of their ends: one."""
        return [("_N", "_E", "_N")]

    @property
    def is_block(self) -> bool:
        """Whether sources and destinations are different nodes: no."""
        return False

    @property
    def is_homogeneous(self) -> bool:
        """Whether there is one type of nodes and of edges: yes."""
        return True

    @property
    def is_multigraph(self) -> bool:
        """Whether two edges have the same ends."""
        return len(self._keys().unique()) < self.num_edges()

    def num_src_nodes(self) -> int:
        """As :meth:`num_nodes`."""
        return self.num_nodes()

    def num_dst_nodes(self) -> int:
        """As :meth:`num_nodes`."""
        return self.num_nodes()

    number_of_src_nodes = num_src_nodes
    number_of_dst_nodes = num_dst_nodes

    def in_degrees(self, v: Ids | str = ALL) -> Any:
        """Number of incoming edges of the nodes ``v``, [n]; an int for an int."""
        return _rows(super().in_degrees(), v)

    def out_degrees(self, u: Ids | str = ALL) -> Any:
        """Number of outgoing edges of the nodes ``u``, [n]; an int for an int."""
        return _rows(super().out_degrees(), u)

    def in_edges(self, v: Ids, form: str = "uv") -> Any:
        """The edges into the nodes ``v``, node by node.

        Args:
            v: numbers of nodes.
            form: ``uv``: (sources, destinations); ``eid``: numbers of edges; ``all``: the three.
        """
        return self._in_form(_edges_of(self.incoming(), self._ids(v)), form)

    def out_edges(self, u: Ids, form: str = "uv") -> Any:
        """The edges out of the nodes ``u``, node by node; ``form`` as for :meth:`in_edges`."""
        return self._in_form(_edges_of(self.outgoing(), self._ids(u)), form)

    def predecessors(self, v: int) -> Tensor:
        """The sources of the edges into a node."""
        return self.in_edges(v)[0]

    def successors(self, v: int) -> Tensor:
        """The destinations of the edges out of a node."""
        return self.out_edges(v)[1]

    def find_edges(self, eid: Ids) -> tuple[Tensor, Tensor]:
        """(sources, destinations) of the edges of these numbers."""
        numbers = self._ids(eid)
        return self.src[numbers], self.dst[numbers]

    def has_nodes(self, vid: Ids) -> Any:
        """Which of these nodes there are, [n] bool; a bool for an int."""
        numbers = self._ids(vid)
        found = (numbers >= 0) & (numbers < self.num_nodes())
        return bool(found) if isinstance(vid, int) else found

    def has_edges_between(self, u: Ids, v: Ids) -> Any:
        """Whether there is an edge from each of ``u`` to its one of ``v``, [n] bool; a bool for two ints."""
        found = torch.isin(self._ids(u) * self.num_nodes() + self._ids(v), self._keys())
        return bool(found) if isinstance(u, int) and isinstance(v, int) else found

    def edge_ids(self, u: Ids, v: Ids) -> Any:
        """The number of the first edge from each of ``u`` to its one of ``v``, [n]; an int for two ints.

        Raises:
            ValueError: if there is none.
        """
        wanted = (self._ids(u) * self.num_nodes() + self._ids(v)).view(-1)
        keys, order = self._keys().sort(stable=True)
        places = torch.searchsorted(keys, wanted)
        found = places < len(keys)
        found &= keys[places.clamp(max=max(len(keys) - 1, 0))] == wanted if len(keys) else False
        if not found.all():
            start, end = divmod(int(wanted[~found][0]), self.num_nodes())
            raise ValueError(f"u, v: expected the ends of edges, got no edge from {start} to {end}")
        numbers = order[places]
        return int(numbers) if isinstance(u, int) and isinstance(v, int) else numbers

    def _keys(self) -> Tensor:
        return self.src * self.num_nodes() + self.dst

    def _in_form(self, numbers: Tensor, form: str) -> Any:
        if form == "eid":
            return numbers
        ends = (self.src[numbers], self.dst[numbers])
        if form not in ("uv", "all"):
            raise ValueError(f"form: expected 'uv', 'eid' or 'all', got {form!r}")
        return ends if form == "uv" else (*ends, numbers)

    def _ids(self, numbers: Any) -> Tensor:
        return torch.as_tensor(numbers, device=self.device).long()

    # Messages.

    def apply_edges(self, func: MessageFunctions, edges: Any = ALL) -> None:
        """Set edge data from those of the edges and their ends.

        Args:
            func: of :mod:`dgl.function`, or a function of an :class:`EdgeBatch` that returns a dict of tensors [E, ...].
            edges: numbers of edges, or a pair of their ends; default: all. Others keep their rows, or get 0.
        """
        if isinstance(edges, str):
            self.edata.update(self._messages(func))
            return
        numbers = self.edge_ids(*edges) if isinstance(edges, tuple) else self._ids(edges)
        if isinstance(func, MessageFunction):
            made = {name: value[numbers] for name, value in self._messages(func).items()}
        else:
            made = func(EdgeBatch(self, numbers))
        for name, rows in made.items():
            self.edges[numbers].data[name] = rows

    def apply_nodes(self, func: Callable[[NodeBatch], dict[str, Tensor]], v: Ids | str = ALL) -> None:
        """Set node data: ``func`` of a :class:`NodeBatch` returns a dict of tensors, a row for each of the nodes ``v``."""
        if isinstance(v, str):
            self.ndata.update(func(NodeBatch(self, self.nodes())))
            return
        for name, rows in func(NodeBatch(self, self._ids(v))).items():
            self.nodes[v].data[name] = rows

    def update_all(
        self,
        message_func: MessageFunctions,
        reduce_func: ReduceFunctions,
        apply_node_func: Callable[[NodeBatch], dict[str, Tensor]] | None = None,
    ) -> None:
        """Send messages along all edges and set node data from what arrives.

        Args:
            message_func: of :mod:`dgl.function`, or a function of an :class:`EdgeBatch` that returns a dict of tensors [E, ...].
            reduce_func: of :mod:`dgl.function`, or a function of a :class:`NodeBatch`, called once for the nodes of each in-degree,
                with ``mailbox`` tensors [n, in-degree, ...], that returns a dict of tensors [n, ...]. Nodes without incoming edges
                get 0.
            apply_node_func: afterwards, as for :meth:`apply_nodes`.
        """
        messages = self._messages(message_func)
        if isinstance(reduce_func, ReduceFunction):
            if reduce_func.msg_field not in messages:
                raise ValueError(f"reduce_func: expected a message among {sorted(messages)}, got {reduce_func.msg_field!r}")
            reduced = reduce_groups(messages[reduce_func.msg_field], self.dst, self.num_nodes(), reduce_func.operation)
            if reduce_func.operation in ("max", "min"):
                reduced = reduced.masked_fill((super().in_degrees() == 0).view(-1, *[1] * (reduced.ndim - 1)), 0)
            self.ndata[reduce_func.out_field] = reduced
        else:
            self.ndata.update(self._reduced(reduce_func, messages))
        if apply_node_func is not None:
            self.apply_nodes(apply_node_func)

    def send_and_recv(
        self,
        edges: Any,
        message_func: MessageFunctions,
        reduce_func: ReduceFunctions,
        apply_node_func: Callable[[NodeBatch], dict[str, Tensor]] | None = None,
    ) -> None:
        """As :meth:`update_all` along some edges, and for their destinations alone; other nodes keep their data, or get 0.

        Args:
            edges: numbers of edges, or a pair of their ends.
            message_func: as for :meth:`update_all`; it sees these edges alone.
            reduce_func: as for :meth:`update_all`.
            apply_node_func: likewise, of the destinations.
        """
        numbers = self._ids(self.edge_ids(*edges) if isinstance(edges, tuple) else edges).view(-1)
        self._receive(numbers, self.dst[numbers].unique(), message_func, reduce_func)
        if apply_node_func is not None and len(numbers):
            self.apply_nodes(apply_node_func, self.dst[numbers].unique())

    def push(
        self,
        u: Ids,
        message_func: MessageFunctions,
        reduce_func: ReduceFunctions,
        apply_node_func: Callable[[NodeBatch], dict[str, Tensor]] | None = None,
    ) -> None:
        """As :meth:`send_and_recv` along the edges out of the nodes ``u``."""
        self.send_and_recv(self.out_edges(u, "eid"), message_func, reduce_func, apply_node_func)

    def pull(
        self,
        v: Ids,
        message_func: MessageFunctions,
        reduce_func: ReduceFunctions,
        apply_node_func: Callable[[NodeBatch], dict[str, Tensor]] | None = None,
    ) -> None:
        """As :meth:`send_and_recv` along the edges into the nodes ``v``; those of them without incoming edges get 0."""
        nodes = self._ids(v).view(-1)
        self._receive(self.in_edges(nodes, "eid"), nodes, message_func, reduce_func)
        if apply_node_func is not None and len(nodes):
            self.apply_nodes(apply_node_func, nodes)

    def _receive(self, edges: Tensor, nodes: Tensor, message_func: MessageFunctions, reduce_func: ReduceFunctions) -> None:
        """Set data of some nodes from what arrives along some edges."""
        if not len(nodes):
            return
        part = self.with_edges(edges)
        part.update_all(message_func, reduce_func)
        for name, column in part.ndata.items():
            if column is not self.ndata.get(name):
                self.nodes[nodes].data[name] = column[nodes]

    def incidence_matrix(self, typestr: str, ctx: torch.device | str = "cpu") -> Tensor:
        """Which edges touch which nodes, a sparse tensor [N, E].

        Args:
            typestr: ``in``: 1 at the destination of an edge; ``out``: 1 at its source; ``both``: 1 and -1, nothing for a loop.
            ctx: where it goes.

        Raises:
            ValueError: for another ``typestr``.
        """
        numbers = torch.arange(self.num_edges(), device=self.device)
        if typestr in ("in", "out"):
            rows, columns, values = self.dst if typestr == "in" else self.src, numbers, torch.ones(self.num_edges())
        elif typestr == "both":
            joins_two = (self.src != self.dst).nonzero().view(-1)
            rows, columns = torch.cat([self.src[joins_two], self.dst[joins_two]]), joins_two.repeat(2)
            values = torch.tensor([-1.0, 1.0]).repeat_interleave(len(joins_two))
        else:
            raise ValueError(f"typestr: expected 'in', 'out' or 'both', got {typestr!r}")
        shape = (self.num_nodes(), self.num_edges())
        ends = torch.stack([rows, columns])
        return torch.sparse_coo_tensor(ends, values.to(self.device), shape, check_invariants=False).coalesce().to(ctx)

    inc = incidence_matrix

    def _messages(self, func: MessageFunctions) -> dict[str, Tensor]:
        if not isinstance(func, MessageFunction):
            return func(EdgeBatch(self, None))
        operands = [
            (self.edata if target == "e" else self.ndata)[name] for target, name in zip(func.targets, func.fields, strict=True)
        ]
        right = (operands[1], func.targets[0], func.targets[1]) if len(operands) == 2 else (None, func.targets[0])
        return {func.out_field: gsddmm(self, func.operation, operands[0], *right)}

    def _reduced(self, func: Callable[[NodeBatch], dict[str, Tensor]], messages: dict[str, Tensor]) -> dict[str, Tensor]:
        """By buckets of nodes of one in-degree."""
        order, offsets = self.incoming()
        degrees = offsets.diff()
        numbers: list[Tensor] = []
        parts: list[dict[str, Tensor]] = []
        for degree in degrees.unique().tolist():
            if degree > 0:
                nodes = (degrees == degree).nonzero().view(-1)
                edges = order[offsets[nodes][:, None] + torch.arange(degree, device=self.device)]  # [n, degree]
                mailbox = {name: message[edges] for name, message in messages.items()}
                numbers.append(nodes)
                parts.append(func(NodeBatch(self, nodes, mailbox)))
        if not parts:
            return {}
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        shapes = {name: (self.num_nodes(), *rows.shape[1:]) for name, rows in joined.items()}
        return {name: rows.new_zeros(shapes[name]).index_copy(0, torch.cat(numbers), rows) for name, rows in joined.items()}

    @contextmanager
    def local_scope(self) -> Iterator[None]:
        """What is set among node and edge data within is forgotten at the end."""
        ndata, edata = self.ndata, self.edata
        self._watch_data()
        try:
            yield
        finally:
            self.ndata, self.edata = ndata, edata

    # Other graphs.

    def clone(self) -> DGLGraph:
        """The same graph with data of its own: what is set there is not set here."""
        return DGLGraph.adopt(Graph._map(self, lambda tensor: tensor))

    local_var = clone

    def int(self) -> DGLGraph:
        """The graph itself."""
        return self

    def long(self) -> DGLGraph:
        """The graph itself."""
        return self

    def set_batch_num_nodes(self, val: Sizes) -> None:
        """Say how many nodes each graph of the batch has.

        Raises:
            ValueError: if they do not add up.
        """
        self._batch_num_nodes = self._sizes("batch_num_nodes", val, self.num_nodes())

    def set_batch_num_edges(self, val: Sizes) -> None:
        """Say how many edges each graph of the batch has.

        Raises:
            ValueError: if they do not add up.
        """
        self._batch_num_edges = self._sizes("batch_num_edges", val, self.num_edges())

    def _sizes(self, name: str, val: Any, total: Number) -> Tensor:
        sizes = self._ids(val).view(-1)
        if int(sizes.sum()) != total:
            raise ValueError(f"{name}: expected sizes that add up to {total}, got {int(sizes.sum())}")
        return sizes

    def add_edges(self, u: Ids, v: Ids, data: Mapping[str, Tensor] | None = None) -> None:
        """Append edges to this graph, which is one graph of no batch afterwards; data that are not given are 0."""
        src, dst = torch.broadcast_tensors(self._ids(u).view(-1), self._ids(v).view(-1))
        ends = (torch.cat([self.src, src]), torch.cat([self.dst, dst]))
        self._become(DGLGraph(*ends, self.num_nodes(), ndata=self.ndata, edata=_appended(self.edata, data or {}, len(src))))

    def add_nodes(self, num: Number, data: Mapping[str, Tensor] | None = None) -> None:
        """Append nodes to this graph, which is one graph of no batch afterwards; data that are not given are 0."""
        ndata = _appended(self.ndata, data or {}, num)
        self._become(DGLGraph(self.src, self.dst, self.num_nodes() + num, ndata=ndata, edata=self.edata))

    def remove_edges(self, eids: Ids) -> None:
        """Take edges out of this graph; the sizes of a batch follow."""
        is_kept = torch.ones(self.num_edges(), dtype=torch.bool, device=self.device)
        is_kept[self._ids(eids)] = False
        self._become(self.with_edges(is_kept.nonzero().view(-1), keeps_batch=True))

    def with_edges(self, numbers: Tensor, keeps_batch: bool = False) -> DGLGraph:
        """The graph of all nodes and these edges [e], with their data.

        Args:
            numbers: [e] int64.
            keeps_batch: whether the sizes of the batch are those of what is left (``numbers`` ascending), or it is one graph.
        """
        sizes: tuple[Tensor, Tensor] | tuple[()] = ()
        if keeps_batch:
            graph_of_edge = torch.arange(self.batch_size, device=self.device).repeat_interleave(self.batch_num_edges())
            sizes = (self.batch_num_nodes(), torch.bincount(graph_of_edge[numbers], minlength=self.batch_size))
        edata = {name: tensor[numbers] for name, tensor in self.edata.items()}
        return DGLGraph(self.src[numbers], self.dst[numbers], self.num_nodes(), *sizes, ndata=self.ndata, edata=edata)

    def _become(self, other: DGLGraph) -> None:
        self.__dict__.update(other.__dict__)


def graph(
    data: Any,
    *,
    num_nodes: int | Tensor | None = None,
    idtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DGLGraph:
    """A graph from its edges.

    Args:
        data: ``(src, dst)``, integer tensors [E] or sequences.
        num_nodes: number of nodes; default: one more than the largest number among the edges.
        idtype: not used; numbers are int64.
        device: where the graph goes; default: where the edges are.

    Raises:
        TypeError: if ``data`` is not a pair, or an end is not an integer tensor.
        ValueError: if the ends differ in length, or an edge names a node that does not exist.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(f"data: expected a pair (src, dst), got {type(data).__name__}")
    src, dst = (torch.as_tensor(ends) if len(ends) else torch.zeros(0, dtype=torch.int64) for ends in data)
    if num_nodes is None:
        num_nodes = max((int(ends.max()) + 1 for ends in (src, dst) if len(ends)), default=0)
    made = DGLGraph(src, dst, int(num_nodes))
    return made if device is None else DGLGraph.adopt(made.to(device))


def heterograph(*args: Any, **kwargs: Any) -> DGLGraph:
    """Graphs of several types of nodes or edges are not there.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError("heterograph: expected a graph of one type of nodes and one of edges: use graph(), or install DGL")


def batch(graphs: Iterable[Graph], ndata: Any = ALL, edata: Any = ALL) -> DGLGraph:
    """One graph of all of ``graphs``, in order.

    Args:
        graphs: the graphs.
        ndata: names of the node data that are concatenated; default: those that all of them have; None: none.
        edata: the same for edge data.

    Raises:
        ValueError: if there is no graph, or one lacks data that are named.
    """
    parts = list(graphs)
    joined = DGLGraph.batch(parts)
    for kind, names in (("ndata", ndata), ("edata", edata)):
        if isinstance(names, str):
            continue
        frame = getattr(joined, kind)
        missing = [name for name in names or () if name not in frame]
        if missing:
            raise ValueError(f"{kind}: expected data that all graphs have, got {missing[0]!r}")
        for name in set(frame) - set(names or ()):
            del frame[name]
    return joined


def unbatch(g: Graph) -> list[DGLGraph]:
    """The graphs that a batch was made of, with their node and edge data."""
    nodes, edges = g.batch_num_nodes().tolist(), g.batch_num_edges().tolist()
    ndata = {name: tensor.split(nodes) for name, tensor in g.ndata.items()}
    edata = {name: tensor.split(edges) for name, tensor in g.edata.items()}
    ends = zip(g.src.split(edges), g.dst.split(edges), strict=True)
    graphs, start = [], 0
    for number, (src, dst) in enumerate(ends):
        graphs.append(
            DGLGraph(
                src - start,
                dst - start,
                nodes[number],
                ndata={name: parts[number] for name, parts in ndata.items()},
                edata={name: parts[number] for name, parts in edata.items()},
            )
        )
        start += nodes[number]
    return graphs


def _rows(values: Tensor, numbers: Any) -> Any:
    if isinstance(numbers, str):
        return values
    if isinstance(numbers, int):
        return int(values[numbers])
    return values[torch.as_tensor(numbers, device=values.device).long()]


def _edges_of(order: EdgeOrder, nodes: Tensor) -> Tensor:
    """The edges of some nodes, node by node."""
    nodes = nodes.view(-1)
    starts, counts = order.offsets[nodes], order.offsets.diff()[nodes]
    shift = (starts - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    return order.order[torch.arange(len(shift), device=nodes.device) + shift]


def _appended(frame: dict[str, Tensor], data: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The columns of a frame with rows appended: those of ``data``, else 0."""
    columns = {name: (tensor, data.get(name, tensor.new_zeros(count, *tensor.shape[1:]))) for name, tensor in frame.items()}
    present = next(iter(frame.values()), None)
    rows = 0 if present is None else len(present)
    for name in data.keys() - frame.keys():
        columns[name] = (data[name].new_zeros(rows, *data[name].shape[1:]), data[name])
    return {name: torch.cat(column) for name, column in columns.items()}
