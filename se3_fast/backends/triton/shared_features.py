"""Features that several operations of a layer read: their gradients are added up for all degrees at once.

Autograd adds the gradients of a tensor that is read n times by n - 1 launches for each degree; here it is n - 1 for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.operation import LinearOperation, Tensors
from se3_fast.backends.protocol import Support
from se3_fast.fiber import Features


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which have no launches to save."""
    return Support.no("compiled graphs add gradients up themselves") if is_compiled else Support()


def shared_features(features: Features, readers: int) -> list[Features]:
    """The same features for each of ``readers`` operations, ``{d: [N, C, 2d+1]}``."""
    tensors = list(features.values())
    is_followed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if not is_followed:
        return [features] * readers
    shared = [copy for copy in _Copies(readers).apply(*tensors) if copy is not None]
    return [dict(zip(features, shared[number::readers], strict=True)) for number in range(readers)]


@dataclass(frozen=True, eq=False)
class _Copies(LinearOperation):
    """Every tensor ``readers`` times: those of the first tensor, then those of the second, and so on. They share their memory."""

    readers: int

    def evaluate(self, operands: Any) -> Tensors:
        """The copies."""
        return [None if tensor is None else tensor.view_as(tensor) for tensor in operands for _ in range(self.readers)]

    @property
    def transpose(self) -> _ReaderSums:
        """The sums over the readers."""
        return _ReaderSums(self.readers)


@dataclass(frozen=True, eq=False)
class _ReaderSums(LinearOperation):
    """The sums over the readers of each tensor."""

    readers: int

    def evaluate(self, operands: Any) -> Tensors:
        """The sums."""
        starts = range(0, len(operands), self.readers)
        return _sums([[term for term in operands[start : start + self.readers] if term is not None] for start in starts])

    @property
    def transpose(self) -> _Copies:
        """The copies."""
        return _Copies(self.readers)


def _sums(terms: Sequence[list[Tensor]]) -> list[Tensor | None]:
    """The sum of each list; None for an empty one. Lists of one length go together."""
    results: list[Tensor | None] = [None] * len(terms)
    for count in sorted({len(list_of) for list_of in terms} - {0}):
        places = [place for place, list_of in enumerate(terms) if len(list_of) == count]
        totals = [terms[place][0] for place in places]
        for number in range(1, count):
            totals = list(torch._foreach_add(totals, [terms[place][number] for place in places]))
        for place, total in zip(places, totals, strict=True):
            results[place] = total
    return results
