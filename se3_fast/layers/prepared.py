"""What a model may have made ready for its layers before the first one begins; a layer without it reads its parameters itself."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from se3_fast.backends.operands import PreparedRadial


class JointParameters(Protocol):
    """Parameters of layers, and what follows from them; made only where the edges keep their frames (``ops/tfn_conv.py``)."""

    def row(self, layer: nn.Module) -> Tensor | None:
        """The parameters of a layer in a row, [P, n], if they are there: the same P times over, their gradient in P parts."""

    def radial(self, convolution: nn.Module) -> PreparedRadial | None:
        """Hidden radial layers and aligned weights of a convolution, if they are there."""
