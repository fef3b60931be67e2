"""NormSE3: the norm-based nonlinearity between layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber
from se3_fast.layers.prepared import JointParameters
from se3_fast.ops.equivariant_norm import Norm, group_norm, layer_norm


class NormSE3(nn.Module):
    """Normalise and rectify the norms of the features, keep their directions.

    Where all degrees have the same number of channels their norms are normalised together (group normalisation, one group per
    degree), else degree by degree (layer normalisation). Formula: :mod:`se3_fast.backends.dense.equivariant_norm`. The published
    layer-norm branch multiplies by the old norm and divides by the new one; this one does what was meant.

    Args:
        fiber: structure of the features.
        nonlinearity: applied to the normalised norms.
    """

    def __init__(self, fiber: Fiber, nonlinearity: nn.Module | None = None) -> None:
        super().__init__()
        self.fiber = fiber
        self.nonlinearity = nonlinearity if nonlinearity is not None else nn.ReLU()
        self.group_norm: nn.GroupNorm | None = None
        self.layer_norms: nn.ModuleDict | None = None
        if len(set(fiber.channels)) == 1:
            self.group_norm = nn.GroupNorm(num_groups=len(fiber.degrees), num_channels=sum(fiber.channels))
        else:
            self.layer_norms = nn.ModuleDict({str(degree): nn.LayerNorm(channels) for degree, channels in fiber})

    def forward(self, features: Features, *args: Any, joint: JointParameters | None = None, **kwargs: Any) -> Features:
        """Apply it: ``{d: [N, C, 2d+1]}`` to the same; further arguments are ignored.

        Args:
            features: with the fiber given.
            *args: ignored.
            joint: what the model has made ready.
            **kwargs: ignored.

        Raises:
            ValueError: if the features do not have the fiber given.
        """
        self.fiber.check_features(features, "features")
        features = {str(degree): features[str(degree)] for degree in self.fiber.degrees}
        if self.group_norm is not None:
            norm = self.group_norm
            row = joint.row(self) if joint else None
            return group_norm(features, Norm(norm.weight, norm.bias, norm.eps, self.nonlinearity), row)
        return {degree: self._layer_norm(degree, feature) for degree, feature in features.items()}

    def row_parameters(self) -> list[Tensor]:
        """The parameters in the order of a row; none where each degree is normalised by itself."""
        return [] if self.group_norm is None else [self.group_norm.weight, self.group_norm.bias]

    def _layer_norm(self, degree: str, feature: Tensor) -> Tensor:
        assert self.layer_norms is not None
        norm = self.layer_norms[degree]
        assert isinstance(norm, nn.LayerNorm)
        return layer_norm(feature, Norm(norm.weight, norm.bias, norm.eps, self.nonlinearity))
