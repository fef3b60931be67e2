"""QM9 as a data set of single bond graphs, the names as DGL has them. The training of this package reads the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from se3_fast.compat.message_passing.graph import DGLGraph
from se3_fast.data.download import QM9_EDGE_URL, download_file
from se3_fast.data.molecules import ARRAY_NAMES, MoleculeDataset, check_archive, first_of_each, open_arrays, read_molecules
from se3_fast.data.tasks import TASKS


class QM9EdgeDataset(Dataset[Any]):
    """The molecules of ``qm9_edge.npz``: ``dataset[i]`` is a graph and its labels [number of labels] float32.

    The graph has ``ndata['pos']`` [N, 3], ``ndata['attr']`` [N, attributes] and ``edata['edge_attr']`` [E, attributes], float32.

    Args:
        label_keys: names of the labels; default: all.
        raw_dir: folder of ``qm9_edge.npz``, which is downloaded if it is not there; default: ``.dgl`` in the home directory.
        force_reload: not used: the file is read every time.
        verbose: not used.
        transform: called with each graph.

    Attributes:
        label_keys: the columns of the labels among ``targets``.
        targets: [M, 19] float32.
        n_node: [M] int64, atoms of each molecule.
        n_edge: [M] int64, edges of each molecule.
        n_cumsum: [M + 1] int64, where the atoms of each molecule begin.
        ne_cumsum: [M + 1] int64, where the edges of each molecule begin.

    Raises:
        ValueError: if a label does not exist, or the file cannot be used.
    """

    keys = TASKS

    def __init__(
        self,
        label_keys: Sequence[str] | None = None,
        raw_dir: str | Path | None = None,
        force_reload: bool = False,
        verbose: bool = True,
        transform: Callable[[DGLGraph], DGLGraph] | None = None,
    ) -> None:
        labels = list(TASKS if label_keys is None else label_keys)
        unknown = [label for label in labels if label not in TASKS]
        if unknown:
            raise ValueError(f"label_keys: expected some of {', '.join(TASKS)}, got {unknown[0]!r}")
        self.label_keys = [TASKS.index(label) for label in labels]
        self.raw_dir = Path(raw_dir) if raw_dir is not None else Path.home() / ".dgl"
        self._transform = transform
        self.load()

    @property
    def npz_path(self) -> Path:
        """The file."""
        return self.raw_dir / "qm9_edge.npz"

    @property
    def num_labels(self) -> int:
        """The number of labels."""
        return len(self.label_keys)

    num_tasks = num_labels

    def load(self) -> None:
        """Read the file, which is downloaded if it is not there."""
        if not self.npz_path.exists():
            download_file(QM9_EDGE_URL, self.npz_path, check_archive)
        self._molecules = MoleculeDataset(read_molecules(self.npz_path, TASKS[0]))
        everything = self._molecules.molecules
        self.n_node, self.n_edge = everything.n_node, everything.n_edge
        self.n_cumsum, self.ne_cumsum = (
            torch.cat([first_of_each(counts), counts.sum()[None]]) for counts in (self.n_node, self.n_edge)
        )
        with open_arrays(self.npz_path, ARRAY_NAMES) as file:
            self.targets = _float32(file.numbers("targets", (len(self), len(TASKS))))
            self._node_attr = _float32(file.numbers("node_attr", (int(self.n_cumsum[-1]), None)))
            self._edge_attr = _float32(file.numbers("edge_attr", (int(self.ne_cumsum[-1]), None)))

    def __len__(self) -> int:
        return len(self._molecules)

    def __getitem__(self, idx: int) -> tuple[Any, ...]:
        number = range(len(self))[idx]  # from the end where it is negative; an IndexError beyond
        molecule = self._molecules[number]
        nodes, edges = (slice(int(starts[number]), int(starts[number + 1])) for starts in (self.n_cumsum, self.ne_cumsum))
        graph = DGLGraph(
            molecule.src.long(),
            molecule.dst.long(),
            int(molecule.n_node),
            ndata={"pos": molecule.node_pos, "attr": self._node_attr[nodes]},
            edata={"edge_attr": self._edge_attr[edges]},
        )
        return graph if self._transform is None else self._transform(graph), self.targets[number, self.label_keys]


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
