"""What only the Triton perceptron has. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast.kernels import perceptron as kernels
from se3_fast.layers.head import Head
from tests.ops.test_perceptron import CASES, cotangent_of, evaluate, operands_of
from tests.support import TRITON_DEVICE

pytest.importorskip("triton")


def test_no_gradient_for_an_input_that_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant, and a variable whose gradient is not asked for."""
    wanted: list[bool] = []
    backward = kernels.backward

    def watched(*arguments: object) -> object:
        wanted.append(bool(arguments[-1]))
        return backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "backward", watched)
    case = CASES["odd sizes"]
    x, *parameters = operands_of(case, torch.float64, TRITON_DEVICE)
    with se3_fast.backend("triton"):
        constant, variable, (_, *expected) = (
            torch.autograd.grad(evaluate(given, *parameters), asked, cotangent_of(case, TRITON_DEVICE).double())
            for given, asked in ((x.detach(), parameters), (x, parameters), (x, [x, *parameters]))
        )
    assert wanted == [False, False, True]
    assert all(map(torch.equal, constant, expected)) and all(map(torch.equal, variable, expected))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float64", "autocast"])
def test_code_of_the_compiler(dtype: torch.dtype | None) -> None:
    torch._dynamo.reset()
    head = Head(5, 6, 2).to(TRITON_DEVICE, torch.float32 if dtype else torch.float64)
    autocast = torch.autocast(TRITON_DEVICE.type, dtype, enabled=dtype is not None)
    with se3_fast.backend("triton"), autocast:
        compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (5, 7):
            x = torch.randn(rows, 5, dtype=head[0].weight.dtype, device=TRITON_DEVICE, requires_grad=True)
            operands = [x, *head.parameters()]
            results = []
            for call in (head, compiled):
                output = call(x)
                results.append([output, *torch.autograd.grad(output, operands, torch.ones_like(output))])
            assert all(map(torch.equal, *results))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
