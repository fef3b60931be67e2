"""Checkpoints: written whole or not at all, read without running code from them.

Files whose name ends in `.safetensors` hold the parameters, and what describes model and data; all others are `torch.save`'s.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from se3_fast.archives import Archive, ArchiveError
from se3_fast.error_text import one_line
from se3_fast.files import SAFETENSORS_SUFFIX, atomic_file
from se3_fast.model import check_state_dict

from .checkpoint_entries import FORMAT_VERSION, check_entries
from .errors import CheckpointError
from .pickle_outline import ForeignObjectError, Outline, OutlineError, Storage

ModelType = TypeVar("ModelType", bound=nn.Module)

_DESCRIPTION_KEYS = (
    "epoch",
    "step",
    "optimizer",
    "model_config",
    "data",
    "featuriser",
    "domain",
    "training_set",
    "closest_pairs",
    "uncertainty",
    "results",
    "seed",
)
_DESCRIPTION = "checkpoint"
_CHECKSUM = "checkpoint_sha256"
_ZIP_MAGIC = b"PK\x03\x04"
_OLD_FORMAT_PICKLES = 5  # a magic number, the version, the machine, the object, the keys of the storages that follow
_VALUES_FOR_A_BYTE = 10
"""Values that a checkpoint may have for each byte of its pickle; the few that a pickle names twice are counted twice."""


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old one or the whole new one at every moment.

    Args:
        path: The file.
        checkpoint: The published keys `state_dict`, `optimizer_state_dict` and `epoch` (number of epochs
            done), and what this package adds: `scheduler_state_dict`, `scaler_state_dict`, `rng` (a state per
            process), `step`, `optimizer`, `history`, `model_config`, `data`, `featuriser`, `domain`,
            `training_set`, `closest_pairs`, `uncertainty`, `results`, `seed`.

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
    text = json.dumps(description)
    with atomic_file(path) as file:
        file.write(safetensors_bytes(tensors, {"format": "pt", _DESCRIPTION: text, _CHECKSUM: _checksum(tensors, text)}))


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    """SHA-256 of parameters, their names, types and shapes, and of what describes them."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata() or {}
        text = metadata.get(_DESCRIPTION, "")
        if _DESCRIPTION in metadata and not metadata.keys() <= {"format", _DESCRIPTION, _CHECKSUM}:
            raise ValueError("its metadata has an entry that none of its writers knows")  # the checksum's name, perhaps
        if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(state_dict, text):
            raise ValueError("its bytes are not those that were written")
        description = json.loads(text or "{}", object_pairs_hook=_with_degrees_as_numbers)
        described = {key: description[key] for key in _DESCRIPTION_KEYS if key in description}
    except (
        Exception
    ) as error:  # of safetensors, of torch for types that it does not have, of JSON that is too deep or no dictionary
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({one_line(error)})") from None
    checkpoint = {"epoch": 0, **described, "state_dict": state_dict, "optimizer_state_dict": {}}
    _check_entries(path, checkpoint, _VALUES_FOR_A_BYTE * path.stat().st_size)
    return checkpoint


def _with_degrees_as_numbers(pairs: list[tuple[str, Any]]) -> dict[str | int, Any]:
    """JSON has only text as keys; the degrees of fibers are numbers."""
    return {int(key) if key.isdecimal() and key.isascii() else key: value for key, value in pairs}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, one in the published format, or a safetensors file, on the CPU.

    From safetensors `optimizer_state_dict` is empty, and `epoch` 0 where the file does not say.

    What `torch.save` writes, and the safetensors files of this package, carry checksums, so that what is returned is what was
    written. Safetensors files of other programs, and those of `torch.save` before version 1.6, have none.

    Raises:
        CheckpointError: The file is missing, is not a whole checkpoint, has an entry that is not what it should be, or would run
            code when read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path)
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            file.seek(0)
            checkpoint, most_values = _load_archive(file) if is_zip else _load_old_format(file)
    except ForeignObjectError as error:
        raise CheckpointError(f"{path}: expected tensors and plain values only, but it holds other objects ({error})") from None
    except Exception as error:  # torch.load has no list of what it raises about bytes that are not as it expects
        raise CheckpointError(f"{path}: damaged, or not a checkpoint written by torch.save ({one_line(error)})") from None
    _check_entries(path, checkpoint, most_values)
    return checkpoint


def _load_archive(file: BinaryIO) -> tuple[Any, int]:
    """What a zip archive of `torch.save` holds, once its checksums and sizes are found right; and how many values it may have."""
    archive = Archive(file)
    folder = next(iter(archive.sizes), "").partition("/")[0]
    described, of_storage = f"{folder}/data.pkl", f"{folder}/data/"
    if described not in archive.sizes or f"{folder}/constants.pkl" in archive.sizes:
        raise ArchiveError("it holds no data.pkl, or a program")
    for name in archive.sizes:
        archive.read(name)

    def check_storage(storage: Storage) -> None:
        held = archive.sizes.get(of_storage + storage.key)
        if held != storage.size:
            raise OutlineError(f"expected {storage.size} bytes of storage {storage.key!r:.100}, got {held}")

    pickled = archive.read(described)
    Outline(sum(archive.sizes.values()), check_storage).draw(io.BytesIO(pickled))
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=False), _VALUES_FOR_A_BYTE * len(pickled)


def _load_old_format(file: BinaryIO) -> tuple[Any, int]:
    """What a file of `torch.save` before version 1.6 holds, once its sizes are found right; and how many values it may have."""
    content = io.BytesIO(file.read())
    file_size = len(content.getbuffer())
    held = 0

    def check_storage(storage: Storage) -> None:
        nonlocal held
        held += storage.size
        if held > file_size:
            raise OutlineError(f"expected storages of at most {file_size} bytes, as the file has, got more")

    outline = Outline(file_size, check_storage)
    for _ in range(_OLD_FORMAT_PICKLES):
        outline.draw(content)
    most_values = _VALUES_FOR_A_BYTE * content.tell()
    content.seek(0)
    return torch.load(content, map_location="cpu", weights_only=True, mmap=False), most_values


def _check_entries(path: Path, checkpoint: Any, most_values: int) -> None:
    try:
        check_entries(checkpoint, most_values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_training_set(path: Path, checkpoint: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Check that a run goes on with the molecules that it was begun with; a checkpoint or data that do not say which pass.

    With others, molecules that were trained on may be among those that it is tested on; and energies of another unit or kind
    would be learned on top of those of before.

    Raises:
        CheckpointError: It does not.
    """
    name = "training_set"
    if name in checkpoint and name in described and checkpoint[name] != described[name]:
        raise CheckpointError(
            f"{path}: made with another data set: the molecules that it was trained on, or their targets, are not those that this "
            "run would train on; was the file changed, the split, or which labels are read, in which unit?"
        )


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
    if isinstance(wanted, dict) and isinstance(saved, dict):
        return saved.keys() == wanted.keys() and all(_equal(saved[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list) and isinstance(saved, list):
        return len(saved) == len(wanted) and all(map(_equal, saved, wanted))
    if isinstance(wanted, float) and isinstance(saved, float):
        return abs(saved - wanted) <= 1e-6 * max(abs(saved), abs(wanted))
    return bool(saved == wanted)


def build_from(path: Path, state_dict: dict[str, torch.Tensor], make: Callable[[], ModelType]) -> ModelType:
    """Make the model that a checkpoint describes and load its parameters, once they are known to be those of the model.

    Args:
        path: The checkpoint, for the message.
        state_dict: Its parameters.
        make: Makes the model; first without memory for its parameters, so that a description which does not fit takes none.

    Raises:
        CheckpointError: The description contradicts itself, or the parameters are those of another model.
    """
    try:
        with torch.device("meta"):
            check_state_dict(make(), state_dict)
        model = make()
    except (ValueError, RuntimeError, OverflowError) as error:  # the latter of sizes that no tensor can have
        raise CheckpointError(f"{path}: model_config: {one_line(error)}") from None
    load_weights(model, state_dict, path)
    return model


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Load parameters after comparing names, shapes and kinds of numbers.

    Args:
        model: Takes the parameters.
        state_dict: The parameters.
        path: The checkpoint that they come from, for the message.

    Raises:
        CheckpointError: Names a parameter that does not fit, or has values that are not finite in the model's type.
    """
    try:
        check_state_dict(model, state_dict)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for name, own in model.state_dict().items():
        given = state_dict[name]
        if given.is_floating_point() != own.is_floating_point():
            raise CheckpointError(f"{path}: state_dict: expected {own.dtype} in {name!r}, got {given.dtype}")
        if not given.to(own.dtype).isfinite().all():
            raise CheckpointError(f"{path}: state_dict: expected finite values of {own.dtype} in {name!r}, got others")
    model.load_state_dict(dict(state_dict))
