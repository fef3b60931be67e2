"""Seeding, capturing and restoring every random number generator that a run uses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from se3_fast.error_text import one_line

_NUMPY_STATE_WORDS = 624


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's (all devices) generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, Any]:
    """State of all generators, in types that `torch.load(weights_only=True)` reads."""
    numpy_state: Any = np.random.get_state(legacy=False)
    generator = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**generator, "key": torch.from_numpy(generator["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def check_random_state(state: Any) -> None:
    """Check that something is what `capture_random_state` returns, as far as `restore_random_state` reads it.

    Raises:
        ValueError: In one line: it is not.
    """
    try:
        _try_random_state(state)
    except Exception as error:  # what the generators raise about other things than states, from KeyError to OverflowError
        raise ValueError(f"expected states of the generators of Python, NumPy and torch ({one_line(error)})") from error


def _try_random_state(state: Any) -> None:
    """Put generators that nobody uses into a state."""
    version, internal, gauss_next = state["python"]
    random.Random().setstate((version, tuple(internal), gauss_next))
    if gauss_next is not None and type(gauss_next) is not float:
        raise TypeError("the next Gaussian number is no float")
    numpy_state, torch_states = _with_numpy_key(state["numpy"]), [state["torch"], *state["cuda"]]
    key, position = numpy_state["state"]["key"], numpy_state["state"]["pos"]
    # NumPy takes any position, and reads there.
    if key.shape != (_NUMPY_STATE_WORDS,) or type(position) is not int or not 0 <= position <= _NUMPY_STATE_WORDS:
        raise ValueError(f"expected {_NUMPY_STATE_WORDS} words and a position in them, got {key.shape} and {position!r:.100}")
    np.random.RandomState().set_state(numpy_state)
    torch.Generator().set_state(state["torch"])
    if any(state.dtype != torch.uint8 or state.ndim != 1 for state in torch_states):
        raise TypeError("states of torch are bytes")


def _with_numpy_key(state: dict[str, Any]) -> dict[str, Any]:
    """NumPy's state with its words as NumPy has them; checkpoints hold them as a tensor."""
    key = state["state"]["key"].numpy()
    if key.dtype != np.int64 or key.min() < 0 or key.max() >= 2**32:
        raise ValueError("expected words of 32 bits")
    return {**state, "state": {**state["state"], "key": key.astype(np.uint32)}}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put all generators back to a state from `capture_random_state`.

    CUDA generators are restored where the machine has as many devices as the state; a run that moves to
    another number of GPUs keeps the state its seed gave it there.
    """
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    np.random.set_state(_with_numpy_key(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
