"""What an implementation of each operation offers: the functions of ``se3_fast/backends/<backend>/<operation>.py``.

A module may also have ``support(is_compiled, *details) -> Support``, which says whether it serves a call; ``details`` are what the
operation in ``se3_fast/ops`` asks with. Without it everything is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from se3_fast.backends.operands import (
    AlignedMessages,
    AlignedWeights,
    AttentionBlock,
    Convolution,
    ForceNetwork,
    FrameForm,
    LayerParameters,
    Norm,
    Profiles,
    Recipe,
)
from se3_fast.contraction import ContractionOrder, ConvolutionPlan
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.fiber import Features, Fiber, HeadFeatures
from se3_fast.graph import Graph


class Support(NamedTuple):
    """Whether something can run, and if not, why not.

    Attributes:
        reason: why not; empty where it can.
    """

    reason: str = ""

    @staticmethod
    def no(reason: str) -> Support:
        """It cannot, for a reason in a few words."""
        return Support(reason)

    @property
    def is_supported(self) -> bool:
        """Whether it can run."""
        return not self.reason


class Linear(Protocol):
    """:mod:`se3_fast.ops.linear`."""

    def linear(self, weights: Mapping[str, Tensor], parts: Sequence[Features | HeadFeatures], row: Tensor | None) -> Features:
        """Maps of the channels of every degree."""

    def linear_per_head(
        self, weights: Mapping[str, Tensor], features: Features, num_heads: int, row: Tensor | None
    ) -> HeadFeatures:
        """The same with the result laid out per head."""


class EquivariantNorm(Protocol):
    """:mod:`se3_fast.ops.equivariant_norm`; details: the type of the nonlinearity."""

    def group_norm(self, features: Features, norm: Norm, row: Tensor | None) -> Features:
        """Over the norms of all degrees."""

    def layer_norm(self, feature: Tensor, norm: Norm) -> Tensor:
        """Over the norms of one degree."""


class Perceptron(Protocol):
    """:mod:`se3_fast.ops.perceptron`; details: whether a layer has no inputs or outputs."""

    def perceptron(self, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        """Two layers."""


class Pooling(Protocol):
    """:mod:`se3_fast.ops.pooling`."""

    def pooling(self, feature: Tensor, sizes: Tensor, pool: Literal["max", "avg"]) -> Tensor:
        """Maximum or mean over the nodes of each graph."""


class Radial(Protocol):
    """:mod:`se3_fast.ops.radial`."""

    def radial(self, invariants: Tensor, profiles: Profiles) -> list[Tensor] | Tensor:
        """h of all profiles."""

    def recipe(self, invariants: Tensor, profiles: Profiles) -> Recipe | None:
        """How to make h again, where nothing of that size need be kept."""


class TfnConv(Protocol):
    """:mod:`se3_fast.ops.tfn_conv`; details: the compute dtype and the radial width.

    Attributes:
        FRAMES: the form in which it reads the edges' frames; None where it reads published bases.
        KEEPS_FRAMES: whether it can leave messages in the edges' frames, for an attention that reads them there.
    """

    FRAMES: FrameForm | None
    KEEPS_FRAMES: bool

    def tfn_conv(self, call: Convolution) -> Sequence[Tensor]:
        """Messages by ascending degree; where frames are read, 0 for an edge without direction."""


class EdgeFrames(Protocol):
    """:mod:`se3_fast.geometry`."""

    def wigner_blocks(self, direction: Tensor, max_degree: int) -> Tensor:
        """[E, sum of (2d+1)^2] from unit vectors [E, 3]."""

    def frame_angles(self, rel_pos: Tensor) -> Tensor:
        """[4, E] from relative positions [E, 3]."""


class EdgeAttention(Protocol):
    """:mod:`se3_fast.ops.edge_attention`.

    Attributes:
        READS: what it reads best: ``heads``, values and keys laid out per head; ``messages`` of a convolution degree by degree;
            or these in the edges' ``frames``.
    """

    READS: Literal["heads", "messages", "frames"]

    def edge_attention(self, value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> Tensor:
        """Attention with the heads' features side by side."""


class AttentionOfMessages(Protocol):
    """What an :class:`EdgeAttention` that reads ``messages`` offers besides."""

    def message_attention(self, messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
        """Attention to the messages of a convolution, as it returns them."""


class AttentionInFrames(Protocol):
    """What an :class:`EdgeAttention` that reads ``frames`` offers besides."""

    def aligned_edge_attention(self, messages: AlignedMessages, query: Tensor, key_channels: tuple[tuple[int, int], ...]) -> Tensor:
        """Attention to messages in the edges' frames."""


class WholeAttentionBlock(Protocol):
    """:mod:`se3_fast.ops.attention_block`."""

    def serves(self, call: AttentionBlock) -> bool:
        """Whether the block is better called as one operation than part by part."""

    def attention_block(self, call: AttentionBlock) -> Features:
        """The block, of which nothing is differentiated."""


class Basis(Protocol):
    """:mod:`se3_fast.ops.basis`."""

    def pairwise(self, rel_pos: Tensor, max_degree: int, is_padded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        """The bases of all pairs of degrees."""

    def fused(self, bases: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
        """The fused bases, from the pairwise ones."""


class DepthwiseConv(Protocol):
    """:mod:`se3_fast.ops.depthwise_conv`; details: the numbers of coefficients of the plan and of knots."""

    def depthwise_conv(
        self, plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, places: Tensor, table: Tensor
    ) -> Tensor:
        """Sums of messages whose channels do not mix."""


class WholeForceNetwork(Protocol):
    """:mod:`se3_fast.ops.force_network`."""

    def serves(self, network: ForceNetwork) -> bool:
        """Whether its sizes are such that it may be called."""

    def force_network(self, network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of atoms, and the gradient of their sum; nothing of it is differentiated."""

    def trained_force_network(
        self,
        network: ForceNetwork,
        graph: Graph,
        rel_pos: Tensor,
        kinds: Tensor,
        by_parts: Callable[[Sequence[Tensor]], list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """The same, differentiable by the weights."""


class SharedFeatures(Protocol):
    """:mod:`se3_fast.ops.shared_features`."""

    def shared_features(self, features: Features, readers: int) -> list[Features]:
        """The same features for each of their readers."""


class Joint(Protocol):
    """What a backend offers that makes the parameters of all layers of a model ready at once (:mod:`se3_fast.layers.joint`)."""

    def gradient_parts(self, operation: str, device: torch.device) -> int:
        """In how many parts the gradient of an operation's parameters comes, where they are in a row."""

    def parameter_rows(self, layers: Sequence[LayerParameters]) -> list[Tensor]:
        """The parameters of each layer in a row, [P, n]."""

    def radial_of_layers(self, invariants: Tensor, layers: Sequence[Profiles], row: Tensor, splits: Sequence[int]) -> list[Tensor]:
        """h of several convolutions, [S, groups, E, K] each, where every convolution has its own S."""

    def aligned_weights(
        self, plans: Sequence[ConvolutionPlan], weights: Sequence[Sequence[Tensor]], dtype: torch.dtype
    ) -> list[AlignedWeights]:
        """The last radial weights of some convolutions, aligned."""

    def hidden_gradient_parts(self, plan: ConvolutionPlan, num_edges: int) -> int:
        """In how many parts the gradient of h of a convolution comes."""

    def is_contracted_by_edge(
        self, plan: ConvolutionPlan, graph: Graph, width: int, dtype: torch.dtype, order: ContractionOrder
    ) -> bool:
        """The order of contraction."""


PROTOCOLS: dict[str, type] = {
    "linear": Linear,
    "equivariant_norm": EquivariantNorm,
    "perceptron": Perceptron,
    "pooling": Pooling,
    "radial": Radial,
    "tfn_conv": TfnConv,
    "edge_frames": EdgeFrames,
    "edge_attention": EdgeAttention,
    "attention_block": WholeAttentionBlock,
    "basis": Basis,
    "depthwise_conv": DepthwiseConv,
    "force_network": WholeForceNetwork,
    "shared_features": SharedFeatures,
    "joint": Joint,
}
"""By operation."""
