"""What the benchmarks of single operations share: a problem, its passes and their cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.workloads import DEVICE
from se3_fast.kernels.cost import Cost


@dataclass
class Problem:
    """One operation on the inputs that a workload gives it.

    Attributes:
        forward: the operation; returns its outputs.
        operands: what it is differentiated with respect to; empty for an operation without gradients.
        costs: of the forward pass of the Triton kernels, and of the backward pass if there is one; empty where not counted.
        waits: whether backend ``triton`` waits for the host in it, so that it cannot be captured in a CUDA graph.
    """

    forward: Callable[[], Sequence[Tensor]]
    operands: list[Tensor] = field(default_factory=list)
    costs: tuple[Cost, ...] = ()
    waits: bool = False

    def run_forward(self) -> None:
        """Inference."""
        with torch.no_grad():
            self.forward()

    def run_forward_backward(self) -> None:
        """The operation and every gradient."""
        outputs = self.forward()
        torch.autograd.grad(outputs, self.operands, [torch.ones_like(output) for output in outputs])

    def passes(self) -> dict[str, Callable[[], None]]:
        """What is timed, by name."""
        passes = {"forward": self.run_forward}
        if self.operands:
            passes["forward+backward"] = self.run_forward_backward
        return passes

    def cost_of(self, name: str) -> Cost | None:
        """Cost of a pass of :meth:`passes`; None where it was not counted."""
        if not self.costs:
            return None
        return self.costs[0] if name == "forward" else Cost(*map(sum, zip(*self.costs, strict=True)))


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A standard normal operand on :data:`DEVICE` that requires grad."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_()
