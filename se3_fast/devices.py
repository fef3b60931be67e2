"""Devices that users name."""

from __future__ import annotations

import torch


def device_of(device: torch.device | str | int) -> torch.device:
    """The device that an argument names.

    Raises:
        ValueError: if it names none, or a GPU that PyTorch does not see.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'cpu', 'cuda', 'cuda:<number>' or a torch.device, got {device!r:.50}") from None
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(f"device: expected one that PyTorch sees, which are the CPU and {count} GPUs, got {device!r:.50}")
    return found
