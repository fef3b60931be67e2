"""ForceField and energy_and_forces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import complete_graph
from se3_fast.forces import ForceField, energy_and_forces, load_force_field, molecule_graph
from se3_fast.training import CheckpointError
from tests.models import pooled_model
from tests.support import random_rotation, relative_error

NUMBERS = torch.tensor([8, 1, 1, 6, 1])


def _positions(seed: int = 0, spread: float = 1.5) -> Tensor:
    return spread * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Constant(torch.nn.Module):
    def forward(self, graph: se3_fast.Graph) -> Tensor:
        return torch.zeros(1)


def _force_field(**arguments: int | float) -> ForceField:
    torch.manual_seed(0)
    given = {"num_layers": 1, "num_degrees": 2, "num_channels": 4, "num_heads": 2, "num_gaussians": 5, **arguments}
    model = ForceField([8, 6, 1], **given).double()
    model.set_scale({1: -10.0, 6: -50.0, 8: -100.0}, 0.7)
    return model


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("cutoff", [None, 2.5])
def test_forces_are_minus_the_gradient(backend: str, cutoff: float | None) -> None:
    """Central differences of the energy of each molecule of a batch, which moves with its own atoms alone."""
    model = _force_field(**({} if cutoff is None else {"cutoff": cutoff}))
    pos, numbers = torch.cat([_positions(), _positions(1)]), NUMBERS.repeat(2)
    graph = molecule_graph(pos, numbers, [5, 5], cutoff)
    step = 1e-5
    with se3_fast.backend(backend):
        energies, forces = energy_and_forces(model, graph)
        assert energies.shape == (2,) and forces.shape == (10, 3)
        assert not energies.requires_grad and not forces.requires_grad and not graph.ndata["pos"].requires_grad
        for atom, axis in ((0, 0), (3, 1), (7, 2)):
            shift = torch.zeros_like(pos)
            shift[atom, axis] = step
            above, below = (
                energy_and_forces(model, molecule_graph(p, numbers, [5, 5], cutoff))[0] for p in (pos + shift, pos - shift)
            )
            difference = (above - below) / (2 * step)
            assert float((difference[atom // 5] + forces[atom, axis]).abs()) < 1e-7 * float(forces.abs().max())
            assert float(difference[1 - atom // 5]) == 0


def test_symmetries() -> None:
    """Motion of the whole molecule, order of atoms, molecules beside it."""
    model, pos, rotation = _force_field(), _positions(), random_rotation()
    energy, forces = energy_and_forces(model, molecule_graph(pos, NUMBERS))
    assert relative_error(forces.sum(0) / forces.abs().max(), torch.zeros(3)) < 1e-12
    moved_energy, moved_forces = energy_and_forces(model, molecule_graph(pos @ rotation.T + 3.0, NUMBERS))
    assert relative_error(moved_energy, energy) < 1e-12 and relative_error(moved_forces, forces @ rotation.T) < 1e-10
    order = torch.tensor([4, 2, 0, 3, 1])
    energy_again, forces_again = energy_and_forces(model, molecule_graph(pos[order], NUMBERS[order]))
    assert relative_error(energy_again, energy) < 1e-12 and relative_error(forces_again, forces[order]) < 1e-10
    both = molecule_graph(torch.cat([pos, _positions(1)]), NUMBERS.repeat(2), [5, 5])
    energies, both_forces = energy_and_forces(model, both)
    assert relative_error(energies[:1], energy) < 1e-12 and relative_error(both_forces[:5], forces) < 1e-10


def test_energy_is_that_of_the_atoms_and_what_the_network_adds() -> None:
    model, graph = _force_field(), molecule_graph(_positions(), NUMBERS)
    references = -100.0 - 50.0 - 3 * 10.0
    assert model.reference_energy(graph).tolist() == [references]
    added = model(graph) - references
    model.set_scale({}, 1.4)
    assert relative_error(model(graph) - references, 2 * added) < 1e-6  # the scale is kept in single precision
    assert ForceField([1, 6, 8])(molecule_graph(_positions().float(), NUMBERS)).dtype == torch.float64
    lone = energy_and_forces(model, molecule_graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([6])))
    assert torch.isfinite(lone[0]).all() and lone[1].tolist() == [[0.0, 0.0, 0.0]]


def test_other_models_and_their_inputs() -> None:
    model = pooled_model(2, 16, 0, pooling="avg").double()
    pos, features = _positions(), {"0": torch.randn(5, 2, 1, dtype=torch.float64)}
    energies, forces = energy_and_forces(model, complete_graph(pos), features, create_graph=True)
    (forces.square().sum() + energies.sum()).backward()
    weight = model.transformer.graph_modules[0].to_query.weights["0"]
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0
    leaf = pos.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(complete_graph(leaf), features).sum(), leaf)
    assert relative_error(forces, -gradient) < 1e-12


def test_faults_are_named(tmp_path: Path) -> None:
    model, graph = _force_field(), molecule_graph(_positions(), NUMBERS)
    with pytest.raises(ValueError, match=r"graph: expected the elements \[1, 6, 8\], got \[9\] in ndata\['atomic_numbers'\]"):
        energy_and_forces(model, molecule_graph(_positions(), NUMBERS.masked_fill(NUMBERS == 6, 9)))
    with pytest.raises(ValueError, match=r"graph: expected ndata\['atomic_numbers'\] of shape \[N\], got ndata with \['pos'\]"):
        energy_and_forces(model, complete_graph(_positions()))
    graph.ndata.pop("pos")
    with pytest.raises(ValueError, match=r"graph: expected ndata\['pos'\] of shape \[N, 3\]"):
        energy_and_forces(model, graph)
    with pytest.raises(ValueError, match="model: expected energies that depend on the positions"):
        energy_and_forces(_Constant(), complete_graph(_positions()))
    with pytest.raises(ValueError, match=r"atomic_numbers: expected shape \[5\], got \[4\]"):
        molecule_graph(_positions(), NUMBERS[:4])
    with pytest.raises(ValueError, match="elements: expected atomic numbers from 1 to 118, got"):
        ForceField([0, 1])
    with pytest.raises(ValueError, match=r"cutoff: expected more than 0\.6 Angstrom, got 0\.5"):
        ForceField([1], cutoff=0.5)
    with pytest.raises(ValueError, match="num_gaussians: expected at least 2, got 1"):
        ForceField([1], num_gaussians=1)
    torch.save({"state_dict": {}, "optimizer_state_dict": {}, "epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: expected a checkpoint of se3_fast\.train_forces"):
        load_force_field(tmp_path / "other.pth")
