"""The force-field command as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

from se3_fast import train_forces
from se3_fast.data import force_frames
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule
from se3_fast.data.frame_dataset import FrameSubset
from se3_fast.data.npz_file import write_npz
from se3_fast.data.pack_frames import pack_frames
from se3_fast.forces import ForceField, energy_and_forces, load_force_field, molecule_graph
from se3_fast.training import TrainingOptions, read_checkpoint
from se3_fast.training.errors import Stopped
from se3_fast.training.force_trainer import ForceTrainer
from tests.data.labelled import labelled
from tests.support import random_rotation

from .test_stopping import StopWhen

Run = Callable[..., CompletedProcess[str]]
TINY = "--num_layers 1 --num_channels 8 --radial_width 16 --num_train 40 --num_validation 10 --seed 5 --device cpu"


@pytest.fixture(scope="session")
def few_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the frames of ethanol and dimethyl ether of the sample: 80 train, 20 do not; all have nine atoms."""
    with np.load(FORCE_SAMPLE_PATH) as archive:
        arrays = {name: archive[name] for name in archive.files}
    frames = np.isin(arrays["smiles"], [b"CCO", b"COC"])
    atoms = np.repeat(frames, arrays["n_atoms"])
    path = tmp_path_factory.mktemp("frames") / "few.npz"
    write_npz(path, {name: values[atoms if name in ("z", "pos", "forces_eV_A") else frames] for name, values in arrays.items()})
    return path


def _words(data: Path, folder: Path, *more: object) -> list[str]:
    given = ["--data", data, "--save_ckpt_path", folder / "model.pth", "--log_dir", folder / "log", "--silent", *more]
    return [*TINY.split(), *map(str, given)]


@pytest.fixture(scope="module")
def trained(few_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run of six epochs."""
    folder = tmp_path_factory.mktemp("trained")
    more = ["--epochs", 6, "--batch_size", 4, "--lr", 0.01, "--eval_interval", 1, "--ckpt_interval", 1]
    assert train_forces.main(_words(few_frames, folder, *more)) == 0
    return folder


def test_the_loss_falls_and_the_errors_are_reported(trained: Path) -> None:
    history = read_checkpoint(trained / "model.pth")["history"]
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    last = json.loads((trained / "log" / "dllogger_results.json").read_text().splitlines()[-1].removeprefix("DLLL "))["data"]
    assert last["validation_force_mae"] == pytest.approx(history[-1]["validation_mae"])
    assert last["validation_force_ratio"] < 0.8  # 1: no force at all
    assert last["validation_force_ratio"] == pytest.approx(last["validation_force_mae"] / last["validation_mean_absolute_force"])
    assert {"test_force_mae", "test_energy_mae", "validation_energy_mae"} <= set(last)
    for name in ("learning_curve", "parity_forces", "parity_energies"):
        assert (trained / "log" / f"{name}.png").exists()


def test_a_loaded_force_field_repeats_the_reported_errors(trained: Path, few_frames: Path) -> None:
    """In eV and eV/Angstrom, from the arrays of the file."""
    model = load_force_field(trained / "model.pth")
    data = ForceDataModule(few_frames, num_train=40, num_validation=10)
    frames = data.ds_val.dataset.frames.select(data.ds_val.indices)
    energies, forces = energy_and_forces(model, molecule_graph(frames.pos, frames.atomic_numbers, frames.n_atoms))
    last = json.loads((trained / "log" / "dllogger_results.json").read_text().splitlines()[-1].removeprefix("DLLL "))["data"]
    assert float((forces - frames.forces).abs().mean()) == pytest.approx(last["validation_force_mae"], rel=1e-4)
    assert float((energies - frames.energies).abs().mean()) == pytest.approx(last["validation_energy_mae"], rel=1e-4)


def test_the_loss_does_not_depend_on_how_molecules_lie(few_frames: Path, tmp_path: Path) -> None:
    """Of forces it is the mean absolute component over all orientations; components that are not known count for nothing."""
    torch.manual_seed(0)
    data = ForceDataModule(few_frames, batch_size=10)
    trainer = ForceTrainer(ForceField(data.elements, num_layers=1, num_channels=4), data, TrainingOptions(log_dir=tmp_path))
    graph, known_forces, known_energies = next(iter(data.train_dataloader()))
    loss = trainer.batch_loss(trainer.model, (graph, known_forces, known_energies))
    components = []
    for seed in range(300):
        rotation = random_rotation(seed).float()
        for positions in (graph.ndata["pos"], graph.edata["rel_pos"]):
            positions.copy_(positions @ rotation.T)
        known_forces = known_forces @ rotation.T
        components.append(float(energy_and_forces(trainer.model, graph)[1].sub(known_forces).abs().mean()))
    turned = trainer.batch_loss(trainer.model, (graph, known_forces, known_energies))
    assert float(turned.detach()) == pytest.approx(float(loss.detach()), rel=1e-3)
    trainer.energy_weight = 0.0
    of_forces = trainer.batch_loss(trainer.model, (graph, known_forces, known_energies)) * trainer.force_field.scale
    assert float(of_forces.detach()) == pytest.approx(np.mean(components), rel=0.01)
    known_forces[3:, 0] = torch.nan
    errors = (energy_and_forces(trainer.model, graph)[1] - known_forces).nan_to_num(0.0)
    of_known = trainer.batch_loss(trainer.model, (graph, known_forces, known_energies)) * trainer.force_field.scale
    assert float(of_known.detach()) == pytest.approx(float(errors.norm(dim=1).mean()) / 2, rel=1e-4)
    trainer.close()


def test_frames_without_any_force(few_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of single atoms: the error has nothing to be a part of."""
    with np.load(few_frames) as archive:
        arrays = {name: archive[name] for name in archive.files}
    write_npz(tmp_path / "still.npz", arrays | {"forces_eV_A": np.zeros_like(arrays["forces_eV_A"])})
    assert train_forces.main(_words(tmp_path / "still.npz", tmp_path, "--epochs", 1)) == 0
    assert "nan % of the mean absolute force 0 eV" in capsys.readouterr().out


def test_resumed_equals_uninterrupted(few_frames: Path, tmp_path: Path) -> None:
    """To the last bit. The schedule is over steps, so that a run that is stopped has the same rates."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--max_steps", 6, "--energy_weight", 1]
    assert train_forces.main(_words(few_frames, whole, *common, "--epochs", 2)) == 0
    assert train_forces.main(_words(few_frames, parts, *common, "--epochs", 1)) == 0
    assert train_forces.main(_words(few_frames, parts, *common, "--epochs", 2, "--load_ckpt_path", parts / "model.pth")) == 0
    expected, found = (read_checkpoint(folder / "model.pth") for folder in (whole, parts))
    assert found["step"] == expected["step"] == 6
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in expected["state_dict"].items())


def test_a_run_goes_on_with_the_frames_and_labels_that_it_was_begun_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference energies stay those of the checkpoint: energies of another unit would be off by all of them, without a word."""
    frames = [labelled(molecule("CH4"), seed) for seed in range(60)]
    for folder, written in (("first", frames), ("second", frames[::-1])):
        (tmp_path / folder).mkdir()
        ase.io.write(tmp_path / folder / "frames.xyz", written)
    words = [*_words(tmp_path / "first" / "frames.xyz", tmp_path, "--batch_size", 20, "--lr", 0.0001), "--cutoff", "3"]
    assert train_forces.main([*words, "--epochs", "1"]) == 0
    goes_on = [*words, "--epochs", "2", "--load_ckpt_path", str(tmp_path / "model.pth")]
    before = (tmp_path / "model.pth").read_bytes()
    for more in (
        ["--energy_unit", "hartree", "--forces_unit", "eV/Angstrom"],
        ["--forces_unit", "hartree/bohr"],
        ["--data", str(tmp_path / "second" / "frames.xyz")],
    ):
        assert train_forces.main([*goes_on, *more]) == 2
        assert "model.pth: made with another data set: the molecules that it was" in capsys.readouterr().err
        assert (tmp_path / "model.pth").read_bytes() == before
    assert train_forces.main(goes_on) == 0


def test_two_processes_equal_one_with_the_doubled_batch(run_python: Run, few_frames: Path, tmp_path: Path) -> None:
    assert train_forces.main(_words(few_frames, tmp_path / "one", "--epochs", 1, "--batch_size", 20)) == 0
    words = _words(few_frames, tmp_path / "two", "--epochs", 1, "--batch_size", 10)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = run_python(*launcher, "-m", "se3_fast.train_forces", *words)
    assert finished.returncode == 0, finished.stderr
    one, two = (read_checkpoint(tmp_path / name / "model.pth")["history"][0] for name in ("one", "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert two["validation_mae"] == pytest.approx(one["validation_mae"], rel=1e-4)


@pytest.fixture(scope="module")
def packed(few_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same frames as a folder."""
    folder = tmp_path_factory.mktemp("packed") / "few.npz"
    pack_frames([few_frames], folder)
    return folder


def test_a_folder_trains_as_its_file_does(few_frames: Path, packed: Path, tmp_path: Path) -> None:
    """To the last bit; also where edges are found with every batch, by two processes."""
    results = []
    for number, (data, more) in enumerate([(few_frames, []), (packed, []), (packed, ["--num_workers", 2])]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(force_frames, "EDGE_BUDGET", 0 if more else 1 << 30)
            assert train_forces.main(_words(data, tmp_path / str(number), "--epochs", 1, *more)) == 0
        results.append(read_checkpoint(tmp_path / str(number) / "model.pth"))
    for found in results[1:]:
        assert found["history"] == results[0]["history"] and found["closest_pairs"] == results[0]["closest_pairs"]
        assert all(torch.equal(value, found["state_dict"][name]) for name, value in results[0]["state_dict"].items())


@pytest.mark.parametrize(
    ("order", "of_epochs", "readings"),
    [({"batch_edges": 380}, (7, 8, 7), (3, 12, 16, 23)), ({"batch_size": 9}, (8, 8, 8), (4, 12))],
)
def test_an_epoch_goes_on_where_it_was_stopped(
    tmp_path: Path, order: dict[str, int], of_epochs: tuple[int, ...], readings: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with epochs of different numbers of batches; without making again what has been trained on."""
    made: list[FrameSubset] = []
    get = FrameSubset.__getitems__
    monkeypatch.setattr(FrameSubset, "__getitems__", lambda subset, numbers: (made.append(subset), get(subset, numbers))[1])

    def trainer(folder: Path, resume_from: Path | None = None) -> ForceTrainer:
        data = ForceDataModule(num_train=70, num_validation=10, seed=1, **order)
        torch.manual_seed(0)
        model = ForceField(data.elements, num_layers=1, num_channels=4)
        options = TrainingOptions(epochs=3, silent=True, log_dir=folder, save_ckpt_path=folder / "model.pth", eval_interval=1)
        return ForceTrainer(model, data, options, resume_from=resume_from)

    whole = trainer(tmp_path / "whole")
    whole.fit()
    assert whole.steps_done == sum(of_epochs)
    within = set()
    for reading in readings:
        stopped = trainer(tmp_path / "parts")
        stopped.stop_on(StopWhen(reading))
        with pytest.raises(Stopped):
            stopped.fit()
        checkpoint = read_checkpoint(tmp_path / "parts" / "model.pth")
        within.add(checkpoint.get("position", {}).get("of_batches"))
        resumed = trainer(tmp_path / "parts", tmp_path / "parts" / "model.pth")
        made.clear()
        resumed.fit()
        assert made.count(resumed.data_module.ds_train) == whole.steps_done - checkpoint["step"]
        assert (resumed.steps_done, resumed.history) == (whole.steps_done, whole.history)
        assert all(torch.equal(one, other) for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    assert set(of_epochs) <= within


def test_two_processes_share_the_batches_by_edges(run_python: Run, tmp_path: Path) -> None:
    """As one process that adds the gradients of two batches; no batch is seen twice, as the epoch has six."""
    words = ["--epochs", 1, "--batch_edges", 300, "--eval_interval", 1]
    assert train_forces.main(_words(FORCE_SAMPLE_PATH, tmp_path / "one", *words, "--accumulate_grad_batches", 2)) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = run_python(*launcher, "-m", "se3_fast.train_forces", *_words(FORCE_SAMPLE_PATH, tmp_path / "two", *words))
    assert finished.returncode == 0, finished.stderr
    one, two = (read_checkpoint(tmp_path / name / "model.pth") for name in ("one", "two"))
    assert one["step"] == two["step"] == 3
    assert two["history"][0]["train_loss"] == pytest.approx(one["history"][0]["train_loss"], rel=1e-4)
    assert two["history"][0]["validation_mae"] == pytest.approx(one["history"][0]["validation_mae"], rel=1e-4)
    for name, values in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "more", [["--cutoff", 2.0], ["--accumulate_grad_batches", 2], ["--benchmark"], ["--num_degrees", 1], ["--batch_edges", 400]]
)
def test_options(few_frames: Path, tmp_path: Path, more: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert train_forces.main(_words(few_frames, tmp_path, "--epochs", 1, *more)) == 0
    assert ("molecules/ms" if "--benchmark" in more else "force MAE") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--num_train", 1000], "few.npz: expected 1 to 80 training frames, got 1000"),
        (["--energy_weight", 0, "--force_weight", 0], "energy_weight and force_weight: expected none below 0 and one above"),
        (["--load_ckpt_path", "{trained}/model.pth", "--num_channels", 4], "num_channels is 8 in the checkpoint, 4 in this run"),
        (["--load_ckpt_path", "{trained}/model.pth", "--num_train", 30], "num_train is 40 in the checkpoint, 30 in this run"),
    ],
)
def test_mistakes_get_one_line(
    trained: Path, few_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[object], named: str
) -> None:
    words = [str(word).replace("{trained}", str(trained)) for word in more]
    assert train_forces.main(_words(few_frames, tmp_path, *words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
