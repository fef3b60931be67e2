"""A force field as a program of PyTorch alone, and as a package of AOTInductor."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock, patch

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.build import molecule as ase_molecule
from torch import Tensor

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.forces import ForceField, energy_forces_and_stress, molecule_graph
from se3_fast.simulation.compiled import CompiledSinglePoint, describe
from se3_fast.simulation.export import evaluation_of, traced_force_field
from se3_fast.simulation.relax import NOT_RELAXED
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

    check_calculators(force_field, tmp_path)
    check_commands(tmp_path)


def check_commands(folder: Path) -> None:
    """What `md` and `relax` write is what they write without the package, which has made every step."""
    structure, files = ase_molecule("CH3CH2OH"), {}
    structure.rattle(0.03, seed=0)
    ase.io.write(folder / "start.xyz", structure)
    for command, options in (("md", ["--steps", "20", "--interval", "5"]), ("relax", ["--max_steps", "15"])):
        for name, more in (("usual", []), ("compiled", ["--compiled", str(folder / "model.pt2")])):
            files[name] = folder / f"{command}_{name}.traj"
            words = [command, str(folder / "start.xyz"), "--load_ckpt_path", str(folder / "model.pth"), "--dtype", "float64"]
            with patch.object(CompiledSinglePoint, "evaluate", autospec=True, side_effect=CompiledSinglePoint.evaluate) as calls:
                assert main([*words, *options, *more, "--output", str(files[name])]) in (0, NOT_RELAXED)
            assert (calls.call_count > 10) == (name == "compiled")
        usual, compiled = (ase.io.read(files[name], ":") for name in ("usual", "compiled"))
        assert len(usual) == len(compiled) > 0 and np.abs(usual[-1].positions - structure.positions).max() > 0.01
        for one, other in zip(usual, compiled, strict=True):
            np.testing.assert_allclose(other.positions, one.positions, rtol=0, atol=1e-7)
            np.testing.assert_allclose(other.get_forces(), one.get_forces(), rtol=0, atol=1e-6)


def check_calculators(force_field: ForceField, folder: Path) -> None:
    """The calculator with the package is that without; packages of others are refused, and large structures do without."""
    path = folder / "model.pt2"
    usual, compiled = (SE3FastCalculator(force_field, compiled=package) for package in (None, path))
    package = compiled._compiled
    single, crystal = Atoms("C", [[0.0, 0.0, 0.0]]), bulk("C", a=6.0)  # of few edges
    for atoms in (ethanol := ase_molecule("CH3CH2OH"), crystal, single, bulk("C", cubic=True).repeat((2, 1, 1))):
        atoms.rattle(0.05, seed=0)
        for calculator in (usual, compiled):
            calculator.calculate(atoms)
        assert usual.results.keys() == compiled.results.keys()
        for name, values in usual.results.items():
            np.testing.assert_allclose(compiled.results[name], values, rtol=0, atol=1e-8, err_msg=name)
    counted = CountedPackage(package._package)
    package._package = counted
    for again in (ethanol, crystal, single, atoms):
        compiled.calculate(again)
    assert counted.calls == 2  # not one atom, nor more edges than it is faster for
    with pytest.raises(
        ValueError, match=r"model\.pt2: expected a package of dtype torch.float32 as the force field has, got torch.float64"
    ):
        SE3FastCalculator(force_field, dtype=torch.float32, compiled=path)
    for other, fault in (
        (ForceField([1, 6], num_layers=2, num_channels=4), r"expected a package of elements 1 6 as the force field has, got 1 6 8"),
        (ForceField([1, 6, 8], cutoff=4.0), r"expected a package of cutoff 4.0 as the force field has, got 5.0"),
    ):
        with pytest.raises(ValueError, match=rf"model\.pt2: {fault}"):
            SE3FastCalculator(other.double(), compiled=path)
    changed = copy.deepcopy(force_field)
    with torch.no_grad():
        changed.atom_embedding += 0.1
    with pytest.raises(ValueError, match=r"model\.pt2: expected a package of this force field, got one whose forces are .* off"):
        SE3FastCalculator(changed, compiled=path).calculate(ethanol)


class CountedPackage:
    """A package that counts how often it is called."""

    def __init__(self, package: Callable[..., object]) -> None:
        self._package, self.calls = package, 0

    def __call__(self, *arguments: Tensor) -> object:
        self.calls += 1
        return self._package(*arguments)


def test_files_that_are_no_packages(tmp_path: Path) -> None:
    force_field = small_force_field()
    (tmp_path / "text.pt2").write_text("no package")
    for name, fault in (("none", "no such file"), ("text", "expected a package of se3-fast export-forces, got another file")):
        with pytest.raises(ValueError, match=rf"{name}\.pt2: {fault}[^\n]*$"):
            SE3FastCalculator(force_field, compiled=tmp_path / f"{name}.pt2")
    with pytest.raises(ValueError, match="compiled: expected one force field on the CPU, got 2 on cpu"):
        SE3FastCalculator([force_field, force_field], compiled=tmp_path / "text.pt2")


def test_a_package_says_whether_nuclei_repel_each_other(tmp_path: Path) -> None:
    """Usual structures have the same forces with and without, and would not tell."""
    (path := tmp_path / "model.pt2").write_bytes(b"package")
    without, repelling, farther = (small_force_field() for _ in range(3))
    repelling.set_repulsion({"1-6": 0.9})
    farther.set_repulsion({"1-6": 1.0})
    loaded = Mock()
    with patch.object(torch._inductor, "aoti_load_package", return_value=loaded):
        for made_of in (without, repelling, farther):
            loaded.loader.get_metadata.return_value = describe(made_of, torch.float32)
            for other in (without, repelling, farther):
                if other is made_of:
                    SE3FastCalculator(other, compiled=path)
                else:
                    with pytest.raises(
                        ValueError, match=r"model\.pt2: expected a package of repulsion .* as the force field has, got"
                    ):
                        SE3FastCalculator(other, compiled=path)


def test_what_was_compiled_before_is_refused_where_no_force_tells(tmp_path: Path) -> None:
    """A crystal has no forces by any force field; steps that follow have."""
    (path := tmp_path / "model.pt2").write_bytes(b"package")
    made_of = small_force_field(num_layers=2, num_channels=4, cutoff=3.0).double()
    changed = copy.deepcopy(made_of)
    with torch.no_grad():
        changed.atom_embedding += 0.1
    atoms = bulk("C")
    for force_field in (made_of, changed):
        energy = SE3FastCalculator(force_field).get_property("energy", atoms)
        force_field.reference_energies[6] -= energy / 2
    loaded = Mock(side_effect=evaluation_of(made_of))
    loaded.loader.get_metadata.return_value = describe(made_of, torch.float64)
    with patch.object(torch._inductor, "aoti_load_package", return_value=loaded):
        assert np.abs(SE3FastCalculator(made_of, compiled=path).get_property("forces", atoms)).max() < 1e-6
        with pytest.raises(ValueError, match=r"model\.pt2: expected a package of this force field, got one whose forces are"):
            SE3FastCalculator(changed, compiled=path).get_property("forces", atoms)


def test_another_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-forces", "--load_ckpt_path", "model.pth", "--output", str(tmp_path / "model.so")]) == 2
    assert "model.so: expected a name that ends in .pt2" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["md", "relax"])
def test_commands_refuse_what_is_no_package(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line; without a word about the device the package decides on the CPU."""
    path = write_force_field(tmp_path / "model.pth", small_force_field())
    ase.io.write(tmp_path / "start.xyz", ase_molecule("CH4"))
    (tmp_path / "text.pt2").write_text("no package")
    words = [command, str(tmp_path / "start.xyz"), "--output", str(tmp_path / "out.xyz"), "--load_ckpt_path", str(path)]
    package = ["--compiled", str(tmp_path / "text.pt2")]
    with patch("torch.cuda.is_available", return_value=True):
        assert main([*words, *package]) == 2
    assert re.fullmatch(r"error: [^\n]*text\.pt2: expected a package of se3-fast export-forces, [^\n]*\n", capsys.readouterr().err)
    assert main([*words, str(path), *package]) == 2
    assert capsys.readouterr().err == "error: compiled: expected one force field on the CPU, got 2 on cpu\n"
    for more in ([], package):
        assert main([*words, *more, "--cuda_graphs", *([] if more else ["--device", "cpu"])]) == 2
        assert capsys.readouterr().err == "error: cuda_graphs: expected a CUDA device to record on, got cpu\n"
    assert not (tmp_path / "out.xyz").exists()
