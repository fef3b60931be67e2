"""Head: the perceptron after the pooling."""

from __future__ import annotations

from torch import Tensor, nn

from se3_fast.layers.plain import is_plain
from se3_fast.ops.perceptron import perceptron


class Head(nn.Sequential):
    """Two linear layers with a ReLU between them, with the parameter names of the published ``nn.Sequential``.

    They are one operation as long as they are what they were made as; modules that were changed, exchanged or added are called.

    Args:
        num_in: W, input channels.
        num_hidden: H, outputs of the first layer.
        num_out: O, outputs.
    """

    def __init__(self, num_in: int, num_hidden: int, num_out: int) -> None:
        super().__init__(nn.Linear(num_in, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_out))

    def forward(self, input: Tensor) -> Tensor:
        """[B, W] to [B, O]."""
        layers = self._as_made()
        return super().forward(input) if layers is None else perceptron(input, *layers)

    def _as_made(self) -> list[tuple[Tensor, Tensor]] | None:
        """Weight and bias of both layers; None where calling the modules is something else, or could be."""
        modules, kinds = list(self), (nn.Linear, nn.ReLU, nn.Linear)
        if len(modules) != len(kinds) or not all(map(is_plain, modules, kinds)):
            return None
        layers = [(linear.weight, linear.bias) for linear in modules[::2]]
        return None if any(bias is None for _, bias in layers) else layers  # type: ignore[return-value]
