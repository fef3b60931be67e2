"""Molecules in and numbers out through files of every format; bad records give one row each, and the run goes on."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")
from rdkit import Chem
from rdkit.Chem import AllChem

import se3_fast
from se3_fast import Predictor
from se3_fast.__main__ import COMMANDS
from se3_fast.__main__ import main as se3_fast_main
from se3_fast.data.conformers import conformers
from se3_fast.data.featuriser import SAMPLE_FEATURISER
from se3_fast.data.molecule_arrays import featurise, stack_molecules
from se3_fast.data.npz_file import write_npz
from se3_fast.data.objective import REGRESSION, Objective, Property
from se3_fast.predict import Record, read_file
from se3_fast.predict.command import main
from se3_fast.predict.predictor import PredictedValue, Prediction
from se3_fast.predict.readers import _data_items
from se3_fast.predict.writers import Layout, open_writer

SMILES = ["CCCO", "c1ccccc1O", "CC(=O)NC", "CC(F)(F)C#N"]


def embedded(smiles: str) -> Chem.Mol:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    conformers(molecule, 1, 0)
    molecule.SetProp("_Name", f"name of {smiles}")
    return molecule


def sdf(molecules: list[Chem.Mol]) -> str:
    return "".join(Chem.MolToMolBlock(molecule) + "$$$$\n" for molecule in molecules)


def xyz(molecules: list[Chem.Mol]) -> str:
    return "".join(Chem.MolToXYZBlock(molecule) for molecule in molecules)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


Run = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture
def run(model_path: Path, tmp_path: Path) -> Run:
    def run(*arguments: str | Path) -> tuple[int, list[dict[str, str]]]:
        output = tmp_path / "out.csv"
        output.unlink(missing_ok=True)
        status = main(["--load_ckpt_path", str(model_path), "--output", str(output), *map(str, arguments)])
        return status, rows_of(output) if output.exists() else []

    return run


@pytest.mark.parametrize("suffix", [".sdf", ".xyz", ".extxyz", ".npz"])
def test_positions_of_files(run: Run, model_path: Path, tmp_path: Path, suffix: str) -> None:
    molecules = [embedded(smiles) for smiles in SMILES]
    path = tmp_path / f"molecules{suffix}"
    if suffix == ".sdf":
        path.write_text(sdf(molecules))
    elif suffix == ".xyz":
        path.write_text(xyz(molecules))
    elif suffix == ".extxyz":
        ase_io = pytest.importorskip("ase.io")
        ase = pytest.importorskip("ase")
        atoms = [ase.Atoms([atom.GetSymbol() for atom in m.GetAtoms()], m.GetConformer().GetPositions()) for m in molecules]
        for one in atoms:
            one.arrays["forces"] = np.zeros((len(one), 3))
        ase_io.write(path, atoms, format="extxyz")
    else:
        arrays = [featurise(molecule, molecule.GetConformer().GetPositions(), SAMPLE_FEATURISER) for molecule in molecules]
        write_npz(path, stack_molecules(arrays, np.full((len(arrays), 19), np.nan)))
    status, rows = run(path)
    assert status == 0
    wanted = [prediction.value for prediction in Predictor.from_checkpoint(model_path).predict(molecules)]
    np.testing.assert_allclose([float(row["homo_eV"]) for row in rows], wanted, atol=2e-3)  # files have 4 digits
    assert {row["file"] for row in rows} == {str(path)}
    if suffix == ".sdf":
        assert [row["name"] for row in rows] == [f"name of {smiles}" for smiles in SMILES]


def test_smiles_of_files_and_of_the_command_line(run: Run, tmp_path: Path) -> None:
    status, wanted = run("--smiles", *SMILES)
    assert status == 0 and all(row["homo_eV"] for row in wanted)
    smi, table = tmp_path / "m.smi", tmp_path / "m.csv"
    smi.write_text("\n".join(f"{smiles} molecule {number}" for number, smiles in enumerate(SMILES)) + "\n\n")
    table.write_text("id,SMILES,more\n" + "".join(f'"molecule, {number}",{smiles},"1,2"\n' for number, smiles in enumerate(SMILES)))
    for path, first, name in ((smi, 1, "molecule 0"), (table, 2, "molecule, 0")):
        status, rows = run(path)
        assert status == 0
        assert [row["homo_eV"] for row in rows] == [row["homo_eV"] for row in wanted]
        assert (rows[0]["record"], rows[0]["name"]) == (str(first), name)
    status, rows = run(smi, table, "--smiles", "CCCO")
    assert [row["file"] for row in rows] == [""] + [str(smi)] * 4 + [str(table)] * 4
    _, rows = run("--smiles", "CCCCO", "--conformers", "6")
    assert float(rows[0]["homo_eV_spread"]) > 0 and int(rows[0]["conformers"]) > 1


def test_one_mol_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "one.mol"
    path.write_bytes(Chem.MolToMolBlock(embedded("CCCO")).replace("\n", "\r\n").encode())
    status, rows = run(path)
    assert status == 0 and len(rows) == 1 and rows[0]["homo_eV"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".sdf"])
def test_outputs(model_path: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source, output, again = tmp_path / "in.smi", tmp_path / f"out{suffix}", tmp_path / "again.csv"
    source.write_text("CCCO a\nnonsense b\n[Cl-] c\nc1ccccc1O d\n")
    common = ["--load_ckpt_path", str(model_path)]
    assert main([*common, str(source), "--output", str(output)]) == 3
    if suffix == ".csv":
        rows = [{**row, "homo_eV": float(row["homo_eV"] or "nan")} for row in rows_of(output)]
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    elif suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(output).to_pylist()
    else:
        rows = []
        for molecule in Chem.SDMolSupplier(str(output), removeHs=False):
            rows.append({"name": molecule.GetProp("_Name"), "error": "", "homo_eV": None, **molecule.GetPropsAsDict()})
        assert main([*common, str(output), "--output", str(again)]) == 3
        np.testing.assert_allclose(float(rows_of(again)[0]["homo_eV"]), rows[0]["homo_eV"], atol=2e-3)
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["error"] for row in rows] == ["", "not a SMILES: 'nonsense'", "chlorine is not in the training data; charge -1", ""]
    wanted = [prediction.value for prediction in Predictor.from_checkpoint(model_path).predict(["CCCO", "c1ccccc1O"])]
    np.testing.assert_allclose([rows[0]["homo_eV"], rows[3]["homo_eV"]], wanted, atol=1e-5)


GOOD = sdf([embedded("CCCO")])
BAD_SDF = {
    "not a MOL block": "name\n\n\nnonsense\n$$$$\n",
    "not a MOL block: fewer lines than its atoms and bonds": "name\n\n\n  0  0  0     0  0            999 V3000\n"
    "M  V30 BEGIN CTAB\nM  V30 COUNTS 900000000 1 0 0 0\nM  END\n$$$$\n",
    "more than 10000 lines": "line\n" * 10_001 + "$$$$\n",
}


@pytest.mark.parametrize("fault", BAD_SDF)
def test_bad_records_of_sdf(run: Run, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m.sdf"
    path.write_bytes((GOOD + BAD_SDF[fault] + GOOD).encode().replace(b"nonsense", b"\xff\xfe\x00"))
    status, rows = run(path)
    assert status == 3
    assert [(row["record"], row["error"]) for row in rows] == [("1", ""), ("2", fault), ("3", "")]
    assert rows[0]["homo_eV"] == rows[2]["homo_eV"]


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        ("1\n\nXx 0 0 0\n", "no element 'Xx'"),
        ("1\n\nC 0 zero 0\n", "not XYZ: expected lines of an element and three numbers"),
        ("1\n\nC 0 0\n", "not XYZ: expected lines of an element and three numbers"),
        ("1\n\nC nan 0 0\n", "positions are not finite"),
        ("1\n\nC 1_0 0 0\n", "not XYZ: expected lines of an element and three numbers"),
        ("1\n\nC 0 0 \u0661\n", "not XYZ: expected lines of an element and three numbers"),
        ("1\ncharge=1_0\nC 0 0 0\n", "charge: expected a number, got '1_0'"),
        ("0\n\n", "no atoms"),
        ("300\n\n" + "C 0 0 0\n" * 300, "300 atoms, at most 256 are possible"),
        ("nonsense\nmore of it\n", "not XYZ: expected a number of atoms, got 'nonsense'"),
        ("1\ncharge=x\nC 0 0 0\n", "charge: expected a number, got 'x'"),
        ("1\nProperties=species:S:1\nC 0 0 0\n", "not extended XYZ: expected species and pos in Properties"),
        ("1\ncharge=-1\nO 0 0 0\n", "charge -1"),
        ('1\npbc="F T F"\nC 0 0 0\n', "periodic: expected a molecule"),
        ('1\nLattice="9 0 0 0 9 0 0 0 9"\nC 0 0 0\n', "periodic: expected a molecule"),
        ('1\nLattice="9 0 0 0 9 0 0 0 9" pbc="F F F" charge=-1\nO 0 0 0\n', "charge -1"),
    ],
)
def test_bad_frames_of_xyz(run: Run, tmp_path: Path, frame: str, fault: str) -> None:
    path, good = tmp_path / "m.xyz", xyz([embedded("CCCO")])
    path.write_text(good + frame + good)
    status, rows = run(path)
    line = good.count("\n") + 1
    assert status == 3
    assert [(row["record"], row["error"]) for row in rows[:2]] == [("1", ""), (str(line), fault)]
    assert [(row["record"], row["error"]) for row in rows[2:]] == [(str(line + frame.count("\n")), "")]


@pytest.mark.parametrize(("smiles", "is_drawing"), [("CCCO", True), ("c1ccccc1O", False), ("O=CC#N", False)])
def test_drawings_that_are_said_to_be_in_space(run: Run, tmp_path: Path, smiles: str, is_drawing: bool) -> None:
    """Carbon with four neighbours is not flat, so that there are conformers; benzene is, and its positions are taken."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.Compute2DCoords(molecule)
    block = Chem.MolToMolBlock(molecule).replace("  2D\n", "  3D\n", 1)
    assert "3D" in block
    path = tmp_path / "drawn.sdf"
    path.write_text(block + "$$$$\n")
    (flat,), (made,) = run(path)[1], run("--smiles", smiles)[1]
    assert (flat["homo_eV"] == made["homo_eV"]) is is_drawing and flat["error"] == ""


@pytest.mark.parametrize("text", ["1_0", "\u0661", "nan", "inf", "", "1,5", "0x1"])
def test_what_is_no_number_in_a_column(text: str) -> None:
    assert Record(columns={"y": text}).number_in("y") is None
    assert Record(columns={"y": " -1.5e1\t"}).number_in("y") == -15


def test_distances_that_no_bonds_fit(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.xyz"
    path.write_text("4\nmethyl\nC 0 0 0\nH 1.08 0 0\nH -0.54 0.935 0\nH -0.54 -0.935 0\n12\ncut off\nC 0 0 0\n")
    status, rows = run(path)
    assert status == 3 and len(rows) == 2
    assert "radical" in rows[0]["error"]
    assert rows[1]["error"] == "not XYZ: expected 12 atoms, got 1"


def test_bad_lines_of_csv(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("name,smiles\na,CCCO\nb\nc,\n" + f"d,{'C' * 200_000}\n" + "e,CCCO\n")
    status, rows = run(path)
    assert status == 3
    assert [row["error"][:18] for row in rows] == ["", "not a SMILES: ''", "not a SMILES: ''", "not a line of CSV ", ""]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "name,structure\n", "expected a column 'smiles' of SMILES, got name, structure"),
        ("m.pdb", "", "expected a file whose name ends in .sdf"),
        ("m.npz", "nonsense", "not a whole .npz archive"),
        (None, "", "No such file"),
    ],
)
def test_files_that_are_at_fault_as_a_whole(
    run: Run, tmp_path: Path, name: str | None, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / (name or "missing.sdf")
    if name:
        path.write_text(text)
    status, rows = run(path)
    assert (status, rows) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_usage(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--load_ckpt_path", str(model_path)]
    source = tmp_path / "m.smi"
    source.write_text("CCCO\n")
    assert main(common) == 2
    assert main([*common, str(source), "--output", str(tmp_path / "out.xlsx")]) == 2
    assert main(["--load_ckpt_path", str(tmp_path / "none.pth"), str(source)]) == 2
    pickled = tmp_path / "m.npz"
    np.savez(pickled, n_node=np.array([print], dtype=object))
    assert main([*common, str(pickled)]) == 2
    assert capsys.readouterr().err.count("error: ") == 4
    assert main([*common, str(source), "--target", "y"]) == 2
    assert "--target y: expected --report as well" in capsys.readouterr().err
    assert main([*common, str(source), "--report", str(source)]) == 2
    assert "m.smi: expected another file for the report than that of the molecules" in capsys.readouterr().err
    assert source.read_text() == "CCCO\n"


def test_command_with_sub_commands(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert se3_fast_main(["predict", "--load_ckpt_path", str(model_path), "--smiles", "CCCO"]) == 0
    assert capsys.readouterr().out.startswith("file,record,name,homo_eV,homo_eV_uncertainty,outside,error\n,1,CCCO,")
    assert se3_fast_main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert se3_fast_main(["--version"]) == 0
    assert capsys.readouterr().out == f"se3_fast {se3_fast.__version__}\n"
    for command, named in (("nonsense --data x.csv", "'nonsense'"), ("data nonsense", "'data nonsense'")):
        assert se3_fast_main(command.split()) == 2
        assert f"error: no command {named}\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_sub_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        se3_fast_main([*command.split(), "--help"])
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"usage: se3-fast {command} [-h]")
    assert "(default: )" not in told and not re.search(r"\(default: [^()]*\) \(default: ", told)


def test_readers_read_no_more_than_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.smi"
    path.write_text("CCCO\n" * 200_000)
    records = read_file(path)
    assert [record.number for record in islice(records, 3)] == [1, 2, 3]
    assert records.gi_yieldfrom is not None  # type: ignore[attr-defined]  # open still, in the middle of the file
    records.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".sdf"])
def test_properties_that_are_called_as_other_columns(tmp_path: Path, suffix: str) -> None:
    names = ["error", "name", "record", "gap_uncertainty", "gap", "gap_uncertainty_predicted"]
    objective = Objective(REGRESSION, tuple(Property(name) for name in names))
    values = {name: PredictedValue(value=float(number)) for number, name in enumerate(names)}
    path = tmp_path / f"out{suffix}"
    with open_writer(path, Layout.of(objective, has_spread=False)) as write:
        write(Prediction("in.sdf", 7, "a name", values, outside="far", molecule=embedded("CCCO")))
    if suffix == ".sdf":
        (molecule,) = Chem.SDMolSupplier(str(path))
        row = molecule.GetPropsAsDict() | {"name": molecule.GetProp("_Name"), "error": ""}
    else:
        row = rows_of(path)[0] if suffix == ".csv" else json.loads(path.read_text())
    assert (row["file"], int(row["record"]), row["name"], row["outside"], row["error"]) == ("in.sdf", 7, "a name", "far", "")
    titles = ["error_predicted", "name_predicted", "record_predicted", "gap_uncertainty", "gap_predicted"]
    assert [float(row[title]) for title in [*titles, "gap_uncertainty_predicted"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kept", [0, 3])
def test_positions_of_an_sdf_that_are_none(run: Run, tmp_path: Path, kept: int) -> None:
    molecule = embedded("CCCO")
    for atom in range(kept, molecule.GetNumAtoms()):
        molecule.GetConformer().SetAtomPosition(atom, (0.0, 0.0, 0.0))
    path = tmp_path / "in.sdf"
    path.write_text(sdf([molecule, embedded("CCCO")]))
    status, (row, other) = run(path)
    assert status == 3 and not row["homo_eV"] and other["homo_eV"]
    assert row["error"] == f"positions: atoms {kept + 1} and {kept + 2} stand at one place"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".sdf"])
def test_numbers_that_are_small_by_their_unit_keep_their_digits(tmp_path: Path, suffix: str) -> None:
    objective = Objective(REGRESSION, (Property("k", "mol/l", 3e-9, 2e-9), Property("E", "eV", -5.0, 0.6)))
    values = {"k": PredictedValue(4.123456e-9, 3.21e-10, 1.23e-10), "E": PredictedValue(-5.123456789, 0.1, 0.01)}
    path = tmp_path / f"out{suffix}"
    with open_writer(path, Layout.of(objective, has_spread=True)) as write:
        write(Prediction("", 1, "a", values, conformers=2, molecule=embedded("CCCO")))
    if suffix == ".sdf":
        row = next(iter(Chem.SDMolSupplier(str(path)))).GetPropsAsDict()
    elif suffix == ".parquet":
        row = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()[0]
    else:
        row = rows_of(path)[0] if suffix == ".csv" else json.loads(path.read_text())
    titles = ["k_mol_per_l", "k_mol_per_l_uncertainty", "k_mol_per_l_spread", "E_eV"]
    assert [float(row[title]) for title in titles] == pytest.approx([4.1235e-9, 3.21e-10, 1.23e-10, -5.123457], rel=1e-4)
    assert float(row["E_eV"]) == -5.123457


def test_properties_of_an_sdf_go_on_to_the_output(model_path: Path, tmp_path: Path) -> None:
    source, output, again = (tmp_path / f"{name}.sdf" for name in ("in", "out", "again"))
    molecule = embedded("CCCO")
    block = Chem.MolToMolBlock(molecule)
    source.write_text(f"{block}>  <CAS>  (1)\n71-23-8\n\n> <note>\ntwo\nlines\n\n> <homo_eV>\n0\n\n> <error>\nof old\n\n$$$$\n")
    common = ["--load_ckpt_path", str(model_path)]
    assert main([*common, str(source), "--output", str(output)]) == 0
    assert main([*common, str(output), "--output", str(again)]) == 0
    wanted = Predictor.from_checkpoint(model_path).predict([molecule])[0].value
    for path in (output, again):
        (found,) = Chem.SDMolSupplier(str(path), removeHs=False)
        properties = found.GetPropsAsDict()
        assert (properties["CAS"], properties["note"]) == ("71-23-8", "two\nlines")
        assert (properties["homo_eV"], properties["error"]) == (0, "of old") and "error_predicted" not in properties
        assert properties["homo_eV_predicted"] == pytest.approx(wanted, abs=2e-3)
    assert properties["homo_eV_predicted_predicted"] == properties["homo_eV_predicted"]


def test_properties_of_an_sdf_keep_their_names(model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that begin with an underscore, those that RDKit calls its own, and those that are called as a column."""
    source, output = tmp_path / "in.sdf", tmp_path / "out.sdf"
    block = Chem.MolToMolBlock(embedded("CCCO"))
    items = {"_y": "1.5", "_Name": "not the title", "_MolFileInfo": "x", "name": "propanol", "record": "of mine"}
    text = "".join(f"> <{name}>\n{value}\n\n" for name, value in items.items())
    source.write_text(f"{block}$$$$\n{block}{text}$$$$\n")
    assert main(["--load_ckpt_path", str(model_path), str(source), "--output", str(output)]) == 0
    (line,) = [message for message in caplog.messages if "are kept" in message]
    assert line.endswith("have properties record, which are kept; those of the predictions are called record_predicted")
    first, second = (dict(_data_items(part.splitlines())) for part in output.read_text().split("$$$$\n")[:2])
    assert second.items() >= items.items() and second["record_predicted"] == "2"
    assert first["record_predicted"] == "1" and "record" not in first
    assert output.read_text().splitlines()[0] == "name of CCCO"
    (record, _) = read_file(output, columns=["_y", "_Name"])
    assert record.columns == {}
    (_, record) = read_file(output, columns=["_y", "_Name"])
    assert record.number_in("_y") == 1.5 and record.columns["_Name"] == "not the title" and record.name == "name of CCCO"
