"""Force fields of others beside ours, trained on the same frames for the same processor time: ``python -m bench.force_rivals``.

Every contestant has the same frames, batches of ten, one thread, float32, a rate that falls as a cosine over the processor time,
the same loss (mean absolute errors of forces and energies; ours takes the components of forces over all orientations), its
parameters averaged exponentially, and the optimizer of its own training program: Adam, and SOAP with weight decay for ours. What
a contestant spends before the first step is not counted. The rivals are optional: ``pip install mace-torch==0.3.16
nequip==0.19.1`` (``--no-deps`` where they would pull another PyTorch). Each run is a process of its own; its row is written when
it ends.

    python -m bench.force_rivals --data forces_ethanol.npz --budget 250 --seeds 1 2 3 --json force_rivals.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.rows import measured_rows
from se3_fast.data.force_frames import ForceDataModule, reference_energies
from se3_fast.data.frames import ForceFrames
from se3_fast.forces import ForceField, energy_and_forces
from se3_fast.training.soap import Soap

CUTOFF = 5.0
BATCH_SIZE = 10
ENERGY_WEIGHT = 0.1
LARGEST_GRADIENT = 10.0
AVERAGE_DECAY = 0.99
EVALUATED_TOGETHER = 50


class Contestant(ABC):
    """A force field and the frames as it takes them.

    Args:
        data: the frames.
        scale: root mean square of the training forces, eV/Angstrom.

    Attributes:
        LIBRARY: the package.
        LEARNING_RATE: that it was found to do best with.
    """

    LIBRARY: str
    LEARNING_RATE: float = 0.01
    model: nn.Module

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """What trains it."""
        return torch.optim.Adam(parameters, lr=self.LEARNING_RATE, amsgrad=True)

    def force_error(self, errors: Tensor) -> Tensor:
        """What the loss has of the errors of forces, [N, 3]."""
        return errors.abs().mean()

    @abstractmethod
    def __init__(self, data: ForceDataModule, scale: float) -> None:
        """Make the model, and the neighbours of all frames."""

    @abstractmethod
    def predict(self, numbers: list[int], is_training: bool) -> tuple[Tensor, Tensor]:
        """Energies [B], less the references, and forces [N, 3] of some frames."""


class Ours(Contestant):
    """se3_fast, with the sizes that the command has by default."""

    LIBRARY = "se3_fast"
    LEARNING_RATE = 0.005

    def __init__(self, data: ForceDataModule, scale: float) -> None:
        self.frames = data.ds_train.dataset
        self.model = ForceField(data.elements, cutoff=CUTOFF, average_neighbours=data.average_neighbours)
        self.model.set_scale({}, scale)
        self.collate = data._collate

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """See :class:`Contestant`."""
        return Soap(parameters, self.LEARNING_RATE, weight_decay=0.03)

    def force_error(self, errors: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        return errors.norm(dim=1).mean() / 2

    def predict(self, numbers: list[int], is_training: bool) -> tuple[Tensor, Tensor]:
        """See :class:`Contestant`."""
        graph, _, _ = self.collate(self.frames.__getitems__(numbers))
        energies, forces = energy_and_forces(self.model, graph, create_graph=is_training)
        return energies.float(), forces


class Mace(Contestant):
    """MACE with 32 channels of the degrees 0 and 1, and products of three messages."""

    LIBRARY = "mace-torch"

    def __init__(self, data: ForceDataModule, scale: float) -> None:
        from e3nn.o3 import Irreps
        from mace import data as mace_data
        from mace import modules, tools
        from mace.tools.torch_geometric import Batch

        self.batch = Batch
        frames, table = data.ds_train.dataset.frames, tools.AtomicNumberTable(data.elements)
        torch.set_default_dtype(torch.float32)
        numbers, positions = frames.atomic_numbers.split(frames.n_atoms.tolist()), frames.pos.split(frames.n_atoms.tolist())
        self.frames = [
            mace_data.AtomicData.from_config(
                mace_data.Configuration(
                    atomic_numbers=z.numpy(),
                    positions=pos.double().numpy(),
                    properties={},
                    property_weights={},
                    cell=np.eye(3) * 100 if cell is None else cell[0].numpy(),
                    pbc=(cell is not None,) * 3,
                ),
                z_table=table,
                cutoff=CUTOFF,
            )
            for z, pos, cell in zip(numbers, positions, _cells(frames), strict=True)
        ]
        blocks = modules.interaction_classes
        self.model = modules.ScaleShiftMACE(
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(data.elements),
            hidden_irreps=Irreps("32x0e + 32x1o"),
            MLP_irreps=Irreps("16x0e"),
            atomic_energies=np.zeros(len(data.elements)),
            avg_num_neighbors=data.average_neighbours,
            atomic_numbers=data.elements,
            correlation=3,
            gate=nn.functional.silu,
            atomic_inter_scale=scale,
            atomic_inter_shift=0.0,
        )

    def predict(self, numbers: list[int], is_training: bool) -> tuple[Tensor, Tensor]:
        """See :class:`Contestant`."""
        batch = self.batch.from_data_list([self.frames[number] for number in numbers])
        found = self.model(batch.to_dict(), training=is_training)
        return found["energy"], found["forces"]


class Nequip(Contestant):
    """NequIP with three layers of 32 features of the degrees 0 and 1."""

    LIBRARY = "nequip"

    def __init__(self, data: ForceDataModule, scale: float) -> None:
        from nequip.data import AtomicDataDict, compute_neighborlist_, from_dict
        from nequip.model import NequIPGNNModel
        from nequip.utils.global_state import set_global_state

        set_global_state()
        self.batch = AtomicDataDict.batched_from_list
        frames = data.ds_train.dataset.frames
        numbers, positions = frames.atomic_numbers.split(frames.n_atoms.tolist()), frames.pos.split(frames.n_atoms.tolist())
        kinds = {element: kind for kind, element in enumerate(data.elements)}
        self.frames = [
            compute_neighborlist_(
                from_dict(
                    {
                        "pos": pos.to(torch.get_default_dtype()),
                        "atom_types": torch.tensor([kinds[int(k)] for k in z]),
                        "atomic_numbers": z,
                    }
                    | ({} if cell is None else {"cell": cell, "pbc": torch.ones(1, 3, dtype=torch.bool)})
                ),
                r_max=CUTOFF,
            )
            for z, pos, cell in zip(numbers, positions, _cells(frames), strict=True)
        ]
        names = [f"element{element}" for element in data.elements]
        model = NequIPGNNModel(
            seed=torch.initial_seed() % 2**31,
            model_dtype="float32",
            r_max=CUTOFF,
            type_names=names,
            num_layers=3,
            l_max=1,
            parity=False,
            num_features=32,
            radial_mlp_depth=2,
            radial_mlp_width=32,
            avg_num_neighbors=data.average_neighbours,
            per_type_energy_scales=scale,
            per_type_energy_shifts=dict.fromkeys(names, 0.0),
        )
        self.model = next(iter(model.values())) if isinstance(model, nn.ModuleDict) else model

    def predict(self, numbers: list[int], is_training: bool) -> tuple[Tensor, Tensor]:
        """See :class:`Contestant`."""
        found = self.model(self.batch([self.frames[number] for number in numbers]))
        return found["total_energy"].view(-1), found["forces"]


def _cells(frames: ForceFrames) -> list[Tensor | None]:
    """The cell of each frame, [1, 3, 3]; all directions are periodic, or none."""
    return [None] * len(frames) if frames.cells is None else list(frames.cells.split(1))


CONTESTANTS: dict[str, type[Contestant]] = {"se3_fast": Ours, "mace": Mace, "nequip": Nequip}


def run(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one contestant and measure it: a row of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = ForceDataModule(
        arguments.data, cutoff=CUTOFF, num_train=arguments.num_train, num_validation=arguments.num_validation, seed=seed
    )
    frames = data.ds_train.dataset.frames
    kind, scale = CONTESTANTS[name], float(data.train_frames.forces.square().mean().sqrt())
    contestant = kind(data, scale)
    references = torch.zeros(119, dtype=torch.float64)
    for element, energy in reference_energies(data.train_frames).items():
        references[element] = energy
    of_atoms = references[frames.atomic_numbers].split(frames.n_atoms.tolist())
    known = Known(
        (frames.energies - torch.stack([part.sum() for part in of_atoms])).float(), frames.forces.split(frames.n_atoms.tolist())
    )
    parameters = [parameter for parameter in contestant.model.parameters() if parameter.requires_grad]
    steps = _train(contestant, parameters, known, data, arguments.budget, scale)
    contestant.model.eval()
    errors = _errors(contestant, known, list(data.ds_val.indices))
    return {
        "contestant": name,
        "version": version(kind.LIBRARY),
        "seed": seed,
        "data": Path(arguments.data).name,
        "budget_s": arguments.budget,
        "parameters": sum(map(Tensor.numel, parameters)),
        "optimizer": type(contestant.optimizer(parameters)).__name__,
        "steps": steps,
        "force_mae_eV_A": errors[0],
        "energy_mae_eV": errors[1],
        "ms_per_frame": _latency(contestant, data, 1),
        "ms_per_frame_of_50": _latency(contestant, data, EVALUATED_TOGETHER),
    }


class Known:
    """Labels of all frames: energies less the references [M], and forces, a tensor for each frame."""

    def __init__(self, energies: Tensor, forces: tuple[Tensor, ...]) -> None:
        self.energies, self.forces = energies, forces

    def of(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Of some frames, [B] and [N, 3]."""
        return self.energies[numbers], torch.cat([self.forces[number] for number in numbers])


def _train(
    contestant: Contestant, parameters: list[nn.Parameter], known: Known, data: ForceDataModule, budget: float, scale: float
) -> int:
    """Train for so many seconds of processor time; leaves the averaged parameters. Returns the number of steps."""
    optimizer = contestant.optimizer(parameters)
    averages = [parameter.detach().clone() for parameter in parameters]
    numbers, generator = np.array(data.ds_train.indices), np.random.default_rng(data.seed)
    contestant.model.train()
    start, steps = time.process_time(), 0
    while True:
        order = generator.permutation(numbers)
        for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            part = (time.process_time() - start) / budget
            if part >= 1:
                for parameter, average in zip(parameters, averages, strict=True):
                    parameter.data.copy_(average)
                return steps
            for group in optimizer.param_groups:
                group["lr"] = contestant.LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))
            chosen = order[first : first + BATCH_SIZE].tolist()
            energies, forces = contestant.predict(chosen, True)
            known_energies, known_forces = known.of(chosen)
            errors = contestant.force_error(forces - known_forces) + ENERGY_WEIGHT * (energies - known_energies).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            (errors / scale).backward()
            nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            optimizer.step()
            steps += 1
            decay = min(AVERAGE_DECAY, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1 - decay)


def _errors(contestant: Contestant, known: Known, numbers: list[int]) -> tuple[float, float]:
    """Mean absolute errors of forces and energies."""
    of_forces, of_energies = [], []
    for first in range(0, len(numbers), EVALUATED_TOGETHER):
        chosen = numbers[first : first + EVALUATED_TOGETHER]
        energies, forces = contestant.predict(chosen, False)
        known_energies, known_forces = known.of(chosen)
        of_forces.append((forces.detach() - known_forces).abs().flatten())
        of_energies.append((energies.detach() - known_energies).abs())
    return float(torch.cat(of_forces).mean()), float(torch.cat(of_energies).mean())


def _latency(contestant: Contestant, data: ForceDataModule, count: int) -> float:
    """Processor time of energies and forces, ms a frame."""
    numbers = list(data.ds_val.indices)[:count]
    repetitions = 30 if count == 1 else 6
    for _ in range(3):
        contestant.predict(numbers, False)
    start = time.process_time()
    for _ in range(repetitions):
        contestant.predict(numbers, False)
    return (time.process_time() - start) / repetitions / len(numbers) * 1e3


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.force_rivals", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="frames, .npz")
    parser.add_argument("--num_train", type=int, default=1000)
    parser.add_argument("--num_validation", type=int, default=500)
    parser.add_argument("--budget", type=float, default=250.0, help="processor time of the training, seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--contestants", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, default=None, help="rows are added to this file as they come")
    parser.add_argument("--row", action="store_true", help="run the first contestant and seed here, and print the row")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Every contestant with every seed, in turns; prints the table."""
    arguments = parse(words)
    if arguments.row:
        print(json.dumps(run(arguments.contestants[0], arguments, arguments.seeds[0])))
        return 0
    given = ["--data", str(arguments.data), "--budget", str(arguments.budget)]
    given += ["--num_train", str(arguments.num_train), "--num_validation", str(arguments.num_validation)]
    requests = [
        (f"{name}, seed {seed}", [*given, "--contestants", name, "--seeds", str(seed)])
        for seed in arguments.seeds
        for name in arguments.contestants
    ]
    print(summary(measured_rows("bench.force_rivals", requests, arguments.json)))
    return 0


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with the spread of the force error; every version and kind of processor by itself."""
    titles = ["processor", "data", "budget, s", "", "optimizer", "parameters", "steps", "force MAE, meV/A", "energy MAE, meV"]
    lines = [f"| {' | '.join([*titles, 'ms a frame', 'of 50'])} |", f"|{'---|' * (len(titles) + 2)}"]
    names = ("processor", "data", "budget_s", "contestant", "version", "optimizer")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        same = [row for row in rows if tuple(row[name] for name in names) == key]
        processor, data, budget, contestant, release, optimizer = key
        forces = [1e3 * row["force_mae_eV_A"] for row in same]
        spread = f" ({min(forces):.1f} to {max(forces):.1f})" if len(forces) > 1 else ""
        numbers = [mean(row[name] for row in same) for name in ("parameters", "steps")]
        rest = [mean(row[name] for row in same) for name in ("energy_mae_eV", "ms_per_frame", "ms_per_frame_of_50")]
        lines.append(
            f"| {processor} | {data} | {budget:g} | {contestant} {release} | {optimizer} | {numbers[0]:,.0f} | "
            f"{numbers[1]:,.0f} | {mean(forces):.1f}{spread} | {1e3 * rest[0]:.1f} | {rest[1]:.2f} | {rest[2]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
