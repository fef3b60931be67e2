"""Neighbours in molecules and periodic cells, against all distances to all images."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from se3_fast import radius_graph
from se3_fast.neighbours import neighbour_distances, neighbour_list


def _problem(seed: int) -> tuple[Tensor, Tensor, list[bool]]:
    """Five nodes in and out of a small triclinic cell that is periodic in some directions."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, 3, generator=generator, dtype=torch.float64) - 0.5
    cell = 2.2 * torch.eye(3, dtype=torch.float64) + noise
    pos = 3 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return pos, cell, [bool(seed & bit) for bit in (1, 2, 4)]


def _by_distances(pos: Tensor, cutoff: float, cell: Tensor, pbc: list[bool]) -> set[tuple[int, ...]]:
    most = 14
    found = set()
    for shift in product(*(range(-most, most + 1) if is_periodic else (0,) for is_periodic in pbc)):
        away = torch.tensor(shift, dtype=torch.float64) @ cell
        distances = (pos[None] - pos[:, None] + away).norm(dim=-1)
        for src, dst in (distances <= cutoff).nonzero().tolist():
            if src != dst or any(shift):
                found.add((src, dst, *shift))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_against_all_distances(seed: int) -> None:
    pos, cell, pbc = _problem(seed)
    found = neighbour_list(pos, 3.0, cell, pbc)
    rows = torch.cat([found.src[:, None], found.dst[:, None], found.shift], 1).tolist()
    assert sorted(rows) == rows and len(set(map(tuple, rows))) == len(rows)
    assert set(map(tuple, rows)) == _by_distances(pos, 3.0, cell, pbc)


@pytest.mark.parametrize("seed", range(8))
def test_distances_alone(seed: int) -> None:
    """Of the same pairs: also of one at the cutoff, and of none that is beyond it by less than single precision tells."""
    pos, cell, pbc = _problem(seed)
    found = neighbour_list(pos, 3.0, cell, pbc)
    expected = (pos[found.dst] + found.shift.double() @ cell - pos[found.src]).norm(dim=1)
    np.testing.assert_allclose(np.sort(neighbour_distances(pos, 3.0, cell, pbc)), expected.sort().values, rtol=1e-12)
    on_a_line = torch.tensor([[0.0, 0, 0], [3.0, 0, 0], [0, 3.0 * (1 + 5e-10), 0]], dtype=torch.float64)
    assert neighbour_distances(on_a_line, 3.0).tolist() == [3.0, 3.0] and len(neighbour_list(on_a_line, 3.0).src) == 2
    assert neighbour_distances(on_a_line[:0], 3.0).tolist() == []
    with pytest.raises(ValueError, match="cutoff: expected a positive length, got -1"):
        neighbour_distances(on_a_line, -1)


def test_a_direction_that_is_not_periodic_needs_no_vector() -> None:
    pos, cell, _ = _problem(0)
    flat = cell.clone()
    flat[1] = 0
    found, expected = (neighbour_list(pos, 3.0, vectors, [True, False, True]) for vectors in (flat, cell))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_batches_of_cells() -> None:
    """A graph of a batch has the edges that it has by itself; gradients reach positions and cells."""
    (pos, cell, _), (other, wide, _) = _problem(1), _problem(2)
    cells = torch.stack([cell, wide]).requires_grad_()
    leaf = torch.cat([pos, other]).requires_grad_()
    graph = radius_graph(leaf, 3.0, [5, 5], cells, torch.tensor([[True, True, True], [True, False, False]]))
    first, second = radius_graph(pos, 3.0, cell=cell), radius_graph(other, 3.0, cell=wide, pbc=[True, False, False])
    assert graph.batch_num_edges().tolist() == [first.num_edges(), second.num_edges()]
    assert torch.equal(graph.src, torch.cat([first.src, second.src + 5]))
    assert torch.allclose(graph.edata["rel_pos"], torch.cat([first.edata["rel_pos"], second.edata["rel_pos"]]))
    of_pos, of_cells = torch.autograd.grad(graph.edata["rel_pos"].square().sum(), (leaf, cells))
    assert float(of_pos.abs().max()) > 0 and float(of_cells[0].abs().min()) > 0 and float(of_cells[1, 1:].abs().max()) == 0


def test_faults_are_named() -> None:
    pos, cell, _ = _problem(0)
    flat = torch.stack([cell[0], cell[1], cell[0] + cell[1]])
    with pytest.raises(ValueError, match="cell: expected lattice vectors that span a volume, got"):
        neighbour_list(pos, 3.0, flat)
    with pytest.raises(ValueError, match=r"cell: expected shape \[3, 3\] or \[1, 3, 3\], got \[3\]"):
        radius_graph(pos, 3.0, cell=cell[0])
    for pbc in (None, "TTT"):
        with pytest.raises(ValueError, match=f"pbc: expected one for all directions or three, got {pbc!r}"):
            radius_graph(pos, 3.0, cell=cell, pbc=pbc)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pbc: expected shape \[3\] or \[1, 3\], got \[2\]"):
        radius_graph(pos, 3.0, cell=cell, pbc=[True, False])
    with pytest.raises(ValueError, match="cell: expected finite lattice vectors, got"):
        neighbour_list(pos, 3.0, cell * torch.nan)
    with pytest.raises(ValueError, match=r"pbc: expected one for all directions or three, got shape \[2\]"):
        neighbour_list(pos, 1.0, torch.eye(3), [True, False])
    for search in (neighbour_list, radius_graph):
        with pytest.raises(ValueError, match="cell: expected a tensor, got an object of type ndarray"):
            search(pos, 1.0, cell=np.eye(3))  # type: ignore[operator]
    with pytest.raises(ValueError, match="cutoff: expected a positive length, got inf"):
        neighbour_list(pos, float("inf"))


def test_the_order_with_nodes_very_many_cells_away() -> None:
    """Their shifts, all counted through, are more than an integer holds."""
    generator = torch.Generator().manual_seed(0)
    near, far = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 10, torch.eye(3, dtype=torch.float64) * 1e7
    found = neighbour_list(torch.cat([far, near]), 3.0, 10 * torch.eye(3, dtype=torch.float64))
    rows = torch.cat([found.src[:, None], found.dst[:, None], found.shift], 1).tolist()
    assert rows == sorted(rows) and found.shift.amax() > 9e5


FLAT = {
    "plane": ([300.0, 400.0, 0.5], [False, False, False]),
    "slab": ([300.0, 400.0, 0.5], [True, True, False]),
    "periodic": ([300.0, 400.0, 2.5], [True, True, True]),
    "line": ([2e6, 1.0, 1.0], [False, True, False]),
}


@pytest.mark.parametrize("kind", FLAT)
def test_long_and_flat_space(kind: str) -> None:
    """The library that searches ends the process there."""
    lengths, pbc = FLAT[kind]
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(30, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 5.0, lengths[2]])
    pos[15:, :2] = torch.tensor(lengths, dtype=torch.float64)[:2] - pos[15:, :2]
    cell = torch.diag(torch.tensor(lengths, dtype=torch.float64))
    found = neighbour_list(pos, 1.0, cell, pbc)
    rows = torch.cat([found.src[:, None], found.dst[:, None], found.shift], 1).tolist()
    assert set(map(tuple, rows)) == _by_distances(pos, 1.0, cell, pbc) and len(rows) > 20
    assert len(neighbour_distances(pos, 1.0, cell, pbc)) == len(rows)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("far", [1e3, 1e7, 1e9])
def test_nodes_very_far_apart(seed: int, far: float) -> None:
    """As molecules that fly apart, or trajectories that are not wrapped; the library that searches ends the process there."""
    pos, cell, pbc = _problem(seed)
    pos = (pos * 2**20).round() / 2**20
    turns = (far * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).round().double() * torch.tensor(pbc)
    expected = neighbour_list(pos, 3.0, cell, pbc)
    cell_of_node = turns.long()
    found = neighbour_list(pos + turns @ cell, 3.0, cell, pbc)
    moved = found.shift + cell_of_node[found.dst] - cell_of_node[found.src]
    rows, wanted = (
        {(*ends, *shift) for *ends, shift in zip(src.tolist(), dst.tolist(), shifts.tolist(), strict=True)}
        for src, dst, shifts in ((found.src, found.dst, moved), expected)
    )
    assert rows == wanted
    apart = torch.cat([pos, pos + far * torch.tensor([1.0, 0, 0], dtype=torch.float64)])
    assert len(neighbour_list(apart, 3.0).src) == 2 * len(neighbour_list(pos, 3.0).src)


def test_a_batch_of_no_cells() -> None:
    graph = radius_graph(torch.zeros(0, 3), 3.0, [], torch.eye(3))
    assert graph.num_edges() == 0 and graph.edata["offset"].shape == (0, 3)
