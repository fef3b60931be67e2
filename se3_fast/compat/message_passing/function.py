"""Message and reduce functions by name, for ``update_all`` and ``apply_edges``: ``copy_u('h', 'm')``, ``sum('m', 'h')``, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

BINARY_OPERATIONS = ("add", "sub", "mul", "div", "dot")
TARGETS = ("u", "v", "e")
"""Source, destination, edge."""


@dataclass(frozen=True)
class MessageFunction:
    """A field of one end or of the edge, or of two of them combined, as a field of the edges.

    Attributes:
        operation: ``copy_lhs``, or one of ``BINARY_OPERATIONS``.
        targets: where the operands are: ``u``, ``v`` or ``e``.
        fields: the operands' names.
        out_field: the result's name.
    """

    operation: str
    targets: tuple[str, ...]
    fields: tuple[str, ...]
    out_field: str


@dataclass(frozen=True)
class ReduceFunction:
    """A field of the incoming edges of a node reduced to one of the node.

    Attributes:
        operation: ``sum``, ``mean``, ``max`` or ``min``.
        msg_field: the name among the messages.
        out_field: the result's name.
    """

    operation: str
    msg_field: str
    out_field: str


def copy_u(u: str, out: str) -> MessageFunction:
    """The sources' field ``u``."""
    return MessageFunction("copy_lhs", ("u",), (u,), out)


def copy_e(e: str, out: str) -> MessageFunction:
    """The edges' field ``e``."""
    return MessageFunction("copy_lhs", ("e",), (e,), out)


def copy_src(src: str, out: str) -> MessageFunction:
    """As :func:`copy_u`, under its older name."""
    return copy_u(src, out)


def copy_edge(edge: str, out: str) -> MessageFunction:
    """As :func:`copy_e`, under its older name."""
    return copy_e(edge, out)


def src_mul_edge(src: str, edge: str, out: str) -> MessageFunction:
    """As ``u_mul_e``, under its older name."""
    return MessageFunction("mul", ("u", "e"), (src, edge), out)


def _binary(operation: str, left: str, right: str) -> Callable[[str, str, str], MessageFunction]:
    def make(lhs_field: str, rhs_field: str, out: str) -> MessageFunction:
        return MessageFunction(operation, (left, right), (lhs_field, rhs_field), out)

    make.__name__ = make.__qualname__ = f"{left}_{operation}_{right}"
    make.__doc__ = f"The field of ``{left}`` {operation} that of ``{right}``."
    return make


def _reducer(operation: str) -> Callable[[str, str], ReduceFunction]:
    def make(msg: str, out: str) -> ReduceFunction:
        return ReduceFunction(operation, msg, out)

    make.__name__ = make.__qualname__ = operation
    make.__doc__ = f"The {operation} over the incoming edges of each node."
    return make


_BINARY = {
    f"{left}_{operation}_{right}": _binary(operation, left, right)
    for operation in BINARY_OPERATIONS
    for left, right in permutations(TARGETS, 2)
}
_REDUCERS = {operation: _reducer(operation) for operation in ("sum", "mean", "max", "min")}
globals().update(_BINARY | _REDUCERS)

__all__ = ["copy_e", "copy_edge", "copy_src", "copy_u", "src_mul_edge"]
__all__ += list(_BINARY)
__all__ += list(_REDUCERS)
