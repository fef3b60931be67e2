"""One function makes features, for data sets and for prediction; checkpoints name it, and what the training set spans."""

from __future__ import annotations

import numpy as np
import pytest

from se3_fast.data import QM9DataModule
from se3_fast.data.domain import Domain
from se3_fast.data.featuriser import QM9_FEATURISER, SAMPLE_FEATURISER, featuriser_of, featuriser_of_checkpoint
from se3_fast.data.molecules import MoleculeDataset, read_molecules
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.training.checkpoint_entries import check_entries

SIZES = {"fiber_in": {0: 6}, "fiber_edge": {0: 4}}


def test_features_of_the_sample_are_equal_to_the_last_bit() -> None:
    pytest.importorskip("rdkit")
    from rdkit import Chem

    from se3_fast.data.molecule_arrays import featurise

    stored = MoleculeDataset(read_molecules(SAMPLE_PATH, "homo"))
    with np.load(SAMPLE_PATH) as archive:
        smiles = [text.decode() for text in archive["smiles"].tolist()]
    chosen = {*range(0, len(smiles), 7), smiles.index("O=c1[nH]c2nn[nH]c2[nH]1")}  # aromatic for RDKit, not for MMFF94
    for number in chosen:
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles[number]))
        wanted = stored[number]
        for kekulised in (False, True):  # as in files
            if kekulised:
                Chem.Kekulize(molecule, clearAromaticFlags=True)
            made = featurise(molecule, wanted.node_pos.numpy(), SAMPLE_FEATURISER)
            np.testing.assert_array_equal(made.node_attr[:, :6], wanted.node_attr)
            for name in ("node_pos", "edge_attr", "src", "dst"):
                np.testing.assert_array_equal(getattr(made, name), getattr(wanted, name), err_msg=name)


def test_which_featuriser_a_checkpoint_has() -> None:
    config = {"model_config": SIZES}
    assert featuriser_of_checkpoint(config) == QM9_FEATURISER
    assert featuriser_of_checkpoint({**config, "data": {"dataset": "sample"}}) == SAMPLE_FEATURISER
    assert featuriser_of_checkpoint({**config, "featuriser": {"name": "qm9", "version": 1}}) == QM9_FEATURISER
    with pytest.raises(ValueError, match=r"featuriser: expected 'qm9', version 1 or .* got 'qm9', version 2"):
        featuriser_of_checkpoint({**config, "featuriser": {"name": "qm9", "version": 2}})
    with pytest.raises(ValueError, match=r"entry featuriser is missing, .* expected fiber_in \{0: 6\}, got \{0: 11\}"):
        featuriser_of_checkpoint({"model_config": {**SIZES, "fiber_in": {0: 11}}})


def test_what_the_training_set_spans_is_described_in_plain_values() -> None:
    data = QM9DataModule("unused", task="homo", dataset="sample")
    description = data.description()
    check_entries({"state_dict": {}, "optimizer_state_dict": {}, "epoch": 0, **description}, 10_000)
    assert description["featuriser"] == {"name": "sample", "version": 1}
    domain = Domain.of_description(description["domain"])
    assert domain.description() == description["domain"]
    assert (domain.elements, domain.fewest_heavy_atoms, domain.most_heavy_atoms, domain.most_atoms) == ((1, 6, 7, 8, 9), 4, 9, 29)
    molecules = read_molecules(SAMPLE_PATH, "homo")
    for number in data.ds_train.indices[::100]:
        alone = MoleculeDataset(molecules)[number]
        assert domain.reasons_outside(alone.node_attr.numpy(), alone.edge_attr.numpy(), alone.src.numpy()) == []
    few = Domain.of(molecules, np.array([0]))
    alone = MoleculeDataset(molecules)[0]
    assert few.most_atoms == len(alone.node_attr)
    assert few.reasons_outside(alone.node_attr.numpy(), alone.edge_attr.numpy(), alone.src.numpy()) == []
    assert featuriser_of("qm9", molecules) == QM9_FEATURISER


@pytest.mark.parametrize(
    ("entry", "value", "fault"),
    [
        ("featuriser", {"name": "qm9"}, "featuriser: expected a name and a version"),
        ("featuriser", {"name": "qm9", "version": "1"}, "featuriser: version: expected a whole number"),
        ("domain", {"elements": [1]}, "domain: expected the entries atom_kinds"),
        ("domain", {"elements": 6}, "domain: elements: expected a list"),
        ("domain", {"most_atoms": -1}, "domain: most_atoms: expected a whole number"),
        ("domain", {"atom_kinds": [["C"]]}, "domain: atom_kinds: expected a list"),
    ],
)
def test_damaged_entries_are_named(entry: str, value: dict, fault: str) -> None:
    if entry == "domain" and value != {"elements": [1]}:
        whole = {"elements": [6], "atom_kinds": [], "charge": 0, "fewest_heavy_atoms": 1, "most_heavy_atoms": 1, "most_atoms": 1}
        value = {**whole, **value}
    with pytest.raises(ValueError, match=fault):
        check_entries({"state_dict": {}, "optimizer_state_dict": {}, "epoch": 0, entry: value}, 1000)
