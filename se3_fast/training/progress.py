"""What a run says of itself: a block of facts before the first step, and how long it still takes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from se3_fast.backends.choice import described_choice

if TYPE_CHECKING:
    from .trainer import Trainer

_MINUTE, _HOUR = 60, 3600


class Pace:
    """How long a run still takes, if its steps go on as they have gone; evaluations count with the steps between them.

    Args:
        steps_done: Of earlier runs, from which this one goes on.
    """

    def __init__(self, steps_done: int) -> None:
        self._start = time.perf_counter()
        self._first = steps_done

    def seconds_left(self, steps_done: int, steps_in_all: int) -> float:
        """Until so many steps are done; 0 before the first one."""
        done = steps_done - self._first
        return (time.perf_counter() - self._start) / done * max(steps_in_all - steps_done, 0) if done > 0 else 0.0


def duration(seconds: float) -> str:
    """`7 s`, `12 min`, `3 h 20 min`."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / _MINUTE)
    return f"{minutes} min" if seconds < 2 * _HOUR else f"{minutes // 60} h {minutes % 60} min"


def run_facts(trainer: Trainer) -> list[tuple[str, str]]:
    """What a run is about to do, by name: what computes, with what, on what, and where it leaves its results.

    Raises:
        ValueError: The backend that is asked for does not run on the device.
    """
    options, data = trainer.options, trainer.data_module
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    sizes = zip((data.ds_train, data.ds_val, data.ds_test), ("train on", "validate on", "test on"), strict=True)
    has_text = any("__repr__" in vars(kind) for kind in type(data).__mro__[:-1])  # but that of every object
    name = repr(data) if has_text else type(data).__name__
    steps = "" if options.max_steps is None else f", at most {options.max_steps:,} steps"
    facts = {
        "device": _device(trainer),
        "backend": described_choice(trainer.world.device),
        "model": f"{parameters:,} parameters",
        "data": f"{name}: {', '.join(f'{len(part):,} to {purpose}' for part, purpose in sizes)}",
        "split": getattr(data, "split", None),
        "seed": trainer.metadata.get("seed"),
        "epochs": f"{trainer.epochs_done} of {options.epochs} done{steps}",
        "results": f"{options.log_dir}; " + _checkpoint(options.benchmark, options.save_ckpt_path),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def block(facts: list[tuple[str, str]]) -> str:
    """Facts as lines."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _device(trainer: Trainer) -> str:
    device, size = trainer.world.device, trainer.world.size
    if device.type == "cuda":
        told = f"{device}: {torch.cuda.get_device_name(device)}"
    else:
        told = f"{device}: {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    precision = f", mixed precision {trainer.options.amp_dtype}" if trainer.options.amp else ""
    return f"{told}{f', {size} processes' if size > 1 else ''}{precision}"


def _checkpoint(is_benchmark: bool, path: Any) -> str:
    return "no checkpoint" if is_benchmark or path is None else f"checkpoint {path}"
