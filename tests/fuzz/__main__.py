"""`python -m tests.fuzz SECONDS`: the long run of tests/fuzz, in two processes with two seeds, and a summary of both.

The seeds are drawn and printed; `--seeds` sets them. Everything that is written lies in build/fuzz.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz"


def start(seed: int, seconds: float) -> subprocess.Popen[bytes]:
    """One process of one thread. What it prints goes to seed-<seed>.log, its summary to .json, its last case to .case."""
    for suffix in ("json", "case"):
        (FOLDER / f"seed-{seed}.{suffix}").unlink(missing_ok=True)
    environment = os.environ | {
        "SE3_FAST_FUZZ_SECONDS": str(seconds),
        "SE3_FAST_FUZZ_SEED": str(seed),
        "SE3_FAST_FUZZ_SUMMARY": str(FOLDER / f"seed-{seed}.json"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"--basetemp={FOLDER / f'seed-{seed}'}", "tests/fuzz"]
    with (FOLDER / f"seed-{seed}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def main() -> int:
    """Run both, print their logs and one line for each campaign; not 0 if a process failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seconds", type=float, help="how long, together for all campaigns")
    parser.add_argument("--seeds", type=int, nargs="+", help="one process for each (default: two drawn ones)")
    arguments = parser.parse_args()
    seeds = arguments.seeds or random.SystemRandom().sample(range(10**6), 2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"fuzz: {arguments.seconds:g} s, seeds {' '.join(map(str, seeds))}", flush=True)
    processes = {seed: start(seed, arguments.seconds) for seed in seeds}
    failed = False
    totals: dict[str, Counter[str]] = {}
    for seed, process in processes.items():
        status = process.wait()
        failed |= status != 0
        print((FOLDER / f"seed-{seed}.log").read_text(errors="replace"))
        summary, last = FOLDER / f"seed-{seed}.json", FOLDER / f"seed-{seed}.case"
        if status < 0:
            print(f"fuzz: seed {seed} ended by signal {-status} in {last.read_text() if last.exists() else 'no case'}")
        for campaign, numbers in (json.loads(summary.read_text()) if summary.exists() else {}).items():
            totals.setdefault(campaign, Counter()).update(numbers)
    for campaign, numbers in totals.items():
        print(f"fuzz: {campaign}: {numbers['cases']} cases, {numbers['failures']} failures")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
