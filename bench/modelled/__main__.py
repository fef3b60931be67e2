"""What a step would take on an H200, by a static model that needs no GPU: ``python -m bench.modelled [WORKLOAD] [--amp]``.

The launches of a step are recorded, each kernel is compiled for sm_90 as it would be there, and its machine code is followed for
sampled programs: integers and branches for real, floating-point numbers as unknown. Each pipe bounds the time of a launch from
below; the largest bound is what it takes. A step is that of ``bench.launches``; with ``--inference`` a forward pass without
gradients. ``--compare`` shows two files of ``--json`` side by side.
"""

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a step is recorded on the CPU also where there is a GPU

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import se3_fast
from bench.launches import SIZES, inference_step, training_step
from bench.modelled import known, tables
from bench.modelled.listing import disassembler
from bench.modelled.recording import compiling_for_gpu, record
from bench.modelled.step import rows_of
from bench.workloads import BUILDERS, Workload, build, qm9_of


def step_of(workload: Workload, is_amp: bool, is_inference: bool) -> Callable[[], None]:
    """A step of a workload."""
    if is_inference:
        workload.model.eval()
        return lambda: inference_step(workload, is_amp)
    optimizer = torch.optim.AdamW(workload.model.parameters(), fused=True)
    return lambda: training_step(workload, optimizer, is_amp)


def main() -> int:
    """Record, model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workload", nargs="?", default="qm9", choices=[*BUILDERS, *known.KNOWN], help="model and batch (default: qm9)"
    )
    parser.add_argument("--size", type=int, help="molecules or residues (default: those of bench.launches)")
    parser.add_argument("--amp", action="store_true", help="under autocast to float16")
    parser.add_argument("--inference", action="store_true", help="a forward pass without gradients")
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz, for qm9 (default: molecules of the sample)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="files of --json; nothing is modelled")
    options = parser.parse_args()
    if options.compare is not None:
        before, after = (json.loads(path.read_text()) for path in options.compare)
        print(f"{tables.FIRST_LINE}\n\n{tables.comparison(before, after)}")
        return 0
    name, size = options.workload, options.size or (SIZES | known.SIZES)[options.workload]
    try:
        disassembler()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if options.data_dir is not None and name != "qm9":
        parser.error(f"--data_dir: expected it with workload qm9 alone, got {name}")
    if name in known.KNOWN:
        step = known.KNOWN[name](size)
    else:
        workload = build(name, size) if options.data_dir is None else qm9_of(options.data_dir, size)
        step = step_of(workload, options.amp, options.inference)
    with compiling_for_gpu(), se3_fast.backend("triton"):
        rows = rows_of(record(step))
    molecules = size if name.startswith("qm9") else None
    kind = "inference" if options.inference else "training step"
    precision = "autocast to float16" if options.amp else "float32"
    print(f"{tables.FIRST_LINE}\n\n{name}, size {size}, {kind}, {precision}: {tables.summary(rows, molecules)}\n")
    print("\n\n".join((tables.launches_table(rows), tables.bounds_table(rows), tables.instructions_table(rows))))
    if options.json is not None:
        what = {"workload": name, "size": size, "kind": kind, "precision": precision}
        options.json.write_text(json.dumps(tables.as_json(rows, what), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
