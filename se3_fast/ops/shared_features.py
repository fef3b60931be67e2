"""Features that several operations of a layer read: their gradients are added up for all degrees at once.

Autograd adds the gradients of a tensor that is read n times by n - 1 launches for each degree; here it is n - 1 for all of them,
and none where the operation that made the features adds up gradients itself (:class:`SharedFeatures`). Only on backend ``triton``,
where launches count; elsewhere the features are handed out as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from se3_fast.fiber import Features
from se3_fast.ops.backend import selected_backend


class SharedFeatures(dict[str, Tensor]):
    """Features of which the operation that made them has handed out copies, one for each reader, that share their memory.

    As a dict this is the first copy.

    Attributes:
        copies: ``{d: [N, C, 2d+1]}``, all the same.
    """

    def __init__(self, copies: Sequence[Features]) -> None:
        super().__init__(copies[0])
        self.copies = list(copies)

    def is_unchanged(self) -> bool:
        """Whether nobody has put other features in since."""
        first = self.copies[0]
        return self.keys() == first.keys() and all(self[key] is first[key] for key in first)


def shared_features(features: Features, readers: int) -> list[Features]:
    """The same features for each of ``readers`` operations, ``{d: [N, C, 2d+1]}``."""
    if isinstance(features, SharedFeatures) and readers <= len(features.copies) and features.is_unchanged():
        return features.copies[:readers]
    tensors = list(features.values())
    is_followed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if not is_followed or torch.compiler.is_compiling() or selected_backend(tensors[0].device) != "triton":
        return [features] * readers
    shared = _Shared.apply(readers, *tensors)
    return [dict(zip(features, shared[number::readers], strict=True)) for number in range(readers)]


class _Shared(torch.autograd.Function):
    """Every tensor ``readers`` times."""

    @staticmethod
    def forward(ctx: Any, readers: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Those of the first tensor, then those of the second, and so on."""
        ctx.readers = readers
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors for _ in range(readers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The sums over the readers."""
        readers = ctx.readers
        of_tensor = [
            [gradient for gradient in gradients[start : start + readers] if gradient is not None]
            for start in range(0, len(gradients), readers)
        ]
        return None, *_sums(of_tensor)


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
