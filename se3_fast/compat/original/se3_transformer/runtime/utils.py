"""Helpers for features, devices and processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from se3_fast.command_line import boolean
from se3_fast.fiber import Features
from se3_fast.training.random_state import seed_everything

__all__ = [
    "aggregate_residual",
    "current_device",
    "degree_to_dim",
    "get_local_rank",
    "increase_l2_fetch_granularity",
    "init_distributed",
    "rank_zero_only",
    "seed_everything",
    "str2bool",
    "to_cuda",
    "to_device",
    "unfuse_features",
    "using_tensor_cores",
]


def aggregate_residual(feats1: Features, feats2: Features, method: str) -> Features:
    """For the degrees of ``feats2``: the sum with ``feats1`` (``add``, ``sum``), or both along the channels (``cat``, ``concat``).

    Raises:
        ValueError: for another ``method``.
    """
    if method in ("add", "sum"):
        return {degree: feature + feats1[degree] if degree in feats1 else feature for degree, feature in feats2.items()}
    if method in ("cat", "concat"):
        return {
            degree: torch.cat([feature, feats1[degree]], 1) if degree in feats1 else feature for degree, feature in feats2.items()
        }
    raise ValueError(f"method: expected 'add', 'sum', 'cat' or 'concat', got {method!r}")


def degree_to_dim(degree: int) -> int:
    """Components of a feature of a degree: 2d+1."""
    return 2 * degree + 1


def unfuse_features(features: Tensor, degrees: list[int]) -> Features:
    """Features of all degrees side by side, [N, C, sum of 2d+1], as a dict by degree."""
    parts = features.split([degree_to_dim(degree) for degree in degrees], -1)
    return dict(zip(map(str, degrees), parts, strict=True))


def str2bool(v: bool | str) -> bool:
    """Read a boolean from a command line."""
    return v if isinstance(v, bool) else boolean(v)


def to_cuda(x: Any) -> Any:
    """Tensors, graphs, and tuples, lists and dicts of them on the current CUDA device; on the CPU where there is none."""
    return to_device(x, current_device())


def to_device(x: Any, device: torch.device) -> Any:
    """Tensors, graphs, and tuples, lists and dicts of them on a device."""
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if isinstance(x, tuple | list):
        return type(x)(to_device(value, device) for value in x)
    if isinstance(x, dict):
        return {key: to_device(value, device) for key, value in x.items()}
    return x.to(device=device)


def current_device() -> torch.device:
    """The current CUDA device; the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def get_local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def init_distributed() -> bool:
    """Join the process group that torchrun describes; False where there is only one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(get_local_rank())
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return True


def increase_l2_fetch_granularity() -> None:
    """Nothing: a setting for the published kernels' memory traffic, which these do not have."""


def rank_zero_only(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, doing nothing in any process but the first."""

    @wraps(fn)
    def on_first(*args: Any, **kwargs: Any) -> Any:
        if not dist.is_initialized() or dist.get_rank() == 0:
            return fn(*args, **kwargs)
        return None

    return on_first


def using_tensor_cores(amp: bool) -> bool:
    """Whether the current CUDA device has tensor cores that a model in float32, or under ``amp``, uses; False without one."""
    if not torch.cuda.is_available():
        return False
    major, _ = torch.cuda.get_device_capability()
    return major >= 8 or (amp and major >= 7)
