"""Node and edge data, rows of them, and what functions of messages are called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from se3_fast.compat.message_passing.graph import DGLGraph


class Frame(dict[str, Tensor]):
    """Node or edge data by name, each tensor with a row for every node or edge.

    Args:
        kind: ``ndata`` or ``edata``, for messages.
        rows: the number of nodes or edges.
        data: what it holds at first.
    """

    def __init__(self, kind: str, rows: int, data: Mapping[str, Tensor]) -> None:
        super().__init__(data)
        self._kind, self._rows = kind, rows

    def __setitem__(self, name: str, value: Tensor) -> None:
        if value.ndim == 0 or len(value) != self._rows:
            raise ValueError(f"{self._kind}['{name}']: expected a tensor of {self._rows} rows, got shape {list(value.shape)}")
        super().__setitem__(name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Tensor:
        """The data of this name, set to ``default`` if they are not there."""
        if name not in self:
            self[name] = default
        return self[name]

    def __reduce__(self) -> Any:
        return Frame, (self._kind, self._rows, dict(self))


class Rows(MutableMapping[str, Tensor]):
    """Some rows of a frame: read, or set (the others stay, or are 0)."""

    def __init__(self, frame: Frame, numbers: Tensor | None) -> None:
        self._frame, self._numbers = frame, numbers

    def __getitem__(self, name: str) -> Tensor:
        column = self._frame[name]
        return column if self._numbers is None else column[self._numbers]

    def __setitem__(self, name: str, value: Tensor) -> None:
        if self._numbers is None:
            self._frame[name] = value
            return
        column = self._frame.get(name)
        if column is None:
            column = value.new_zeros(self._frame._rows, *value.shape[1:])
        self._frame[name] = column.index_copy(0, self._numbers.view(-1), value.to(column.dtype))

    def __delitem__(self, name: str) -> None:
        del self._frame[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._frame)

    def __len__(self) -> int:
        return len(self._frame)


class RowView:
    """``graph.nodes[numbers]`` or ``graph.edges[numbers]``: what has ``data``."""

    def __init__(self, data: MutableMapping[str, Tensor]) -> None:
        self.data = data


class NodeView:
    """``graph.nodes``: called, [N] int64; with numbers of nodes in brackets, rows of their data."""

    def __init__(self, graph: DGLGraph) -> None:
        self._graph = graph

    def __call__(self) -> Tensor:
        """The numbers of all nodes, [N] int64."""
        return torch.arange(self._graph.num_nodes(), device=self._graph.device)

    def __getitem__(self, numbers: Any) -> RowView:
        return _row_view(self._graph.ndata, self._graph, numbers)

    @property
    def data(self) -> dict[str, Tensor]:
        """The node data."""
        return self._graph.ndata


class EdgeView:
    """``graph.edges``: called, the edges; with numbers of edges, or a pair of their ends, in brackets, rows of their data."""

    def __init__(self, graph: DGLGraph) -> None:
        self._graph = graph

    def __call__(self, form: str = "uv", order: str | None = "eid") -> Any:
        """The edges.

        Args:
            form: ``uv``: (sources, destinations), each [E]; ``eid``: numbers of edges [E]; ``all``: the three.
            order: ``eid``: as they were given; ``srcdst``: by source, then by destination.

        Raises:
            ValueError: for another ``form`` or ``order``.
        """
        graph = self._graph
        if order not in ("eid", "srcdst", None):
            raise ValueError(f"order: expected 'eid' or 'srcdst', got {order!r}")
        if form == "uv" and order != "srcdst":
            return graph.src, graph.dst
        numbers = graph._keys().argsort(stable=True) if order == "srcdst" else torch.arange(graph.num_edges(), device=graph.device)
        return graph._in_form(numbers, form)

    def __getitem__(self, numbers: Any) -> RowView:
        if isinstance(numbers, tuple):
            numbers = self._graph.edge_ids(*numbers)
        return _row_view(self._graph.edata, self._graph, numbers)

    @property
    def data(self) -> dict[str, Tensor]:
        """The edge data."""
        return self._graph.edata


def _row_view(frame: dict[str, Tensor], graph: DGLGraph, numbers: Any) -> RowView:
    assert isinstance(frame, Frame)
    if isinstance(numbers, str) or numbers == slice(None):
        return RowView(frame)
    return RowView(Rows(frame, graph._ids(numbers).view(-1)))


class EdgeBatch:
    """What a message function is called with: ``src``, ``dst`` and ``data``, mappings of tensors [E, ...].

    Args:
        graph: the graph.
        numbers: the edges; None: all.
    """

    def __init__(self, graph: DGLGraph, numbers: Tensor | None) -> None:
        self._graph, self._numbers = graph, numbers
        nodes, edges = graph.ndata, graph.edata
        assert isinstance(nodes, Frame) and isinstance(edges, Frame)
        src, dst = self.edges()[:2]
        self.src, self.dst, self.data = Rows(nodes, src), Rows(nodes, dst), Rows(edges, numbers)

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """(sources, destinations, numbers), each [E]."""
        graph = self._graph
        numbers = torch.arange(graph.num_edges(), device=graph.device) if self._numbers is None else self._numbers
        return graph.src[numbers], graph.dst[numbers], numbers

    def batch_size(self) -> int:
        """The number of edges."""
        return len(self.edges()[2])

    def __len__(self) -> int:
        return self.batch_size()


class NodeBatch:
    """What a reduce function is called with: ``data``, a mapping of tensors [n, ...]; ``mailbox``, one of [n, in-degree, ...].

    Args:
        graph: the graph.
        numbers: the nodes.
        mailbox: the messages that arrive at them.
    """

    def __init__(self, graph: DGLGraph, numbers: Tensor, mailbox: dict[str, Tensor] | None = None) -> None:
        assert isinstance(graph.ndata, Frame)
        self._numbers = numbers
        self.data = Rows(graph.ndata, numbers)
        self.mailbox = mailbox or {}

    def nodes(self) -> Tensor:
        """The numbers of the nodes, [n]."""
        return self._numbers

    def batch_size(self) -> int:
        """The number of nodes."""
        return len(self._numbers)

    def __len__(self) -> int:
        return self.batch_size()
