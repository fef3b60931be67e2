"""What must not change a molecule's prediction: the order of its atoms, its name, its company, the size of batches."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rdkit")
from rdkit import Chem
from rdkit.Chem import rdDepictor

from se3_fast import Predictor
from se3_fast.data.molecule_arrays import MoleculeArrays, molecule_of_arrays
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.predict import Record, read_file
from se3_fast.predict.command import main
from se3_fast.predict.records import molecule_of_block

TOLERANCE = 1e-5
NUM_MOLECULES = 40
NUM_RECORDS = 2_000


@cache
def molecules() -> list[Chem.Mol]:
    """Some of the sample, each with its positions."""
    arrays = [record.molecule for record in islice(read_file(SAMPLE_PATH), 0, NUM_MOLECULES * 100, 100)]
    return [molecule_of_arrays(one) for one in arrays if isinstance(one, MoleculeArrays)]


@cache
def predictor() -> Predictor:
    return Predictor.from_checkpoint("gap")


@cache
def alone() -> np.ndarray:
    return np.array([predictor().predict([molecule])[0].value for molecule in molecules()])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    chosen=st.lists(st.integers(0, NUM_MOLECULES - 1), min_size=1, max_size=60),
    batch_size=st.integers(1, 70),
)
def test_order_of_atoms_names_company_and_batches(seed: int, chosen: list[int], batch_size: int) -> None:
    rng = np.random.default_rng(seed)
    records = []
    for place, number in enumerate(chosen, 1):
        molecule = molecules()[number]
        shuffled = Chem.RenumberAtoms(molecule, rng.permutation(molecule.GetNumAtoms()).tolist())
        records.append(Record(number=place, name=str(rng.integers(1000)), molecule=shuffled))
    found = list(predictor().predict_records(iter(records), batch_size=batch_size))
    assert [(one.number, one.name) for one in found] == [(one.number, one.name) for one in records]
    np.testing.assert_allclose([one.value for one in found], alone()[chosen], atol=TOLERANCE)
    renamed = [replace(record, name="another", file="elsewhere", number=record.number + 7) for record in records]
    again = predictor().predict_records(iter(renamed), batch_size=batch_size)
    assert [one.value for one in again] == [one.value for one in found]


@pytest.mark.parametrize(
    "smiles", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "C/C=C\\C(=O)O", "OC1CCC(F)CC1", "CN(C)C(=O)c1ccoc1", "N"]
)
@pytest.mark.parametrize("with_hydrogens", [False, True])
def test_conformers_are_those_of_the_smiles_however_a_molecule_comes(smiles: str, with_hydrogens: bool) -> None:
    (expected,) = predictor().predict([smiles], num_conformers=2)
    molecule = Chem.MolFromSmiles(smiles)
    if with_hydrogens:
        molecule = Chem.AddHs(molecule)
    molecule = Chem.RenumberAtoms(molecule, np.random.default_rng(0).permutation(molecule.GetNumAtoms()).tolist())
    rdDepictor.Compute2DCoords(molecule)
    depicted = molecule_of_block([line + "\n" for line in Chem.MolToMolBlock(molecule).split("\n")])
    for found in predictor().predict([molecule, depicted], num_conformers=2):
        assert found.value == pytest.approx(expected.value, abs=TOLERANCE)
        assert found.molecule.GetNumConformers() > 0
        symbols = [atom.GetSymbol() for atom in found.molecule.GetAtoms()]
        assert symbols[: molecule.GetNumAtoms()] == [atom.GetSymbol() for atom in molecule.GetAtoms()]


def test_alone_and_in_a_file_of_thousands(tmp_path: Path) -> None:
    blocks = [f"{number}{Chem.MolToMolBlock(molecule)}$$$$\n" for number, molecule in enumerate(molecules())]
    values: list[list[float]] = []
    for name, count in (("few", NUM_MOLECULES), ("many", NUM_RECORDS)):
        source, output = tmp_path / f"{name}.sdf", tmp_path / f"{name}.csv"
        source.write_text("".join(blocks[number % NUM_MOLECULES] for number in range(count)))
        assert main(["--model", "gap", str(source), "--output", str(output)]) == 0
        with open(output, newline="") as file:
            values.append([float(row["gap_eV"]) for row in csv.DictReader(file)])
    few, many = values
    assert len(many) == NUM_RECORDS
    np.testing.assert_allclose(many, np.resize(few, NUM_RECORDS), atol=TOLERANCE)


def test_numbers_go_through_every_format_alike(tmp_path: Path) -> None:
    """From an SDF to each output; and what is written as SDF is predicted for as what it was written of."""
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "in.sdf"
    source.write_text("".join(f"{number}{Chem.MolToMolBlock(one)}$$$$\n" for number, one in enumerate(molecules())))
    outputs = {suffix: tmp_path / f"out.{suffix}" for suffix in ("csv", "parquet", "sdf")}
    for output in outputs.values():
        assert main(["--model", "gap", str(source), "--output", str(output)]) == 0
    again = tmp_path / "again.csv"
    assert main(["--model", "gap", str(outputs["sdf"]), "--output", str(again)]) == 0
    columns = ("gap_eV", "gap_eV_uncertainty")
    rows: dict[str, list[list[float]]] = {}
    for name, path in (("csv", outputs["csv"]), ("again", again)):
        with open(path, newline="") as file:
            rows[name] = [[float(row[column]) for column in columns] for row in csv.DictReader(file)]
    rows["parquet"] = [[row[column] for column in columns] for row in parquet.read_table(outputs["parquet"]).to_pylist()]
    written = Chem.SDMolSupplier(str(outputs["sdf"]), removeHs=False)
    rows["sdf"] = [[float(molecule.GetProp(column)) for column in columns] for molecule in written]
    for name, found in rows.items():
        np.testing.assert_allclose(found, rows["csv"], atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("smiles", ["[2H]CCCO", "OCCC[2H]", "[2H]OCCC", "[13CH3]CCO", "[2H]C([2H])([2H])CCO", "CC[C@]([2H])([H])O"])
def test_isotopes_change_nothing(smiles: str) -> None:
    """Not the conformers either."""
    expected, found = predictor().predict(["CCCO", smiles])
    assert found.value is not None and found.value == pytest.approx(expected.value, abs=1e-4)
