"""Tables and SDF of one's own: what is read, left out and divided, and from there to predictions."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")
from rdkit import Chem

from se3_fast.data import DataError
from se3_fast.data.conformers import conformers
from se3_fast.data.own_molecules import OwnMoleculesDataModule
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.predict.command import main as predict
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
        ("structure,y\nCCO,1\n", "z", "expected a column 'z' of known values, got structure, y"),
        ("structure,y\nCCO,1\nCCC,1\n", "y", "needs training molecules with different known targets"),
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
