"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from se3_fast.training import CheckpointError, TrainingOptions
from se3_fast.training.optimizers import OPTIMIZERS, build_optimizer, build_schedule, load_optimizer_state


def a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.ones(1, 3)) - 1).abs().sum().backward()
    optimizer.step()


def test_adam_decouples_the_weight_decay() -> None:
    options = TrainingOptions(learning_rate=0.01, weight_decay=0.5, momentum=0.8)
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([parameter], options)
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    # The first step of Adam has length lr whatever the gradient; decay takes lr * 0.5 of the value.
    torch.testing.assert_close(parameter.data, torch.tensor([2.0 - 0.01 * 0.5 * 2.0 - 0.01]))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_on_after_loading(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    options = TrainingOptions(optimizer=name)
    optimizer = build_optimizer(model.parameters(), options)
    for _ in range(3):
        a_step(model, optimizer)
    resumed = copy.deepcopy(model)
    resumed_optimizer = build_optimizer(resumed.parameters(), options)
    load_optimizer_state(resumed_optimizer, copy.deepcopy(optimizer.state_dict()), Path("model.pth"))
    a_step(model, optimizer)
    a_step(resumed, resumed_optimizer)
    assert torch.equal(model.weight, resumed.weight)


def test_state_of_a_fused_apex_optimizer_is_read() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model.parameters(), TrainingOptions())
    for _ in range(3):
        a_step(model, optimizer)
    saved: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        del entry["step"]
    saved["param_groups"] = [{"params": [0, 1], "step": 3, "lr": 0.5, "bias_correction": 1}]
    resumed = copy.deepcopy(model)
    resumed_optimizer = build_optimizer(resumed.parameters(), TrainingOptions())
    load_optimizer_state(resumed_optimizer, saved, Path("model.pth"))
    a_step(model, optimizer)
    a_step(resumed, resumed_optimizer)
    assert torch.equal(model.weight, resumed.weight)


def test_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(nn.Linear(3, 2).parameters(), TrainingOptions())
    other = build_optimizer(nn.Linear(3, 2, bias=False).parameters(), TrainingOptions())
    with pytest.raises(CheckpointError, match="expected an optimizer state of 2 parameters, got one of 1"):
        load_optimizer_state(optimizer, other.state_dict(), Path("model.pth"))


@pytest.mark.parametrize(("given", "smallest"), [(None, 0.01), (0.0, 0.0), (0.05, 0.05)])
def test_the_rate_falls_along_a_cosine(given: float | None, smallest: float) -> None:
    options = TrainingOptions(epochs=10, learning_rate=0.1, min_learning_rate=given, optimizer="sgd")
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], options)
    scheduler = build_schedule(optimizer, options)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [smallest + (0.1 - smallest) * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="expected one of adam, sgd, lamb, soap, got 'newton'"):
        build_optimizer([nn.Parameter(torch.ones(1))], TrainingOptions(optimizer="newton"))
