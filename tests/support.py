"""What several test files need: random problems, comparison by relative RMS error, rotations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from se3_fast import ConvSE3FuseLevel, Fiber, Graph
from se3_fast.backends.dense.edge_frames import wigner_blocks
from se3_fast.backends.registry import availability
from se3_fast.layers.convolution import ConvSE3

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest relative RMS error against the dense float64 result, by dtype."""


TRITON_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where tests of the Triton kernels run: on the CPU in Triton's interpreter."""

BACKENDS = ("dense", "torch", *(name for name in ("cpp", "triton") if availability(name).is_supported))
"""Those that are there: each holds the contract of every operation, also where it has no kernels of its own."""

FAST_BACKENDS = BACKENDS[1:]
"""Those that are compared with ``dense`` in float64."""


def device_of(backend: str) -> torch.device:
    """Where the tests of a backend run."""
    return TRITON_DEVICE if backend in ("triton", "cuda") else torch.device("cpu")


def relative_error(value: Tensor, truth: Tensor) -> float:
    """RMS error over RMS truth; the RMS error itself where the truth is zero. Values that are not finite are no values."""
    assert value.shape == truth.shape
    value, truth = value.detach().cpu(), truth.detach().cpu()
    assert truth.isfinite().all()
    assert value.isfinite().all()
    if truth.numel() == 0:
        return 0.0
    scale = truth.double().norm()
    return float((value.double() - truth.double()).norm() / (scale if scale > 0 else 1.0))


def random_graph(num_nodes: int, num_edges: int, seed: int = 0, zero_length_edges: int = 0) -> Graph:
    """Random edges among the first nodes, so that the last node is isolated; some edges of length zero."""
    generator = torch.Generator().manual_seed(seed)
    used = max(num_nodes - 1, 1)
    src = torch.randint(used, (num_edges,), generator=generator)
    dst = torch.randint(used, (num_edges,), generator=generator)
    rel_pos = torch.randn(num_edges, 3, generator=generator, dtype=torch.float64)
    rel_pos[:zero_length_edges] = 0.0
    return Graph(src, dst, num_nodes, edata={"rel_pos": rel_pos})


def random_features(fiber: Fiber, count: int, seed: int = 1) -> dict[str, Tensor]:
    """Standard normal features, float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        str(degree): torch.randn(count, fiber[degree], 2 * degree + 1, generator=generator, dtype=torch.float64)
        for degree in fiber.degrees
    }


def make_convolution(
    fiber_in: Fiber,
    fiber_out: Fiber,
    fiber_edge: Fiber | None = None,
    fuse_level: ConvSE3FuseLevel = ConvSE3FuseLevel.FULL,
    max_degree: int | None = None,
    use_layer_norm: bool = True,
    **arguments: bool,
) -> ConvSE3:
    """A float64 convolution with reproducible weights."""
    torch.manual_seed(0)
    if max_degree is None:
        max_degree = max(*fiber_in.degrees, *fiber_out.degrees)
    arguments |= {"use_layer_norm": use_layer_norm}
    return ConvSE3(fiber_in, fiber_out, fiber_edge or Fiber({}), max_degree=max_degree, fuse_level=fuse_level, **arguments).double()


def random_rotation(seed: int = 0) -> Tensor:
    """A rotation matrix, [3, 3] float64."""
    generator = torch.Generator().manual_seed(seed)
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return matrix * torch.linalg.det(matrix)


def wigner_of_rotation(rotation: Tensor, degree: int) -> Tensor:
    """D of a rotation matrix acting on features of a degree, [2d+1, 2d+1], from the frames of the images of two axes.

    D(frame of R p) D(frame of p)^T is D(R) up to a turn about p; a turn about the polar axis R maps it on makes up for it.
    """
    pole = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    vector = _blocks(pole @ rotation.T, 1)
    remaining = vector.T @ rotation  # leaves the pole fixed: a turn about y
    angle = math.atan2(float(remaining[0, 2]), float(remaining[0, 0]))
    return _blocks(pole @ rotation.T, degree) @ _turn_about_y(angle, degree)


def _blocks(direction: Tensor, degree: int) -> Tensor:
    start = degree * (4 * degree * degree - 1) // 3
    return wigner_blocks(direction, degree)[0, start:].view(2 * degree + 1, 2 * degree + 1)


def _turn_about_y(angle: float, degree: int) -> Tensor:
    size = 2 * degree + 1
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        order = degree - row
        matrix[row, row] += math.cos(order * angle)
        if order != 0:
            matrix[row, size - 1 - row] += math.sin(order * angle)
    return matrix


def rotate_features(features: dict[str, Tensor], rotation: Tensor) -> dict[str, Tensor]:
    """D x for every degree, in the features' dtype."""
    return {
        key: (feature.double() @ wigner_of_rotation(rotation, int(key)).T).to(feature.dtype) for key, feature in features.items()
    }


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies that require grad."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]
