"""Trained models by name: those in the package, and those of the folders that ``SE3_FAST_MODELS`` names.

A model is ``NAME.safetensors``, with its card ``NAME.md`` and its checksum in ``SHA256SUMS`` beside it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from se3_fast.files import SAFETENSORS_SUFFIX
from se3_fast.training.errors import CheckpointError

FOLDERS_VARIABLE = "SE3_FAST_MODELS"
CHECKSUMS = "SHA256SUMS"


def model_names() -> list[str]:
    """Names of all models, ascending."""
    return sorted(_paths())


def find_model(name: str) -> Path:
    """The file of a model.

    Args:
        name: One of :func:`model_names`.

    Raises:
        CheckpointError: There is none of this name, which names those that there are; or it is not the file whose checksum
            stands beside it.
    """
    paths = _paths()
    if name not in paths:
        raise CheckpointError(
            f"model {name!r:.100}: expected one of {', '.join(sorted(paths))} (further folders: {FOLDERS_VARIABLE}), or a file as "
            "--load_ckpt_path"
        )
    path = paths[name]
    wanted = _checksums(path.parent).get(path.name)
    if wanted is not None and wanted != file_checksum(path):
        raise CheckpointError(f"{path}: damaged: its checksum is not the one in {CHECKSUMS}")
    return path


def model_summary(name: str) -> str:
    """The first sentence of a model's card, or empty if it has none."""
    card = _paths()[name].with_suffix(".md")
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8").splitlines()
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _paths() -> dict[str, Path]:
    """Files of the models by name; of equal names that of the first folder."""
    named = [Path(folder) for folder in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if folder]
    folders = [*named, Path(__file__).parent]
    return {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob(f"*{SAFETENSORS_SUFFIX}"))}


def _checksums(folder: Path) -> dict[str, str]:
    """Checksums by names of files, as ``sha256sum`` writes them."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    words = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name.strip().lstrip("*"): checksum for checksum, name in words}
