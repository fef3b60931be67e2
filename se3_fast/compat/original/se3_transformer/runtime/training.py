"""The parts of the training loop, and the command that trains: ``python -m se3_transformer.runtime.training --help``.

The command trains by ``se3_fast.train``, which has the published options; what is here is for scripts that put a loop together
from the published parts. It runs on the CPU too.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from se3_fast.train import build_parser as build_train_parser
from se3_fast.train import train as run_training
from se3_fast.training.checkpoint import load_weights, read_checkpoint, write_checkpoint
from se3_fast.training.errors import run_command
from se3_fast.training.loss_record import LossRecord
from se3_fast.training.optimizers import build_optimizer, load_optimizer_state
from se3_fast.training.options import TrainingOptions
from se3_fast.training.precision import Precision

from .arguments import PARSER, build_parser
from .callbacks import BaseCallback
from .inference import evaluate
from .loggers import Logger
from .utils import current_device, get_local_rank, to_device

__all__ = ["PARSER", "evaluate", "load_state", "main", "print_parameters_count", "save_state", "train", "train_epoch"]

_log = logging.getLogger(__name__)


def save_state(model: nn.Module, optimizer: Optimizer, epoch: int, path: Path | str, callbacks: Sequence[BaseCallback]) -> None:
    """Write a checkpoint, whole or not at all, by the first process of a machine.

    Args:
        model: its parameters.
        optimizer: its state.
        epoch: number of epochs done.
        path: the file.
        callbacks: their ``on_checkpoint_save`` adds entries.
    """
    if get_local_rank() != 0:
        return
    checkpoint = {"state_dict": _plain(model).state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": epoch}
    for callback in callbacks:
        callback.on_checkpoint_save(checkpoint)
    write_checkpoint(Path(path), checkpoint)
    _log.info("checkpoint: %s", path)


def load_state(model: nn.Module, optimizer: Optimizer, path: Path | str, callbacks: Sequence[BaseCallback]) -> int:
    """Read a checkpoint; nothing in the file is run.

    Args:
        model: takes the parameters.
        optimizer: takes the state.
        path: the file.
        callbacks: their ``on_checkpoint_load`` is called.

    Returns:
        The number of epochs done.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model or optimizer.
    """
    checkpoint = read_checkpoint(Path(path))
    load_weights(_plain(model), checkpoint["state_dict"], Path(path))
    load_optimizer_state(optimizer, checkpoint["optimizer_state_dict"], Path(path))
    for callback in callbacks:
        callback.on_checkpoint_load(checkpoint)
    return int(checkpoint["epoch"])


def train_epoch(
    model: nn.Module,
    train_dataloader: DataLoader[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    epoch_idx: int,
    grad_scaler: torch.amp.GradScaler,
    optimizer: Optimizer,
    local_rank: int,
    callbacks: Sequence[BaseCallback],
    args: Any,
) -> float:
    """Train on all batches once, and return the mean loss.

    Args:
        model: called with all of a batch but the last, the target.
        train_dataloader: the batches; they are moved to the model's device.
        loss_fn: of prediction and target.
        epoch_idx: number of the epoch, for the progress bar.
        grad_scaler: scales the loss.
        optimizer: takes a step every ``args.accumulate_grad_batches`` batches, and after the last.
        local_rank: number of this process on its machine.
        callbacks: their ``on_batch_start`` is called.
        args: has ``amp``, ``silent``, ``accumulate_grad_batches`` and ``gradient_clip``.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = next(model.parameters()).device
    precision = Precision.choose(args.amp, getattr(args, "amp_dtype", "auto"), device)
    is_quiet = args.silent or local_rank != 0
    losses, count = LossRecord(), len(train_dataloader)
    bar = tqdm(train_dataloader, unit="batch", desc=f"Epoch {epoch_idx}", leave=False, disable=is_quiet)
    for number, batch in enumerate(bar, 1):
        *inputs, target = to_device(batch, device)
        for callback in callbacks:
            callback.on_batch_start()
        with precision.autocast():
            loss = loss_fn(model(*inputs), target)
        grad_scaler.scale(loss / args.accumulate_grad_batches).backward()
        losses.add(loss.detach(), number)
        if number % args.accumulate_grad_batches == 0 or number == count:
            if args.gradient_clip:
                grad_scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), args.gradient_clip)
            grad_scaler.step(optimizer)
            grad_scaler.update()
            optimizer.zero_grad(set_to_none=True)
    return losses.read()


def train(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    train_dataloader: DataLoader[Any],
    val_dataloader: DataLoader[Any],
    callbacks: Sequence[BaseCallback],
    logger: Logger,
    args: Any,
) -> None:
    """Train, with evaluations and checkpoints, on the current CUDA device or the CPU; in a distributed run with all processes.

    Args:
        model: called with all of a batch but the last, the target.
        loss_fn: of prediction and target.
        train_dataloader: batches to train on.
        val_dataloader: batches to evaluate on, every ``args.eval_interval`` epochs and after the last.
        callbacks: called at their moments.
        logger: takes ``train loss``.
        args: of :data:`PARSER`.

    Raises:
        CheckpointError: ``args.load_ckpt_path`` is damaged, or belongs to another model or optimizer.
        TrainingError: the loss is not finite.
    """
    device = current_device()
    model.to(device)
    if dist.is_initialized():
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    precision = Precision.choose(args.amp, getattr(args, "amp_dtype", "auto"), device)
    grad_scaler = precision.gradient_scaler()
    options = TrainingOptions(
        optimizer=args.optimizer, learning_rate=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
    )
    optimizer = build_optimizer(model.parameters(), options)
    first = load_state(model, optimizer, args.load_ckpt_path, callbacks) if args.load_ckpt_path else 0
    for callback in callbacks:
        callback.on_fit_start(optimizer, args)
    for epoch in range(first, args.epochs):
        if hasattr(train_dataloader.sampler, "set_epoch"):
            train_dataloader.sampler.set_epoch(epoch)
        model.train()
        rank = get_local_rank()
        loss = train_epoch(model, train_dataloader, loss_fn, epoch, grad_scaler, optimizer, rank, callbacks, args)
        logger.log_metrics({"train loss": _mean_over_processes(loss, device)}, epoch)
        for callback in callbacks:
            callback.on_epoch_end()
        if not args.benchmark:
            _after_epoch(model, optimizer, val_dataloader, callbacks, epoch, args)
    if args.save_ckpt_path is not None and not args.benchmark:
        save_state(model, optimizer, args.epochs, args.save_ckpt_path, callbacks)
    for callback in callbacks:
        callback.on_fit_end()


def _after_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    val_dataloader: DataLoader[Any],
    callbacks: Sequence[BaseCallback],
    epoch: int,
    args: Any,
) -> None:
    is_last = epoch + 1 == args.epochs
    if args.save_ckpt_path is not None and not is_last and args.ckpt_interval > 0 and (epoch + 1) % args.ckpt_interval == 0:
        save_state(model, optimizer, epoch + 1, args.save_ckpt_path, callbacks)
    if is_last or (args.eval_interval > 0 and (epoch + 1) % args.eval_interval == 0):
        evaluate(model, val_dataloader, callbacks, args)
        for callback in callbacks:
            callback.on_validation_end(epoch)


def print_parameters_count(model: nn.Module) -> None:
    """Log how many parameters are trained."""
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    _log.info("trainable parameters: %d", count)


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _mean_over_processes(value: float, device: torch.device) -> float:
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    parsed.pooling = parsed.pooling or "max"
    whole = argparse.Namespace(
        **{**vars(build_train_parser().parse_args([])), **vars(parsed)}
    )  # it has options that these have not
    return run_command(lambda: run_training(whole))


if __name__ == "__main__":
    sys.exit(main())
