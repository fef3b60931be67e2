"""What a force field knows of an edge: spherical harmonics of its direction, and where its length stands among the knots."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from se3_fast.autograd.modes import constant
from se3_fast.so3 import next_harmonic

_POWER = 6
"""p of the polynomial that takes Bessel functions to zero at the cutoff."""


class EdgeEmbedding(nn.Module):
    """Harmonics of edges, and the places of their lengths among the knots of the radial tables.

        t(d) = (K + 2) d / c - 1                                the K knots have the places 0..K-1, an edge at the cutoff K + 1
        B_n(d) = 2 sqrt(2 / c) sin(n pi d / c) / d  u(d / c),   n = 1..num_radial           (Gasteiger et al. 2020)

    The cubic B-splines of a table's knots end two knots behind the last one, so that an edge that becomes longer than the cutoff
    leaves nothing behind, nor in two derivatives. ``radial`` are the Bessel functions B_n of the knots' distances, with the
    polynomial u (:func:`fade_out`), which radial profiles make tables of. The harmonics of degree d have the square sum 2 d + 1;
    those of an edge without length are zero but for degree 0.

    Args:
        num_radial: number of Bessel functions.
        max_harmonic: largest degree of the harmonics.
        cutoff: c, in the unit of the positions.
        num_knots: K.

    Raises:
        ValueError: if a size is below 1 or the cutoff not positive.
    """

    radial: Tensor

    def __init__(self, num_radial: int, max_harmonic: int, cutoff: float, num_knots: int) -> None:
        super().__init__()
        for name, size in (("num_radial", num_radial), ("max_harmonic", max_harmonic), ("num_knots", num_knots)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if not 0 < cutoff < math.inf:
            raise ValueError(f"cutoff: expected a positive length, got {cutoff}")
        self.max_harmonic, self.cutoff, self.num_knots = max_harmonic, cutoff, num_knots
        lengths = cutoff * torch.arange(1, num_knots + 1, dtype=torch.float64)[:, None] / (num_knots + 2)
        self.register_buffer("radial", _bessel(lengths, num_radial, cutoff), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EdgeEmbedding:
        """As of any module, but the radial functions stay in double precision: they are in no checkpoint, which would bring digits
        back that were lost on a way through half precision."""
        radial = self.radial
        super()._apply(fn, recurse)
        if self.radial.dtype != radial.dtype:
            self.radial = radial.to(self.radial.device)
        return self

    def forward(self, rel_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Embed.

        Args:
            rel_pos: [E, 3] relative positions.

        Returns:
            Harmonics [E, (max_harmonic + 1)^2] and places [E].
        """
        squares = rel_pos.square().sum(1, keepdim=True)  # [E, 1]
        is_point = squares == 0
        # The square root cannot be differentiated at zero: an edge without length has another one here, and is given what it
        # should have behind.
        length = squares.masked_fill(is_point, 1.0).sqrt()
        places = length.masked_fill(is_point, 0.0) * ((self.num_knots + 2) / self.cutoff) - 1
        return self._harmonics(rel_pos / length), places.squeeze(1)

    def _harmonics(self, direction: Tensor) -> Tensor:
        """Degree by degree: that of d and 1 make d + 1."""
        found = [torch.ones_like(direction[:, :1]), math.sqrt(3) * direction]
        for degree in range(2, self.max_harmonic + 1):
            pairs = (found[-1][:, :, None] * direction[:, None, :]).flatten(1)  # [E, (2d-1) * 3]
            found.append(pairs @ _next_harmonic_on(degree, direction.device, direction.dtype))
        return torch.cat(found, 1)


def _bessel(length: Tensor, count: int, cutoff: float) -> Tensor:
    """The Bessel functions [K, count] of lengths [K, 1] above 0."""
    waves = torch.sin(torch.arange(1, count + 1, dtype=length.dtype) * math.pi / cutoff * length) / length
    return waves * (2 * math.sqrt(2 / cutoff) * fade_out(length / cutoff, _POWER))


def fade_out(part: Tensor, power: int) -> Tensor:
    """The polynomial that goes from 1 to 0 with two continuous derivatives at 1 (Gasteiger et al. 2020):

        u(t) = 1 - (p+1)(p+2)/2 t^p + p(p+2) t^(p+1) - p(p+1)/2 t^(p+2)  for t < 1, else 0

    Args:
        part: t, from 0 on.
        power: p.
    """
    is_beyond, p = part >= 1, power
    part = part.clamp(max=1.0)  # powers of longer ones may be infinite, and times zero no number
    envelope = 1 - part**p * ((p + 1) * (p + 2) / 2 - part * (p * (p + 2) - part * (p * (p + 1) / 2)))
    return envelope.masked_fill(is_beyond, 0.0)


@constant
def _next_harmonic_on(degree: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """:func:`~se3_fast.so3.next_harmonic` on a device: copied once, not with every step."""
    return next_harmonic(degree).to(device, dtype)
