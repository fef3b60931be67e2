"""Fiber: how many channels of each degree a set of features has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype

Features = dict[str, Tensor]


class FiberEl(NamedTuple):
    """One entry of a fiber: ``channels`` features of degree ``degree``."""

    degree: int
    channels: int


class Fiber(dict):
    """The structure of a feature dict: ``{degree: channels}``.

    A feature of degree d has 2d+1 components (degree 0: invariant scalars, degree 1: vectors in the order x, y, z,
    degree 2: symmetric traceless matrices, ...). Features of N nodes (or edges) with this fiber are a dict
    ``{str(degree): Tensor[N, channels, 2*degree+1]}``.

    As in the published implementation, iteration yields ``(degree, channels)`` pairs by ascending channel count (ties in
    the order given), ``degrees`` is ascending, and ``fiber[d]`` is 0 for a degree that is absent. The iteration order
    decides in which order the modules of a layer are created, hence the order of state dicts.

    Args:
        structure: a mapping ``{degree: channels}`` (degrees may be strings), a sequence of ``(degree, channels)`` pairs,
            or a sequence of :class:`FiberEl`, which keeps its order.

    Raises:
        ValueError: for a degree or channel count that is negative or no whole number, or a degree given twice.
    """

    structure: list[FiberEl]

    def __init__(self, structure: Mapping[int, int] | Mapping[str, int] | Iterable[tuple[int, int]]) -> None:
        if isinstance(structure, Fiber):
            entries = list(structure.structure)
        elif isinstance(structure, Mapping):
            entries = _by_channels(structure.items())
        else:
            pairs = list(structure)
            is_ordered = bool(pairs) and all(isinstance(pair, FiberEl) for pair in pairs)
            entries = [FiberEl(*map(_whole, pair)) for pair in pairs] if is_ordered else _by_channels(pairs)
        for degree, channels in entries:
            if degree < 0 or channels < 0:
                raise ValueError(
                    f"structure: degrees and channel counts must not be negative, got degree {degree} with {channels} channels"
                )
        if len({entry.degree for entry in entries}) != len(entries):
            raise ValueError(f"structure: each degree may appear once, got {[tuple(entry) for entry in entries]}")
        self.structure = entries
        self._shapes = [(str(degree), channels, 2 * degree + 1) for degree, channels in sorted(entries)]
        super().__init__(entries)

    @staticmethod
    def create(num_degrees: int, num_channels: int) -> Fiber:
        """The fiber of degrees 0..num_degrees-1, all with ``num_channels`` channels."""
        return Fiber([(degree, num_channels) for degree in range(num_degrees)])

    @staticmethod
    def from_features(feats: Features) -> Fiber:
        """The fiber of a feature dict.

        Raises:
            ValueError: if a tensor is not of shape [N, C, 2d+1] for its key d.
        """
        structure = {}
        for key, tensor in feats.items():
            degree = int(key)
            if tensor.ndim != 3 or tensor.shape[-1] != 2 * degree + 1:
                raise ValueError(f"feats['{key}']: expected shape [N, C, {2 * degree + 1}], got {list(tensor.shape)}")
            structure[degree] = tensor.shape[-2]
        return Fiber(structure)

    @property
    def degrees(self) -> list[int]:
        """The degrees present, ascending."""
        return sorted(entry.degree for entry in self.structure)

    @property
    def channels(self) -> list[int]:
        """Channel counts by ascending degree."""
        return [self[degree] for degree in self.degrees]

    @property
    def num_features(self) -> int:
        """Number of values per node: the sum of channels x (2d+1)."""
        return sum(entry.channels * (2 * entry.degree + 1) for entry in self.structure)

    def __getitem__(self, degree: int) -> int:
        return self.get(degree, 0)

    def __iter__(self) -> Iterator[FiberEl]:
        return iter(self.structure)

    def __mul__(self, other: Fiber | int) -> product | Fiber:
        if isinstance(other, Fiber):
            return product(self.structure, other.structure)
        return Fiber({entry.degree: entry.channels * other for entry in self.structure})

    def __add__(self, other: Fiber | int) -> Fiber:
        if isinstance(other, Fiber):
            return Fiber({entry.degree: entry.channels + other[entry.degree] for entry in self.structure})
        return Fiber({entry.degree: entry.channels + other for entry in self.structure})

    def __repr__(self) -> str:
        return f"Fiber({{{', '.join(f'{degree}: {channels}' for degree, channels in self.structure)}}})"

    def __reduce__(self) -> tuple[type[Fiber], tuple[list[FiberEl]]]:
        return (Fiber, (self.structure,))

    @staticmethod
    def combine_max(f1: Fiber, f2: Fiber) -> Fiber:
        """The fiber with, for each degree of either, the larger channel count."""
        combined = dict(f1.structure)
        for degree, channels in f2.structure:
            combined[degree] = max(combined.get(degree, 0), channels)
        return Fiber(list(combined.items()))

    @staticmethod
    def combine_selectively(f1: Fiber, f2: Fiber) -> Fiber:
        """The degrees of ``f1``, with the channels of both added."""
        return Fiber([(degree, channels + f2[degree]) for degree, channels in f1.structure])

    def to_attention_heads(self, tensors: Features, num_heads: int) -> Tensor:
        """Concatenate features of all degrees per attention head.

        Args:
            tensors: ``{degree: [N, channels, 2d+1]}`` with this fiber; heads split the channel axis in contiguous groups.
            num_heads: number of heads; must divide every channel count.

        Returns:
            [N, num_heads, num_features / num_heads], degrees ascending.
        """
        heads = [
            tensors[str(degree)].reshape(tensors[str(degree)].shape[0], num_heads, self[degree] // num_heads * (2 * degree + 1))
            for degree in self.degrees
        ]
        return torch.cat(heads, -1)

    def check_features(self, features: Features, name: str) -> int | None:
        """Check that ``features`` has this fiber; return N (None for an empty fiber).

        Raises:
            ValueError: naming ``name``, what was expected and what came, for anything but a dict of tensors of numbers, by
                degrees as text, of the shapes of this fiber.
        """
        _check_kind(features, name)
        size = None
        for degree, channels, components in self._shapes:
            tensor = features.get(degree)
            if tensor is None:
                raise ValueError(
                    f"{name}: expected features of degrees {self.degrees}, got only {sorted(features)}: "
                    f"'{degree}' of shape [{'N' if size is None else size}, {channels}, {components}] is missing"
                )
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name}['{degree}']: expected a tensor, got an object of type {type(tensor).__name__}")
            check_dtype(f"{name}['{degree}']", tensor)
            shape = tensor.shape
            fits = len(shape) == 3 and shape[1] == channels and shape[2] == components
            if not fits or (size is not None and shape[0] != size):
                expected = f"[{'N' if size is None else size}, {channels}, {components}]"
                raise ValueError(f"{name}['{degree}']: expected shape {expected}, got {list(shape)}")
            size = shape[0]
        return size


def _check_kind(features: Features, name: str) -> None:
    if type(features) is not dict and not isinstance(features, Mapping):
        raise ValueError(f"{name}: expected a dict of features by degree, got an object of type {type(features).__name__}")
    for degree in features:
        if not isinstance(degree, str):
            raise ValueError(f"{name}: expected degrees as text, '{degree}', got {degree!r}")


def _by_channels(pairs: Iterable[tuple[int | str, int]]) -> list[FiberEl]:
    return sorted(
        (FiberEl(int(degree) if isinstance(degree, str) else _whole(degree), _whole(channels)) for degree, channels in pairs),
        key=lambda entry: entry.channels,
    )


def _whole(number: int) -> int:
    if int(number) != number:
        raise ValueError(f"structure: expected whole numbers as degrees and channel counts, got {number!r}")
    return int(number)


class HeadFeatures(NamedTuple):
    """Features of all degrees in one tensor, head by head.

    Attributes:
        values: [N, H, width]; of each head its share of the channels of the first degree, then of the second, and so on.
        channels: (degree, channels), degrees ascending; H divides all channels.
    """

    values: Tensor
    channels: tuple[tuple[int, int], ...]

    def by_degree(self) -> Features:
        """The same as ``{d: [N, C, 2d+1]}``."""
        num_nodes, num_heads, _ = self.values.shape
        widths = [channels // num_heads * (2 * degree + 1) for degree, channels in self.channels]
        split = self.values.split(widths, -1)
        return {
            str(degree): part.reshape(num_nodes, channels, 2 * degree + 1)
            for (degree, channels), part in zip(self.channels, split, strict=True)
        }


def per_head(features: Features, num_heads: int) -> Tensor:
    """Features ``{d: [N, C, 2d+1]}`` as the values of :class:`HeadFeatures`."""
    return torch.cat([feature.reshape(feature.shape[0], num_heads, -1) for feature in features.values()], -1)
