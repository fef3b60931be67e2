"""NormSE3: the norm-based nonlinearity between layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber
from se3_fast.layers.plain import is_called_plainly, is_plain
from se3_fast.layers.prepared import JointParameters
from se3_fast.ops.equivariant_norm import Norm, group_norm, layer_norm, norm_by_formula


class NormSE3(nn.Module):
    """Normalise and rectify the norms of the features, keep their directions.

    Where all degrees have the same number of channels their norms are normalised together (group normalisation, one group per
    degree), else degree by degree (layer normalisation). Formula: :mod:`se3_fast.backends.dense.equivariant_norm`. The published
    layer-norm branch multiplies by the old norm and divides by the new one; this one does what was meant. Modules that were changed
    or exchanged are called.

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
        if self.group_norm is None:
            return {degree: self._layer_norm(degree, feature) for degree, feature in features.items()}
        norm = self._how(self.group_norm)
        if norm is None:
            return self._by_modules(self.group_norm, features)
        return group_norm(features, norm, joint.row(self) if joint else None)

    def row_parameters(self) -> list[Tensor]:
        """The parameters in the order of a row; none where each degree is normalised by itself, or by a module that is called."""
        norm = None if self.group_norm is None else self._how(self.group_norm)
        return [] if norm is None else [norm.scale, norm.shift]

    def _layer_norm(self, degree: str, feature: Tensor) -> Tensor:
        assert self.layer_norms is not None
        module = self.layer_norms[degree]
        norm = self._how(module, self.fiber[int(degree)])
        return self._by_modules(module, {degree: feature})[degree] if norm is None else layer_norm(feature, norm)

    def _how(self, module: nn.Module, channels: int | None = None) -> Norm | None:
        """How a module normalises the norms of one degree with these channels, or of all; None where it, or the nonlinearity, is
        not what it was made as and has to be called."""
        if channels is None:
            shape = (len(self.fiber.degrees), sum(self.fiber.channels))
            is_kind = isinstance(module, nn.GroupNorm) and (module.num_groups, module.num_channels) == shape
            is_as_made = is_kind and is_plain(module, nn.GroupNorm)
        else:
            is_as_made = is_plain(module, nn.LayerNorm) and module.normalized_shape == (channels,)
        is_hooked = isinstance(self.nonlinearity, nn.Module) and not is_called_plainly(self.nonlinearity)
        if is_hooked or not is_as_made or module.weight is None or module.bias is None:
            return None
        return Norm(module.weight, module.bias, module.eps, self.nonlinearity)  # type: ignore[arg-type]

    def _by_modules(self, module: nn.Module, features: Features) -> Features:
        dtype = next(iter(features.values())).dtype
        return norm_by_formula(features, lambda norms: self.nonlinearity(module(norms.to(dtype))))
