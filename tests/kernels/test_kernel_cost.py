"""The kernels' costs against small numbers counted by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from se3_fast.kernels import (
    aligned_weights,
    basis,
    edge_attention,
    edge_attention_in_frames,
    edge_frames,
    equivariant_norm,
    linear,
    parameter_rows,
    perceptron,
    pooling,
    radial,
)


def test_edge_frames() -> None:
    assert edge_frames.cost(num_edges=2, itemsize=4) == (0, 40, 2 * (12 + 16))


@pytest.mark.parametrize(("degree", "flop"), [(0, 1), (1, 25), (2, 53)])
def test_turns(degree: int, flop: int) -> None:
    """Twice: the entries of J, 3 for degree 1 and 7 for degree 2, of 2 FLOP, and pairs of components, of 6; one factor."""
    assert edge_frames.turn_flop(degree) == flop


def test_basis() -> None:
    """Degrees 0 and 1: bases of 1, 3, 3 and 27 entries; harmonics of degrees 0 to 2."""
    forward, backward = basis.cost(max_degree=1, num_edges=2, itemsize=2)
    assert forward == (0, 2 * (4 * 34 + 60 * 9), 2 * (12 + 34 * 2))
    assert backward == (0, 2 * (4 * 34 + 150 * 9), 2 * (12 + 12 + 34 * 2))


def test_radial() -> None:
    """3 invariants, 16 units: 3 x 16 and 16 x 16 weights."""
    forward, backward = radial.cost(num_groups=2, num_edges=1, num_invariants=3, width=16, itemsize=2)
    assert forward == (2 * 2 * (48 + 256), 2 * 18 * 16, 12 + 2 * 32)
    assert backward == (3 * 2 * 2 * (48 + 256), 3 * 2 * 18 * 16, 12 + 3 * 2 * 32)
    _, backward = radial.cost(num_groups=2, num_edges=1, num_invariants=3, width=16, itemsize=2, with_invariants=True)
    assert backward == (3 * 2 * 2 * (48 + 256) + 2 * 2 * 48, 3 * 2 * 18 * 16, 12 + 12 + 4 * 2 * 32)


def test_equivariant_norm() -> None:
    """Three nodes with two channels of degrees 0 and 1: 24 values."""
    forward, backward = equivariant_norm.cost(num_nodes=3, channels=2, degrees=(0, 1), itemsize=4)
    assert forward == (0, 96, 192)
    assert backward == (0, 240, 288)


def test_linear() -> None:
    """Two nodes; degree 0 with 3 + 1 channels to 2, degree 1 with 2 to 5: 8 + 30 products, 10 values in and 17 out per node."""
    shape = linear.Shape((1, 3), ((3, 2), (1, 0)), (2, 5), (0, 0), 0, torch.float16)
    forward, backward = linear.cost(2, shape)
    assert forward == (2 * 2 * (8 + 30), 0, 2 * (10 + 17) * 2)
    assert backward == (2 * 2 * 2 * (8 + 30), 0, 2 * 2 * (10 + 17) * 2)


def test_pooling() -> None:
    """Five nodes of two graphs, three features; a maximum writes its winners down."""
    forward, backward = pooling.cost(num_nodes=5, num_graphs=2, num_features=3, itemsize=4, is_max=True)
    assert forward == (0, 15, 15 * 4 + 6 * (4 + 8) + 32)
    assert backward == (0, 0, 15 * 4 + 6 * (4 + 8) + 32)
    forward, backward = pooling.cost(num_nodes=5, num_graphs=2, num_features=3, itemsize=2, is_max=False)
    assert forward == (0, 15, 15 * 2 + 6 * 2 + 32)
    assert backward == (0, 6, 15 * 2 + 6 * 2 + 32)


def test_perceptron() -> None:
    """Two rows, 3 channels, 5 units, 4 outputs: 15 and 20 weights, 9 biases; 12 values a row; dh takes 20 products, twice."""
    forward, backward = perceptron.cost(2, perceptron.Shape(3, 5, 4, torch.float16))
    assert forward == (2 * 2 * (15 + 20), 2 * 9, 2 * (2 * 12 + 35 + 9))
    assert backward == (2 * 2 * (2 * 15 + 3 * 20), 2 * 9, 2 * (2 * (12 + 3) + 2 * 35 + 9))


def test_aligned_weights() -> None:
    """Three weights in float32, aligned in half precision in both orders; two entries of the map for each."""
    forward, backward = aligned_weights.cost(num_weights=3, num_entries=2.0, itemsize=4, aligned_itemsize=2)
    assert forward == (0, 12, 3 * (4 + 2 * 2))
    assert backward == (0, 12, 3 * (4 + 2))


def test_parameter_rows() -> None:
    """Two parts of three values and one of five."""
    assert parameter_rows.cost([(2, 3), (1, 5)], itemsize=4) == (0, 11, 4 * (11 + 8))


def test_edge_attention() -> None:
    """Two nodes, three edges, two heads with a value of 4 and a key of 5 features."""
    forward, backward = edge_attention.cost(num_nodes=2, num_edges=3, num_heads=2, value_width=4, key_width=5, itemsize=2)
    assert forward == (0, 3 * (20 + 16 + 20), 3 * (36 + 8) + 2 * (36 + 16))
    assert backward == (0, 3 * (70 + 40 + 40), 3 * (72 + 8) + 2 * (56 + 16))


def test_edge_attention_in_frames() -> None:
    """One node, one edge, one head with one channel of degree 1 in value and key, float32.

    Turning one channel: 25 FLOP; a channel has 3 values.
    """
    layout = edge_attention_in_frames.frame_layout(1, ((1, 1),), ((1, 1),))
    forward, backward = edge_attention_in_frames.cost_in_frames(layout, num_nodes=1, num_edges=1, itemsize=4)
    assert forward == (0, 25 + 25 + 6 + 3 + 10, 3 * 24 + 8 + 16 + 24 + 16)
    assert backward == (0, 3 * 25 + 2 * 25 + 18 + 15 + 20, 4 * 24 + 8 + 16 + 36 + 16)
    assert forward.flop == forward.vector_flop
