"""What a step would take on an H200, by a static model that needs no GPU: ``python -m bench.modelled [WORKLOAD] [--amp]``.

The launches of a step are recorded, each kernel is compiled for sm_90 as it would be there, and its machine code is followed for
sampled programs: integers and branches for real, floating-point numbers as unknown. Each pipe bounds the time of a launch from
below; the largest bound is what it takes. A step is that of ``bench.launches``; with ``--inference`` a forward pass without
gradients. ``--compare`` shows two files of ``--json`` side by side.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a step is recorded on the CPU also where there is a GPU

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import se3_fast
from bench.launches import SIZES, inference_step, training_step
from bench.modelled import known, tables
from bench.modelled.recording import compiling_for_gpu, record
from bench.modelled.step import Row, rows_of
from bench.workloads import BUILDERS, Workload, build, qm9_of
from se3_fast.kernels.resources import disassembler


def step_of(workload: Workload, is_amp: bool, is_inference: bool) -> Callable[[], None]:
    """A step of a workload."""
    if is_inference:
        workload.model.eval()
        return lambda: inference_step(workload, is_amp)
    optimizer = torch.optim.AdamW(workload.model.parameters(), fused=True)
    return lambda: training_step(workload, optimizer, is_amp)


def model(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """What was asked for, in words and numbers, and the launches of its step."""
    size = options.size or (SIZES | known.SIZES)[name]
    if name in known.KNOWN:
        step, kind = known.KNOWN[name](size), "one launch"
    else:
        workload = build(name, size) if options.data_dir is None else qm9_of(options.data_dir, size)
        step, kind = step_of(workload, options.amp, options.inference), "inference" if options.inference else "training step"
        kind += ", autocast to float16" if options.amp else ", float32"
    with compiling_for_gpu(), se3_fast.backend("triton"):
        launches = record(step)
    return {"workload": name, "size": size, "kind": kind, "molecules": size if name.startswith("qm9") else None}, rows_of(launches)


def main() -> int:
    """Record, model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*BUILDERS, *known.KNOWN]
    parser.add_argument("workload", nargs="?", default="qm9", choices=names, help="model and batch (default: qm9)")
    parser.add_argument("--size", type=int, help="molecules or residues (default: those of bench.launches)")
    parser.add_argument("--amp", action="store_true", help="under autocast to float16")
    parser.add_argument("--inference", action="store_true", help="a forward pass without gradients")
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz, for qm9 (default: molecules of the sample)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="files of --json; nothing is modelled")
    options = parser.parse_args()
    if options.data_dir is not None and options.workload != "qm9":
        parser.error(f"--data_dir: expected it with workload qm9 alone, got {options.workload}")
    if options.compare is not None:
        print(tables.comparison(*(json.loads(path.read_text()) for path in options.compare)))
        return 0
    try:
        disassembler()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    what, rows = model(options.workload, options)
    print(tables.whole(what, rows))
    if options.json is not None:
        options.json.write_text(json.dumps(tables.as_json(what, rows), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
