"""``torch.export`` and AOTInductor: a model of plain tensors, written, read back, and run on other sizes (docs/compile.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import se3_fast
from se3_fast import Graph
from tests.models import pooled_model
from tests.support import relative_error


class Property(nn.Module):
    """A molecular property from tensors only."""

    def __init__(self) -> None:
        super().__init__()
        self.model = pooled_model(6, 8, 4, tensor_cores=True)

    def forward(
        self, src: Tensor, dst: Tensor, pos: Tensor, num_nodes: Tensor, num_edges: Tensor, atoms: Tensor, bonds: Tensor
    ) -> Tensor:
        graph = Graph(src, dst, atoms.shape[0], num_nodes, num_edges, edata={"rel_pos": pos[dst] - pos[src]})
        return self.model(graph, {"0": atoms[..., None]}, {"0": bonds[..., None]})


def _inputs(num_nodes: int, num_edges: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_edges)
    src, dst = torch.randint(num_nodes, (2, num_edges), generator=generator)
    sizes = torch.tensor([num_nodes - 3, 3]), torch.tensor([num_edges - 1, 1])
    pos, atoms, bonds = (torch.randn(*shape, generator=generator) for shape in ((num_nodes, 3), (num_nodes, 6), (num_edges, 4)))
    return src, dst, pos, *sizes, atoms, bonds


@pytest.fixture(scope="module")
def exported() -> ExportedProgram:
    nodes, edges, graphs = Dim("nodes", min=2), Dim("edges", min=2), Dim("graphs", min=2)
    sizes = tuple({0: size} for size in (edges, edges, nodes, graphs, graphs, nodes, edges))
    with torch.no_grad():
        return torch.export.export(Property().eval(), _inputs(10, 30), dynamic_shapes=sizes)


def test_written_and_read_back(exported: ExportedProgram, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    torch.export.save(exported, file)
    loaded = torch.export.load(file).module()
    for size in ((10, 30), (17, 55)):
        assert relative_error(loaded(*_inputs(*size)), Property()(*_inputs(*size))) < 1e-6


def test_compiled_ahead_of_time(exported: ExportedProgram, tmp_path: Path) -> None:
    file = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(file)
    for size in ((10, 30), (17, 55)):
        wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in _inputs(*size)]
        with se3_fast.backend("dense"):
            truth, plain = Property().double()(*wide), Property()(*_inputs(*size))
        # What the compiler generates depends on the processor: it may round as much as the same model in PyTorch does.
        assert relative_error(loaded(*_inputs(*size)), truth) < max(1e-6, 3 * relative_error(plain, truth))
