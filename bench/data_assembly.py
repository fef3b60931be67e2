"""An epoch of batches, without a model: put together on the device, and collated graph by graph: ``python -m bench.data_assembly``.

Both make the same batches of the same molecules in one run; the second is what the published data loader does, in this process. It
is run on a part of the molecules, and its time counted per molecule. ``--data_dir`` holds ``qm9_edge.npz``; without it, the sample.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.environment import RESULTS, device_name, environment
from bench.workloads import DEVICE
from se3_fast import Graph
from se3_fast.data import QM9DataModule
from se3_fast.data.molecules import Molecules

BATCH_SIZE = 240
COLLATED_BATCHES = 40


def collate(molecules: Sequence[Molecules]) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A batch of single molecules, graph by graph; its edges by destination, too, as the layers ask for them."""
    graphs = []
    for molecule in molecules:
        pos, src, dst = molecule.node_pos, molecule.src.long(), molecule.dst.long()
        graphs.append(Graph(src, dst, len(pos), ndata={"pos": pos}, edata={"rel_pos": pos[dst] - pos[src]}))
    node_attr, edge_attr, targets = (
        torch.cat([getattr(molecule, name) for molecule in molecules]).float() for name in ("node_attr", "edge_attr", "targets")
    )
    graph = Graph.batch(graphs)
    graph.incoming()
    return graph, {"0": node_attr[..., None]}, {"0": edge_attr[..., None]}, targets


def seconds_per_molecule(batches: Iterable[Any]) -> tuple[float, int]:
    """Time of going through batches, and their molecules."""
    start, molecules = time.perf_counter(), 0
    for *_, target in batches:
        molecules += len(target)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / molecules, molecules


def measure(folder: Path | None) -> dict[str, Any]:
    """Seconds of loading and of an epoch over all molecules, assembled and collated."""
    start = time.perf_counter()
    data = QM9DataModule(folder or "", dataset="qm9" if folder else "sample", batch_size=BATCH_SIZE, device=DEVICE)
    loading = time.perf_counter() - start
    parts = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    resident, molecules = seconds_per_molecule(batch for part in parts for batch in part)
    slow = DataLoader(data.ds_train, batch_size=BATCH_SIZE, sampler=parts[0].sampler, collate_fn=collate)
    collated, collated_molecules = seconds_per_molecule(islice(slow, COLLATED_BATCHES))
    return {
        "data set": repr(data),
        "molecules": molecules,
        "loading_s": loading,
        "epoch_s": resident * molecules,
        "collated_molecules": collated_molecules,
        "collated_epoch_s": collated * molecules,
        "times_faster": collated / resident,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz")
    results = {"environment": environment(), **measure(parser.parse_args().data_dir)}
    print(json.dumps(results, indent=1))
    (RESULTS / f"data_assembly_{device_name()}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
