"""Operations with derivatives of every order: the first by hand, all others by formula.

A backend computes an operation, and its gradients, by kernels that autograd cannot follow. So an :class:`Operation` also has a
formula in plain PyTorch, and what autograd records is

    results               by the kernels
    their gradients       by the kernels; recorded as one more node, whose operands are all that they depend on
    gradients of those    by the formula, differentiated as often as it takes; each of them is one node again

so that no derivative is lost, whatever it is asked for and with respect to what. Every node computes with plain tensors, keeps
nothing but its operands, and works inside ``torch.func`` transforms: under ``vmap`` it runs once for each entry of the batch.

Operations that are linear in all their operands need no formula: they come in pairs, each the transpose of the other
(:class:`LinearOperation`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import _functorch

from se3_fast.autograd.transforms import asked_for, is_forward, is_recording, is_transformed

Tensors = Sequence[Tensor | None]
Evaluate = Callable[[Any], Sequence[Tensor]]
"""A function in plain PyTorch, from its operands in a row to its results."""

Wanted = tuple[bool, ...]


class Formula(Protocol):
    """A function of tensors and, as such functions again, its derivatives of every order."""

    def __call__(self, operands: Tensors) -> Sequence[Tensor]:
        """The results; nothing is recorded."""

    def vjp(self, wanted: Wanted) -> Formula:
        """The gradients of the operands that are wanted, as a function of the operands and, behind them, of the results' gradients
        (None for a result without)."""


@dataclass(frozen=True)
class PlainFormula:
    """A formula evaluated all at once.

    Attributes:
        function: in plain PyTorch.
    """

    function: Evaluate

    def __call__(self, operands: Tensors) -> Sequence[Tensor]:
        """The results."""
        return self.function(operands)

    def vjp(self, wanted: Wanted) -> PlainFormula:
        """See :class:`Formula`."""
        return PlainFormula(Vjp(self.function, wanted))


@dataclass(frozen=True)
class Vjp:
    """Gradients of a function in plain PyTorch, which autograd can follow if that is being recorded.

    Attributes:
        function: the function.
        wanted: with respect to which of its operands.
    """

    function: Evaluate
    wanted: Wanted

    def __call__(self, tensors: Tensors) -> list[Tensor]:
        """The gradients that are wanted, from the operands and the gradients of the results."""
        is_followed = torch.is_grad_enabled()
        operands, gradients = tensors[: len(self.wanted)], tensors[len(self.wanted) :]
        with torch.enable_grad():
            variables = list(operands)
            chosen = []
            for place, operand in enumerate(operands):
                if self.wanted[place] and operand is not None:
                    variable = _variable(operand)
                    variables[place] = variable
                    chosen.append(variable)
            pairs = zip(self.function(variables), gradients, strict=True)
            followed = [(result, given.to(result.dtype)) for result, given in pairs if given is not None and result.requires_grad]
            if not followed or not chosen:
                return [torch.zeros_like(variable) for variable in chosen]
            outputs, output_gradients = zip(*followed, strict=True)
            return list(torch.autograd.grad(outputs, chosen, output_gradients, create_graph=is_followed, materialize_grads=True))


def _variable(operand: Tensor) -> Tensor:
    """An operand to differentiate by, apart from all that it was computed from, and from other operands computed from it."""
    return operand.view_as(operand) if operand.requires_grad else operand.detach().requires_grad_()


class Operation(ABC):
    """A function of tensors by a backend's kernels. Its attributes are all that is not differentiated.

    Attributes:
        num_kept: how many of the tensors that :meth:`evaluate` returns are no results, but kept for the backward pass.
        takes_missing: whether :meth:`gradients` takes None for results that have no gradient; otherwise it is given zeros.
    """

    num_kept: ClassVar[int] = 0
    takes_missing: ClassVar[bool] = False
    _function: ClassVar[type[torch.autograd.Function]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._function = type(cls.__name__, (_Evaluation,), {})  # autograd names nodes after it

    def apply(self, *operands: Tensor | None) -> tuple[Tensor, ...]:
        """The results, differentiable with respect to all operands that are not None."""
        found = apply(self._function, self, *operands)
        return found[: len(found) - self.num_kept]

    @abstractmethod
    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results, then what is kept; nothing is recorded."""

    @abstractmethod
    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """The gradients of all operands, where they are wanted; others are not looked at.

        Args:
            operands: as for :meth:`evaluate`.
            kept: what it kept.
            gradients: of the results.
            wanted: with respect to which operands.
        """

    @property
    @abstractmethod
    def formula(self) -> Formula:
        """The results from the same operands, to rounding."""

    @property
    def constants(self) -> Sequence[Tensor]:
        """Tensors that the kernels read besides: autograd sees to it that they are the same in the backward pass."""
        return ()

    def formula_operands(self, operands: Tensors) -> Tensors:
        """Those of the operands that the formula takes: all but some at the end that are never differentiated."""
        return operands

    def saved(self, operands: Tensors) -> Tensors:
        """What of the operands is kept for the backward pass."""
        return operands

    def restored(self, saved: Tensors) -> Tensors:
        """What the formula takes, from what :meth:`saved` returned; recorded where the backward pass is."""
        return saved


class _Evaluation(torch.autograd.Function):
    """The results of an operation."""

    @staticmethod
    def forward(operation: Operation, *operands: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(operation.evaluate(operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operation, *operands = inputs
        num_results = len(output) - operation.num_kept
        saved = operation.saved(operands)
        ctx.operation, ctx.num_saved, ctx.num_results = operation, len(saved), num_results
        ctx.are_tensors = [False, *(operand is not None for operand in operands)]
        if is_forward():
            ctx.save_for_forward(*operation.formula_operands(operands))
        if is_forward() or not operation.takes_missing:
            ctx.like = [_Like(result.shape, result.dtype, result.device) for result in output[:num_results]]
        ctx.mark_non_differentiable(*output[num_results:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, *output[num_results:], *operation.constants)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        operation, wanted = ctx.operation, asked_for(ctx, ctx.are_tensors)[1:]
        given: Tensors = gradients[: ctx.num_results]
        if all(gradient is None for gradient in given):
            return None, *[None] * len(wanted)
        if not operation.takes_missing:
            given = [like.zeros() if gradient is None else gradient for gradient, like in zip(given, ctx.like, strict=True)]
        tensors = ctx.saved_tensors
        operands = operation.restored(tensors[: ctx.num_saved])
        kept = tensors[ctx.num_saved : ctx.num_saved + operation.num_kept]
        differentiated = wanted[: len(operands)]
        found = iter(apply_in_backward(_Gradients, operation, differentiated, *operands, *kept, *given))
        of_operands = [next(found) if is_wanted else None for is_wanted in differentiated]
        return None, *of_operands, *[None] * (len(wanted) - len(operands))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        found = _tangents_by_formula(ctx.operation.formula, operands, tangents[: len(operands)], ctx.like)
        return *found, *[None] * ctx.operation.num_kept

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], operation: Operation, *operands: Tensor | None) -> tuple[Any, Any]:
        return _for_each_entry(operation._function, info, in_dims, (operation, *operands))


class _Gradients(torch.autograd.Function):
    """The gradients of an operation's operands that are wanted, by its kernels."""

    @staticmethod
    def forward(operation: Operation, wanted: Wanted, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        operands, kept, given = _parted(operation, wanted, tensors)
        found = operation.gradients(operands, kept, given, wanted)
        return tuple(gradient for gradient, is_wanted in zip(found, wanted, strict=True) if is_wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        operation, wanted, *tensors = inputs
        operands, _, given = _parted(operation, wanted, tensors)
        ctx.operation, ctx.wanted = operation, wanted
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *given)
        if is_forward():
            ctx.save_for_forward(*operands, *given)
            ctx.like = [_Like(result.shape, result.dtype, result.device) if result is not None else None for result in output]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        operation, wanted = ctx.operation, ctx.wanted
        operands, _, given = _parted(operation, wanted, ctx.needs_input_grad[2:])
        formula = operation.formula.vjp(wanted)
        found = _gradients_by_formula(formula, (*operands, *given), ctx.saved_tensors, gradients)
        return None, None, *found[: len(wanted)], *[None] * operation.num_kept, *found[len(wanted) :]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        of_operands, _, of_given = _parted(ctx.operation, ctx.wanted, tangents[2:])
        formula = ctx.operation.formula.vjp(ctx.wanted)
        return tuple(_tangents_by_formula(formula, ctx.saved_tensors, (*of_operands, *of_given), ctx.like))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        return _for_each_entry(_Gradients, info, in_dims, arguments)


def _parted(operation: Operation, wanted: Wanted, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """What belongs to the operands, to what was kept, and to the results' gradients."""
    first, second = len(wanted), len(wanted) + operation.num_kept
    return tensors[:first], tensors[first:second], tensors[second:]


class _ByFormula(torch.autograd.Function):
    """The results of a formula."""

    @staticmethod
    def forward(formula: Formula, *operands: Tensor | None) -> tuple[Tensor, ...]:
        device = next(operand.device for operand in operands if operand is not None)
        with torch.autocast(device.type, enabled=False):
            return tuple(formula(operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula, *operands = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        if is_forward():
            ctx.save_for_forward(*operands)
            ctx.like = [_Like(result.shape, result.dtype, result.device) for result in output]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_gradients_by_formula(ctx.formula, ctx.needs_input_grad[1:], ctx.saved_tensors, gradients)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(_tangents_by_formula(ctx.formula, ctx.saved_tensors, tangents, ctx.like))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        return _for_each_entry(_ByFormula, info, in_dims, arguments)


def _gradients_by_formula(formula: Formula, wanted: Sequence[bool], operands: Tensors, gradients: Tensors) -> list[Tensor | None]:
    """Gradients of a formula's operands, None for those that are not wanted."""
    if all(gradient is None for gradient in gradients):
        return [None] * len(wanted)
    found = iter(apply_in_backward(_ByFormula, formula.vjp(tuple(wanted)), *operands, *gradients))
    return [next(found) if is_wanted else None for is_wanted in wanted]


class _Like(NamedTuple):
    """What a tensor is but for its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        """Such a tensor."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def _tangents_by_formula(
    formula: Formula, operands: Tensors, tangents: Tensors, results: Sequence[_Like | None]
) -> list[Tensor | None]:
    """Derivatives of a formula's results along directions of its operands: the gradients that it has are linear in those of the
    results, and what they are multiplied by are these."""
    wanted = tuple(tangent is not None for tangent in tangents)
    transposed = formula.vjp(wanted).vjp((*[False] * len(operands), *(like is not None for like in results)))
    gradients = [None if like is None else like.zeros() for like in results]
    directions = [tangent for tangent in tangents if tangent is not None]
    found: Iterator[Any] = iter(apply_in_backward(_ByFormula, transposed, *operands, *gradients, *directions))
    return [None if like is None else next(found).to(like.dtype) for like in results]


class LinearOperation(ABC):
    """A function that is linear in all its operands together, and whose transpose is one too."""

    def apply(self, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
        """The results, differentiable; operands that are None count as zero."""
        return apply(_LinearEvaluation, self, *operands)

    @abstractmethod
    def evaluate(self, operands: Any) -> Tensors:
        """The results, None for one that is zero; nothing is recorded."""

    @property
    @abstractmethod
    def transpose(self) -> LinearOperation:
        """From the gradients of the results to those of the operands."""


class _LinearEvaluation(torch.autograd.Function):
    """The results of a linear operation; keeps nothing."""

    @staticmethod
    def forward(operation: LinearOperation, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(operation.evaluate(operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.operation = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        if all(gradient is None for gradient in gradients):
            return None, *[None] * len(wanted)
        found = apply_in_backward(_LinearEvaluation, ctx.operation.transpose, *gradients)
        return None, *(one if is_wanted else None for one, is_wanted in zip(found, wanted, strict=True))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return apply(_LinearEvaluation, ctx.operation, *tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        return _for_each_entry(_LinearEvaluation, info, in_dims, arguments)


def _for_each_entry(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], arguments: Sequence[Any]
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """The results of a batch: of one entry after the other, stacked."""
    entries = []
    for entry in range(info.batch_size):
        of_entry = [
            argument.select(dim, entry).contiguous() if isinstance(argument, Tensor) and dim is not None else argument
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        entries.append(function.apply(*of_entry))
    columns = list(zip(*entries, strict=True))
    results = tuple(None if column[0] is None else torch.stack(column) for column in columns)
    return results, tuple(None if result is None else 0 for result in results)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Any, ...]:
    """The results of ``function``, without the way through autograd where nothing is recorded."""
    if torch.compiler.is_compiling() or is_transformed():
        return function.apply(*arguments)
    alive = [_functorch.unwrap_if_dead(one) if isinstance(one, Tensor) else one for one in arguments]
    if is_recording():
        # What Function.apply comes to here, without the look at the signature of its forward in every call.
        return super(torch.autograd.Function, function).apply(*alive)  # type: ignore[misc]
    return function.forward(*alive)


def apply_in_backward(function: type[torch.autograd.Function], *arguments: Any) -> Sequence[Tensor | None]:
    """As :func:`apply`, for each entry of the batch where autograd has batched its gradients, or tangents in forward mode."""
    places = [place for place, one in enumerate(arguments) if isinstance(one, Tensor) and _functorch.is_legacy_batchedtensor(one)]
    if not places:
        return apply(function, *arguments)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batches = {place: torch._remove_batch_dim(arguments[place], level, 0, 0) for place in places}
    entries = [
        apply_in_backward(function, *(batches[place][entry] if place in batches else one for place, one in enumerate(arguments)))
        for entry in range(len(batches[places[0]]))
    ]
    return [
        None if column[0] is None else torch._add_batch_dim(torch.stack(column), 0, level) for column in zip(*entries, strict=True)
    ]
