"""How many compilations each kernel takes for batches of several sizes: ``python -m tests.backends.triton.compilations WORK``.

WORK is one of ``direct`` (training steps of a model), ``recorded`` (steps of a trainer whose batches are padded for recordings) and
``forces`` (steps of a force field, with gradients of gradients). Triton's launcher decides as on a GPU what it would compile;
nothing is compiled, and nothing runs. Prints JSON: by kernel, how many compilations there are after each batch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

import se3_fast
from bench.modelled.recording import compiling_for_gpu
from se3_fast import Fiber, Graph, SE3TransformerPooled
from se3_fast.data import QM9DataModule
from se3_fast.forces import ForceField, energy_and_forces
from se3_fast.training import Trainer, TrainingOptions
from se3_fast.training.model_config import build_model
from tests.models import SMALL_CONFIG
from tests.training.run_again import RunAgain

NUM_NODES = (40, 48, 41, 64, 57, 40_000)
"""Of the batches; twice as many edges: some multiples of 16, some not; the last with several blocks a program."""


RECORDED_BATCHES = 12


def ring(num_nodes: int) -> Graph:
    """Every node has an edge to the next two."""
    source = torch.arange(num_nodes).repeat_interleave(2)
    graph = Graph(source, (source + torch.tensor([1, 2]).repeat(num_nodes)) % num_nodes, num_nodes)
    graph.edata["rel_pos"] = torch.randn(graph.num_edges(), 3)
    return graph


def training_step(model: torch.nn.Module, num_nodes: int) -> None:
    """Forward and backward in float16."""
    graph = ring(num_nodes)
    nodes = {"0": torch.randn(num_nodes, 4, 1)}
    with torch.autocast("cpu", torch.float16):
        output = model(graph, nodes, {"0": torch.randn(graph.num_edges(), 3, 1)})
    output.float().sum().backward()


def direct() -> Iterator[None]:
    """A step for each size."""
    sizes = {"num_degrees": 3, "num_channels": 16, "num_layers": 2, "num_heads": 2, "channels_div": 2, "output_dim": 1}
    fibers = {"fiber_in": Fiber({0: 4}), "fiber_out": Fiber({0: 16}), "fiber_edge": Fiber({0: 3})}
    model = SE3TransformerPooled(**fibers, **sizes, norm=True, use_layer_norm=True)  # type: ignore[arg-type]
    for num_nodes in NUM_NODES:
        yield training_step(model, num_nodes)


def recorded() -> Iterator[None]:
    """A step for each of some batches of molecules, of several padded sizes."""
    with tempfile.TemporaryDirectory() as folder:
        data = QM9DataModule("", dataset="sample", batch_size=7, num_degrees=2, seed=0)
        options = TrainingOptions(epochs=1, silent=True, log_dir=Path(folder), cuda_graphs=True)
        trainer = Trainer(build_model(SMALL_CONFIG), data, options)
        loader = data.train_dataloader()
        with mock.patch("se3_fast.training.trainer.choose_recorder", return_value=RunAgain()):
            steps = trainer._steps_of(loader)
        shapes = set()
        for number, batch in enumerate(steps.batches()):
            shapes.add(loader.padded_size(batch))
            yield steps.accumulate(batch, 1, True) and None
            if number == RECORDED_BATCHES:
                break
        assert len(shapes) > 3


def forces() -> Iterator[None]:
    """A step for each size."""
    model = ForceField([1, 6], num_layers=2, num_channels=16)
    for num_nodes in NUM_NODES[:-1]:
        graph = ring(num_nodes)
        graph.ndata = {"pos": torch.randn(num_nodes, 3), "atomic_numbers": 1 + 5 * (torch.arange(num_nodes) % 2)}
        graph.edata.clear()  # relative positions follow from these
        energies, found = energy_and_forces(model, graph, create_graph=True)
        yield (energies.sum() + found.square().sum()).backward()


def main() -> None:
    """Count."""
    keys: dict[str, set[str]] = defaultdict(set)

    def asked(**launch: Any) -> bool:
        keys[f"{launch['fn'].module}.{launch['fn'].name}"].add(launch["key"])
        return True  # nothing is compiled

    triton.knobs.runtime.jit_cache_hook = asked
    steps = {"direct": direct, "recorded": recorded, "forces": forces}[sys.argv[1]]
    counts = []
    with compiling_for_gpu(), se3_fast.backend("triton"):
        for _ in steps():
            counts.append({kernel: len(found) for kernel, found in keys.items()})
    print(json.dumps({kernel: [count.get(kernel, 0) for count in counts] for kernel in keys}))


if __name__ == "__main__":
    main()
