"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from .errors import CheckpointError
from .options import TrainingOptions

OPTIMIZERS = ("adam", "sgd", "lamb")
SECOND_BETA = 0.999
STATES_PER_PARAMETER = {"adam": 2, "sgd": 1, "lamb": 2}
"""Values that an optimizer keeps for each value of a parameter."""


def build_optimizer(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Optimizer named by `options.optimizer`.

    'adam' decouples the weight decay (Loshchilov & Hutter, 2019), as the published optimizer does; 'lamb'
    (You et al., 2020) scales the gradient to a norm of at most 1 first.

    Raises:
        ValueError: Unknown optimizer.
    """
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    betas = (options.momentum, SECOND_BETA)
    if options.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=options.learning_rate, betas=betas, weight_decay=options.weight_decay, fused=fused)
    if options.optimizer == "sgd":
        return _sgd(parameters, options, fused)
    if options.optimizer == "lamb":
        return _lamb(parameters, options, betas)
    raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {options.optimizer!r}")


def _sgd(parameters: list[nn.Parameter], options: TrainingOptions, fused: bool) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(
        parameters, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay, fused=fused
    )
    if options.momentum > 0:
        # Zero is what the first step begins with. Left to the fused optimizer, the buffers are memory as it was found when loss
        # scaling leaves out the first step.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _lamb(parameters: list[nn.Parameter], options: TrainingOptions, betas: tuple[float, float]) -> torch.optim.Optimizer:
    # Imported here because the package takes seconds to import and no other optimizer needs it.
    from pytorch_optimizer import Lamb

    # Weight decay is part of the update that the trust ratio scales, as in the paper.
    return Lamb(
        parameters,
        lr=options.learning_rate,
        betas=betas,
        weight_decay=options.weight_decay,
        weight_decouple=False,
        pre_norm=True,
        max_grad_norm=1.0,
    )


def build_schedule(optimizer: torch.optim.Optimizer, options: TrainingOptions) -> CosineAnnealingWarmRestarts:
    """Cosine from the learning rate to the smallest one, over the epochs or over `max_steps` optimizer steps."""
    smallest = options.min_learning_rate
    if smallest is None:
        smallest = options.learning_rate / 10
    return CosineAnnealingWarmRestarts(optimizer, options.max_steps or options.epochs, eta_min=smallest)


def keep_rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make the learning rates tensors, so that a recorded step reads what the schedule writes."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def allow_recording(optimizer: torch.optim.Optimizer) -> None:
    """Tell an optimizer that knows such a word that its steps are recorded."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True


def plain_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state with the learning rates as numbers, whatever :func:`keep_rate_on_device` did."""
    state = optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Load the state of all parameters; learning rate, betas and weight decay stay those of `optimizer`.

    A state written by the fused optimizers of apex keeps the number of steps in the parameter group instead
    of beside every parameter; it is read too.

    Args:
        optimizer: Takes the state.
        saved: The state.
        path: The checkpoint that it comes from, for the message.

    Raises:
        CheckpointError: The state belongs to another optimizer or to other parameters.
    """
    expected = sum(len(group["params"]) for group in optimizer.param_groups)
    found = sum(len(group["params"]) for group in saved.get("param_groups", []))
    if expected != found:
        raise CheckpointError(f"{path}: expected an optimizer state of {expected} parameters, got one of {found}")
    groups = optimizer.state_dict()["param_groups"]
    state = {number: dict(entry) for number, entry in saved["state"].items()}
    for group, saved_group in zip(groups, saved["param_groups"], strict=True):
        if "step" in saved_group:
            group["step"] = saved_group["step"]
            for number in set(saved_group["params"]) & state.keys():
                state[number].setdefault("step", torch.tensor(float(saved_group["step"])))
    optimizer.load_state_dict({"state": state, "param_groups": groups})
