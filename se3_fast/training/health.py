"""Whether what a run has learned is still made of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .errors import TrainingError

SMALLEST_LOSS_SCALE = 2.0**-10
"""Gradients that overflow float16 at a smaller scale are above 10^7, or are no numbers: the scale falls on and no step is done."""


def check_loss_scale(scaler: torch.amp.GradScaler, step: int) -> None:
    """Notice that automatic loss scaling has given up: every gradient overflows, and no step changes the model any more.

    Waits for the device, if the loss is scaled.

    Args:
        scaler: Scales the loss.
        step: Optimizer steps so far, for the message.

    Raises:
        TrainingError: The scale has collapsed.
    """
    if not scaler.is_enabled():
        return
    scale = scaler.get_scale()
    if not SMALLEST_LOSS_SCALE <= scale < float("inf"):
        raise TrainingError(
            f"the loss scale is {scale:g} after {step} optimizer steps: gradients overflow in float16 or are not finite, so that "
            "steps are left out; --amp_dtype bf16, or none of --amp, may help"
        )


def check_finite(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Check parameters and the optimizer's states, with one wait for the device.

    Args:
        model: The model.
        optimizer: Of its parameters.
        step: Optimizer steps so far, for the message.

    Raises:
        TrainingError: Names the first tensor with a value that is not finite.
    """
    tensors = {name: tensor for name, tensor in _learned(model, optimizer) if tensor.is_floating_point() and tensor.numel() > 0}
    if not tensors:
        return
    device = next(model.parameters()).device
    are_finite = torch.stack([tensor.isfinite().all().to(device, non_blocking=True) for tensor in tensors.values()])
    if bool(are_finite.all()):
        return
    name = list(tensors)[are_finite.tolist().index(False)]
    raise TrainingError(
        f"{name} is not finite after optimizer step {step}; a lower --learning_rate, --gradient_clip or --amp_dtype bf16 may help"
    )


def _learned(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"parameter '{name}'", parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"the optimizer's {key} of parameter '{name}'", value
