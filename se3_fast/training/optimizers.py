"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from .checkpoint_entries import expect, is_number
from .errors import CheckpointError
from .options import OPTIMIZERS, TrainingOptions
from .soap import Soap, state_shapes

SECOND_BETA_OF_ADAM = 0.999
_STEP, _SQUARES = "step", "exp_avg_sq"
_OF_EVERY_VALUE = {"AdamW": ("exp_avg", _SQUARES), "Lamb": ("exp_avg", _SQUARES), "SGD": ("momentum_buffer",)}
"""What an optimizer reads of what it keeps of every parameter in the parameter's shape, by its class."""
_COUNTS_STEPS = ("AdamW", "Soap")
"""Those that keep the number of steps with every parameter."""


def build_optimizer(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Optimizer named by `options.optimizer`.

    'adam' decouples the weight decay (Loshchilov & Hutter, 2019), as the published optimizer does; 'lamb'
    (You et al., 2020) scales the gradient to a norm of at most 1 first; 'soap' is :class:`.soap.Soap`.

    Raises:
        ValueError: Unknown optimizer.
    """
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    betas = (options.momentum, SECOND_BETA_OF_ADAM)
    if options.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=options.learning_rate, betas=betas, weight_decay=options.weight_decay, fused=fused)
    if options.optimizer == "sgd":
        return _sgd(parameters, options, fused)
    if options.optimizer == "lamb":
        return _lamb(parameters, options, betas)
    if options.optimizer == "soap":
        return Soap(parameters, options.learning_rate, options.momentum, options.weight_decay)
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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved_groups = saved.get("param_groups", [])
    found = sum(len(group["params"]) for group in saved_groups)
    if found != len(parameters):
        raise CheckpointError(f"{path}: expected an optimizer state of {len(parameters)} parameters, got one of {found}")
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in saved_groups]:
        raise CheckpointError(f"{path}: expected an optimizer state with the parameters in the same groups, got other groups")
    state = {number: dict(entry) for number, entry in saved["state"].items()}
    try:
        for group, saved_group in zip(groups, saved_groups, strict=True):
            if _STEP in saved_group:
                group[_STEP] = int(_scalar("param_groups: step", saved_group[_STEP]))
                for number in state.keys() & set(saved_group["params"]):
                    state[number].setdefault(_STEP, float(group[_STEP]))
        checked = _checked_state(state, parameters, optimizer)
    except ValueError as error:
        raise CheckpointError(f"{path}: optimizer_state_dict: {error}") from None
    optimizer.load_state_dict({"state": checked, "param_groups": groups})


def _shapes(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """What an optimizer keeps of a parameter, beside the number of steps: names and shapes."""
    if isinstance(optimizer, Soap):
        return state_shapes(parameter)
    return dict.fromkeys(_OF_EVERY_VALUE[type(optimizer).__name__], tuple(parameter.shape))


def bytes_of_state(optimizer: torch.optim.Optimizer) -> int:
    """What it keeps of parameters that are trained, or will keep after the first step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    values = (
        parameter.element_size() * math.prod(shape) for parameter in parameters for shape in _shapes(optimizer, parameter).values()
    )
    return sum(values)


def _checked_state(
    state: Mapping[int, Mapping[str, Any]], parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """The state with which fused steps read and write nothing but what belongs to a parameter: tensors of their own.

    Args:
        state: By the numbers of parameters; that of a parameter may be empty, and None stands for what is not there yet.
        parameters: All of them.
        optimizer: Takes the state.

    Raises:
        ValueError: It does not fit the parameters.
    """
    checked: dict[int, dict[str, Tensor]] = {}
    for number, entry in state.items():
        expect(number < len(parameters), "state", f"numbers of parameters below {len(parameters)}", number)
        name, parameter = f"state of parameter {number}", parameters[number]
        shapes, counts = _shapes(optimizer, parameter), type(optimizer).__name__ in _COUNTS_STEPS
        names = [*([_STEP] if counts else []), *shapes]
        given = {key: value for key, value in entry.items() if value is not None}
        is_whole = all(key in given for key in names)
        expect(is_whole or not given, name, ", ".join(names), ", ".join(given))
        checked[number] = {}
        if is_whole:
            checked[number] = {key: _moment(f"{name}: {key}", given[key], shape, parameter) for key, shape in shapes.items()}
        if is_whole and counts:
            checked[number][_STEP] = torch.tensor(_scalar(f"{name}: {_STEP}", given[_STEP]))
    return checked


def _moment(name: str, value: Any, shape: tuple[int, ...], parameter: nn.Parameter) -> Tensor:
    fits = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
    expect(fits, name, f"numbers of shape {list(shape)}", value)
    own = value.detach().to(parameter.dtype, copy=True, memory_format=torch.contiguous_format)
    if not own.isfinite().all() or (name.endswith(_SQUARES) and (own < 0).any()):
        raise ValueError(f"{name}: expected finite numbers, none of them a square below 0, got others")
    return own


def _scalar(name: str, value: Any) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    expect(is_number(number) and number >= 0, name, "a finite number from 0 on", value)
    return float(number)
