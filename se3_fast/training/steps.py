"""How a training step is done: as the batches come, or recorded on the GPU and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from se3_fast.data.resident import NumberedBatch, ResidentLoader

from .distributed import World
from .evaluation import move_batch
from .optimizers import allow_recording, keep_rate_on_device
from .recorded import RecordedByShape, RecordedOnce, Recorder


@dataclass(frozen=True)
class StepParts:
    """What a step works with.

    Attributes:
        model: the model.
        batch_loss: of the model to call, a batch on the device and the number of graphs at its end that are padding: the loss [].
        optimizer: of all its parameters.
        scaler: scales the loss.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
        world: the processes that share the gradient.
    """

    model: nn.Module
    batch_loss: Callable[[nn.Module, Any, int], Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    gradient_clip: float | None
    world: World

    def update(self) -> None:
        """The optimizer's step with the gradient as it stands."""
        if self.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Steps(Protocol):
    """The steps of an epoch.

    Attributes:
        waits_for_nothing: whether nothing in an epoch may wait for the device.
    """

    waits_for_nothing: bool

    def batches(self) -> Iterable[Any]:
        """The batches of an epoch, in the form that `accumulate` takes."""

    def accumulate(self, batch: Any, in_group: int, ends_group: bool) -> tuple[Tensor, int]:
        """Add the gradient of a batch, one of `in_group` that make a step; return its loss [] and its number of samples."""

    def update(self) -> None:
        """Do the optimizer's step and forget the gradient."""

    def running(self) -> AbstractContextManager[None]:
        """Within it all of the above is to be called."""


class DirectSteps:
    """Every operation is launched as it comes; several processes exchange gradients while the backward pass runs.

    Those of the first step they exchange after it: then it is known whether some parameters have none (a model need not return all
    that it has weights for), which the exchange during the backward pass must be told, or it would wait for them.
    """

    waits_for_nothing = False

    def __init__(self, parts: StepParts, loader: Iterable[Any]) -> None:
        self._parts = parts
        self._loader = loader
        self._model = parts.model
        tensors = chain(parts.model.parameters(), parts.model.buffers())
        parts.world.copy_from_main([tensor.detach() for tensor in tensors])

    def batches(self) -> Iterable[Any]:
        """The loader's."""
        return self._loader

    def accumulate(self, batch: Any, in_group: int, ends_group: bool) -> tuple[Tensor, int]:
        """See :class:`Steps`."""
        batch = move_batch(batch, self._parts.world.device)
        with _gradient_exchange(self._model, ends_group):
            loss = self._parts.batch_loss(self._model, batch, 0)
            self._parts.scaler.scale(loss / in_group).backward()
        return loss.detach(), _num_samples(batch)

    def update(self) -> None:
        """See :class:`Steps`."""
        if self._parts.world.size > 1 and self._model is self._parts.model:
            self._exchange_first_gradient()
        self._parts.update()
        self._parts.optimizer.zero_grad(set_to_none=True)

    def _exchange_first_gradient(self) -> None:
        model, world = self._parts.model, self._parts.world
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        are_reached = list(zip(*world.gather([parameter.grad is not None for parameter in parameters]), strict=True))
        for parameter, is_reached in zip(parameters, are_reached, strict=True):
            if any(is_reached):
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                world.average(parameter.grad)
        device_ids = [world.device] if world.device.type == "cuda" else None
        has_unused = not all(map(all, are_reached))
        self._model = DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=has_unused)

    def running(self) -> AbstractContextManager[None]:
        """See :class:`Steps`."""
        return nullcontext()


class RecordedSteps:
    """Two recordings: batch assembly, forward and backward pass for each of few padded shapes; and the optimizer's step.

    All gradients are parts of one tensor that stays where it is. Several processes average it between the two.
    """

    waits_for_nothing = True

    def __init__(self, parts: StepParts, loader: ResidentLoader, recorder: Recorder) -> None:
        self._parts = parts
        self._loader = loader
        self._recorder = recorder
        self._gradient = _one_gradient(parts.model)
        keep_rate_on_device(parts.optimizer, parts.world.device)
        parts.world.copy_from_main([parameter.detach() for parameter in parts.model.parameters()])
        self._forward_backward = RecordedByShape(self._accumulate, loader, recorder)
        self._update = RecordedOnce(self._update_and_forget, recorder)

    def batches(self) -> Iterable[NumberedBatch]:
        """The numbers of the molecules; their batch is assembled in the recording."""
        return self._loader.numbered_batches()

    def accumulate(self, batch: NumberedBatch, in_group: int, ends_group: bool) -> tuple[Tensor, int]:
        """See :class:`Steps`."""
        return self._forward_backward(batch, in_group).clone(), batch.numbers.shape[0]

    def update(self) -> None:
        """See :class:`Steps`."""
        self._parts.world.average(self._gradient)
        self._update()
        allow_recording(self._parts.optimizer)  # after the first step, which runs as it is and would warn of this

    def running(self) -> AbstractContextManager[None]:
        """See :class:`Steps`."""
        return self._recorder.stream()

    def _accumulate(self, batch: NumberedBatch, in_group: int) -> Tensor:
        assembled = self._loader.assemble(batch, is_padded=True)
        loss = self._parts.batch_loss(self._parts.model, assembled, 1)
        self._add_gradients(self._parts.scaler.scale(loss / in_group))
        return loss

    def _add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of all parameters at once: ``loss.backward()`` would launch an addition for each."""
        parameters = [parameter for parameter in self._parts.model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        sums: list[Tensor] = []
        gradients: list[Tensor] = []
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None and parameter.grad is not None:
                sums.append(parameter.grad)
                gradients.append(gradient)
        torch._foreach_add_(sums, gradients)

    def _update_and_forget(self) -> None:
        self._parts.update()
        self._gradient.zero_()


def _one_gradient(model: nn.Module) -> Tensor:
    """A tensor of zeros that the gradients of all parameters are parts of from now on."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return gradient


def _num_samples(batch: Sequence[Any]) -> int:
    """The graphs of a batch that begins with a graph, whether its targets are of graphs or of nodes."""
    size = getattr(batch[0], "batch_size", None)
    return size if isinstance(size, int) else batch[-1].shape[0]


def _gradient_exchange(model: nn.Module, exchange: bool) -> AbstractContextManager[None]:
    """Processes average their gradients only with the last batch that makes a step."""
    if exchange or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
