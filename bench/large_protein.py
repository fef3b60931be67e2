"""One block of a protein pipeline on the complete graph of a large protein: time and memory of a training step.

``python -m bench.large_protein [COORDINATES.npz] [--backends ...]``: ``protein_full`` on the C-alpha atoms of a file with arrays
``pos`` [A, 3] and ``name`` [A], or on a random chain of as many residues as 5TPN has. Every backend runs in a process of its
own; one that the system ends for want of memory is reported as such.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import se3_fast
from bench.environment import RESULTS, device_name, environment
from bench.peak_memory import high_water_mark, peak_of_step
from bench.workloads import BACKENDS, DEVICE, protein_full_of, random_chain

RESIDUES = 921
KILLED = -9


def positions(coordinates: Path | None) -> Tensor:
    """[L, 3], Angstrom."""
    if coordinates is None:
        return random_chain(RESIDUES)
    with np.load(coordinates, allow_pickle=False) as atoms:
        return torch.from_numpy(atoms["pos"][atoms["name"] == b"CA"])


def measure(coordinates: Path | None, backend: str) -> dict[str, Any]:
    """Seconds of a step, its peak bytes above model and inputs, and those of the whole process."""
    torch.manual_seed(0)
    workload = protein_full_of(positions(coordinates)).to(DEVICE)
    with se3_fast.backend(backend):
        peak = peak_of_step(workload)
        start = time.perf_counter()
        workload.forward_backward()
        seconds = time.perf_counter() - start
    whole = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else high_water_mark()
    graph = workload.graph
    sizes = {"nodes": graph.num_nodes(), "edges": graph.num_edges()}
    return sizes | {"backend": backend, "seconds": seconds, "peak_MiB": peak / 2**20, "whole_process_MiB": whole / 2**20}


def measure_in_new_process(coordinates: Path | None, backend: str) -> dict[str, Any]:
    """The same; without figures if the process was ended."""
    command = [sys.executable, "-m", "bench.large_protein", *([str(coordinates)] if coordinates else []), "--only", backend]
    finished = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        return {"backend": backend, "failed": "out of memory" if finished.returncode == KILLED else "error"}
    return json.loads(finished.stdout)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coordinates", type=Path, nargs="?", help="default: a random chain")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, help="what is compared")
    parser.add_argument("--only", help="measure one backend in this process and print the figures")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.coordinates, arguments.only)))
        return 0
    rows = []
    for backend in arguments.backends:
        rows.append(measure_in_new_process(arguments.coordinates, backend))
        print(json.dumps(rows[-1]), flush=True)
    protein = arguments.coordinates.stem if arguments.coordinates else "random chain"
    results = {"environment": environment(), "protein": protein, "rows": rows}
    (RESULTS / f"large_protein_{device_name()}.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
