"""Operations as single nodes of compiled graphs.

``torch.compile`` and ``torch.export`` cannot follow kernel launches or chunks whose number depends on the graph. So while they
trace, an operation is one call of a custom operator with known output shapes; its backward pass is another one, which evaluates
the operation again and differentiates that, so that nothing but the operands is kept. Where that is differentiated once more, the
operation itself is what autograd follows; but the compilers of PyTorch refuse that. Eager code does not pass here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.operation import Vjp

Run = Callable[[str, Sequence[Tensor]], list[Tensor]]


class OpaqueOperation:
    """A differentiable function of tensors as a pair of operators, ``se3_fast::<name>`` and ``se3_fast::<name>_backward``.

    Args:
        name: name of the operation.
        run: the function, from a description without tensors and the operands to the results; it may use autograd inside.
        shapes: the same with empty results of the right shapes, dtypes and device.
    """

    def __init__(self, name: str, run: Run, shapes: Run) -> None:
        self._run, self._shapes = run, shapes
        schema = "(str description, Tensor[] operands) -> Tensor[]"
        backward_schema = "(str description, Tensor[] operands, Tensor[] gradients, bool[] wanted) -> Tensor[]"
        library_op = torch.library.custom_op
        self._forward = library_op(f"se3_fast::{name}", self._evaluate, mutates_args=(), schema=schema)
        self._backward = library_op(f"se3_fast::{name}_backward", self._differentiate, mutates_args=(), schema=backward_schema)
        self._forward.register_fake(shapes)
        self._backward.register_fake(_gradient_shapes)
        self._forward.register_autograd(self._backward_of_node, setup_context=_keep_operands)
        self._backward.register_autograd(self._backward_of_backward, setup_context=_keep_all)

    def __call__(self, description: str, operands: Sequence[Tensor]) -> list[Tensor]:
        """The results as outputs of one node."""
        return self._forward(description, list(operands))

    def _evaluate(self, description: str, operands: Sequence[Tensor]) -> list[Tensor]:
        return _owned(self._run(description, _contiguous(operands)), operands)

    def _differentiate(
        self, description: str, operands: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor]:
        # Inside an operator autograd is switched off at the dispatcher; here it is what does the work.
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False), torch.enable_grad():
            leaves = [
                operand.detach().requires_grad_() if is_wanted else operand
                for operand, is_wanted in zip(_contiguous(operands), wanted, strict=True)
            ]
            results = self._run(description, leaves)
            pairs = [pair for pair in zip(results, gradients, strict=True) if pair[0].requires_grad]
            chosen = [leaf for leaf, is_wanted in zip(leaves, wanted, strict=True) if is_wanted]
            outputs, output_gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, chosen, output_gradients, allow_unused=True, materialize_grads=True)
        return _owned(found, [*operands, *gradients])

    def _backward_of_node(self, ctx: Any, gradients: list[Tensor]) -> tuple[None, list[Tensor | None]]:
        wanted = list(ctx.needs_input_grad[1])
        found = iter(self._backward(ctx.description, list(ctx.saved_tensors), list(gradients), wanted))
        return None, [next(found) if is_wanted else None for is_wanted in wanted]

    def _backward_of_backward(
        self, ctx: Any, cotangents: list[Tensor | None]
    ) -> tuple[None, list[Tensor | None], list[Tensor | None], None]:
        wanted = (*ctx.needs_input_grad[1], *ctx.needs_input_grad[2])
        gradients = Vjp(partial(self._run, ctx.description), ctx.wanted)
        found = iter(Vjp(gradients, wanted)([*ctx.saved_tensors, *cotangents]))
        of_all = [next(found) if is_wanted else None for is_wanted in wanted]
        return None, of_all[: len(ctx.wanted)], of_all[len(ctx.wanted) :], None


def _keep_operands(ctx: Any, inputs: tuple[str, list[Tensor]], output: list[Tensor]) -> None:
    ctx.description, operands = inputs
    ctx.save_for_backward(*operands)


def _keep_all(ctx: Any, inputs: tuple[str, list[Tensor], list[Tensor], list[bool]], output: list[Tensor]) -> None:
    ctx.description, operands, gradients, wanted = inputs
    ctx.wanted = tuple(wanted)
    ctx.save_for_backward(*operands, *gradients)


def _gradient_shapes(
    description: str, operands: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor]:
    return [operand.new_empty(operand.shape) for operand, is_wanted in zip(operands, wanted, strict=True) if is_wanted]


def _contiguous(operands: Sequence[Tensor]) -> list[Tensor]:
    """The operands as the operations read them: the compiler, or who calls the operator directly, may hand over any strides."""
    return [operand.contiguous() for operand in operands]


def _owned(results: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
    """The results, contiguous and in memory of their own, as the compiler takes for granted."""
    taken = {operand.untyped_storage().data_ptr() for operand in operands}
    owned = []
    for result in results:
        contiguous = result.detach().contiguous()
        storage = contiguous.untyped_storage().data_ptr()
        owned.append(contiguous.clone() if storage in taken else contiguous)
        taken.add(storage)
    return owned
