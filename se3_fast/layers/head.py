"""Head: the perceptron after the pooling."""

from __future__ import annotations

from torch import Tensor, nn

from se3_fast.ops.perceptron import perceptron


class Head(nn.Sequential):
    """Two linear layers with a ReLU between them, with the parameter names of the published ``nn.Sequential``.

    Args:
        num_in: W, input channels.
        num_hidden: H, outputs of the first layer.
        num_out: O, outputs.
    """

    def __init__(self, num_in: int, num_hidden: int, num_out: int) -> None:
        super().__init__(nn.Linear(num_in, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_out))

    def forward(self, input: Tensor) -> Tensor:
        """[B, W] to [B, O]."""
        first, _, second = self
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        return perceptron(input, (first.weight, first.bias), (second.weight, second.bias))
