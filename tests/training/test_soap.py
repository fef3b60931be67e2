"""SOAP: against its formula written out, in turned coordinates, resumed, and on gradients that are not finite."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from se3_fast.training import CheckpointError, TrainingOptions
from se3_fast.training.optimizers import build_optimizer, bytes_of_state, load_optimizer_state
from se3_fast.training.soap import INTERVAL, LARGEST_SIDE, SECOND_BETA_OF_SOAP, Soap

STEPS = 2 * INTERVAL + 3
SHAPES = [(5, 7), (1, 6), (6, 1), (LARGEST_SIDE + 1, 3), (3, LARGEST_SIDE + 1), (4, 2, 3), (5,), ()]


def turned(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows.mT @ matrix @ columns


def iterated(moments: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration, the largest eigenvalue first, and the order that it found the columns in."""
    order = (basis.mT @ moments @ basis).diagonal().argsort(descending=True)
    return torch.linalg.qr(moments @ basis[:, order])[0], order


def by_formula(start: Tensor, gradients: list[Tensor], rate: float, momentum: float, decay: float) -> Tensor:
    """All steps, with the unit matrix where nothing is turned."""
    value = (start.flatten(1) if start.dim() > 1 else start.reshape(-1, 1)).clone()
    shape = value.shape
    is_turned = [start.dim() > 1 and 1 < length <= LARGEST_SIDE for length in shape]
    moments, bases = [torch.zeros(0)] * 2, [torch.eye(length, dtype=value.dtype) for length in shape]
    mean, squares = torch.zeros_like(value), torch.zeros_like(value)
    for count, given in enumerate(gradients, 1):
        gradient = given.reshape(shape)
        for side, square in enumerate((gradient @ gradient.T, gradient.T @ gradient)):
            if is_turned[side] and count == 1:
                moments[side], bases[side] = square, torch.linalg.eigh(square)[1].flip(1)
            elif is_turned[side]:
                moments[side] = SECOND_BETA_OF_SOAP * moments[side] + (1 - SECOND_BETA_OF_SOAP) * square
        mean = momentum * mean + (1 - momentum) * turned(gradient, *bases)
        squares = SECOND_BETA_OF_SOAP * squares + (1 - SECOND_BETA_OF_SOAP) * turned(gradient, *bases) ** 2
        step = mean / (1 - momentum**count) / ((squares / (1 - SECOND_BETA_OF_SOAP**count)).sqrt() + 1e-8)
        value = value - rate * decay * value - rate * bases[0] @ step @ bases[1].T
        if count % INTERVAL == 0:
            mean = bases[0] @ mean @ bases[1].T
            for side in (0, 1):
                if is_turned[side]:
                    bases[side], order = iterated(moments[side], bases[side])
                    squares = squares[order] if side == 0 else squares[:, order]
            mean = turned(mean, *bases)
    return value.view_as(start)


def run(optimizer: Soap, parameter: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_formula(shape: tuple[int, ...], decay: float) -> None:
    torch.manual_seed(0)
    start, *gradients = (torch.randn(shape, dtype=torch.float64) for _ in range(STEPS + 1))
    parameter = nn.Parameter(start.clone())
    found = run(Soap([parameter], 0.01, 0.8, decay), parameter, gradients)
    torch.testing.assert_close(found, by_formula(start, gradients, 0.01, 0.8, decay), rtol=1e-9, atol=1e-11)
    assert not torch.equal(found, start)


def test_a_turned_problem_has_the_turned_answer() -> None:
    torch.manual_seed(1)
    rows, columns = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    start, *gradients = (torch.randn(6, 6, dtype=torch.float64) for _ in range(STEPS + 1))
    one, other = nn.Parameter(start.clone()), nn.Parameter(turned(start, rows, columns))
    found = run(Soap([one], 0.01), one, gradients)
    again = run(Soap([other], 0.01), other, [turned(gradient, rows, columns) for gradient in gradients])
    torch.testing.assert_close(again, turned(found, rows, columns), rtol=1e-7, atol=1e-9)


def test_the_bottom_of_a_narrow_valley_is_reached_as_adam_does_not() -> None:
    torch.manual_seed(2)
    turn = torch.linalg.qr(torch.randn(20, 20))[0]
    scales = turn @ torch.logspace(0, -3, 20).diag() @ turn.T
    left = {}
    for name in ("adam", "soap"):
        parameter = nn.Parameter(torch.randn(20, 10, generator=torch.Generator().manual_seed(0)))
        optimizer = build_optimizer([parameter], TrainingOptions(optimizer=name, learning_rate=0.01, weight_decay=0))
        for _ in range(500):
            optimizer.zero_grad()
            loss = ((scales @ parameter) ** 2).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        left[name] = float(loss.detach())
    assert left["soap"] < left["adam"] / 1000


def a_model_after(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, LARGEST_SIDE + 1))
    optimizer = build_optimizer(model.parameters(), TrainingOptions(optimizer="soap"))
    for step in range(steps):
        go_on(model, optimizer, step)
    return model, optimizer


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    (model(inputs) - 1).abs().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [1, INTERVAL - 1, INTERVAL])
def test_a_run_goes_on_to_the_bit(steps: int, tmp_path: Path) -> None:
    model, optimizer = a_model_after(steps)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = copy.deepcopy(model)
    resumed_optimizer = build_optimizer(resumed.parameters(), TrainingOptions(optimizer="soap"))
    load_optimizer_state(resumed_optimizer, torch.load(tmp_path / "state.pt", weights_only=True), Path("model.pth"))
    for step in range(STEPS):
        go_on(model, optimizer, step)
        go_on(resumed, resumed_optimizer, step)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), resumed.parameters(), strict=True))


def test_the_bytes_of_the_state_are_known_before_the_first_step() -> None:
    _, optimizer = a_model_after(0)
    known = bytes_of_state(optimizer)
    _, optimizer = a_model_after(1)
    assert known == sum(value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("row_basis", torch.eye(4), r"row_basis: expected numbers of shape \[5, 5\]"),
        ("column_moments", torch.full((3, 3), torch.nan), "column_moments: expected finite numbers"),
        ("row_moments", None, "expected step, exp_avg, exp_avg_sq, row_moments, row_basis, column_moments, column_basis"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, value: Tensor | None, message: str) -> None:
    model, optimizer = a_model_after(1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][name] = value
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_state(build_optimizer(model.parameters(), TrainingOptions(optimizer="soap")), saved, Path("model.pth"))


@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_are_not_finite_reach_the_parameters_without_an_error(first: bool) -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    optimizer = Soap([parameter], 0.01)
    run(optimizer, parameter, [] if first else [torch.randn(3, 4)] * (INTERVAL - 1))
    assert run(optimizer, parameter, [torch.full((3, 4), torch.nan)] * (INTERVAL + 1)).isnan().all()


def test_a_parameter_without_a_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = Soap([used, unused], 0.01)
    run(optimizer, used, [torch.randn(3, 4)] * INTERVAL)
    assert torch.equal(unused.detach(), torch.ones(3, 4)) and unused not in optimizer.state
