"""A small file of the layout of ``qm9_edge.npz``, made of random numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from se3_fast.data.npz_file import write_npz


def random_arrays(num_molecules: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of the layout; molecule 0 has one atom and no edge, ``alpha`` is unknown for every third molecule."""
    generator = np.random.default_rng(seed)
    n_node = generator.integers(2, 12, num_molecules)
    n_edge = generator.integers(1, 25, num_molecules)
    n_node[0], n_edge[0] = 1, 0
    num_nodes, num_edges = int(n_node.sum()), int(n_edge.sum())
    atoms_of_edges = np.repeat(n_node, n_edge)
    element = generator.integers(0, 5, num_nodes)
    node_attr = np.zeros((num_nodes, 11), dtype=np.uint8)
    node_attr[:, :5] = np.eye(5)[element]
    node_attr[:, 5] = np.array([1, 6, 7, 8, 9])[element]
    node_attr[:, 6:] = 77
    targets = generator.normal(3.0, 2.0, (num_molecules, 19)).astype(np.float32)
    targets[::3, 1] = np.nan
    targets[:, 16:] = np.nan
    return {
        "n_node": n_node,
        "n_edge": n_edge,
        "node_attr": node_attr,
        "node_pos": generator.normal(size=(num_nodes, 3)).astype(np.float32),
        "edge_attr": np.eye(4, dtype=np.uint8)[generator.integers(0, 4, num_edges)],
        "src": (generator.random(num_edges) * atoms_of_edges).astype(np.uint8),
        "dst": (generator.random(num_edges) * atoms_of_edges).astype(np.uint8),
        "targets": targets,
    }


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Sound arrays of 200 molecules."""
    return random_arrays()


@pytest.fixture
def data_dir(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A folder with a sound ``qm9_edge.npz`` of 200 molecules."""
    write_npz(tmp_path / "qm9_edge.npz", arrays)
    return tmp_path


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder of the real ``qm9_edge.npz``."""
    if "SE3_FAST_DATA_DIR" not in os.environ:
        pytest.skip("SE3_FAST_DATA_DIR is not set")
    return Path(os.environ["SE3_FAST_DATA_DIR"])
