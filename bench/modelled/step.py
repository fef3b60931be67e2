"""The time of a step: of each launch, with what it finds in the second-level cache, and of their sum."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from triton.runtime.cache import get_cache_manager

from bench.modelled import gpu
from bench.modelled.launch_time import LaunchTime, time_of
from bench.modelled.recording import KernelLaunch, OperationLaunch, Pointer


@dataclass
class Row:
    """Launches of a step that cost the same but for what they find in the cache.

    Attributes:
        name, issuer: of the launch.
        count: how many.
        us: of all of them.
        bounds: microseconds of one, by pipe; ``HBM`` on average.
        grid, num_warps, time: of a kernel; of an operation of PyTorch empty, 0 and None.
    """

    name: str
    issuer: str
    count: int
    us: float
    bounds: dict[str, float]
    grid: tuple[int, ...] = ()
    num_warps: int = 0
    time: LaunchTime | None = None

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def waves(self) -> float:
        """How often all multiprocessors are filled with programs."""
        if self.time is None:
            return 0.0
        width, height, depth = self.grid
        return width * height * depth / (gpu.MULTIPROCESSORS * self.time.resident)


class _SecondLevelCache:
    """Which storages are still in the cache: those touched last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, int] = OrderedDict()

    def missed(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Bytes of storages, with their sizes, that come from memory when a launch touches them."""
        bytes_missed = 0
        for key, size in sizes:
            if key in self._kept:
                self._kept.move_to_end(key)
            else:
                bytes_missed += size
            self._kept[key] = size
        while len(self._kept) > 1 and sum(self._kept.values()) > gpu.L2_BYTES_KEPT:
            self._kept.popitem(last=False)
        return bytes_missed


def rows_of(launches: Sequence[KernelLaunch | OperationLaunch]) -> list[Row]:
    """What the launches of a step cost, in their order, those that cost the same in one row."""
    rows: dict[str, Row] = {}
    times: dict[str, LaunchTime] = {}
    cache = _SecondLevelCache()
    for launch in launches:
        if isinstance(launch, OperationLaunch):
            key, row = f"{launch.name} {launch.num_bytes} {launch.issuer}", _row_of_operation(launch)
        else:
            key = _identity(launch)
            if key not in times:
                times[key] = _kept_time(launch, key)
            row = _row_of_kernel(launch, times[key], cache)
            key += launch.issuer
        if key in rows:
            known = rows[key]
            known.count += 1
            known.us += row.us
            known.bounds["HBM"] += (row.bounds["HBM"] - known.bounds["HBM"]) / known.count
        else:
            rows[key] = row
    return list(rows.values())


def _row_of_operation(launch: OperationLaunch) -> Row:
    us = launch.num_bytes / gpu.PLAIN_BYTES_PER_US
    return Row(launch.name, launch.issuer, 1, us + gpu.LAUNCH_US, {"HBM": us})


def _row_of_kernel(launch: KernelLaunch, time: LaunchTime, cache: _SecondLevelCache) -> Row:
    sizes = {pointer.storage.key: min(pointer.storage.num_bytes, pointer.num_bytes) for pointer in launch.pointers()}
    bounds = time.bounds | {"HBM": cache.missed(sizes.items()) / gpu.MEMORY_BYTES_PER_US}
    us = max(bounds.values()) + gpu.LAUNCH_US
    return Row(launch.name, launch.issuer, 1, us, bounds, launch.grid, launch.num_warps, time)


def _identity(launch: KernelLaunch) -> str:
    """The same for launches that cost the same: machine code, grid, numbers, content of integer tensors; and for this model."""
    digest = hashlib.sha256(_model_version())
    digest.update(launch.cubin)
    digest.update(repr((launch.grid, launch.num_warps, launch.shared_bytes)).encode())
    for kind, value in launch.arguments:
        if isinstance(value, Pointer):
            content = value.storage.content
            digest.update(repr((kind, value.offset % gpu.LINE_BYTES if content is None else value.offset)).encode())
            if content is not None:
                digest.update(content)
        else:
            digest.update(repr((kind, None if isinstance(value, float) else value)).encode())
    return digest.hexdigest()


@cache
def _model_version() -> bytes:
    """Changes with every change of the model."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def _kept_time(launch: KernelLaunch, key: str) -> LaunchTime:
    """The time of a launch, from Triton's cache where it was modelled before."""
    manager = get_cache_manager(key)
    path = manager.get_file("modelled.json")
    if path is not None:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        return LaunchTime(**found)
    time = time_of(launch)
    manager.put(json.dumps(asdict(time)), "modelled.json", binary=False)
    return time
