"""ConvolutionPlan: which degrees and channels a TFN convolution couples, and which radial profile serves which pair.

The plan is what the layers hand to the operation and the operation to its backends: a description without tensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import NamedTuple

from se3_fast.so3 import num_paths

RADIAL_WIDTH = 32
"""Width K of the hidden radial layers, as published."""


class DegreePair(NamedTuple):
    """A pair of degrees within a radial group, with its place on the group's path axis.

    Attributes:
        degree_in: degree of the source features.
        degree_out: degree of the messages.
        start: first of the pair's 2 min(d_in, d_out) + 1 paths on the group's path axis.
    """

    degree_in: int
    degree_out: int
    start: int

    @property
    def stop(self) -> int:
        """One past the pair's last path."""
        return self.start + num_paths(self.degree_in, self.degree_out)


@dataclass(frozen=True)
class RadialGroup:
    """The pairs of degrees served by one radial profile: every input degree with every output degree.

    All input degrees of a group have the same number of channels, and so have all output degrees. The rows of the
    profile's last weight are ordered (output channel, input channel, path), paths by output degree, then input degree,
    then J (DESIGN 1).

    Attributes:
        degrees_in: input degrees, ascending.
        degrees_out: output degrees, ascending.
        channels_in: channels of every input degree, edge-feature channels included.
        channels_out: channels of every output degree.
        is_basis_free: the group is the single pair (0, 0) whose basis is 1 instead of the spherical harmonic Y_0; so it is in
            the published implementation where pairs are not fused.
    """

    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]
    channels_in: int
    channels_out: int
    is_basis_free: bool = False

    @cached_property
    def pairs(self) -> tuple[DegreePair, ...]:
        """All pairs in path order."""
        pairs, start = [], 0
        for degree_out in self.degrees_out:
            for degree_in in self.degrees_in:
                pairs.append(DegreePair(degree_in, degree_out, start))
                start = pairs[-1].stop
        return tuple(pairs)

    @property
    def num_paths(self) -> int:
        """Length of the path axis."""
        return self.pairs[-1].stop

    @property
    def max_order(self) -> int:
        """The largest order |m| that any pair of the group couples."""
        return min(max(self.degrees_in), max(self.degrees_out))


@dataclass(frozen=True)
class ConvolutionPlan:
    """What a TFN convolution couples.

    Attributes:
        node_channels: (degree, channels) of the source-node features, degrees ascending.
        edge_channels: (degree, channels) of the edge features of degree > 0 appended to them, degrees ascending.
        channels_out: (degree, channels) of the messages, degrees ascending.
        groups: the radial groups; together they hold every pair of input and output degree once.
    """

    node_channels: tuple[tuple[int, int], ...]
    edge_channels: tuple[tuple[int, int], ...]
    channels_out: tuple[tuple[int, int], ...]
    groups: tuple[RadialGroup, ...]

    @property
    def max_degree(self) -> int:
        """The largest degree on either side."""
        return max(degree for degree, _ in self.node_channels + self.channels_out)

    def to_json(self) -> str:
        """This plan as text, for graphs that are compiled or exported."""
        return json.dumps(asdict(self))

    @staticmethod
    @cache
    def from_json(text: str) -> ConvolutionPlan:
        """The plan that :meth:`to_json` wrote."""
        fields = json.loads(text)
        groups = [
            RadialGroup(**group | {name: tuple(group[name]) for name in ("degrees_in", "degrees_out")})
            for group in fields.pop("groups")
        ]
        return ConvolutionPlan(**{name: tuple(map(tuple, value)) for name, value in fields.items()}, groups=tuple(groups))
