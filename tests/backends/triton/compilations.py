"""How many compilations each kernel takes for batches of several sizes: ``python -m tests.backends.triton.compilations``.

Triton's launcher decides as on a GPU what it would compile; nothing is compiled, and nothing runs. Prints JSON: by kernel, how many
compilations there are after each batch.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import torch
import triton

import se3_fast
from bench.modelled.recording import compiling_for_gpu
from se3_fast import Fiber, Graph, SE3TransformerPooled

NUM_NODES = (40, 48, 41, 64, 57, 40_000)
"""Of the batches; twice as many edges: some multiples of 16, some not; the last with several blocks a program."""


def training_step(model: torch.nn.Module, num_nodes: int) -> None:
    """Forward and backward in float16; every node has an edge to the next two."""
    source = torch.arange(num_nodes).repeat_interleave(2)
    graph = Graph(source, (source + torch.tensor([1, 2]).repeat(num_nodes)) % num_nodes, num_nodes)
    graph.edata["rel_pos"] = torch.randn(graph.num_edges(), 3)
    nodes = {"0": torch.randn(num_nodes, 4, 1)}
    with torch.autocast("cpu", torch.float16):
        output = model(graph, nodes, {"0": torch.randn(graph.num_edges(), 3, 1)})
    output.float().sum().backward()


def main() -> None:
    """Count."""
    keys: dict[str, set[str]] = defaultdict(set)

    def asked(**launch: Any) -> bool:
        keys[f"{launch['fn'].module}.{launch['fn'].name}"].add(launch["key"])
        return True  # nothing is compiled

    triton.knobs.runtime.jit_cache_hook = asked
    sizes = {"num_degrees": 3, "num_channels": 16, "num_layers": 2, "num_heads": 2, "channels_div": 2, "output_dim": 1}
    fibers = {"fiber_in": Fiber({0: 4}), "fiber_out": Fiber({0: 16}), "fiber_edge": Fiber({0: 3})}
    model = SE3TransformerPooled(**fibers, **sizes, norm=True, use_layer_norm=True)  # type: ignore[arg-type]
    counts = []
    with compiling_for_gpu(), se3_fast.backend("triton"):
        for num_nodes in NUM_NODES:
            training_step(model, num_nodes)
            counts.append({kernel: len(found) for kernel, found in keys.items()})
    print(json.dumps({kernel: [count.get(kernel, 0) for count in counts] for kernel in keys}))


if __name__ == "__main__":
    main()
