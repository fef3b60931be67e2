"""All readers that are attacked, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .cases import (
    Checkpoints,
    ForceFields,
    ForceFrames,
    FrameFolders,
    Molecules,
    Molecules3D,
    OldCheckpoints,
    Reader,
    Safetensors,
)


def _collections(folder: Path) -> Reader:
    from .hdf5_files import Collections

    return Collections(folder)


def _shards(folder: Path) -> Reader:
    from .lmdb_files import Shards

    return Shards(folder)


READERS: dict[str, Callable[[Path], Reader]] = {
    "molecules": Molecules,
    "force_frames": ForceFrames,
    "frame_folders": FrameFolders,
    "checkpoints": Checkpoints,
    "old_checkpoints": OldCheckpoints,
    "safetensors": Safetensors,
    "force_fields": ForceFields,
    "hdf5_collections": _collections,
    "lmdb_shards": _shards,
    "build_qm9": Molecules3D,
}
