"""What a step of molecular dynamics costs, over the number of atoms: ``python -m bench.force_water``.

Boxes of water of density 1, periodic, molecules turned at random on a simple cubic lattice: energy and forces with the neighbours
given, one thread, float32, models as :mod:`bench.force_rivals` has them, with random parameters. Each row of the table is a process
of its own. The rivals are optional, as there.

    python -m bench.force_water --molecules 343 2744 --json force_water.json
    python -m bench.force_water --molecules 32768 --contestants se3_fast
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from bench.force_rivals import CONTESTANTS, CUTOFF
from bench.peak_memory import high_water_mark
from bench.rows import measured_rows
from se3_fast.data.force_frames import ForceDataModule, FrameFiles

SPACING = 3.104
"""Angstrom between molecules: 0.0334 of them in a cubic Angstrom."""

REPETITIONS = 5


def box(count: int, seed: int = 0) -> Atoms:
    """Water molecules on the first places of the smallest cubic lattice that has so many.

    Raises:
        ValueError: if ``count`` is not a cube; the box would have a hole.
    """
    side = round(max(count, 0) ** (1 / 3))
    if side < 1 or side**3 != count:
        raise ValueError(f"count: expected a cube, such as 343 or 2744, got {count}")
    generator = np.random.default_rng(seed)
    water = molecule("H2O")
    shape = water.positions - water.get_center_of_mass()  # [3, 3]
    turns, _ = np.linalg.qr(generator.normal(size=(count, 3, 3)))
    places = SPACING * (np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5)
    positions = (places[:, None] + np.einsum("ai,nij->naj", shape, turns)).reshape(-1, 3)
    return Atoms(list(water.numbers) * count, positions, cell=[side * SPACING] * 3, pbc=True)


def measure(name: str, count: int) -> dict[str, Any]:
    """A row of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    atoms = box(count)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "water.xyz"
        write(path, atoms, format="extxyz")
        data = ForceDataModule(FrameFiles([path], [path], [path]), cutoff=CUTOFF, num_validation=1)
    contestant = CONTESTANTS[name](data, 1.0)
    contestant.model.eval()
    contestant.predict([0], False)
    start = time.process_time()
    for _ in range(REPETITIONS):
        contestant.predict([0], False)
    seconds = (time.process_time() - start) / REPETITIONS
    return {
        "contestant": name,
        "version": version(CONTESTANTS[name].LIBRARY),
        "atoms": len(atoms),
        "neighbours": data.average_neighbours,
        "ms": 1e3 * seconds,
        "atoms_per_s": len(atoms) / seconds,
        "peak_GiB": high_water_mark() / 2**30,
    }


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.force_water", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--molecules", type=int, nargs="+", default=[343, 2744], help="sizes of the boxes, cubes")
    parser.add_argument("--contestants", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="rows are added to this file as they come")
    parser.add_argument("--row", action="store_true", help="measure the first contestant and box here, and print the row")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Every box with every contestant; prints the table."""
    arguments = parse(words)
    if arguments.row:
        print(json.dumps(measure(arguments.contestants[0], arguments.molecules[0])))
        return 0
    requests = [
        (f"{name}, {count} molecules", ["--molecules", str(count), "--contestants", name])
        for count in arguments.molecules
        for name in arguments.contestants
    ]
    print(summary(measured_rows("bench.force_water", requests, arguments.json)))
    return 0


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| processor | atoms | | ms a step | atoms/s | peak, GiB |", "|---" * 6 + "|"]
    lines += [
        f"| {row['processor']} | {row['atoms']:,} | {row['contestant']} {row['version']} | {row['ms']:,.0f} | "
        f"{row['atoms_per_s']:,.0f} | {row['peak_GiB']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
