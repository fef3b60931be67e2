"""Frames of files that ASE reads: labels, cells, what is missing, what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from se3_fast.data import DataError
from se3_fast.data.force_frames import (
    FORCE_SAMPLE_PATH,
    ForceDataModule,
    FrameFiles,
    read_force_frames,
    read_frame_file,
    reference_energies,
)
from se3_fast.data.frames import ForceFrames
from se3_fast.data.label_units import LabelNames, LabelUnits, dipole_unit, energy_unit, forces_unit, length_unit
from se3_fast.forces import ForceField, energy_forces_and_stress
from se3_fast.training import TrainingOptions
from se3_fast.training.force_trainer import ForceTrainer
from tests.data.labelled import labelled, mixed_frames


@pytest.mark.parametrize("name", ["frames.xyz", "frames.traj", "frames.db", "frames.json", "frames@3.traj", "at@300K.db"])
def test_every_label_is_read_from_every_format(tmp_path: Path, name: str) -> None:
    written = mixed_frames()
    ase.io.write(tmp_path / name, written)
    file = read_frame_file(tmp_path / name)
    frames, start = file.frames, 0
    assert len(frames) == 10 and list(file.numbers) == list(range(10))
    assert frames.cells is not None and frames.pbc is not None and frames.stresses is not None
    for number, atoms in enumerate(written):
        part, start = slice(start, start + len(atoms)), start + len(atoms)
        known = atoms.calc.results
        assert frames.atomic_numbers[part].tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(frames.pos[part], atoms.positions, atol=1e-6)
        assert frames.pbc[number].tolist() == atoms.pbc.tolist()
        if atoms.pbc.any():
            np.testing.assert_allclose(frames.cells[number], atoms.cell.array, atol=1e-7)
        assert float(frames.energies[number]) == pytest.approx(known.get("energy", np.nan), nan_ok=True, abs=1e-7)
        np.testing.assert_allclose(frames.forces[part], known.get("forces", np.full((len(atoms), 3), np.nan)), atol=1e-6)
        if "stress" in known:
            xx, yy, zz, yz, xz, xy = known["stress"]
            np.testing.assert_allclose(frames.stresses[number], [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], atol=1e-6)
        else:
            assert frames.stresses[number].isnan().all()
        assert float(frames.volumes[number]) == pytest.approx(atoms.get_volume() if atoms.pbc.all() else 1)


def test_an_index_and_names_of_labels(tmp_path: Path) -> None:
    frames = [molecule("CH4") for _ in range(5)]
    for number, atoms in enumerate(frames):
        atoms.info["dft_energy"] = float(number)
        atoms.arrays["dft_forces"] = np.full((5, 3), float(number))
    ase.io.write(tmp_path / "frames.xyz", frames)
    names = LabelNames("dft_energy", "dft_forces")
    file = read_frame_file(tmp_path / "frames.xyz", "1::2", names)
    assert list(file.numbers) == [1, 3] and file.frames.energies.tolist() == [1, 3]
    assert file.frames.forces[5:].eq(3).all() and file.frames.cells is None and file.frames.stresses is None
    with pytest.raises(DataError, match=r"frames.xyz: expected 'energy' or 'forces' in some frame, got dft_energy, dft_forces"):
        read_frame_file(tmp_path / "frames.xyz")
    with pytest.raises(DataError, match=r"frames.xyz: expected frames at index 7:, got none"):
        read_frame_file(tmp_path / "frames.xyz", "7:", names)


def test_joined_frames_are_selected_as_they_were() -> None:
    with_stress = ForceFrames(
        n_atoms=torch.tensor([2, 1]),
        atomic_numbers=torch.tensor([6, 1, 1]),
        pos=torch.randn(3, 3),
        energies=torch.randn(2).double(),
        forces=torch.randn(3, 3),
        cells=torch.randn(2, 3, 3).double(),
        pbc=torch.tensor([[True] * 3, [False] * 3]),
        stresses=torch.randn(2, 3, 3),
    )
    without, _ = read_force_frames(FORCE_SAMPLE_PATH)
    joined = ForceFrames.joined([without, with_stress])
    again = joined.select([600, 601])
    known = {name: value for name, value in vars(with_stress).items() if value is not None}
    assert all(torch.equal(value, getattr(again, name)) for name, value in known.items()) and again.dipoles is None
    assert joined.pbc is not None and not joined.pbc[:600].any() and joined.stresses[:600].isnan().all()
    assert ForceFrames.joined([without, without]).cells is None


def test_files_for_each_purpose(tmp_path: Path) -> None:
    for name, seeds in (("a", range(4)), ("b", range(4, 7)), ("c", range(7, 12)), ("d", range(12, 14))):
        ase.io.write(tmp_path / f"{name}.xyz", [labelled(molecule("CH4"), seed) for seed in seeds])

    def sizes(*arguments: int | None, **files: object) -> list[int]:
        named = {key: [tmp_path / f"{name}.xyz" for name in value] for key, value in files.items() if isinstance(value, str)}
        fractions = {key: value for key, value in files.items() if not isinstance(value, str)}
        data = ForceDataModule(FrameFiles(**named, **fractions), 2, *arguments)
        parts = [data.ds_train.indices, data.ds_val.indices, data.ds_test.indices]
        assert len({number for part in parts for number in part}) == sum(map(len, parts))
        return [len(part) for part in parts]

    assert sizes(training="ab", validation="c", test="d") == [7, 5, 2]
    assert sizes(training="ab", validation="c") == [7, 2, 3]
    assert sizes(4, 3, training="ab", validation="c", test="d") == [4, 3, 2]
    assert sizes(training="abc", train_fraction=0.5) == [6, 3, 3]
    assert sizes(training="abc", test="d", train_fraction=0.5) == [6, 6, 2]
    with pytest.raises(DataError, match=r"expected from 1 to at most the 5 frames that do not train to validate, got 6"):
        sizes(None, 6, training="ab", validation="c", test="d")
    for fraction, fault in (
        (0.1, "expected frames that train, got none of 4: more frames"),
        (0.9, "expected two frames that do not train, to validate and to test, got 1 beside 3"),
    ):
        with pytest.raises(DataError, match=rf"a\.xyz: {fault}"):
            sizes(training="a", train_fraction=fraction)
    data = ForceDataModule(FrameFiles([FORCE_SAMPLE_PATH, tmp_path / "a.xyz"], [tmp_path / "c.xyz"], [tmp_path / "d.xyz"]), 2)
    assert (len(data.ds_train), data.elements) == (604, [1, 6, 7, 8, 9])


def test_batches_have_images_as_neighbours(tmp_path: Path) -> None:
    """The energies are those of larger cells, in which no atom is its own neighbour."""
    one, repeated = bulk("C"), bulk("C").repeat(4)
    for atoms in (one, repeated):
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    ase.io.write(tmp_path / "frames.xyz", [one, repeated, one, one])
    data = ForceDataModule(FrameFiles([tmp_path / "frames.xyz"], train_fraction=0.5), 1)
    torch.manual_seed(0)
    model = ForceField([6], num_layers=1, num_channels=4)
    energies = {len(graph.ndata["pos"]): float(model(graph).detach()) for graph, *_ in _all_batches(data)}
    assert energies[128] == pytest.approx(64 * energies[2], rel=1e-5)


def _all_batches(data: ForceDataModule) -> list[tuple]:
    return [batch for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()) for batch in loader]


def test_frames_add_to_the_loss_what_they_have(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "frames.xyz", mixed_frames())
    data = ForceDataModule(FrameFiles([tmp_path / "frames.xyz"], [tmp_path / "frames.xyz"]), batch_size=10)
    torch.manual_seed(0)
    model = ForceField(data.elements, num_layers=1, num_channels=4)
    options = TrainingOptions(log_dir=tmp_path)
    trainer = ForceTrainer(model, data, options, energy_weight=0.3, force_weight=2.0, stress_weight=50.0)
    (batch,) = data.train_dataloader()
    graph, known_forces, known_energies, known_stress, volumes = batch
    loss = trainer.batch_loss(model, batch)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    found = energy_forces_and_stress(model, graph, volumes)
    expected = sum(
        weight * float((values - known)[known.isfinite()].abs().mean())
        for weight, values, known in ((0.3, found.energies, known_energies), (50.0, found.stress, known_stress))
    )
    expected += 2.0 * float((found.forces - known_forces)[known_forces.isfinite().all(1)].norm(dim=1).mean()) / 2
    assert float(loss.detach()) == pytest.approx(expected / float(model.scale), rel=1e-5)
    assert [int(known.isfinite().sum()) for known in (known_energies, known_stress)] == [8, 27]
    evaluation = trainer.evaluate([batch])
    assert len(evaluation.energies.targets) == 8 and len(evaluation.stress.targets) == 27
    assert len(evaluation.targets) == 3 * sum(len(atoms) for atoms in mixed_frames() if "forces" in atoms.calc.results)
    trainer.close()
    with pytest.raises(ValueError, match="stress_weight: expected 0, or a number above and frames with stress"):
        ForceTrainer(model, ForceDataModule(), options, stress_weight=1.0)


def test_references_are_of_known_energies(tmp_path: Path) -> None:
    frames = [labelled(molecule("CH4"), 0), labelled(molecule("C2H6"), 1), labelled(molecule("CH4"), 2, without=("energy",))]
    frames[0].calc.results["energy"], frames[1].calc.results["energy"] = -54.0, -106.0
    ase.io.write(tmp_path / "frames.xyz", frames)
    assert reference_energies(read_frame_file(tmp_path / "frames.xyz").frames) == pytest.approx({1: -1.0, 6: -50.0})


def test_closest_pairs_are_those_of_the_training_frames(tmp_path: Path) -> None:
    near, far = molecule("CH4"), bulk("C", cubic=True)
    far.positions[0] += 0.2
    ase.io.write(tmp_path / "train.xyz", [labelled(near, 0), labelled(far, 1)])
    ase.io.write(tmp_path / "rest.xyz", [labelled(molecule("C2H6"), 2) for _ in range(2)])
    found = ForceDataModule(FrameFiles([tmp_path / "train.xyz"], [tmp_path / "rest.xyz"])).closest_pairs()
    lengths = near.get_all_distances()
    assert found == pytest.approx(
        {
            "1-1": lengths[1:, 1:][np.triu_indices(4, 1)].min(),
            "1-6": lengths[0, 1:].min(),
            "6-6": np.sort(far.get_all_distances(mic=True), axis=1)[:, 1].min(),
        },
        abs=1e-5,
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda atoms: atoms.positions.__setitem__((0, 0), np.nan), "frame 2: expected finite positions of at most 1e"),
        (
            lambda atoms: atoms.calc.results.update(energy=np.inf),
            "frame 2: expected finite numbers as 'energy', or NaN for unknown ones, got",
        ),
        (lambda atoms: atoms.numbers.__setitem__(0, 0), r"frame 2: expected atomic numbers from 1 to 118, got \[0\]"),
        (lambda atoms: atoms.set_cell(np.ones((3, 3))), "frame 2: expected lattice vectors that span a volume, got"),
        (lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0]), "frame 2: expected atoms at different places"),
    ],
)
def test_faults_name_file_and_frame(tmp_path: Path, change: object, fault: str) -> None:
    frames = [labelled(bulk("C"), seed) for seed in range(5)]
    change(frames[2])
    frames[2].calc.atoms = frames[2].copy()  # what was calculated is of this geometry
    ase.io.write(tmp_path / "frames.traj", frames)
    with pytest.raises(DataError, match=rf"frames\.traj: {fault}"):
        ForceDataModule(FrameFiles([tmp_path / "frames.traj"]))


def test_labels_of_other_shapes_and_texts(tmp_path: Path) -> None:
    atoms = molecule("CH4")
    atoms.info.update(energy_dft="many", forces_dft=np.zeros(3))
    ase.io.write(tmp_path / "frames.xyz", [atoms])
    with pytest.raises(DataError, match=r"frames.xyz: frame 0: expected numbers as 'energy_dft', got 'many'"):
        read_frame_file(tmp_path / "frames.xyz", names=LabelNames("energy_dft"))
    with pytest.raises(DataError, match=r"frames.xyz: frame 0: expected 'forces_dft' of shape \[5, 3\], got \[3\]"):
        read_frame_file(tmp_path / "frames.xyz", names=LabelNames(forces="forces_dft"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "frames.xyz", [labelled(molecule("CH4"), seed) for seed in range(3)])
    lines = (tmp_path / "frames.xyz").read_text().splitlines()
    lines[10] = "H 0.0 0.0"
    (tmp_path / "faulty.xyz").write_text("\n".join(lines))
    (tmp_path / "text.dat").write_text("no structures")
    faults = {
        "nowhere.xyz": "nowhere.xyz: no such file",
        "faulty.xyz": "faulty.xyz: frame 1: cannot be read as extended XYZ",
        "text.dat": "text.dat: frame 0: ASE cannot read it",
    }
    for name, fault in faults.items():
        with pytest.raises(DataError, match=fault):
            read_frame_file(tmp_path / name)


def test_frames_without_forces_alone(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "frames.xyz", [labelled(molecule("CH4"), seed, without=("forces",)) for seed in range(10)])
    with pytest.raises(DataError, match=r"frames.xyz: expected forces in some of the 8 training frames, got none"):
        ForceDataModule(tmp_path / "frames.xyz")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (LabelNames(energy="Energy"), "none of its frames has a known energy: is it called otherwise there (--energy_name)?"),
        (LabelNames(forces="force"), "none of its frames has known forces: is it called otherwise there (--forces_name)?"),
    ],
)
def test_a_label_that_no_frame_has(tmp_path: Path, caplog: pytest.LogCaptureFixture, names: LabelNames, missing: str) -> None:
    """A name that is mistyped would leave it out in silence."""
    ase.io.write(tmp_path / "frames.xyz", [labelled(molecule("CH4"), seed) for seed in range(3)])
    with caplog.at_level(logging.WARNING):
        read_frame_file(tmp_path / "frames.xyz")
        assert not caplog.records
        read_frame_file(tmp_path / "frames.xyz", names=names)
    assert [record.getMessage() for record in caplog.records] == [f"warning: {tmp_path / 'frames.xyz'}: {missing}"]


def test_suspicious_units_get_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    few = sample.select(range(30))

    def warned(energies: torch.Tensor, forces: torch.Tensor) -> list[str]:
        caplog.clear()
        frames, first = [], 0
        for number, size in enumerate(few.n_atoms.tolist()):
            part, first = slice(first, first + size), first + size
            atoms = Atoms(few.atomic_numbers[part].numpy(), few.pos[part].numpy())
            atoms.calc = SinglePointCalculator(atoms, energy=float(energies[number]), forces=forces[part].numpy())
            frames.append(atoms)
        ase.io.write(tmp_path / "frames.xyz", frames)
        with caplog.at_level(logging.WARNING):
            read_frame_file(tmp_path / "frames.xyz")
        return [record.getMessage() for record in caplog.records]

    assert warned(few.energies, few.forces) == []
    (line,) = warned(few.energies / 27.2114, few.forces)
    assert line.startswith(f"warning: {tmp_path / 'frames.xyz'}: energies that differ") and "are they in hartree?" in line
    large = few.forces.clone()
    large[100, 1] = -312.0
    frame = int((few.n_atoms.cumsum(0) <= 100).sum())
    (line,) = warned(few.energies * 100, large)
    assert f"frames.xyz: frame {frame}: a force of 312, more than" in line and "\n" not in line


def written_with_virials(path: Path, name: str, changes: dict[str, object] | None = None) -> tuple[Atoms, np.ndarray]:
    """Two copper atoms in a skewed cell under EMT; the virial is minus the derivative of the energy by the strain, numerically."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=False).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array + np.array([[0.1, 0.2, 0.0], [0.0, -0.1, 0.1], [0.05, 0.0, 0.2]]), scale_atoms=True)
    atoms.rattle(0.1, seed=0)

    def energy(strain: np.ndarray) -> float:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = EMT()
        return strained.get_potential_energy()

    virial, step = np.zeros((3, 3)), 1e-5
    for a, b in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        virial[a, b] = -(energy(strain) - energy(-strain)) / (2 * step)
    atoms.calc = EMT()
    written = atoms.copy()
    written.info.update({"energy": atoms.get_potential_energy(), name: virial} | (changes or {}))
    written.arrays["forces"] = atoms.get_forces()
    ase.io.write(path, [written])
    return atoms, virial


@pytest.mark.parametrize("name", ["virial", "virials", "dft_virial"])
def test_virials_are_stresses_of_the_other_sign_times_the_volume(tmp_path: Path, name: str) -> None:
    """As ASE's own stress of the same atoms, and as the finite strain says."""
    atoms, virial = written_with_virials(tmp_path / "frames.xyz", name)
    names = LabelNames(virial=name if name == "dft_virial" else None)
    found = read_frame_file(tmp_path / "frames.xyz", names=names).frames.stresses
    np.testing.assert_allclose(found[0], atoms.get_stress(voigt=False), atol=2e-6)
    np.testing.assert_allclose(found[0], -virial / atoms.get_volume(), atol=1e-7)
    assert found.abs().max() > 0.01
    if name == "dft_virial":
        assert read_frame_file(tmp_path / "frames.xyz").frames.stresses is None


def test_a_stress_goes_before_a_virial(tmp_path: Path) -> None:
    written_with_virials(tmp_path / "frames.xyz", "virial", {"stress": 0.5 * np.eye(3)})
    assert torch.equal(read_frame_file(tmp_path / "frames.xyz").frames.stresses[0], 0.5 * torch.eye(3))


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_virials_without_a_cell_are_refused(tmp_path: Path, pbc: object) -> None:
    atoms = molecule("CH4", cell=[5.0, 5.0, 5.0], pbc=pbc)
    atoms.info.update(energy=1.0, virial=np.eye(3))
    ase.io.write(tmp_path / "frames.xyz", [labelled(molecule("CH4"), 0), atoms])
    fault = "frame 1: expected a cell that is periodic in three directions with a virial, got a virial alone"
    with pytest.raises(DataError, match=rf"frames\.xyz: {fault}"):
        read_frame_file(tmp_path / "frames.xyz")
    assert len(read_frame_file(tmp_path / "frames.xyz", names=LabelNames(virial="none")).frames) == 2


def test_units_and_gradients_of_files_that_ase_reads(tmp_path: Path) -> None:
    crystal = labelled(bulk("C"), 0)
    crystal.arrays["dft_Gradient"] = -crystal.calc.results["forces"]
    ase.io.write(tmp_path / "frames.xyz", [crystal])
    usual = read_frame_file(tmp_path / "frames.xyz").frames
    units = LabelUnits("hartree", "bohr")
    found = read_frame_file(tmp_path / "frames.xyz", names=LabelNames(forces="dft_Gradient", units=units)).frames
    hartree, bohr = 27.211386245988, 0.529177210903
    assert float(found.energies) == pytest.approx(hartree * float(usual.energies))
    for name, factor in (("pos", bohr), ("forces", hartree / bohr), ("stresses", hartree / bohr**3), ("cells", bohr)):
        torch.testing.assert_close(getattr(found, name), factor * getattr(usual, name))


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (energy_unit, "Eh", 27.211386245988),
        (energy_unit, " kcal/mol", 0.0433641),
        (energy_unit, "kJ/mol", 0.01036427),
        (length_unit, "Å", 1.0),
        (length_unit, "NM", 10.0),
        (forces_unit, "hartree/bohr", 51.422067),
        (forces_unit, "kcal/mol/angstrom", 0.0433641),
        (dipole_unit, "Debye", 0.20819434),
        (dipole_unit, "elementary_charge * bohr", 0.529177210903),
    ],
)
def test_units_by_name(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value, rel=1e-6)
    with pytest.raises(ValueError, match=r"expected .* got 'furlong'$"):
        read("furlong")
