"""What a model says of a molecule: one property or several, as numbers or as probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from se3_fast.data.tasks import TASK_UNITS

REGRESSION, CLASSIFICATION = "regression", "classification"
VERSION = 1

FEWEST_DECIMALS = 6
"""Digits after the point that numbers are written with, at least."""


@dataclass(frozen=True)
class Property:
    """One thing that a model says of a molecule.

    Attributes:
        name: As a column or a task is called.
        unit: Of its numbers, or empty.
        mean: Of the training targets, in the unit; 0 for probabilities.
        std: Their standard deviation, in the unit; 1 for probabilities.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0

    @property
    def decimals(self) -> int:
        """Digits after the point that its numbers are written with: as many as tell a hundred thousandth of `std`."""
        return decimals_of(self.std)


@dataclass(frozen=True)
class Objective:
    """The properties that a model learns, and how its outputs are read.

    Attributes:
        kind: 'regression': outputs are standardised numbers; 'classification': they are logits of the probability of a 1.
        properties: In the order of the outputs.
    """

    kind: str
    properties: tuple[Property, ...]

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Objective:
        """The objective in the entry `data` of a checkpoint; without the part `objective` it is one number.

        Raises:
            ValueError: In one line: something is missing or of a later version.
        """
        described = data.get("objective")
        if described is None:
            return cls(REGRESSION, (_only_property(data),))
        if described["name"] not in (REGRESSION, CLASSIFICATION) or described["version"] != VERSION:
            raise ValueError(
                f"data: objective: expected {REGRESSION} or {CLASSIFICATION}, version {VERSION}, which this version has, "
                f"got {described['name']!r:.50}, version {described['version']}"
            )
        return cls(described["name"], tuple(Property(**one) for one in described["properties"]))

    @property
    def is_classification(self) -> bool:
        """Whether the outputs are logits."""
        return self.kind == CLASSIFICATION

    @property
    def is_one_number(self) -> bool:
        """Whether it is what QM9's models have: one number, known for every molecule."""
        return self.kind == REGRESSION and len(self.properties) == 1

    @property
    def names(self) -> list[str]:
        """Names of the properties."""
        return [one.name for one in self.properties]

    @property
    def means(self) -> np.ndarray:
        """[P] float64."""
        return np.array([one.mean for one in self.properties])

    @property
    def stds(self) -> np.ndarray:
        """[P] float64."""
        return np.array([one.std for one in self.properties])

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of a model, [M, P], to numbers in the properties' units or to probabilities, [M, P] float64."""
        outputs = outputs.astype(np.float64)  # total energies would lose digits in single precision
        if self.is_classification:
            return 0.5 * (1 + np.tanh(outputs / 2))  # the logistic function, which does not overflow so
        return outputs * self.stds + self.means

    def description(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {"name": self.kind, "version": VERSION, "properties": [asdict(one) for one in self.properties]}


def decimals_of(std: float) -> int:
    """Digits after the point that numbers of a standard deviation are written with, ``FEWEST_DECIMALS`` or more.

    Numbers that differ by little, such as concentrations in mol/l, would all be written as the same number otherwise.
    """
    return max(FEWEST_DECIMALS, 5 - math.floor(math.log10(std))) if std > 0 else FEWEST_DECIMALS


def _only_property(data: Mapping[str, Any]) -> Property:
    missing = [f"data: {name}" for name in ("task", "mean", "std") if name not in data]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    if "unit" not in data and data["task"] not in TASK_UNITS:
        raise ValueError(f"data: task: expected one of {', '.join(TASK_UNITS)}, got {data['task']!r:.50}")
    unit = data["unit"] if "unit" in data else TASK_UNITS[data["task"]]
    return Property(data["task"], unit, data["mean"], data["std"])
