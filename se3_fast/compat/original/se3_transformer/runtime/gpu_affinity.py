"""Which CPU cores a process that feeds a GPU runs on: those near its GPU, shared or its own.

What is near is read from the system (``/sys``). Where that does not say, or there is no GPU, all cores are near all of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "Device",
    "check_socket_affinities",
    "get_socket_affinities",
    "get_thread_siblings_list",
    "set_affinity",
    "set_single_affinity",
    "set_single_unique_affinity",
    "set_socket_affinity",
    "set_socket_unique_affinity",
]

_CORES = Path("/sys/devices/system/cpu")
_PCI = Path("/sys/bus/pci/devices")
_MODES = ("socket", "single", "single_unique", "socket_unique_interleaved", "socket_unique_continuous")


class Device:
    """A GPU.

    Args:
        device_idx: its number.
    """

    def __init__(self, device_idx: int) -> None:
        self._properties: Any = torch.cuda.get_device_properties(device_idx) if torch.cuda.is_available() else None

    def get_name(self) -> str:
        """Its name; ``cpu`` where there is no GPU."""
        return self._properties.name if self._properties else "cpu"

    def get_uuid(self) -> str:
        """Its identity; empty where there is no GPU."""
        return str(self._properties.uuid) if self._properties else ""

    def get_cpu_affinity(self) -> list[int]:
        """The cores near it, ascending."""
        if self._properties is not None:
            place = self._properties
            file = _PCI / f"{place.pci_domain_id:04x}:{place.pci_bus_id:02x}:{place.pci_device_id:02x}.0" / "local_cpulist"
            if file.is_file() and (cores := _parse(file.read_text())):
                return cores
        return list(range(os.cpu_count() or 1))


def _parse(text: str) -> list[int]:
    """A list as ``0-3,8,10-11``."""
    cores: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores += range(int(first), int(last or first) + 1)
    return cores


def get_thread_siblings_list() -> list[tuple[int, int]]:
    """Pairs of cores that are threads of one physical core, each with its smaller number first."""
    pairs = set()
    for file in _CORES.glob("cpu*/topology/thread_siblings_list"):
        first, *others = sorted(_parse(file.read_text()))
        pairs |= {(first, other) for other in others}
    return sorted(pairs)


def check_socket_affinities(socket_affinities: list[list[int]]) -> None:
    """Check that GPUs have the same cores near them, or none in common.

    Raises:
        RuntimeError: if not.
    """
    sets = [set(cores) for cores in socket_affinities]
    for one in sets:
        for other in sets:
            if one != other and one & other:
                raise RuntimeError(
                    f"expected GPUs near the same cores or near none in common, got {sorted(one)} and {sorted(other)}"
                )


def get_socket_affinities(nproc_per_node: int, exclude_unavailable_cores: bool = True) -> list[list[int]]:
    """The cores near each of the first GPUs, ascending.

    Args:
        nproc_per_node: number of GPUs.
        exclude_unavailable_cores: leave out those that this process may not run on.

    Raises:
        RuntimeError: if some GPUs share some of their cores and not all.
    """
    affinities = [Device(number).get_cpu_affinity() for number in range(nproc_per_node)]
    if exclude_unavailable_cores:
        available = os.sched_getaffinity(0)
        affinities = [[core for core in cores if core in available] for cores in affinities]
    check_socket_affinities(affinities)
    return affinities


def set_socket_affinity(gpu_id: int) -> None:
    """Run on all cores near the GPU."""
    _run_on(Device(gpu_id).get_cpu_affinity())


def set_single_affinity(gpu_id: int) -> None:
    """Run on the first core near the GPU that is available; other processes may have the same."""
    available = os.sched_getaffinity(0)
    _run_on([core for core in Device(gpu_id).get_cpu_affinity() if core in available][:1])


def set_single_unique_affinity(gpu_id: int, nproc_per_node: int) -> None:
    """Run on one physical core near the GPU, each process on another.

    Raises:
        RuntimeError: if there are not enough.
    """
    taken: list[int] = []
    for cores in _physical_cores(nproc_per_node):
        taken.append(next((core for core in cores if core not in taken), -1))
    _run_on([taken[gpu_id]] if taken[gpu_id] >= 0 else [])


def set_socket_unique_affinity(gpu_id: int, nproc_per_node: int, mode: str, balanced: bool = True) -> None:
    """Run on a share of the physical cores near the GPU, with their second threads, each process on another.

    Args:
        gpu_id: number of the GPU.
        nproc_per_node: number of processes, each with its GPU.
        mode: ``interleaved`` (every n-th core) or ``continuous`` (neighbours).
        balanced: as many physical cores for each process.

    Raises:
        ValueError: for another ``mode``.
        RuntimeError: if there are not enough cores.
    """
    if mode not in ("interleaved", "continuous"):
        raise ValueError(f"mode: expected 'interleaved' or 'continuous', got {mode!r}")
    near = _physical_cores(nproc_per_node)
    sharing: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, shared in enumerate(near):
        sharing[tuple(shared)].append(number)
    smallest = min(len(shared) // len(sharers) for shared, sharers in sharing.items())
    cores = tuple(near[gpu_id])
    gpus = sharing[cores]
    count = smallest if balanced else len(cores) // len(gpus)
    place = gpus.index(gpu_id)
    if mode == "interleaved":
        own = cores[: count * len(gpus)] if balanced else cores
        chosen = own[place :: len(gpus)]
    else:
        chosen = cores[place * count : (place + 1) * count]
    second = defaultdict(list)
    for first, other in get_thread_siblings_list():
        second[first].append(other)
    _run_on([*chosen, *(other for core in chosen for other in second[core])])


def set_affinity(gpu_id: int, nproc_per_node: int, mode: str = "socket_unique_continuous", balanced: bool = True) -> set[int]:
    """Let this process run on cores near its GPU.

    Args:
        gpu_id: number of the GPU.
        nproc_per_node: number of processes on this machine, each with its GPU.
        mode: ``socket``: all cores near the GPU; ``single``: the first; ``single_unique``: one, each process another;
            ``socket_unique_interleaved`` and ``socket_unique_continuous``: a share of them, each process another.
        balanced: shares of as many physical cores.

    Returns:
        The cores that it may run on.

    Raises:
        ValueError: for another ``mode``.
        RuntimeError: if there are not enough cores.
    """
    if mode not in _MODES:
        raise ValueError(f"mode: expected one of {', '.join(_MODES)}, got {mode!r}")
    if mode == "socket":
        set_socket_affinity(gpu_id)
    elif mode == "single":
        set_single_affinity(gpu_id)
    elif mode == "single_unique":
        set_single_unique_affinity(gpu_id, nproc_per_node)
    else:
        set_socket_unique_affinity(gpu_id, nproc_per_node, mode.removeprefix("socket_unique_"), balanced)
    return os.sched_getaffinity(0)


def _physical_cores(nproc_per_node: int) -> list[list[int]]:
    """Of the cores near each GPU those that are the first thread of a physical core."""
    second = {other for _, other in get_thread_siblings_list()}
    return [[core for core in cores if core not in second] for cores in get_socket_affinities(nproc_per_node)]


def _run_on(cores: list[int]) -> None:
    if not cores:
        raise RuntimeError("expected as many physical cores near the GPUs as there are processes, got fewer")
    os.sched_setaffinity(0, cores)
