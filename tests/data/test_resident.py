"""Batches put together on the device: against the collation of single molecules, and what padding leaves unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

import se3_fast
from se3_fast import Graph
from se3_fast.data import QM9DataModule
from se3_fast.data.molecules import Molecules, read_molecules
from se3_fast.data.npz_file import write_npz
from se3_fast.data.resident import NumberedBatch, ResidentLoader, ResidentMolecules, device_with_room
from tests.data.conftest import random_arrays
from tests.models import pooled_model
from tests.support import relative_error

Batch = tuple[Any, ...]


@pytest.fixture
def data(data_dir: Path) -> QM9DataModule:
    return QM9DataModule(data_dir, batch_size=16, seed=3, num_degrees=2)


def collate(samples: Sequence[Molecules]) -> tuple[Graph, Tensor, Tensor, Tensor]:
    """A batch of single molecules, graph by graph, as the published data loader makes it."""
    graphs = []
    for molecule in samples:
        pos, src, dst = molecule.node_pos, molecule.src.long(), molecule.dst.long()
        graphs.append(Graph(src, dst, len(pos), ndata={"pos": pos}, edata={"rel_pos": pos[dst] - pos[src]}))
    parts = ([getattr(molecule, name) for molecule in samples] for name in ("node_attr", "edge_attr", "targets"))
    return Graph.batch(graphs), *(torch.cat(part) for part in parts)


def graph_tensors(graph: Graph) -> list[Tensor]:
    sizes = [graph.batch_num_nodes(), graph.batch_num_edges()]
    orders = [*graph.incoming(), *graph.outgoing()]
    return [graph.src, graph.dst, *sizes, *orders, graph.ndata["pos"], graph.edata["rel_pos"]]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def numbered(data: QM9DataModule, numbers: list[int]) -> NumberedBatch:
    everything = data._resident
    chosen = torch.tensor(numbers)
    return NumberedBatch(chosen, int(everything.n_node[chosen].sum()), int(everything.n_edge[chosen].sum()))


def test_batches_equal_those_of_a_data_loader(data: QM9DataModule) -> None:
    """Array for array, the orders of the edges too; in the training order of an epoch."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    published = DataLoader(data.ds_train, batch_size=16, sampler=loader.sampler, collate_fn=collate)
    assert len(loader) == len(published) == 10
    for (graph, node_feats, edge_feats, target), (single, node_attr, edge_attr, targets) in zip(loader, published, strict=True):
        assert_same(graph_tensors(graph), graph_tensors(single))
        assert graph.batch_size == len(target)
        assert_same([node_feats["0"], edge_feats["0"]], [part.float()[..., None] for part in (node_attr, edge_attr)])
        assert_same([target], [(targets - data.targets_mean) / data.targets_std])


def test_every_molecule_once_an_epoch(data: QM9DataModule) -> None:
    loader = data.train_dataloader()
    numbers = torch.cat([batch.numbers for batch in loader.numbered_batches()])
    assert sorted(numbers.tolist()) == sorted(data.ds_train.indices)
    assert numbers.tolist() != data.ds_train.indices
    loader.sampler.set_epoch(1)
    assert not torch.equal(torch.cat([batch.numbers for batch in loader.numbered_batches()]), numbers)


def test_processes_share_an_epoch(data: QM9DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in (0, 1, 2):
        monkeypatch.setattr("se3_fast.data.data_module.rank_and_size", lambda rank=rank: (rank, 3))
        shares.append(torch.cat([batch.numbers for batch in data.val_dataloader().numbered_batches()]))
    assert sorted(torch.cat(shares).tolist()) == sorted(data.ds_val.indices)


@pytest.mark.parametrize(("more_nodes", "more_edges"), [(1, 0), (1, 7), (4, 9), (5, 1), (600, 2000)])
def test_padding_is_a_graph_of_its_own(data: QM9DataModule, more_nodes: int, more_edges: int) -> None:
    batch = numbered(data, [7, 0, 3])  # molecule 0 has no edge
    molecules = data._resident.assemble(batch)
    padded = data._resident.assemble(
        batch._replace(num_nodes=batch.num_nodes + more_nodes, num_edges=batch.num_edges + more_edges), True
    )
    graph = padded.graph
    assert graph.batch_num_nodes().tolist() == [*molecules.graph.batch_num_nodes().tolist(), more_nodes]
    assert graph.batch_num_edges().tolist() == [*molecules.graph.batch_num_edges().tolist(), more_edges]
    for end in (graph.src, graph.dst):
        assert (end[batch.num_edges :] >= batch.num_nodes).all()
        assert (end < graph.num_nodes()).all()
    most = torch.bincount(graph.dst[batch.num_edges :], minlength=1).max()
    assert most <= -(-more_edges // more_nodes)
    assert torch.equal(graph.src[batch.num_edges :], graph.dst[batch.num_edges :])
    assert torch.equal(graph.edata["rel_pos"][batch.num_edges :], torch.tensor([[0.0, 0.0, 1.0]]).expand(more_edges, 3))
    again = Graph(graph.src, graph.dst, graph.num_nodes())
    assert_same([*graph.incoming(), *graph.outgoing()], [*again.incoming(), *again.outgoing()])
    for name in ("node_attr", "edge_attr"):
        own = getattr(molecules, name)
        assert torch.equal(getattr(padded, name)[: len(own)], own)
    assert torch.equal(graph.edata["rel_pos"][: batch.num_edges], molecules.graph.edata["rel_pos"])


def test_padded_sizes_hold_every_batch_and_are_few(data: QM9DataModule) -> None:
    loader = data.train_dataloader()
    sizes = set()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        for batch in loader.numbered_batches():
            num_nodes, num_edges = loader.padded_size(batch)
            assert num_nodes > batch.num_nodes
            assert num_edges >= batch.num_edges
            sizes.add((num_nodes, num_edges))
    assert len(sizes) < 24


@pytest.mark.parametrize("backend", ["dense", "torch", "cpp"])
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_padding_changes_no_output_and_no_gradient(data: QM9DataModule, backend: str, pooling: str) -> None:
    model = pooled_model(6, 6, 4, num_layers=2, pooling=pooling)
    loader = data.train_dataloader()
    batch = next(loader.numbered_batches())
    num_nodes, num_edges = loader.padded_size(batch)
    results = []
    with se3_fast.backend(backend):
        for made in (loader.assemble(batch), loader.assemble(NumberedBatch(batch.numbers, num_nodes, num_edges), is_padded=True)):
            *inputs, target = made
            prediction = model(*inputs)[: len(target)]
            gradients = torch.autograd.grad((prediction - target).abs().mean(), list(model.parameters()))
            results.append([prediction, *gradients])
    for plain, padded in zip(*results, strict=True):
        assert relative_error(padded, plain) < 1e-6 or plain.norm() < 1e-6


def test_geometry_of_the_whole_data_set(data_dir: Path) -> None:
    data = QM9DataModule(data_dir, batch_size=16, precompute_bases=True, num_degrees=3)
    loader = data.train_dataloader()
    batch = next(loader.numbered_batches())
    num_nodes, num_edges = loader.padded_size(batch)
    _, _, _, geometry, _ = loader.assemble(batch)
    _, _, _, padded, _ = loader.assemble(NumberedBatch(batch.numbers, num_nodes, num_edges), is_padded=True)
    assert torch.equal(padded.wigner[: batch.num_edges], geometry.wigner)
    assert padded.num_edges == num_edges


def test_zero_length_edges_are_noticed(data_dir: Path) -> None:
    molecules = read_molecules(data_dir / "qm9_edge.npz", "homo")
    assert ResidentMolecules(molecules).has_zero_length_edges  # random edges, some from an atom to itself
    molecules.src.copy_(0 * molecules.src)
    molecules.dst.copy_(0 * molecules.dst + 1)
    assert not ResidentMolecules(molecules).has_zero_length_edges


def test_data_set_without_edges(tmp_path: Path) -> None:
    arrays = random_arrays(20)
    for name in ("src", "dst", "edge_attr"):
        arrays[name] = arrays[name][:0]
    arrays["n_edge"] = np.zeros_like(arrays["n_edge"])
    write_npz(tmp_path / "qm9_edge.npz", arrays)
    loader = QM9DataModule(tmp_path, batch_size=4).train_dataloader()
    assert all(graph.num_edges() == 0 for graph, *_ in loader)


def test_part_without_molecules(data: QM9DataModule) -> None:
    loader = ResidentLoader(data._resident, torch.zeros(0, dtype=torch.int64), _Nothing(), 4, data._finish)
    assert len(loader) == 0
    assert list(loader) == []


class _Nothing(SequentialSampler):
    def __init__(self) -> None:
        super().__init__([])

    def order(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)


def test_the_host_always_has_room(data_dir: Path) -> None:
    assert device_with_room(read_molecules(data_dir / "qm9_edge.npz", "homo"), "cpu") == torch.device("cpu")
