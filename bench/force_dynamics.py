"""How a force field moves atoms: ``python -m bench.force_dynamics --load_ckpt_path force_field.pth --data frames.npz``.

Relaxes perturbed frames (every atom moved by a normal deviate) with BFGS, and runs molecular dynamics without a thermostat: how
many steps the relaxations take, how the energy drifts, what a step costs. The force field may be one that a minute has trained:

    se3-fast train-forces --data forces_ethanol.npz --num_train 1000 --num_validation 200 --num_channels 32 --epochs 8 --seed 1 \
        --save_ckpt_path force_field.pth
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from bench.environment import environment
from se3_fast.ase import SE3FastCalculator
from se3_fast.data.force_frames import read_frame_file
from se3_fast.data.frames import ForceFrames
from se3_fast.files import atomic_file
from se3_fast.simulation.arguments import DTYPES
from se3_fast.simulation.md import State, draw_velocities, drift_of, moving_degrees, plot_conservation

FMAX = 0.002
MOST_STEPS = 100
PERTURBATION = 0.05
TEMPERATURE = 300.0
TIMESTEP = 0.5
INTERVAL = 10


def structures(frames: ForceFrames, count: int) -> list[Atoms]:
    """Frames spread over all of them."""
    numbers = np.linspace(0, len(frames) - 1, count).astype(int)
    chosen = frames.select(numbers.tolist())
    ends = np.cumsum(chosen.n_atoms.numpy())[:-1]
    columns = (np.split(values.numpy(), ends) for values in (chosen.atomic_numbers, chosen.pos))
    return [Atoms(*of_frame) for of_frame in zip(*columns, strict=True)]


def relaxations(atoms: Sequence[Atoms], calculator: SE3FastCalculator) -> dict[str, Any]:
    """Steps that BFGS takes from perturbed frames."""
    steps = []
    for number, frame in enumerate(atoms):
        frame = frame.copy()
        frame.rattle(PERTURBATION, seed=number)
        frame.calc = calculator
        optimizer = BFGS(frame, logfile=None)
        is_relaxed = optimizer.run(fmax=FMAX, steps=MOST_STEPS)
        steps.append(optimizer.nsteps if is_relaxed else None)
    done = [step for step in steps if step is not None]
    return {"fmax_eV_A": FMAX, "relaxed": len(done), "of": len(steps), "steps": steps, "most_steps": max(done, default=None)}


def dynamics(atoms: Atoms, calculator: SE3FastCalculator, picoseconds: float, plot: Path | None) -> dict[str, Any]:
    """Drift of the energy without a thermostat."""
    atoms.calc = calculator
    draw_velocities(atoms, TEMPERATURE, np.random.RandomState(0))
    degrees = moving_degrees(atoms)
    verlet = VelocityVerlet(atoms, TIMESTEP * units.fs)
    states: list[State] = []

    def observe() -> None:
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        now = verlet.nsteps * TIMESTEP / 1000
        states.append(State(now, potential, kinetic, 2 * kinetic / (degrees * units.kB), potential + kinetic))

    verlet.attach(observe, interval=INTERVAL)
    steps, start = round(1000 * picoseconds / TIMESTEP), time.process_time()
    verlet.run(steps)
    seconds = time.process_time() - start
    if plot is not None:
        plot_conservation(states, len(atoms), plot)
    energies = np.array([state.conserved_eV for state in states])
    return {
        "picoseconds": picoseconds,
        "timestep_fs": TIMESTEP,
        "drift_meV_atom_ps": drift_of(states, len(atoms)),
        "deviation_meV_atom": float(energies.std()) * 1000 / len(atoms),
        "mean_temperature_K": float(np.mean([state.temperature_K for state in states])),
        "processor_ms_a_step": 1000 * seconds / steps,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.force_dynamics", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load_ckpt_path", type=Path, required=True, metavar="FILE", help="checkpoint of se3-fast train-forces")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="frames to start from")
    parser.add_argument("--count", type=int, default=20, help="frames that are relaxed")
    parser.add_argument("--picoseconds", type=float, default=10.0, help="of dynamics")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the network")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="PNG of the conserved energy")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="file of the figures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    calculator = SE3FastCalculator(chosen.load_ckpt_path, dtype=DTYPES[chosen.dtype], outside="ignore")
    atoms = structures(read_frame_file(chosen.data).frames, chosen.count)
    found = {"data": chosen.data.name, "dtype": chosen.dtype, "relaxations": relaxations(atoms, calculator)}
    found["dynamics"] = dynamics(atoms[0], calculator, chosen.picoseconds, chosen.plot)
    print(json.dumps(found))
    if chosen.json is not None:
        with atomic_file(chosen.json) as file:
            file.write(json.dumps({"environment": environment(), **found}, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
