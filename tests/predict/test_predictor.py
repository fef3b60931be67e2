"""Predictions do not depend on company, order or format; what cannot be served says why."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem

from se3_fast import Predictor
from se3_fast.data import QM9DataModule
from se3_fast.data.conformers import conformers
from se3_fast.data.featuriser import SAMPLE_FEATURISER
from se3_fast.data.molecule_arrays import featurise
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.predict import Record
from se3_fast.predict.readers import read_file
from se3_fast.training.checkpoint import CheckpointError, write_checkpoint, write_safetensors

SMILES = ["CCCO", "c1ccccc1O", "CC(=O)NC", "O=c1[nH]c2nn[nH]c2[nH]1", "C1CCOCC1", "CC(F)(F)C#N"]


@pytest.fixture(scope="module")
def predictor(model_path: Path) -> Predictor:
    return Predictor.from_checkpoint(model_path)


def embedded(smiles: str) -> Chem.Mol:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    conformers(molecule, 1, 0)
    return molecule


def values(predictions: list) -> np.ndarray:
    assert [prediction.error for prediction in predictions] == [""] * len(predictions)
    return np.array([prediction.value for prediction in predictions])


def test_as_the_model_in_training(predictor: Predictor, checkpoint: dict) -> None:
    data_module = QM9DataModule("unused", task="homo", dataset="sample", batch_size=20)
    *inputs, _ = next(iter(data_module.test_dataloader()))
    with torch.no_grad():
        wanted = predictor._model(*inputs).double().numpy() * data_module.targets_std + data_module.targets_mean
    chosen = set(data_module.ds_test.indices[:20])
    records = (record for record in read_file(SAMPLE_PATH) if record.number - 1 in chosen)
    by_number = {prediction.number: prediction.value for prediction in predictor.predict_records(records)}
    found = [by_number[number + 1] for number in data_module.ds_test.indices[:20]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_alone_together_and_in_any_batch_size(predictor: Predictor) -> None:
    molecules = [embedded(smiles) for smiles in SMILES]
    alone = np.concatenate([values(predictor.predict([molecule])) for molecule in molecules])
    assert np.ptp(alone) > 1e-3
    for batch_size in (1, 3, 100):
        np.testing.assert_allclose(values(predictor.predict(molecules, batch_size=batch_size)), alone, atol=1e-5)
    np.testing.assert_allclose(
        values(predictor.predict(molecules[::-1] * 20)).reshape(20, -1)[:, ::-1], alone[None] + np.zeros((20, 1)), atol=1e-5
    )


def test_other_dtypes_of_the_program_around(predictor: Predictor, model_path: Path) -> None:
    expected = predictor.predict(["CCCO"])[0].value
    torch.set_default_dtype(torch.float64)
    try:
        (found,) = Predictor.from_checkpoint(model_path).predict(["CCCO"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.value == pytest.approx(expected, abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = predictor.predict(["CCCO"])
    assert found.value == pytest.approx(expected, abs=0.1)


def test_order_of_atoms_and_positions_in_space(predictor: Predictor) -> None:
    for smiles in SMILES:
        molecule = embedded(smiles)
        order = list(range(molecule.GetNumAtoms()))
        random.Random(0).shuffle(order)
        shuffled = Chem.RenumberAtoms(molecule, order)
        arrays = featurise(
            molecule, molecule.GetConformer().GetPositions() @ np.linalg.qr(np.random.randn(3, 3))[0], SAMPLE_FEATURISER
        )
        found = values(predictor.predict([molecule, shuffled, arrays]))
        np.testing.assert_allclose(found, found[0], atol=1e-5)


def test_smiles_written_in_another_order(predictor: Predictor) -> None:
    first, second = values(predictor.predict(["OCCC", "C(C)CO"]))
    assert first == pytest.approx(second, abs=1e-5)


def test_numbers_of_atoms_in_smiles(predictor: Predictor) -> None:
    numbered = ["[CH3:7][CH2:1][CH2:5][OH:2]", "[CH3:1][C:9](=[O:3])[NH:2]C", "[F:4][C:1](F)(C)C#N"]
    plain = ["CCCO", "CC(=O)NC", "CC(F)(F)C#N"]
    assert values(predictor.predict(numbered)).tolist() == values(predictor.predict(plain)).tolist()


def test_ase(predictor: Predictor) -> None:
    ase = pytest.importorskip("ase")
    molecules = [embedded(smiles) for smiles in SMILES]
    atoms = [
        ase.Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
        for molecule in molecules
    ]
    np.testing.assert_allclose(values(predictor.predict(atoms)), values(predictor.predict(molecules)), atol=1e-5)
    charged, of_file, unknown, periodic = (atoms[0].copy() for _ in range(4))
    charged.info["charge"] = -1
    of_file.info["total_charge"] = -1.0
    unknown.info["charge"] = None
    periodic.set_pbc(True)
    assert [prediction.error for prediction in predictor.predict([charged, of_file, unknown, periodic])] == [
        "charge -1",
        "charge -1",
        "charge: expected a number, got None",
        "periodic: expected a molecule",
    ]


def test_mean_and_spread_over_conformers(predictor: Predictor) -> None:
    molecule = Chem.AddHs(Chem.MolFromSmiles(Chem.MolToSmiles(Chem.MolFromSmiles("CCCCO"))))
    several = [featurise(molecule, positions, SAMPLE_FEATURISER) for positions in conformers(molecule, 4, 7)]
    apart = values(predictor.predict(several))
    (together,) = predictor.predict(["CCCCO"], num_conformers=4, seed=7)
    assert together.conformers == len(apart) > 1
    assert together.value == pytest.approx(apart.mean(), abs=1e-5)
    assert together.spread == pytest.approx(apart.std(ddof=1), abs=1e-5)


@pytest.mark.parametrize(
    ("smiles", "outside", "is_served"),
    [
        ("CC(=O)[O-]", "charge -1", False),
        ("C[NH3+]", "charge +1", False),
        ("[Cl-]", "chlorine is not in the training data; charge -1", False),
        ("C" * 30, "30 heavy atoms, training has at most 9; 92 atoms, training has at most 29", True),
        ("C", "1 heavy atom, training has at least 4", True),
        ("CC[N+](=O)[O-]", "nitrogen with 2 single and 1 double bonds is not in the training data; "
         "oxygen with 1 single bond is not in the training data", True),
        ("CCO.CCO", "2 pieces without a bond between them, training has 1", True),
        ("C[CH]C", "a radical with 1 unpaired electron", False),
        ("CCCCO", "", True),
    ],
)  # fmt: skip
def test_outside_the_training_data(predictor: Predictor, smiles: str, outside: str, is_served: bool) -> None:
    (prediction,) = predictor.predict([smiles])
    assert prediction.outside == outside
    assert (prediction.value is not None) is is_served
    assert prediction.error == ("" if is_served else outside)


@pytest.mark.parametrize(
    ("smiles", "error"),
    [
        ("C1CC", "not a SMILES: 'C1CC'"),
        ("", "not a SMILES: ''"),
        ("CC(C)(C)(C)C", "Explicit valence for atom # 1 C, 5, is greater than permitted"),
        ("C" * 100, "302 atoms, at most 256 are possible"),
        ("C" * 1000, "1000 atoms, at most 256 are possible"),
    ],
)
def test_what_cannot_be_served_says_why(predictor: Predictor, smiles: str, error: str) -> None:
    before, prediction, after = predictor.predict(["CCCO", smiles, "CCCO"])
    assert (prediction.value, prediction.error) == (None, error)
    assert before.value == pytest.approx(after.value)


def test_hydrogens_that_are_missing(predictor: Predictor) -> None:
    molecule = embedded("CCCO")
    heavy = Chem.RemoveHs(molecule)
    assert values(predictor.predict([heavy])) == pytest.approx(values(predictor.predict([molecule])), abs=0.5)
    editable = Chem.RWMol(molecule)
    editable.RemoveAtom(molecule.GetNumAtoms() - 1)
    incomplete = Chem.MolFromMolBlock(Chem.MolToMolBlock(editable.GetMol()), removeHs=False)
    assert predictor.predict([incomplete])[0].error


def test_other_objects_are_refused(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"molecule 2: expected an RDKit molecule, .* got int"):
        predictor.predict(["CCCO", 3])


@pytest.mark.parametrize("molecule", ["CCCO", Chem.MolFromSmiles("CCCO")])
def test_one_molecule_is_not_taken_apart(predictor: Predictor, molecule: str | Chem.Mol) -> None:
    with pytest.raises(TypeError, match=r"molecules: expected a list, as in predict\(\[molecule\]\), got one (str|Mol)"):
        predictor.predict(molecule)


@pytest.mark.parametrize(("name", "value"), [("num_conformers", 0), ("num_conformers", 2.5), ("batch_size", 0), ("seed", "a")])
def test_numbers_of_conformers_and_of_molecules(predictor: Predictor, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value!r}"):
        predictor.predict(["CCCO"], **{name: value})  # type: ignore[arg-type]


def test_devices_and_paths_that_are_none() -> None:
    for device in ("foo", None, 3.5):
        with pytest.raises(ValueError, match=r"^device: expected 'cpu', 'cuda', 'cuda:<number>' or a torch.device, got "):
            Predictor.from_checkpoint("homo", device=device)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^path: expected a path, got an object of type NoneType"):
        Predictor.from_checkpoint(None)  # type: ignore[arg-type]


def test_records_are_read_as_they_are_needed(predictor: Predictor) -> None:
    taken = 0

    def endless() -> Iterator[Record]:
        nonlocal taken
        molecule = embedded("CCCO")
        while True:
            taken += 1
            yield Record(number=taken, molecule=molecule)

    predictions = predictor.predict_records(endless(), batch_size=8)
    for number in range(1, 30):
        assert next(predictions).number == number
        assert taken <= number + 8


def test_checkpoints(checkpoint: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    wanted = None
    for absent in ((), ("domain",), ("featuriser",), ("featuriser", "domain")):
        write_checkpoint(path, {key: value for key, value in checkpoint.items() if key not in absent})
        found = values(Predictor.from_checkpoint(path).predict(SMILES[:4]))
        wanted = found if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    tensors = tmp_path / "model.safetensors"
    write_safetensors(tensors, checkpoint)
    np.testing.assert_allclose(values(Predictor.from_checkpoint(tensors).predict(SMILES[:4])), wanted, atol=1e-6)
    for changed, message in (
        (
            {"featuriser": {"name": "given", "version": 1}},
            "featuriser: expected 'qm9', version 1 or 'sample', version 1, .* got 'given'",
        ),
        ({"data": {"dataset": "sample", "task": "homo"}}, "missing: data: mean, data: std"),
        ({"data": {**checkpoint["data"], "task": "colour"}}, "task: expected one of mu"),
    ):
        write_checkpoint(path, {**checkpoint, **changed})
        with pytest.raises(CheckpointError, match=message):
            Predictor.from_checkpoint(path)
    write_checkpoint(path, {key: checkpoint[key] for key in ("state_dict", "optimizer_state_dict", "epoch")})
    with pytest.raises(CheckpointError, match="missing: model_config, data"):
        Predictor.from_checkpoint(path)


def test_the_package_is_imported_without_rdkit() -> None:
    without = "import sys, se3_fast, se3_fast.train, se3_fast.__main__; assert 'rdkit' not in sys.modules"
    code = f"{without}; se3_fast.Predictor; assert 'rdkit' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
