"""How well uncertainties tell the errors that come."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVELS = np.linspace(0.05, 0.95, 19)
"""Shares of errors that intervals are expected to hold."""


@dataclass(frozen=True)
class Calibration:
    """Uncertainties against errors.

    Attributes:
        within_one: Share of errors within one uncertainty; 0.683 if errors were normally distributed.
        within_two: Share within two; 0.954.
        surprise: Mean negative logarithm of the normal density of the errors, in units of their scale.
        area: Mean distance between the share of errors that an interval is expected to hold and the share that it holds.
        rank_correlation: Spearman's, between uncertainty and absolute error.
        held: [19] share of errors in the intervals of `LEVELS`.
    """

    within_one: float
    within_two: float
    surprise: float
    area: float
    rank_correlation: float
    held: np.ndarray

    @classmethod
    def of(cls, errors: np.ndarray, uncertainties: np.ndarray) -> Calibration:
        """Compare errors [M] with uncertainties [M] above 0, in the same unit; M of at least 1."""
        ratio = np.abs(errors) / uncertainties  # [M]
        widths = np.array([NormalDist().inv_cdf(0.5 + level / 2) for level in LEVELS])
        held = (ratio <= widths[:, None]).mean(1)
        return cls(
            within_one=float((ratio <= 1).mean()),
            within_two=float((ratio <= 2).mean()),
            surprise=float((ratio**2 / 2 + np.log(uncertainties * np.sqrt(2 * np.pi))).mean()),
            area=float(np.abs(held - LEVELS).mean()),
            rank_correlation=_correlation(_ranks(np.abs(errors)), _ranks(uncertainties)),
            held=held,
        )


def _ranks(values: np.ndarray) -> np.ndarray:
    """[M] to [M]: place of each in ascending order, equal ones by where they stand."""
    return values.argsort(kind="stable").argsort(kind="stable").astype(float)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1]) if len(first) > 1 else float("nan")
