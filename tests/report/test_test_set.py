"""Pages of a training and of an evaluation about the test set; molecules from the arrays of a data set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")
from rdkit import Chem

from se3_fast import inference, train
from se3_fast.data.featuriser import SAMPLE_FEATURISER
from se3_fast.data.molecule_arrays import MoleculeArrays, featurise, molecule_of_arrays
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.predict.readers import read_file
from tests.training.conftest import write_few_molecules

MODEL = "--num_layers 1 --num_degrees 2 --num_channels 4 --num_heads 2 --device cpu"
RUN = "--epochs 2 --eval_interval 1 --batch_size 16 --num_workers 0 --seed 1 --silent"


def figures_of(page: Path) -> dict[str, str]:
    found = re.findall(r'<div class="figure"><b>(.*?)</b><span>(.*?)</span>', page.read_text())
    return {name: value for value, name in found}


def test_pages_of_a_training_and_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_few_molecules(tmp_path)
    model, trained, evaluated = tmp_path / "model.pth", tmp_path / "trained.html", tmp_path / "evaluated.html"
    data = ["--data_dir", str(tmp_path), "--log_dir", str(tmp_path / "log")]
    words = [*MODEL.split(), *RUN.split(), *data, "--save_ckpt_path", str(model), "--report", str(trained)]
    assert train.main(words) == 0
    error = re.search(r"test MAE of homo: (\S+) eV", capsys.readouterr().out)
    assert error is not None
    assert inference.main(["--load_ckpt_path", str(model), *data, "--report", str(evaluated)]) == 0
    for page in (trained, evaluated):
        found = figures_of(page)
        assert float(found["MAE of 6 known (eV)"]) == pytest.approx(float(error[1]), rel=2e-3)
        assert found["molecules with a number"] == "6"
        text = page.read_text()
        assert "homo of 6 test molecules" in text and "Training loss" in text and "Validation MAE" in text
        assert text.count('class="molecule"') == 6
    assert figures_of(trained)["epochs"] == "2" and figures_of(trained)["molecules trained on"] == "48"
    assert train.main([*words, "--report", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: Is a directory" in capsys.readouterr().err


def test_molecules_of_arrays_have_the_same_arrays() -> None:
    arrays = [record.molecule for record, _ in zip(read_file(SAMPLE_PATH), range(300), strict=False)]
    with np.load(SAMPLE_PATH) as archive:
        smiles = [text.decode() for text in archive["smiles"][:300]]
    for wanted, text in zip(arrays, smiles, strict=True):
        assert isinstance(wanted, MoleculeArrays)
        molecule = molecule_of_arrays(wanted)
        found = featurise(molecule, molecule.GetConformer().GetPositions(), SAMPLE_FEATURISER)
        for name in ("node_pos", "edge_attr", "src", "dst"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert Chem.CanonSmiles(Chem.MolToSmiles(molecule)) == Chem.CanonSmiles(Chem.MolToSmiles(Chem.MolFromSmiles(text), False))


def test_aromatic_bonds_that_do_not_alternate_are_drawn_as_single() -> None:
    five = np.arange(5, dtype=np.uint8)
    src, dst = np.concatenate([five, (five + 1) % 5]), np.concatenate([(five + 1) % 5, five])
    carbon = np.zeros((5, 11), dtype=np.uint8)
    carbon[:, 1], carbon[:, 5] = 1, 6
    ring = MoleculeArrays(carbon, np.zeros((5, 3), np.float32), np.eye(4, dtype=np.uint8)[np.full(10, 3)], src, dst)
    molecule = molecule_of_arrays(ring)
    assert {bond.GetBondType() for bond in molecule.GetBonds()} == {Chem.BondType.SINGLE}
