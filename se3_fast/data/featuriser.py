"""Which function makes the features of a model's molecules, by name and version, as checkpoints carry it.

The function is :func:`se3_fast.data.molecule_arrays.featurise`; whoever changes what it returns for any molecule counts
its version on, so that no model is given features that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from se3_fast.data.molecules import NUM_EDGE_FEATURES, NUM_NODE_FEATURES, Molecules


@dataclass(frozen=True)
class Featuriser:
    """A function from molecules to features.

    Attributes:
        name: Of the function.
        version: Counted on whenever the function returns other features for some molecule.
    """

    name: str
    version: int

    def __str__(self) -> str:
        """Name and version, for messages."""
        return f"{self.name!r}, version {self.version}"

    def description(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


QM9_FEATURISER = Featuriser("qm9", 1)
"""One-hot elements and atomic numbers, one-hot bonds, aromatic where RDKit says so."""

SAMPLE_FEATURISER = Featuriser("sample", 1)
"""The same, but aromatic where MMFF94 says so, whose marks the molecules of the sample data set have kept."""

GIVEN_FEATURES = Featuriser("given", 1)
"""Features that stand in a data file and that no function of this package makes."""

FEATURISERS = (QM9_FEATURISER, SAMPLE_FEATURISER)
"""Those of which this version has the function."""


def featuriser_of(dataset: str, molecules: Molecules) -> Featuriser:
    """The function that made the features of a data set: its own if all of them are rows that it makes."""
    if molecules.node_attr.dtype != torch.uint8 or molecules.edge_attr.dtype != torch.uint8:
        return GIVEN_FEATURES
    return SAMPLE_FEATURISER if dataset == "sample" else QM9_FEATURISER


def featuriser_of_checkpoint(checkpoint: Mapping[str, Any]) -> Featuriser:
    """The function that makes the features of new molecules for a checkpoint's model, one of ``FEATURISERS``.

    A checkpoint that names none is older than they are named; it has that of its data set, if the sizes are those of its features.

    Raises:
        ValueError: In one line: this version has not that function.
    """
    description = checkpoint.get("featuriser")
    if description is not None:
        found = Featuriser(description["name"], description["version"])
        if found not in FEATURISERS:
            known = " or ".join(map(str, FEATURISERS))
            raise ValueError(f"featuriser: expected {known}, which this version has, got {found}")
        return found
    sizes = {"fiber_in": {0: NUM_NODE_FEATURES}, "fiber_edge": {0: NUM_EDGE_FEATURES}}
    for name, size in sizes.items():
        got = checkpoint["model_config"].get(name)
        if got != size:
            raise ValueError(
                f"the entry featuriser is missing, and the features are not those of QM9: expected {name} {size}, got {got}"
            )
    return SAMPLE_FEATURISER if checkpoint.get("data", {}).get("dataset") == "sample" else QM9_FEATURISER
