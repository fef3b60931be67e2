"""Loss of an epoch, read from the device only now and then."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import TrainingError


class LossRecord:
    """Mean loss of an epoch and the watch over its finiteness.

    Losses stay on the device until `read`, so that no step waits for the device.

    Args:
        total: Sum of the losses that were read before, of an epoch that goes on.
        count: How many they were.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._pending: list[Tensor] = []
        self._pending_steps: list[int] = []
        self.total = total
        self.count = count

    def add(self, loss: Tensor, step: int) -> None:
        """Note the loss [] of a batch that belongs to optimizer step `step`."""
        self._pending.append(loss.detach())
        self._pending_steps.append(step)

    def read(self) -> float:
        """Mean loss of the batches so far.

        Raises:
            TrainingError: A loss is not finite; names the first such step.
        """
        if self._pending:
            losses = torch.stack(self._pending).double().tolist()
            for loss, step in zip(losses, self._pending_steps, strict=True):
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss became {loss} at optimizer step {step}; "
                        "a lower --learning_rate, --gradient_clip or --amp_dtype bf16 may help"
                    )
                self.total += loss  # one by one: the sum does not depend on when it is read
            self.count += len(losses)
            self._pending, self._pending_steps = [], []
        return self.total / max(self.count, 1)

    def forget_after(self, step: int) -> None:
        """Drop the losses of batches that belong to a later optimizer step than this one."""
        kept = sum(each <= step for each in self._pending_steps)
        self._pending, self._pending_steps = self._pending[:kept], self._pending_steps[:kept]
