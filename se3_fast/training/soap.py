"""Adam in the eigenvectors of the gradients' second moments: SOAP (Vyas et al. 2024, arXiv 2409.11321).

For the gradient G of a matrix W of parameters, with the running means L of G G^T and R of G^T G and their eigenvectors P and Q,

    G' = P^T G Q                                    the gradient, turned
    M' = b1 M' + (1 - b1) G'                        running means of it and of its squares
    V' = b2 V' + (1 - b2) G'^2
    W  = W - rate * P [M' / (sqrt(V') + 1e-8)] Q^T - rate * decay * W            means corrected as Adam does

P and Q follow L and R by one step of orthogonal iteration every ``INTERVAL`` steps; M' is turned with them. A side of the matrix
that is longer than ``LARGEST_SIDE`` is not turned, and vectors are not at all: that is Adam. Parameters of more dimensions are
matrices of the first one and all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LARGEST_SIDE = 128
"""Each value of a gradient costs three multiply-adds for every place of a side that is turned."""
INTERVAL = 10
SECOND_BETA_OF_SOAP = 0.95
_SMALL = 1e-8


class _Side(NamedTuple):
    """What belongs to the rows or to the columns of a matrix: names of the state, and which dimension they are."""

    moments: str
    basis: str
    dimension: int


_ROWS, _COLUMNS = _Side("row_moments", "row_basis", 0), _Side("column_moments", "column_basis", 1)


def state_shapes(parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """What is kept of a parameter beside the number of steps: names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {"exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
    for side in _sides(parameter):
        length = _matrix(parameter).shape[side.dimension]
        shapes |= {side.moments: (length, length), side.basis: (length, length)}
    return shapes


class Soap(torch.optim.Optimizer):
    """SOAP, with its means kept in the eigenvectors. Two runs that begin with the same state end with the same bits.

    Args:
        parameters: what it trains.
        lr: rate.
        momentum: b1, the decay of the running mean; that of squares and second moments is ``SECOND_BETA_OF_SOAP``.
        weight_decay: what a step takes of a parameter, times the rate.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (momentum, SECOND_BETA_OF_SOAP), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due: list[tuple[dict[str, Tensor], _Side]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], _matrix(parameter.grad)
                sides = _sides(parameter)
                if not state:
                    _begin(state, parameter, gradient, sides)
                else:
                    _follow(state, gradient, sides, group["betas"][1])
                state["step"] += 1
                _change(parameter, gradient, state, sides, group)
                if int(state["step"]) % INTERVAL == 0:
                    due += [(state, side) for side in sides]
        _turn(due)
        return loss


def _matrix(tensor: Tensor) -> Tensor:
    """[rows, columns]; of a vector, a column."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(-1, 1)


def _sides(parameter: Tensor) -> list[_Side]:
    """Those whose eigenvectors are followed."""
    if parameter.dim() < 2:
        return []
    return [side for side in (_ROWS, _COLUMNS) if 1 < _matrix(parameter).shape[side.dimension] <= LARGEST_SIDE]


def _square(gradient: Tensor, side: _Side) -> Tensor:
    """G G^T or G^T G."""
    return gradient @ gradient.T if side.dimension == 0 else gradient.T @ gradient


def _begin(state: dict[str, Tensor], parameter: Tensor, gradient: Tensor, sides: list[_Side]) -> None:
    """The state before the first step: no means, and the eigenvectors of the first gradient."""
    state["step"] = torch.zeros(())
    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
    for side in sides:
        moments = state[side.moments] = _square(gradient, side)
        # A gradient that is not finite has no eigenvectors; what it does to the parameters is found and told elsewhere.
        state[side.basis] = torch.linalg.eigh(moments.nan_to_num(0.0, 0.0, 0.0))[1].flip(1).contiguous()


def _follow(state: dict[str, Tensor], gradient: Tensor, sides: list[_Side], beta: float) -> None:
    for side in sides:
        state[side.moments].lerp_(_square(gradient, side), 1 - beta)


def _change(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], sides: list[_Side], group: dict[str, Any]) -> None:
    """A step of Adam in the eigenvectors."""
    first, second = group["betas"]
    count, rate = int(state["step"]), group["lr"]
    mean, squares = _matrix(state["exp_avg"]), _matrix(state["exp_avg_sq"])
    turned = gradient
    for side in sides:
        basis = state[side.basis]
        turned = basis.T @ turned if side.dimension == 0 else turned @ basis
    mean.lerp_(turned, 1 - first)
    squares.mul_(second).addcmul_(turned, turned, value=1 - second)
    change = mean / (squares.sqrt().div_(math.sqrt(1 - second**count)).add_(_SMALL))
    for side in sides:
        basis = state[side.basis]
        change = basis @ change if side.dimension == 0 else change @ basis.T
    if group["weight_decay"] > 0:
        parameter.mul_(1 - rate * group["weight_decay"])
    parameter.sub_(change.view_as(parameter), alpha=rate / (1 - first**count))


def _turn(due: Iterable[tuple[dict[str, Tensor], _Side]]) -> None:
    """Bring eigenvectors up to date, those of one size together, and turn the means with them."""
    by_size: dict[tuple[Any, ...], list[tuple[dict[str, Tensor], _Side]]] = {}
    for state, side in due:
        basis = state[side.basis]
        by_size.setdefault((len(basis), basis.dtype, basis.device), []).append((state, side))
    for members in by_size.values():
        moments = torch.stack([state[side.moments] for state, side in members])  # [K, side, side]
        bases = torch.stack([state[side.basis] for state, side in members])
        products = moments @ bases
        orders = (bases * products).sum(1).argsort(dim=1, descending=True, stable=True)  # [K, side], by the eigenvalues
        columns = products.gather(2, orders[:, None].expand_as(products))
        new = torch.linalg.qr(columns)[0]
        turns = bases.mT @ new
        for (state, side), basis, turn, order in zip(members, new.contiguous(), turns, orders, strict=True):
            mean, squares = _matrix(state["exp_avg"]), _matrix(state["exp_avg_sq"])
            mean.copy_(turn.T @ mean if side.dimension == 0 else mean @ turn)
            squares.copy_(squares.index_select(side.dimension, order))
            state[side.basis].copy_(basis)
