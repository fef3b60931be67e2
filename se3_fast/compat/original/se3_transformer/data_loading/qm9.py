"""QM9 for training, and as a data set of single molecules with their bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from se3_fast import data
from se3_fast.command_line import boolean
from se3_fast.compat.message_passing.graph import DGLGraph, batch
from se3_fast.compat.message_passing.qm9 import QM9EdgeDataset
from se3_fast.data.qm9 import split_sizes
from se3_fast.data.tasks import TASKS
from se3_fast.ops.basis import get_basis
from se3_fast.training.distributed import choose_device

__all__ = ["CachedBasesQM9EdgeDataset", "QM9DataModule", "QM9EdgeDataset"]


def _get_relative_pos(qm9_graph: Any) -> Tensor:
    """``pos[dst] - pos[src]`` of the edges of a graph, [E, 3]."""
    src, dst = qm9_graph.edges()
    return qm9_graph.ndata["pos"][dst] - qm9_graph.ndata["pos"][src]


def _get_split_sizes(full_dataset: Dataset[Any]) -> tuple[int, int, int]:
    """Sizes of the training, validation and test set."""
    return split_sizes(len(full_dataset))  # type: ignore[arg-type]  # Dataset declares no __len__


class QM9DataModule(data.QM9DataModule):
    """:class:`se3_fast.data.QM9DataModule`: the bases need not be cached, ``precompute_bases`` keeps the geometry of the edges.

    Args:
        data_dir: folder of ``qm9_edge.npz``.
        task: the property.
        batch_size: molecules in a batch.
        num_workers: not needed: batches are put together where the data lie.
        num_degrees: degrees of the model's features, for ``precompute_bases``.
        amp: kept as an attribute.
        precompute_bases: compute the geometry of all edges once.
        device: where the data lie, as ``--device`` has it.
        **kwargs: further arguments of :class:`se3_fast.data.QM9DataModule`; all options of a command line may be passed.
    """

    def __init__(
        self,
        data_dir: str | Path,
        task: str = "homo",
        batch_size: int = 240,
        num_workers: int = 8,
        num_degrees: int = 4,
        amp: bool = False,
        precompute_bases: bool = False,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        self.data_dir, self.amp, self.batch_size, self.num_degrees = data_dir, amp, batch_size, num_degrees
        device = choose_device(device) if isinstance(device, str) else device
        super().__init__(data_dir, task, batch_size, num_workers, num_degrees, precompute_bases, device=device, **kwargs)

    @staticmethod
    def add_argparse_args(parent_parser: Any) -> Any:
        """Add the options ``--task`` and ``--precompute_bases`` to a parser, as a group, and return the parser."""
        group = parent_parser.add_argument_group("QM9 dataset")
        group.add_argument("--task", choices=TASKS, default="homo", const="homo", nargs="?", help="property to learn")
        text = "compute the geometry of all edges once at the start instead of in every forward pass"
        group.add_argument("--precompute_bases", type=boolean, nargs="?", const=True, default=False, metavar="BOOL", help=text)
        return parent_parser


class CachedBasesQM9EdgeDataset(QM9EdgeDataset):
    """The molecules with their bases: ``dataset[i]`` is a graph, its labels, and the bases ``{'d_in,d_out': [E, l, F, k]}``.

    Args:
        bases_kwargs: arguments of ``get_basis``, without the positions: ``max_degree``, ``use_pad_trick``, ``amp``, ...
        batch_size: molecules whose bases are computed together.
        num_workers: processes that read them for that.
        *args: of :class:`QM9EdgeDataset`.
        **kwargs: of :class:`QM9EdgeDataset`.
    """

    def __init__(self, bases_kwargs: dict[str, Any], batch_size: int, num_workers: int, *args: Any, **kwargs: Any) -> None:
        self.bases_kwargs, self.batch_size, self.num_workers = bases_kwargs, batch_size, num_workers
        self.bases: list[dict[str, Tensor]] | None = None
        super().__init__(*args, **kwargs)

    def load(self) -> None:
        """Read the file, and compute all bases, on the GPU where there is one; they are kept in memory."""
        super().load()
        device = choose_device("auto")
        loader: DataLoader[Any] = DataLoader(self, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=_graphs_of)
        bases = []
        for graphs in loader:
            made = get_basis(_get_relative_pos(graphs).to(device), **self.bases_kwargs)
            bases.append({key: basis.cpu() for key, basis in made.items()})
        self.bases = bases

    def __getitem__(self, idx: int) -> tuple[Any, ...]:
        graph, label = super().__getitem__(idx)
        if self.bases is None:
            return graph, label
        number = range(len(self))[idx]
        first = number // self.batch_size * self.batch_size
        start, stop, offset = (int(self.ne_cumsum[molecule]) for molecule in (number, number + 1, first))
        bases = self.bases[number // self.batch_size]
        return graph, label, {key: basis[start - offset : stop - offset] for key, basis in bases.items()}


def _graphs_of(samples: list[tuple[Any, ...]]) -> DGLGraph:
    return batch([sample[0] for sample in samples])
