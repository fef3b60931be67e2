"""Tables and SDF of one's own: what is read, left out and divided, and from there to predictions."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem

from se3_fast.checkpoints import convert_file
from se3_fast.data import DataError
from se3_fast.data.conformers import conformers
from se3_fast.data.own_molecules import OwnMoleculesDataModule
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.predict.command import main as predict
from se3_fast.pretrained.pack import main as pack
from se3_fast.train import main as train
from se3_fast.training.checkpoint import read_checkpoint

SMILES = [smiles.decode() for smiles in np.load(SAMPLE_PATH)["smiles"][:60]]
TABLE = "id,structure,y\n" + "".join(f"{number},{smiles},{len(smiles)}.5\n" for number, smiles in enumerate(SMILES))
LEFT_OUT = "a,CCO,\nb,CCO,unknown\nc,CC(=O)[O-],1\nd,nonsense,1\ne,CCCl,1\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE + LEFT_OUT)
    return path


def test_what_is_read_and_left_out(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = OwnMoleculesDataModule(table, "y", smiles_column="structure", batch_size=8)
    assert [len(part) for part in (data.ds_train, data.ds_val, data.ds_test)] == [48, 6, 6]
    assert sorted(data.ds_train.indices + data.ds_val.indices + data.ds_test.indices) == list(range(60))
    assert "5 molecules" in caplog.text and "no number 'y' (2)" in caplog.text and "charge -1 (1)" in caplog.text
    graph, node_feats, edge_feats, target = next(iter(data.train_dataloader()))
    assert node_feats["0"].shape == (graph.num_nodes(), 6, 1) and edge_feats["0"].shape == (graph.num_edges(), 4, 1)
    assert target.shape == (8,)
    assert data._molecules.molecules.targets.tolist() == [len(smiles) + 0.5 for smiles in SMILES]
    assert OwnMoleculesDataModule(table, "y", smiles_column="structure", seed=0).ds_test.indices == data.ds_test.indices
    assert OwnMoleculesDataModule(table, "y", smiles_column="structure", seed=1).ds_test.indices != data.ds_test.indices


def test_scaffolds_stand_in_one_set(table: Path) -> None:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    data = OwnMoleculesDataModule(table, "y", smiles_column="structure", split="scaffold")
    sets = [
        {MurckoScaffoldSmiles(SMILES[number]) for number in part.indices} for part in (data.ds_train, data.ds_val, data.ds_test)
    ]
    assert all(sets) and not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_the_largest_scaffold_is_trained_on_however_large(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    chains = [f"{'C' * length}{end}" for length in range(2, 8) for end in ("O", "N", "F")]
    rings = ["C1CCCC1", "C1CCCCC1"]
    path.write_text("smiles,y\n" + "".join(f"{smiles},{number}\n" for number, smiles in enumerate(chains + rings)))
    data = OwnMoleculesDataModule(path, "y", split="scaffold")
    assert sorted(data.ds_train.indices) == list(range(len(chains)))
    assert sorted(data.ds_val.indices + data.ds_test.indices) == [18, 19]


@pytest.mark.parametrize(("ring", "told"), [("", "2 of none, as they have no rings"), ("C1CCCC1", "2 of 'C1CCCC1'")])
def test_a_split_by_one_scaffold(ring: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"smiles,y\nCC{ring},1\nCO{ring},2\n")
    with pytest.raises(DataError, match=f"different scaffolds for a split by scaffold, got {told}"):
        OwnMoleculesDataModule(path, "y", split="scaffold")


def test_molecules_that_stand_in_two_sets_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However they are written: an error on what was trained on says too little."""
    path = tmp_path / "table.csv"
    rows = ["smiles,y,part", *(f"{smiles},{number},train" for number, smiles in enumerate(SMILES[:8]))]
    rows += [f"{SMILES[9]},1,val", f"{SMILES[10]},2,test"]
    path.write_text("\n".join(rows))
    OwnMoleculesDataModule(path, "y", split_column="part")
    assert not caplog.records
    path.write_text("\n".join([*rows, "CCO,1,train", "OCC,2,val", "C(C)O,3,test"]))
    OwnMoleculesDataModule(path, "y", split_column="part")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "2 of the 4 molecules to validate and test on are the same as molecules to train on" in caplog.text


def test_columns_whose_names_differ_in_case_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [f"{smiles},{1000 + number},{number}" for number, smiles in enumerate(SMILES[:20])]
    path.write_text("\n".join(["smiles,Y,y", *rows]))
    for name, first in (("y", 0.0), ("Y", 1000.0)):
        data = OwnMoleculesDataModule(path, name)
        assert data._molecules.molecules.targets.tolist() == [first + number for number in range(20)]


def test_numbers_that_float32_cannot_tell_apart(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [f"{smiles},{3e7 + number / 8},{number}" for number, smiles in enumerate(SMILES[:20])]
    path.write_text("\n".join(["smiles,large,small", *rows]))
    for names in ("large", ["large", "small"]):
        data = OwnMoleculesDataModule(path, names, batch_size=1)
        for number, (*_, target) in zip(data.ds_test.indices, data.test_dataloader(), strict=True):
            assert target.dtype == torch.float32
            learned = data.objective.properties[0]
            assert target.flatten()[0].item() * learned.std + learned.mean == pytest.approx(3e7 + number / 8, abs=1e-6, rel=0)


def test_properties_of_an_sdf(tmp_path: Path) -> None:
    path = tmp_path / "molecules.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for number, smiles in enumerate(SMILES[:20]):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            conformers(molecule, 1, 0)
            molecule.SetProp("BOILING POINT", str(number / 4))
            writer.write(molecule)
    data = OwnMoleculesDataModule(path, "BOILING POINT")
    assert data._molecules.molecules.targets.tolist() == [number / 4 for number in range(20)]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("structure,y\nCCO,\n", "y", r"expected molecules with a number 'y', got none: no number 'y' \(1\)"),
        ("structure,y\nCCO,1\n", "z", "expected a column 'z' as well, got structure, y"),
        ("structure,Ab, aB\nCCO,1,2\n", "ab", "expected one column 'ab', got 2 of this name"),
        ("structure,y,y\nCCO,1,2\n", "y", "expected one column 'y', got 2 of this name"),
        ("structure,y\nCCO,1\nCCC,1\n", "y", "needs training molecules with different known targets"),
        (
            "structure,y\n" + 167 * "CCO,3.3\n",
            "y",
            "needs training molecules with different known targets",
        ),  # their mean is rounded
        ("structure,y\n" + 5 * "CCO,1e300\nCCC,-1e300\n", "y", "standard deviation is a number, got some from -1e.300 to 1e.300"),
    ],
)
def test_tables_of_no_use(tmp_path: Path, text: str, target: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises((DataError, ValueError), match=message):
        OwnMoleculesDataModule(path, target, smiles_column="structure")


@pytest.mark.parametrize("name", ["molecules.smi", "molecules.xyz", "table"])
def test_files_without_numbers(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a file with a number .* ends in .csv, .sdf, .sd"):
        OwnMoleculesDataModule(tmp_path / name, "y")


def test_from_a_table_to_predictions(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = tmp_path / "model.pth", tmp_path / "out.csv"
    sizes = "--num_layers 1 --num_degrees 2 --num_channels 8 --num_heads 2 --batch_size 16 --epochs 2 --num_workers 0 --silent"
    own = ["--data", str(table), "--smiles", "structure", "--target", "y", "--unit", "K", "--seed", "3"]
    files = ["--log_dir", str(tmp_path), "--save_ckpt_path", str(model)]
    assert train([*sizes.split(), *own, *files]) == 0
    told = capsys.readouterr()
    assert "test MAE of y:" in told.out
    assert "no uncertainty: that takes at least 20 molecules to validate on and more than 16 to train on, got 6 and 48" in told.err
    data = read_checkpoint(model)["data"]
    assert (data["dataset"], data["task"], data["unit"]) == (str(table), "y", "K")
    assert train([*sizes.split(), *own, *files, "--epochs", "3", "--load_ckpt_path", str(model)]) == 0
    assert read_checkpoint(model)["epoch"] == 3
    arguments = ["--load_ckpt_path", str(model), str(table), "--smiles_column", "structure", "--output", str(output)]
    assert predict([*arguments, "--target", "y", "--report", str(tmp_path / "r.html")]) == 3
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 65 and float(rows[0]["y_K"])
    assert "MAE of 60 known (K)" in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    own.remove("--unit")
    own.remove("K")
    assert train([*sizes.split()[:-1], *own, "--log_dir", str(tmp_path), "--eval_interval", "1"]) == 0
    told = capsys.readouterr()
    assert re.search(r"epoch 1/2: loss [\d.]+, validation MAE [\d.e+]+, ", told.out) and re.search(
        r"test MAE of y: \S+\n", told.out
    )
    assert "batch/s" not in told.err  # a bar is for terminals
    assert "have no uncertainty: " not in told.err  # nor has it a checkpoint
    assert train(["--data", str(table), "--log_dir", str(tmp_path)]) == 2
    assert "expected --target" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--target", "y"], ["--smiles", "structure"], ["--unit", "K"], ["--split", "scaffold"]])
def test_a_table_that_was_forgotten(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*words, "--data_dir", str(tmp_path), "--log_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {' '.join(words)}: expected --data as well, the table or SDF that it is about\n"
    assert not list(tmp_path.iterdir())


SIZES = "--num_layers 1 --num_degrees 2 --num_channels 4 --num_heads 2 --batch_size 16 --epochs 2 --num_workers 0 --seed 3"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def wide_table(tmp_path: Path) -> Path:
    """Two numbers, some of them missing, a class and a set for each molecule."""
    path = tmp_path / "wide.csv"
    lines = ["smiles,length,other length,has_ring,part"]
    for number, smiles in enumerate(SMILES):
        length = "" if number % 4 == 1 else f"{len(smiles)}.5"
        other = "unknown" if number % 4 == 2 else str(1000 + 10 * len(smiles))
        part = "Test" if number % 10 == 3 else "valid" if number % 10 == 7 else "train"
        lines.append(f"{smiles},{length},{other},{int('1' in smiles)},{part}")
    path.write_text("\n".join([*lines, "CCCCO,,,,train", "CCCCO,1,1,1,elsewhere"]) + "\n")
    return path


def test_several_targets_of_which_some_are_missing(wide_table: Path) -> None:
    data = OwnMoleculesDataModule(wide_table, ["length", "other length"], units=["A", "B"], split_column="part")
    assert (data.task, data.unit, data.targets_mean, data.targets_std) == ("length, other length", "", 0.0, 1.0)
    assert [part.indices for part in (data.ds_val, data.ds_test)] == [list(range(7, 60, 10)), list(range(3, 60, 10))]
    train = np.array([[len(smiles) + 0.5, 1000 + 10 * len(smiles)] for smiles in SMILES], dtype=float)
    train[1::4, 0] = train[2::4, 1] = np.nan
    wanted = train[data.ds_train.indices]
    first, second = data.objective.properties
    assert (first.name, first.unit, second.name, second.unit) == ("length", "A", "other length", "B")
    np.testing.assert_allclose(data.objective.means, np.nanmean(wanted, 0))
    np.testing.assert_allclose(data.objective.stds, np.nanstd(wanted, 0, ddof=1))
    *_, target = next(iter(data.test_dataloader()))
    wanted = (train[data.ds_test.indices] - data.objective.means) / data.objective.stds
    np.testing.assert_allclose(target.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_from_several_targets_to_predictions(wide_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output, targets = tmp_path / "model.pth", tmp_path / "out.csv", ["length", "other length"]
    own = [*SIZES.split(), "--data", str(wide_table), "--target", *targets, "--unit", "A", "B", "--log_dir", str(tmp_path)]
    assert train([*own, "--save_ckpt_path", str(model)]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^test MAE of other length: [\d.]+ B \(\d molecules; predicting the training mean gives [\d.]+ B\)$", told, re.M
    )
    assert re.search(r"epoch 2/2: loss [\d.]+, validation MAE [\d.]+ standard deviations", told)
    assert {"learning_curve.png", "parity_length.png", "parity_other_length.png"} <= {path.name for path in tmp_path.iterdir()}
    checkpoint = read_checkpoint(model)
    assert checkpoint["data"]["task"] == "length, other length" and "mean" not in checkpoint["data"]
    assert checkpoint["history"][-1].keys() >= {"validation_mae", "validation_mae_length", "validation_mae_other length"}
    tensors = tmp_path / "model.safetensors"
    convert_file(model, tensors)
    for path in (model, tensors):
        report = ["--target", *targets, "--report", str(tmp_path / "r.html")]
        assert predict(["--load_ckpt_path", str(path), str(wide_table), "--output", str(output), *report]) == 0
        rows = rows_of(output)
        names = ["length_A", "length_A_uncertainty", "other length_B", "other length_B_uncertainty"]
        assert list(rows[0])[3:7] == names
        assert len({row["other length_B"] for row in rows}) > 30 and all(float(row["length_A"]) < 100 for row in rows)
        assert all(float(row["other length_B"]) > 500 for row in rows)
    page = (tmp_path / "r.html").read_text()
    assert "MAE of length of 46 known (A)" in page and "MAE of other length of 46 known (B)" in page
    capsys.readouterr()
    assert (
        predict(["--load_ckpt_path", str(model), str(wide_table), "--target", "length", "--report", str(tmp_path / "r.html")]) == 2
    )
    assert "--target length: expected one for each of the model's properties, length, other length" in capsys.readouterr().err
    assert train([*own, "--save_ckpt_path", str(model), "--load_ckpt_path", str(model), "--epochs", "3"]) == 0
    assert train([*own, "--target", "length", "--unit", "A", "--load_ckpt_path", str(model)]) == 2
    assert "made with another data set: task is 'length, other length'" in capsys.readouterr().err


def test_from_classes_to_probabilities(wide_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = tmp_path / "model.pth", tmp_path / "out.csv"
    own = [*SIZES.split(), "--data", str(wide_table), "--target", "has_ring", "--log_dir", str(tmp_path), "--split_column", "part"]
    assert train([*own, "--classification", "--epochs", "20", "--lr", "0.01", "--save_ckpt_path", str(model)]) == 0
    told = capsys.readouterr().out
    found = re.search(
        r"^test ROC-AUC of has_ring: ([\d.]+) \(average precision [\d.]+, accuracy [\d.]+; 6 molecules\)$", told, re.M
    )
    assert found is not None
    report = ["--target", "has_ring", "--report", str(tmp_path / "r.html")]
    assert predict(["--load_ckpt_path", str(model), str(wide_table), "--output", str(output), *report]) == 0
    rows = rows_of(output)[:60]
    assert list(rows[0]) == ["file", "record", "name", "has_ring_probability", "outside", "error"]
    probabilities = np.array([float(row["has_ring_probability"]) for row in rows])
    is_ring = np.array(["1" in smiles for smiles in SMILES])
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert probabilities[is_ring].mean() > probabilities[~is_ring].mean() + 0.2
    assert "ROC of has_ring: AUC" in (tmp_path / "r.html").read_text()
    assert train([*own, "--load_ckpt_path", str(model)]) == 2
    assert "made with another data set" in capsys.readouterr().err
    assert pack([str(model), "--name", "ring", "--folder", str(tmp_path)]) == 0
    assert f"test ROC-AUC of has_ring: {found[1]}" in (tmp_path / "ring.md").read_text()
    assert train([*own, "--from", str(model), "--classification", "--epochs", "1"]) == 0


def test_molecules_of_several_pieces(tmp_path: Path) -> None:
    table, model, output = tmp_path / "table.csv", str(tmp_path / "model.pth"), tmp_path / "out.csv"
    table.write_text("smiles,y\n" + "".join(f"{smiles}.O,{len(smiles)}\n" for smiles in SMILES[:12]))
    own = ["--data", str(table), "--target", "y", "--epochs", "1", "--log_dir", str(tmp_path), "--save_ckpt_path", model]
    assert train([*SIZES.split(), *own]) == 0
    wanted = [f"{SMILES[0]}.O", f"{SMILES[0]}.O.O"]
    assert predict(["--load_ckpt_path", model, "--smiles", *wanted, "--output", str(output)]) == 0
    two, three = (row["outside"] for row in rows_of(output))
    assert "pieces" not in two and "3 pieces without a bond between them, training has at most 2" in three


def test_a_table_that_was_changed_before_a_run_goes_on(
    wide_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path / "model.pth")
    own = [*SIZES.split(), "--data", str(wide_table), "--target", "has_ring", "--classification", "--log_dir", str(tmp_path)]
    assert train([*own, "--epochs", "1", "--save_ckpt_path", model]) == 0
    assert train([*own, "--epochs", "2", "--load_ckpt_path", model]) == 0
    title, *lines = wide_table.read_text().splitlines()
    wide_table.write_text("\n".join([title, *reversed(lines)]))
    capsys.readouterr()
    assert train([*own, "--epochs", "2", "--load_ckpt_path", model]) == 2
    assert "made with another data set: the molecules that it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "length", "--classification"], "length: expected 0 or 1 for a classification, got "),
        (["--target", "length", "length"], "target: expected different ones, got length, length"),
        (["--target", "length", "has_ring", "--unit", "A"], "unit: expected one for each of 2 targets, or none, got 1"),
        (["--target", "length", "--split_column", "nowhere"], "expected a column 'nowhere' as well"),
        (["--target", "length", "--split_column", "part", "--split", "scaffold"], "--split_column part: expected no --split"),
        (["--target", "length", "--split_column", "has_ring"], "has_ring: expected train, validation or test, got '"),
    ],
)
def test_targets_of_no_use(wide_table: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*SIZES.split(), "--data", str(wide_table), *words, "--log_dir", str(wide_table.parent)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and message in told


def test_a_table_that_is_too_small_to_validate_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, model, page = (tmp_path / name for name in ("table.csv", "model.pth", "r.html"))
    table.write_text("smiles,a,b\nCCCO,1,2\nCCCCO,2,3\nCCCCCO,3,4\n")
    own = [*SIZES.split(), "--data", str(table), "--target", "a", "b", "--log_dir", str(tmp_path), "--save_ckpt_path", str(model)]
    assert train([*own, "--report", str(page)]) == 0
    told = capsys.readouterr()
    assert "validation error of b: not known, as there are no samples" in told.out and "have no uncertainty" in told.err
    assert page.exists()
    assert predict(["--load_ckpt_path", str(model), "--smiles", "CCCO"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "file,record,name,a,a_uncertainty,b,b_uncertainty,outside,error"


def test_a_missing_column_is_told_before_anything_is_written(
    wide_table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--model", "homo", str(wide_table), "--target", "nothing", "--report", str(tmp_path / "r.html")]
    assert predict(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and "expected a column 'nothing' as well, got smiles, length" in told.err
    assert predict(["--model", "homo", str(wide_table), "--smiles_column", "nothing"]) == 2
    assert capsys.readouterr().out == ""
