"""The sample data set that is shipped, and the script that made it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from se3_fast.data import TASKS
from se3_fast.data.molecules import check_archive
from se3_fast.data.qm9 import SAMPLE_PATH

LABELLED = ["mu", "homo", "lumo", "gap", "U0"]


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    with np.load(SAMPLE_PATH, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def composition(sample: dict[str, np.ndarray]) -> np.ndarray:
    """Atoms of H, C, N, O and F in every molecule, [M, 5]."""
    starts = np.cumsum(sample["n_node"]) - sample["n_node"]
    return np.add.reduceat(sample["node_attr"][:, :5].astype(int), starts)


def test_size_and_soundness(sample: dict[str, np.ndarray]) -> None:
    assert SAMPLE_PATH.stat().st_size <= 1_500_000
    check_archive(SAMPLE_PATH)
    assert len(sample["n_node"]) >= 4_000
    assert len(set(sample["smiles"].tolist())) == len(sample["n_node"])


def test_molecules(sample: dict[str, np.ndarray], composition: np.ndarray) -> None:
    assert set(composition[:, 1:].sum(axis=1).tolist()) <= set(range(1, 10))
    assert (composition.sum(axis=0) > 1_000).all()
    assert ((composition[:, 0] + composition[:, 2] + composition[:, 4]) % 2 == 0).all()  # closed shells


def test_graphs_are_connected_and_bonds_have_bond_lengths(sample: dict[str, np.ndarray]) -> None:
    first_atom = np.cumsum(sample["n_node"]) - sample["n_node"]
    shift = np.repeat(first_atom, sample["n_edge"])
    src, dst = sample["src"] + shift, sample["dst"] + shift
    lengths = np.linalg.norm(sample["node_pos"][dst] - sample["node_pos"][src], axis=1)
    assert lengths.min() > 0.9
    assert lengths.max() < 1.7
    assert set(zip(src.tolist(), dst.tolist(), strict=True)) == set(zip(dst.tolist(), src.tolist(), strict=True))
    # Spread the smallest atom number along the edges: one component per molecule is left.
    component = np.arange(len(sample["node_pos"]))
    while True:
        spread = component.copy()
        np.minimum.at(spread, dst, component[src])
        if np.array_equal(spread, component):
            break
        component = spread
    np.testing.assert_array_equal(component, np.repeat(first_atom, sample["n_node"]))


def test_labels(sample: dict[str, np.ndarray], composition: np.ndarray) -> None:
    targets = dict(zip(TASKS, sample["targets"].T.astype(float), strict=True))
    assert [task for task in TASKS if np.isfinite(targets[task]).all()] == LABELLED
    assert all(np.isnan(targets[task]).all() for task in TASKS if task not in LABELLED)
    np.testing.assert_allclose(targets["gap"], targets["lumo"] - targets["homo"], atol=1e-4)
    assert targets["mu"].min() >= 0
    assert -17 < targets["homo"].min() < targets["homo"].max() < -7
    assert 0.5 < targets["homo"].std() < 1.0
    # The composition settles the total energy, but not the orbital energies.
    for task, smallest, largest in (("U0", 0.999, 1.0), ("homo", 0.2, 0.6)):
        counts = np.column_stack([composition, np.ones(len(composition))])
        residual = targets[task] - counts @ np.linalg.lstsq(counts, targets[task], rcond=None)[0]
        assert smallest < 1 - residual.var() / targets[task].var() < largest


def test_the_script_makes_the_first_molecules_again(sample: dict[str, np.ndarray]) -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    from se3_fast.data.make_sample import CandidateSource, make_molecule
    from se3_fast.data.molecule_arrays import stack_molecules

    made = [make_molecule(smiles, 0) for smiles in islice(CandidateSource(0), 20)]
    smiles, molecules, targets = zip(*(entry for entry in made if entry is not None), strict=True)
    assert len(smiles) >= 10
    again = stack_molecules(molecules, np.stack(targets))
    assert [text.encode() for text in smiles] == sample["smiles"][: len(smiles)].tolist()
    for name in ("n_node", "n_edge", "node_attr", "edge_attr", "src", "dst"):
        np.testing.assert_array_equal(again[name], sample[name][: len(again[name])], err_msg=name)
    # Another processor may round the optimisation of a geometry differently.
    np.testing.assert_allclose(again["node_pos"], sample["node_pos"][: len(again["node_pos"])], atol=5e-3)
    np.testing.assert_allclose(again["targets"], sample["targets"][: len(smiles)], atol=2e-2)


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    from se3_fast.data.make_sample import main

    for processes in ("1", "2"):
        output = tmp_path / f"{processes}.npz"
        main(["--output", str(output), "--num_molecules", "12", "--seed", "7", "--processes", processes])
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_unwanted_molecules_are_not_made() -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    from rdkit import Chem

    from se3_fast.data.make_sample import UNWANTED_PATTERNS, CandidateSource

    assert all(Chem.MolFromSmarts(pattern) is not None for pattern in UNWANTED_PATTERNS)
    source = CandidateSource(1)
    candidates = list(islice(source, 300))
    assert len(set(candidates)) == 300
    for smiles in candidates:
        molecule = Chem.MolFromSmiles(smiles)
        assert 4 <= molecule.GetNumAtoms() <= 9
        assert source.is_wanted(molecule)
    # a peroxide, an enamine, a ketene, bicyclobutane, a bridged aromatic ring, no carbon
    for smiles in ("COOC", "NC=C(C)C", "O=C=CC", "C1C2CC12", "O=c1oc2cnc1nc2", "N"):
        assert not source.is_wanted(Chem.MolFromSmiles(smiles)), smiles
