"""How kernels are launched: on their tensors' device, by grids that CUDA takes whatever the size of the data. None runs here."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch._subclasses import FakeTensorMode

import se3_fast
from se3_fast import ConvSE3, Fiber, Graph, SE3TransformerPooled

pytest.importorskip("triton")

from bench.recorded_launches import KERNELS, MODULES, recorded
from se3_fast.forces import ForceField, energy_and_forces
from se3_fast.kernels import launching, pooling
from tests.support import TRITON_DEVICE, random_graph


def kernels_launched_in(module: str) -> set[str]:
    """The names of the kernels that the functions of a file launch."""
    calls = [node for node in ast.walk(ast.parse((KERNELS / f"{module}.py").read_text())) if isinstance(node, ast.Call)]
    return {f"{module}.{ast.unparse(call.args[0])}" for call in calls if ast.unparse(call.func) == "launch"}


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.stem)
def test_kernels_are_launched_by_one_function(path: Path) -> None:
    """No ``kernel[grid](...)`` but in ``launching.py``."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    direct = [ast.unparse(call.func) for call in calls if isinstance(call.func, ast.Subscript)]
    assert direct == (["kernel[grid]", "kernel[grid]"] if path.stem == "launching" else [])


class Launched:
    """Stands for a kernel: which device was current when it ran."""

    def __init__(self) -> None:
        self.current = 0
        self.devices: list[int] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Launched:
        return self

    def __call__(self, *_: object, **__: object) -> None:
        self.devices.append(self.current)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """In place of ``torch.cuda.device``."""
        before, self.current = self.current, device.index
        yield
        self.current = before


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is current; the tensor that tells may stand in a tuple."""
    kernel = Launched()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: kernel.current)
    monkeypatch.setattr(torch.cuda, "device", kernel.device)
    with FakeTensorMode():
        for index in (0, 1, 3):
            values = torch.empty(4, device=f"cuda:{index}")
            launching.launch(kernel, (1,), 4, values)
            launching.launch(kernel, (1,), (values, values), 4)
    assert kernel.devices == [0, 0, 1, 1, 3, 3] and kernel.current == 0


def test_a_launch_needs_a_tensor() -> None:
    with pytest.raises(ValueError, match="arguments: expected a tensor among them, got none"):
        launching.launch(Launched(), (1,), 4, (5, 6))


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid: expected at most 65535 programs along all axes but the first, got \(1, 65536\)"):
        launching.launch(Launched(), (1, 65_536), torch.empty(1))


# Grids --------------------------------------------------------------------------------------------------------------

Grids = dict[str, set[tuple[int, ...]]]


def graph_of(num_nodes: int, out_degree: int) -> Graph:
    """Every node has an edge to the next ones."""
    source = torch.arange(num_nodes, device=TRITON_DEVICE).repeat_interleave(out_degree)
    step = torch.arange(1, out_degree + 1, device=TRITON_DEVICE).repeat(num_nodes)
    return Graph(source, (source + step) % num_nodes, num_nodes)


def run_model(num_nodes: int, order: Literal["edge", "source"], with_positions: bool) -> None:
    """A training step of a model that has every layer, with gradients of the positions if wanted."""
    graph = graph_of(num_nodes, 4)
    rel_pos = torch.randn(graph.num_edges(), 3, device=TRITON_DEVICE, requires_grad=with_positions)
    graph.edata["rel_pos"] = rel_pos
    sizes = {"num_degrees": 2, "num_channels": 8, "num_layers": 2, "num_heads": 2, "channels_div": 2, "output_dim": 1}
    fibers = {"fiber_in": Fiber({0: 4, 1: 4}), "fiber_out": Fiber({0: 8}), "fiber_edge": Fiber({0: 3})}
    model = SE3TransformerPooled(**fibers, **sizes, norm=True, use_layer_norm=True).to(TRITON_DEVICE)  # type: ignore[arg-type]
    for layer in model.modules():
        if isinstance(layer, ConvSE3):
            layer.contraction_order = order  # type: ignore[misc]
    nodes = {str(degree): torch.randn(num_nodes, 4, 2 * degree + 1, device=TRITON_DEVICE) for degree in (0, 1)}
    model(graph, nodes, {"0": torch.randn(graph.num_edges(), 3, 1, device=TRITON_DEVICE)}).sum().backward()


def run_bases(num_edges: int) -> None:
    rel_pos = torch.randn(num_edges, 3, device=TRITON_DEVICE, requires_grad=True)
    bases = se3_fast.get_basis(rel_pos, max_degree=1, compute_gradients=True)
    fused = se3_fast.update_basis_with_fused(bases, max_degree=1, use_pad_trick=False, fully_fused=True)
    torch.stack([basis.sum() for basis in fused.values()]).sum().backward()


def run_force_field(num_nodes: int) -> None:
    """With the gradients of its gradients."""
    model = ForceField([6], num_layers=1, num_channels=8, num_radial=4).to(TRITON_DEVICE)
    graph = random_graph(num_nodes, 2 * num_nodes).to(TRITON_DEVICE)
    graph.ndata = {
        "pos": torch.randn(num_nodes, 3, device=TRITON_DEVICE),
        "atomic_numbers": torch.full((num_nodes,), 6, device=TRITON_DEVICE),
    }
    graph.edata.clear()  # relative positions follow from these
    energies, forces = energy_and_forces(model, graph, create_graph=True)
    (energies.sum() + forces.square().sum()).backward()


def grids_at(num_nodes: int) -> Grids:
    """Of all kernels, for a graph of so many nodes."""
    with recorded() as launches, se3_fast.backend("triton"):
        run_model(num_nodes, "edge", with_positions=False)
        run_model(num_nodes, "edge", with_positions=True)
        run_model(num_nodes, "source", with_positions=True)
        run_bases(num_nodes)
        run_force_field(num_nodes)
    found: Grids = defaultdict(set)
    for launch in launches:
        found[f"{launch.module}.{launch.kernel}"].add(launch.grid)
    return found


def test_only_the_first_axis_of_a_grid_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling shares nodes among so many programs at most, which the smaller graph has already."""
    monkeypatch.setattr(pooling, "_BACKWARD_PROGRAMS", 8)
    small, large = (grids_at(num_nodes) for num_nodes in (500, 1000))
    assert set(small) == set(large) == set().union(*map(kernels_launched_in, MODULES))
    for kernel in small:
        assert {grid[1:] for grid in small[kernel]} == {grid[1:] for grid in large[kernel]}, kernel


# Compilations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("work", "kernels"), [("direct", 20), ("recorded", 20), ("forces", 2)])
def test_batches_of_other_sizes_compile_nothing(work: str, kernels: int) -> None:
    """Neither forward nor backward, whatever divides their numbers of nodes and edges."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.backends.triton.compilations", work]
    finished = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    counts = json.loads(finished.stdout)
    assert len(counts) > kernels
    assert {kernel: of_kernel for kernel, of_kernel in counts.items() if len(set(of_kernel)) > 1} == {}
