"""Building the file from an sdf and a csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import rdDistGeom

from se3_fast.data import TASKS, DataError
from se3_fast.data.build_qm9 import build_qm9, main, read_excluded
from se3_fast.data.molecules import read_molecules

COLUMNS = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv"
METHANE = (
    "157.7118,157.70997,157.70699,0,13.21,-0.3877,0.1171,0.5048,35.3641,0.044749,-40.47893,-40.476062,-40.475117,-40.498597,6.469"
)
SMILES = {1: "C", 7: "CC", 21: "c1cc[nH]c1", 30: "CC#N"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An sdf of four molecules and its csv, all with the properties of methane."""
    with Chem.SDWriter(str(tmp_path / "gdb9.sdf")) as writer:
        for number, smiles in SMILES.items():
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
            molecule.SetProp("_Name", f"gdb_{number}")
            writer.write(molecule)
    lines = [COLUMNS, *(f"gdb_{number},{METHANE}" for number in SMILES)]
    (tmp_path / "gdb9.sdf.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "gdb9.sdf", tmp_path / "gdb9.sdf.csv"


def test_targets_in_published_units(files: tuple[Path, Path]) -> None:
    targets = dict(zip(TASKS, build_qm9(*files)["targets"][0], strict=True))
    expected = {
        "mu": 0.0, "alpha": 13.21, "homo": -10.549854, "lumo": 3.186453, "gap": 13.736308, "r2": 35.3641,
        "zpve": 1.217682, "U0": -1101.4878, "U": -1101.4098, "H": -1101.3840, "G": -1102.0229, "Cv": 6.469,
        "U0_atom": -17.172182, "U_atom": -17.286825, "H_atom": -17.389658, "G_atom": -16.151918,
        "A": 157.7118, "B": 157.70997, "C": 157.70699,
    }  # fmt: skip
    assert targets == pytest.approx(expected, rel=2e-6)


def test_layout(files: tuple[Path, Path]) -> None:
    arrays = build_qm9(*files)
    assert arrays["gdb_index"].tolist() == list(SMILES)
    assert arrays["n_node"].tolist() == [5, 8, 10, 6]
    assert arrays["n_edge"].tolist() == [8, 14, 20, 10]
    assert arrays["node_attr"].shape == (29, 11)
    np.testing.assert_array_equal(arrays["node_attr"][0], [0, 1, 0, 0, 0, 6, 0, 0, 0, 1, 4])
    np.testing.assert_array_equal(arrays["node_attr"][1], [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(arrays["src"][:8], [0, 0, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(arrays["dst"][:8], [1, 2, 3, 4, 0, 0, 0, 0])
    # bonds of pyrrole: five aromatic, five single; of acetonitrile: a triple one and four single; both directions
    assert arrays["edge_attr"][22:42].sum(axis=0).tolist() == [10, 0, 0, 10]
    assert arrays["edge_attr"][42:].sum(axis=0).tolist() == [8, 0, 2, 0]
    first = next(iter(Chem.SDMolSupplier(str(files[0]), removeHs=False)))
    np.testing.assert_allclose(arrays["node_pos"][:5], first.GetConformer().GetPositions(), atol=1e-6)


def test_command_writes_a_file_that_is_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    sdf, table = files
    excluded = tmp_path / "uncharacterized.txt"
    excluded.write_text("Inconsistent molecules\n========\n    7   CC   CC\n1 compounds\n")
    output = tmp_path / "qm9_edge.npz"
    arguments = ["--sdf", str(sdf), "--csv", str(table), "--output", str(output), "--exclude", str(excluded)]
    assert main(arguments) == 0
    molecules = read_molecules(output, "homo")
    assert molecules.n_node.tolist() == [5, 10, 6]
    assert molecules.targets[0].item() == pytest.approx(-10.549854)


def test_charged_nitrogen_without_its_charge_is_read(files: tuple[Path, Path]) -> None:
    """QM9 holds zwitterions whose charges the sdf leaves out: here, ammonium with a plain N."""
    sdf, table = files
    molecule = Chem.AddHs(Chem.MolFromSmiles("C[NH3+]"))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
    molecule.GetAtomWithIdx(1).SetFormalCharge(0)
    molecule.SetProp("_Name", "gdb_1")
    with Chem.SDWriter(str(sdf)) as writer:
        writer.SetKekulize(False)
        writer.write(molecule)
    assert build_qm9(sdf, table)["n_node"].tolist() == [8]


def test_undecidable_aromaticity_keeps_the_bonds_of_the_file(files: tuple[Path, Path]) -> None:
    sdf, table = files
    pyrrole = Chem.AddHs(Chem.MolFromSmiles("c1cc[nH]c1"))
    rdDistGeom.EmbedMolecule(pyrrole, randomSeed=1)
    radical = Chem.RWMol(pyrrole)
    nitrogen = next(atom for atom in radical.GetAtoms() if atom.GetSymbol() == "N")
    radical.RemoveAtom(next(atom.GetIdx() for atom in nitrogen.GetNeighbors() if atom.GetSymbol() == "H"))
    radical.SetProp("_Name", "gdb_1")
    with Chem.SDWriter(str(sdf)) as writer:
        writer.SetKekulize(False)
        writer.write(radical)
    assert build_qm9(sdf, table)["edge_attr"].sum(axis=0).tolist() == [8, 0, 0, 10]


def test_faults_are_named(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdf, table = files
    text = table.read_text()
    with pytest.raises(DataError, match="no such file"):
        build_qm9(tmp_path / "none.sdf", table)
    table.write_text(text.replace("gdb_21,", "gdb_22,"))
    with pytest.raises(DataError, match="expected a line for gdb_21"):
        build_qm9(sdf, table)
    table.write_text(text.replace("homo", "HOMO"))
    with pytest.raises(DataError, match="expected a column 'homo'"):
        build_qm9(sdf, table)
    table.write_text(text.replace("13.21", "?", 1))
    with pytest.raises(DataError, match=r"gdb_1: could not convert string to float: '\?'"):
        build_qm9(sdf, table)
    table.write_text("something else\n")
    assert main(["--sdf", str(sdf), "--csv", str(table), "--output", str(tmp_path / "o.npz")]) == 2
    assert capsys.readouterr().err.endswith("expected a column mol_id, got something else\n")
    assert not (tmp_path / "o.npz").exists()
    (tmp_path / "list.txt").write_text("no numbers\n3 compounds\n")
    with pytest.raises(DataError, match="begin with the number of a molecule"):
        read_excluded(tmp_path / "list.txt")


def test_other_elements_are_refused(files: tuple[Path, Path]) -> None:
    sdf, table = files
    sdf.write_text(sdf.read_text().replace(" C ", " Si", 1))
    with pytest.raises(DataError, match="gdb_1: molecule must consist of H, C, N, O and F, got Si"):
        build_qm9(sdf, table)
