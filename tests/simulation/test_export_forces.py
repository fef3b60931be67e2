"""A force field as a program of PyTorch alone, and as a package of AOTInductor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from se3_fast.__main__ import main
from se3_fast.forces import ForceField, energy_forces_and_stress, molecule_graph
from se3_fast.simulation.export import traced_force_field
from tests.simulation.conftest import small_force_field, write_force_field


def problem(num_atoms: int, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], object]:
    """Atoms in a periodic cell smaller than the cutoff, as the program takes them, and as a graph."""
    generator = torch.Generator().manual_seed(num_atoms)
    pos = 3 * torch.rand(num_atoms, 3, generator=generator, dtype=dtype)
    numbers = torch.tensor([1, 6, 8])[torch.randint(3, (num_atoms,), generator=generator)]
    graph = molecule_graph(pos, numbers, cutoff=5.0, cell=3.5 * torch.eye(3, dtype=dtype))
    return (graph.edata["rel_pos"], graph.src, graph.dst, numbers), graph


def check(program: object, force_field: ForceField, num_atoms: int) -> None:
    tensors, graph = problem(num_atoms, torch.float64)
    energies, forces, virial = program(*tensors)
    volume = torch.tensor([3.5**3], dtype=torch.float64)
    expected = energy_forces_and_stress(force_field, graph, volume)
    assert torch.allclose(energies.sum(), expected.energies[0], rtol=0, atol=1e-8)
    assert torch.allclose(energies, force_field.atomic_energies(graph).detach(), rtol=0, atol=1e-8)
    assert torch.allclose(forces, expected.forces, rtol=0, atol=1e-8)
    assert torch.allclose(virial / volume, expected.stress[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("repulsion", [False, True])
def test_a_traced_program_serves_any_number_of_atoms_and_edges(repulsion: bool) -> None:
    force_field = small_force_field(num_layers=2, num_channels=4, repulsion=repulsion).double()
    program = traced_force_field(force_field).module()
    for num_atoms in (2, 5, 11):
        check(program, force_field, num_atoms)
    tensors, _ = problem(5, torch.float64)
    tensors[3][2] = 9
    assert program(*tensors)[0].isnan().tolist() == [False, False, True, False, False]


def test_a_package_runs_without_se3_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    force_field = small_force_field(num_layers=2, num_channels=4).double()
    path = write_force_field(tmp_path / "model.pth", force_field)
    words = ["export-forces", "--load_ckpt_path", str(path), "--dtype", "float64"]
    assert main([*words, "--output", str(tmp_path / "model.pt2")]) == 0
    assert "model.pt2: elements [1, 6, 8], cutoff 5 Angstrom" in capsys.readouterr().out
    package = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    for num_atoms in (3, 8):
        check(package, force_field, num_atoms)
    tensors, _ = problem(5, torch.float64)
    torch.save(list(tensors), tmp_path / "tensors.pt")
    code = (
        "import sys, torch; package = torch._inductor.aoti_load_package('model.pt2'); "
        "print(package(*torch.load('tensors.pt'))[0].sum().item(), 'se3_fast' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split() == [repr(package(*tensors)[0].sum().item()), "False"]


def test_another_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-forces", "--load_ckpt_path", "model.pth", "--output", str(tmp_path / "model.so")]) == 2
    assert "model.so: expected a name that ends in .pt2" in capsys.readouterr().err
