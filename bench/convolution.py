"""One convolution of a hidden layer by itself: what is compared with other implementations and followed over sizes.

Every node has 32 channels of each degree, in and out; messages are summed over incoming edges; four edge features and the length
feed a radial profile shared by all pairs of degrees (DESIGN 5, workloads ``edges`` and ``degrees``). What depends on directions
only is made before anything is timed, as all layers of a model share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

import se3_fast
from bench.workloads import BACKENDS, DEVICE, Workload
from se3_fast import EdgeGeometry, Fiber, Graph
from se3_fast.fiber import Features
from se3_fast.layers import ConvSE3

CHANNELS = 32
EDGE_FEATURES = 4
EDGES_PER_NODE = 16
"""As in a radius graph of a molecule."""


class ComparedConvolution(nn.Module, ABC):
    """The convolution by somebody, with the node features as parameters, so that a step makes all gradients."""

    @abstractmethod
    def forward(self, graph: Graph, invariants: Tensor) -> Features:
        """Sums over incoming edges, ``{d: [N, C, 2d+1]}``, from invariant edge features [E, e, 1] with the length last."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """After a backward pass: of the node features by degree [N, C, 2d+1], of the hidden radial layers, of the last weight."""


class OurConvolution(ComparedConvolution):
    """:class:`se3_fast.ConvSE3`.

    Args:
        backend: what it runs on.
        rel_pos: [E, 3].
        num_nodes: N.
        max_degree: largest degree, in and out.
        channels: C of every degree, in and out.
    """

    def __init__(self, backend: str, rel_pos: Tensor, num_nodes: int, max_degree: int, channels: int) -> None:
        super().__init__()
        self.backend = backend
        fiber = Fiber.create(max_degree + 1, channels)
        edges = Fiber({0: EDGE_FEATURES})
        self.convolution = ConvSE3(fiber, fiber, edges, use_layer_norm=True, max_degree=max_degree)
        self.nodes = nn.ParameterDict(
            {str(degree): nn.Parameter(torch.randn(num_nodes, channels, 2 * degree + 1)) for degree in fiber.degrees}
        )
        self.rel_pos = rel_pos
        self.geometry = EdgeGeometry.from_relative_positions(rel_pos, max_degree)

    def forward(self, graph: Graph, invariants: Tensor) -> Features:
        """Convolve."""
        with se3_fast.backend(self.backend):
            return self.convolution(dict(self.nodes.items()), {"0": invariants}, graph, self.geometry)

    def gradients(self) -> list[Tensor]:
        """In the layout that all others are brought to."""
        (profile,) = self.convolution.radial_profiles
        return [parameter.grad for parameter in (*self.nodes.values(), *profile.parameters())]


def random_graph(num_edges: int) -> Graph:
    """Random pairs of points, every pair with an edge each way, as molecules have them; lengths of a few Angstrom.

    Args:
        num_edges: an even number.
    """
    if num_edges < 2 or num_edges % 2:
        raise ValueError(f"num_edges: expected a positive even number, got {num_edges}")
    generator = torch.Generator().manual_seed(0)
    num_nodes = max(2, num_edges // EDGES_PER_NODE)
    one = torch.randint(num_nodes, (num_edges // 2,), generator=generator)
    other = (one + torch.randint(1, num_nodes, (num_edges // 2,), generator=generator)) % num_nodes
    pos = 2.0 * torch.randn(num_nodes, 3, generator=generator)
    src, dst = torch.cat([one, other]), torch.cat([other, one])
    return Graph(src, dst, num_nodes, ndata={"pos": pos}, edata={"rel_pos": pos[dst] - pos[src]})


def convolution(
    num_edges: int,
    max_degree: int = 3,
    channels: int = CHANNELS,
    backend: str = BACKENDS[-1],
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """Our convolution on a random graph, with reproducible parameters, on the device of the benchmarks."""
    graph = random_graph(num_edges).to(DEVICE)
    rel_pos = graph.edata["rel_pos"].to(dtype)
    torch.manual_seed(1)
    features = torch.randn(num_edges, EDGE_FEATURES).to(rel_pos)
    invariants = torch.cat([features, rel_pos.norm(dim=1, keepdim=True)], 1).unsqueeze(-1)
    model = OurConvolution(backend, rel_pos, graph.num_nodes(), max_degree, channels)
    return Workload(model.to(DEVICE, dtype), (graph, invariants))
