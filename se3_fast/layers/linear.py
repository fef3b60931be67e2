"""LinearSE3: a linear map of the channels of each degree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber, HeadFeatures
from se3_fast.layers.prepared import JointParameters
from se3_fast.ops.linear import linear, linear_per_head


class LinearSE3(nn.Module):
    """``out_d = W_d x_d`` for every degree that both fibers have; no bias, so that it commutes with rotations.

    Args:
        fiber_in: structure of the input.
        fiber_out: structure of the output; its degrees must be in ``fiber_in``.
        used_degrees: the degrees of the output that are read, default all; others are left out.

    Raises:
        ValueError: if ``fiber_out`` has a degree that ``fiber_in`` lacks.
    """

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber, used_degrees: Sequence[int] | None = None) -> None:
        super().__init__()
        self.used_degrees = fiber_out.degrees if used_degrees is None else list(used_degrees)
        missing = sorted(set(fiber_out.degrees) - set(fiber_in.degrees))
        if missing:
            raise ValueError(f"fiber_out: expected degrees among those of fiber_in {fiber_in.degrees}, got {missing} too")
        self.fiber_in = fiber_in
        self.weights = nn.ParameterDict(
            [
                (str(degree), nn.Parameter(torch.randn(fiber_out[degree], fiber_in[degree]) / math.sqrt(fiber_in[degree])))
                for degree in fiber_out.degrees
            ]
        )

    def forward(
        self,
        features: Features | HeadFeatures,
        *args: Any,
        beside: Features | None = None,
        joint: JointParameters | None = None,
        **kwargs: Any,
    ) -> Features:
        """Apply the map: ``{d: [N, C_in, 2d+1]}`` to ``{d: [N, C_out, 2d+1]}``.

        Args:
            features: the input, or the first channels of every degree.
            *args: ignored.
            beside: the remaining channels of every degree, ``{d: [N, C, 2d+1]}``.
            joint: what the model has made ready.
            **kwargs: ignored.

        Raises:
            ValueError: if a degree is not there, or sizes do not fit.
        """
        weights = self.used_weights()
        if isinstance(features, HeadFeatures) and len(weights) < len(self.weights):
            features = features.by_degree()  # what is laid out per head is read whole
        parts = [features] if beside is None else [features, beside]
        if not any(isinstance(part, HeadFeatures) for part in parts):
            self._check(parts, weights)
        return linear(weights, *parts, row=joint.row(self) if joint else None)

    def _check(self, parts: list[Any], weights: dict[str, Tensor]) -> None:
        """Of every degree the channels that the weight has, those of all parts together; and as many rows as the first has."""
        num_rows = None
        for degree, weight in weights.items():
            shapes = [part[degree].shape for part in parts if degree in part]
            if not shapes:
                raise ValueError(f"features: expected degrees {list(self.weights)}, got {sorted(set().union(*parts))}")
            num_rows = shapes[0][0] if num_rows is None else num_rows
            channels, size, fits = 0, 2 * int(degree) + 1, True
            for shape in shapes:
                fits = fits and len(shape) == 3 and shape[0] == num_rows and shape[2] == size
                channels += shape[1] if fits else 0
            if not fits or channels != weight.shape[1]:
                came = " and ".join(str(list(shape)) for shape in shapes)
                raise ValueError(f"features['{degree}']: expected shape [{num_rows}, {weight.shape[1]}, {size}], got {came}")

    def per_head(self, features: Features, num_heads: int, joint: JointParameters | None = None) -> HeadFeatures:
        """The map with its result laid out as the heads of an attention have it."""
        row = joint.row(self) if joint else None
        return linear_per_head(self.used_weights(), features, num_heads, row)

    def used_weights(self) -> dict[str, Tensor]:
        """The weights of the degrees that are read."""
        return {degree: weight for degree, weight in self.weights.items() if int(degree) in self.used_degrees}

    def row_parameters(self) -> list[Tensor]:
        """The parameters in the order of a row."""
        return list(self.used_weights().values())
