"""Checkpoints: written whole or not at all, read without running code from them.

Files whose name ends in `.safetensors` hold the parameters, and what describes model and data; all others are `torch.save`'s.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import nn

from se3_fast.files import atomic_file
from se3_fast.model import check_state_dict

from .errors import CheckpointError

FORMAT_VERSION = 1
SAFETENSORS_SUFFIX = ".safetensors"
_PUBLISHED_KEYS = ("state_dict", "optimizer_state_dict", "epoch")
_DESCRIPTION_KEYS = ("epoch", "step", "optimizer", "model_config", "data", "seed")
_DESCRIPTION = "checkpoint"


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old one or the whole new one at every moment.

    Args:
        path: The file.
        checkpoint: The published keys `state_dict`, `optimizer_state_dict` and `epoch` (number of epochs
            done), and what this package adds: `scheduler_state_dict`, `scaler_state_dict`, `rng` (a state per
            process), `step`, `optimizer`, `history`, `model_config`, `data`, `seed`.

    Raises:
        OSError: The file cannot be written.
    """
    with atomic_file(path) as file:
        try:
            torch.save({**checkpoint, "version": FORMAT_VERSION}, file)
        except RuntimeError as error:
            # Its writer hides the error of the file behind one of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write_safetensors(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write the parameters of a checkpoint, and what describes model and data, in the safetensors format, whole or not at all.

    The states of optimizer, schedule, loss scaling and random generators are left out: no run goes on from such a file.

    Args:
        path: The file.
        checkpoint: As for `write_checkpoint`; `state_dict` is enough.

    Raises:
        OSError: The file cannot be written.
    """
    # Copies, because tensors that share memory are refused.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint["state_dict"].items()}
    description = {key: checkpoint[key] for key in _DESCRIPTION_KEYS if key in checkpoint}
    with atomic_file(path) as file:
        file.write(safetensors_bytes(tensors, {"format": "pt", _DESCRIPTION: json.dumps(description)}))


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            text = (file.metadata() or {}).get(_DESCRIPTION, "{}")
            description = json.loads(text, object_pairs_hook=_with_degrees_as_numbers)
    except (SafetensorError, json.JSONDecodeError, OSError):
        raise CheckpointError(f"{path}: damaged, or not a safetensors file") from None
    return {"epoch": 0, **description, "state_dict": state_dict, "optimizer_state_dict": {}}


def _with_degrees_as_numbers(pairs: list[tuple[str, Any]]) -> dict[str | int, Any]:
    """JSON has only text as keys; the degrees of fibers are numbers."""
    return {int(key) if key.isdecimal() else key: value for key, value in pairs}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, one in the published format, or a safetensors file, on the CPU.

    From safetensors `optimizer_state_dict` is empty, and `epoch` 0 where the file does not say.

    Raises:
        CheckpointError: The file is missing, is not a whole checkpoint, or would run code when read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: expected tensors and plain values only, but it holds other objects") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError):
        raise CheckpointError(f"{path}: damaged, or not a checkpoint written by torch.save") from None
    missing = [key for key in _PUBLISHED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise CheckpointError(f"{path}: expected the keys {', '.join(_PUBLISHED_KEYS)}; missing: {', '.join(missing)}")
    version = checkpoint.get("version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: expected a checkpoint format of at most {FORMAT_VERSION}, got {version}")
    return checkpoint


def check_same(path: Path, subject: str, saved: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Compare a description kept in a checkpoint with that of this run; None (published format) passes.

    Numbers with a fraction may differ by rounding.

    Raises:
        CheckpointError: Names every entry that differs.
    """
    if saved is None:
        return
    differences = [
        f"{name} is {saved.get(name)!r} in the checkpoint, {value!r} in this run"
        for name, value in wanted.items()
        if not _equal(saved.get(name), value)
    ]
    if differences:
        raise CheckpointError(f"{path}: made with another {subject}: {'; '.join(differences)}")


def _equal(saved: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(saved, float):
        return abs(saved - wanted) <= 1e-6 * max(abs(saved), abs(wanted))
    return bool(saved == wanted)


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Load parameters after comparing names and shapes.

    Args:
        model: Takes the parameters.
        state_dict: The parameters.
        path: The checkpoint that they come from, for the message.

    Raises:
        CheckpointError: Names a parameter that does not fit.
    """
    try:
        check_state_dict(model, state_dict)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    model.load_state_dict(state_dict)
