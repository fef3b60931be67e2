"""What benchmarks run on, and where their results go."""

from __future__ import annotations

import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.workloads import DEVICE

RESULTS = Path(__file__).parent / "results"


def device_name() -> str:
    """Name of the device that the benchmarks run on, as part of a file name."""
    return torch.cuda.get_device_name().replace(" ", "_") if DEVICE.type == "cuda" else "cpu"


def device_title() -> str:
    """The device as the title of a plot names it."""
    threads = torch.get_num_threads()
    return device_name().replace("_", " ") if DEVICE.type == "cuda" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def environment() -> dict[str, Any]:
    """Date, commit, device, processor and versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit_of(Path(__file__).parents[1]),
        "device": device_name() if DEVICE.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "processor": processor_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if DEVICE.type == "cuda" else None,
    }


def processor_name() -> str:
    """Name, family and model of the processor: names alone say too little on virtual machines; ``unknown`` where no file tells."""
    file = Path("/proc/cpuinfo")
    fields = dict(line.partition(":")[::2] for line in reversed(file.read_text().splitlines())) if file.exists() else {}
    known = {name.strip(): value.strip() for name, value in fields.items()}
    if "model name" not in known:
        return "unknown"
    return f"{known['model name']} (family {known.get('cpu family')}, model {known.get('model')})"


def commit_of(tree: Path) -> str:
    """The commit that is checked out in a folder; ``unknown`` where there is none."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
