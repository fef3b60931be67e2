"""What a depthwise convolution couples: paths from a degree of the source over a harmonic of the edge to a degree of the message.

Every path has one weight for each channel; channels do not mix (:mod:`se3_fast.backends.dense.depthwise_conv`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.so3 import wigner_3j


class Path(NamedTuple):
    """One coupling of three degrees: source, harmonic of the edge, message."""

    degree_in: int
    harmonic: int
    degree_out: int


class Term(NamedTuple):
    """One coefficient of a path: message[component_out] += coefficient * harmonics[harmonic] * features[component_in].

    Components and harmonics are counted over all degrees, d^2 .. (d + 1)^2 - 1 for degree d.
    """

    component_in: int
    harmonic: int
    component_out: int
    coefficient: float


class Run(NamedTuple):
    """The terms of a path that give one component of the message.

    Attributes:
        path: number of the path.
        component_out: of the message.
        pairs: component of the features and its terms, ascending.
    """

    path: int
    component_out: int
    pairs: tuple[tuple[int, tuple[Term, ...]], ...]


@dataclass(frozen=True)
class DepthwisePlan:
    """The couplings of a depthwise convolution, paths by degree of the message, then by that of the source.

    Only paths whose degrees sum to an even number are taken: what comes of features that turn into (-1)^d of themselves under a
    reflection does so too, and an energy that is made of it is the same for both mirror images of a molecule.

    Attributes:
        degree_in: the features of the sources have the degrees 0..degree_in.
        degree_out: the messages have the degrees 0..degree_out.
        max_harmonic: the edges' harmonics have the degrees 0..max_harmonic.
    """

    degree_in: int
    degree_out: int
    max_harmonic: int

    @property
    def components_in(self) -> int:
        """Of the features of all degrees."""
        return (self.degree_in + 1) ** 2

    @property
    def components_out(self) -> int:
        """Of the messages of all degrees."""
        return (self.degree_out + 1) ** 2

    @property
    def num_harmonics(self) -> int:
        """Of an edge, all degrees."""
        return (self.max_harmonic + 1) ** 2

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths."""
        return _paths(self)

    def terms(self, path: Path) -> tuple[Term, ...]:
        """The coefficients of a path that are not zero."""
        return _terms(path, sum(other.degree_out == path.degree_out for other in self.paths))

    def runs(self) -> tuple[Run, ...]:
        """All terms, grouped by path and component of the message, then by component of the features."""
        return _runs(self)

    @property
    def num_terms(self) -> int:
        """Of all paths."""
        return sum(len(self.terms(path)) for path in self.paths)

    def coupling(self, path: Path) -> Tensor:
        """The same as a tensor, [2 J + 1, 2 d_in + 1, 2 d_out + 1] float64."""
        return _coupling(path, sum(other.degree_out == path.degree_out for other in self.paths))


@cache
def _paths(plan: DepthwisePlan) -> tuple[Path, ...]:
    return tuple(
        Path(degree_in, harmonic, degree_out)
        for degree_out, degree_in in product(range(plan.degree_out + 1), range(plan.degree_in + 1))
        for harmonic in range(abs(degree_in - degree_out), min(degree_in + degree_out, plan.max_harmonic) + 1, 2)
    )


@constant
def _coupling(path: Path, num_paths: int) -> Tensor:
    """3j symbols such that messages of all degrees have the size of the features, whatever the number of paths to them."""
    symbols = wigner_3j(path.harmonic, path.degree_in, path.degree_out)
    return symbols * math.sqrt((2 * path.degree_out + 1) / num_paths)


@cache
def _terms(path: Path, num_paths: int) -> tuple[Term, ...]:
    coupling = _coupling(path, num_paths)
    first_in, first_harmonic, first_out = (degree**2 for degree in path)
    return tuple(
        Term(first_in + column, first_harmonic + order, first_out + row, float(coupling[order, column, row]))
        for order, column, row in coupling.abs().gt(1e-12).nonzero().tolist()
    )


@cache
def _runs(plan: DepthwisePlan) -> tuple[Run, ...]:
    found = []
    for number, path in enumerate(plan.paths):
        by_component: dict[int, dict[int, list[Term]]] = {}
        for term in plan.terms(path):
            by_component.setdefault(term.component_out, {}).setdefault(term.component_in, []).append(term)
        for component_out, pairs in sorted(by_component.items()):
            found.append(Run(number, component_out, tuple((column, tuple(terms)) for column, terms in sorted(pairs.items()))))
    return tuple(found)
