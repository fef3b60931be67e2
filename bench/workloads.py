"""The workloads of DESIGN section 5: models and inputs of two opposite regimes.

``qm9`` has few edges and huge radial weights; ``protein_*`` many edges and small ones. Molecules come from the sample data set;
proteins are random chains with a bond length of 3.8 Angstrom, as residues have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import AttentionBlockSE3, Graph, NormSE3, complete_graph, nearest_neighbour_graph
from se3_fast.data import QM9DataModule

SEQUENCE_NEIGHBOURS = 32


@dataclass
class Workload:
    """A model and one batch of inputs.

    Attributes:
        model: in training mode, float32.
        inputs: arguments of its forward.
    """

    model: nn.Module
    inputs: tuple[Any, ...]

    @property
    def graph(self) -> Graph:
        """The batch's graph."""
        return self.inputs[0]

    @property
    def block(self) -> AttentionBlockSE3:
        """The last attention block: one of the hidden layers, whose convolution is the largest."""
        return [module for module in self.model.modules() if isinstance(module, AttentionBlockSE3)][-1]

    @property
    def norm(self) -> NormSE3:
        """A norm of the hidden features."""
        return next(module for module in self.model.modules() if isinstance(module, NormSE3))

    def to(self, device: torch.device) -> Workload:
        """The same on another device."""
        graph, nodes, edges = self.inputs
        moved = ({key: tensor.to(device) for key, tensor in features.items()} for features in (nodes, edges))
        return Workload(self.model.to(device), (graph.to(device), *moved))

    def forward(self) -> Tensor:
        """A scalar of the output."""
        output = self.model(*self.inputs)
        tensors = output.values() if isinstance(output, dict) else [output]
        return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()

    def forward_only(self) -> None:
        """Inference."""
        with torch.no_grad():
            self.forward()
        self._finish()

    def _finish(self) -> None:
        if self.graph.device.type == "cuda":
            torch.cuda.synchronize()

    def forward_backward(self) -> None:
        """One training step without its optimizer; gradients are kept allocated."""
        self.model.zero_grad(set_to_none=False)
        self.forward().backward()
        self._finish()


@dataclass(frozen=True)
class ModelDescription:
    """What any implementation of the published classes makes a model of.

    Attributes:
        name: of the class.
        fibers: the arguments that are fibers, each the channels by degree.
        others: all other arguments.
    """

    name: str
    fibers: dict[str, dict[int, int]]
    others: dict[str, Any]

    def made_by(self, package: Any) -> nn.Module:
        """The model by a package that has the class and ``Fiber``: this one, or the published ``se3_transformer.model``."""
        fibers = {name: package.Fiber(channels) for name, channels in self.fibers.items()}
        return getattr(package, self.name)(**fibers, **self.others)


def _qm9_description(num_edge_features: int) -> ModelDescription:
    sizes = {"num_degrees": 4, "num_channels": 32, "output_dim": 1, "num_layers": 7, "num_heads": 8, "channels_div": 2}
    return ModelDescription(
        "SE3TransformerPooled",
        {"fiber_in": {0: 6}, "fiber_out": {0: 128}, "fiber_edge": {0: num_edge_features}},
        {**sizes, "pooling": "max", "norm": True, "use_layer_norm": True, "tensor_cores": True},
    )


def _protein_description(
    fiber_in: dict[int, int], fiber_out: dict[int, int], hidden_channels: int, num_edge_features: int
) -> ModelDescription:
    hidden = {0: hidden_channels, 1: hidden_channels}
    return ModelDescription(
        "SE3Transformer",
        {"fiber_in": fiber_in, "fiber_hidden": hidden, "fiber_out": fiber_out, "fiber_edge": {0: num_edge_features}},
        {"num_layers": 1, "num_heads": 4, "channels_div": 4},
    )


DESCRIPTIONS = {
    "qm9": _qm9_description(4),
    "qm9_complete": _qm9_description(5),
    "protein_full": _protein_description({0: 8, 1: 3}, {0: 8, 1: 2}, 32, 32),
    "protein_refine": _protein_description({0: 64, 1: 3}, {0: 64, 1: 2}, 32, 64),
    "protein_wide": _protein_description({0: 64, 1: 2}, {0: 64, 1: 2}, 128, 64),
}
"""The models of the workloads."""


def _molecule_batch(batch_size: int, data_dir: Path | None = None) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    name = "sample" if data_dir is None else "qm9"
    data = QM9DataModule(data_dir or "", batch_size=batch_size, num_workers=0, seed=0, dataset=name)
    graph, nodes, edges, _ = next(iter(data.train_dataloader()))
    return graph, nodes, edges


def _qm9(batch_size: int) -> Workload:
    return Workload(DESCRIPTIONS["qm9"].made_by(se3_fast), _molecule_batch(batch_size))


def qm9_of(data_dir: Path, batch_size: int) -> Workload:
    """``qm9`` with molecules of ``qm9_edge.npz`` in ``data_dir``, whose mean is larger than that of the sample."""
    torch.manual_seed(0)
    return Workload(DESCRIPTIONS["qm9"].made_by(se3_fast), _molecule_batch(batch_size, data_dir))


def _qm9_complete(batch_size: int) -> Workload:
    """The same molecules as complete graphs; a fifth edge feature says that there is no bond."""
    bonds, nodes, bond_features = _molecule_batch(batch_size)
    graph = complete_graph(bonds.ndata["pos"], bonds.batch_num_nodes())
    size = graph.num_nodes()
    order = torch.full((size * size,), -1)
    order[bonds.src * size + bonds.dst] = torch.arange(bonds.num_edges())
    bond = order[graph.src * size + graph.dst]
    features = torch.zeros(graph.num_edges(), 5, 1)
    features[bond >= 0, :4] = bond_features["0"][bond[bond >= 0]]
    features[bond < 0, 4] = 1.0
    return Workload(DESCRIPTIONS["qm9_complete"].made_by(se3_fast), (graph, nodes, {"0": features}))


def random_chain(length: int) -> Tensor:
    """Points [L, 3] with steps of 3.8 Angstrom, as those between residues."""
    steps = torch.randn(length, 3, generator=torch.Generator().manual_seed(0))
    return torch.cumsum(3.8 * steps / steps.norm(dim=1, keepdim=True), 0)


def _neighbour_graph(pos: Tensor) -> Graph:
    """Nearest 64, and all within 32 in the sequence."""
    near = nearest_neighbour_graph(pos, 64)
    number = torch.arange(len(pos))
    distance = (number[:, None] - number[None]).abs()
    is_edge = (distance < SEQUENCE_NEIGHBOURS) & (distance > 0)
    is_edge[near.src, near.dst] = True
    src, dst = is_edge.nonzero(as_tuple=True)
    return Graph(src, dst, len(pos), ndata={"pos": pos}, edata={"rel_pos": pos[dst] - pos[src]})


def _protein(name: str, graph: Graph) -> Workload:
    """The block of a name on a graph of residues; random features."""
    description = DESCRIPTIONS[name]
    model = description.made_by(se3_fast)
    generator = torch.Generator().manual_seed(1)
    nodes = {
        str(degree): torch.randn(graph.num_nodes(), channels, 2 * degree + 1, generator=generator)
        for degree, channels in description.fibers["fiber_in"].items()
    }
    edges = {"0": torch.randn(graph.num_edges(), description.fibers["fiber_edge"][0], 1, generator=generator)}
    return Workload(model, (graph, nodes, edges))


def protein_full_of(pos: Tensor) -> Workload:
    """``protein_full`` of the residues at ``pos`` [L, 3]."""
    return _protein("protein_full", complete_graph(pos))


def _protein_full(length: int) -> Workload:
    return protein_full_of(random_chain(length))


def _protein_refine(length: int) -> Workload:
    return _protein("protein_refine", _neighbour_graph(random_chain(length)))


def _protein_wide(length: int) -> Workload:
    return _protein("protein_wide", _neighbour_graph(random_chain(length)))


BUILDERS: dict[str, Callable[[int], Workload]] = {
    "qm9": _qm9,
    "qm9_complete": _qm9_complete,
    "protein_full": _protein_full,
    "protein_refine": _protein_refine,
    "protein_wide": _protein_wide,
}
"""Workloads by name; each takes its size, molecules of a batch or residues."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the benchmarks run."""

BACKENDS = ("dense", "torch", "triton") if DEVICE.type == "cuda" else ("dense", "torch", "cpp")
"""What is compared; the first is the materialised algorithm."""

SIZES = (
    {"qm9": 240, "qm9_complete": 32, "protein_full": 300, "protein_refine": 300, "protein_wide": 300}
    if DEVICE.type == "cuda"
    else {"qm9": 16, "qm9_complete": 8, "protein_full": 150, "protein_refine": 150, "protein_wide": 150}
)
"""The sizes that ``python -m bench`` takes: those of DESIGN section 5 on a GPU, smaller ones on a CPU."""


def build(name: str, size: int | None = None) -> Workload:
    """A workload of a size (default: that of :data:`SIZES`) on :data:`DEVICE`, with reproducible parameters."""
    torch.manual_seed(0)
    return BUILDERS[name](SIZES[name] if size is None else size).to(DEVICE)
