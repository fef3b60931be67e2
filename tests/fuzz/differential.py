"""Backends against `dense` in float64: outputs, first and second derivatives, equivariance, the same bits twice.

`check(case, "cpp")` raises AssertionError in one line that names the backend, the tensors, their errors and the case.

The error of a tensor is relative: RMS of the difference over RMS of the truth. What is allowed is the tolerance of the dtype, and
more only where the function itself amplifies rounding (an input near the kink of a ReLU, a difference of nearly equal sums): some
times as much as `dense` changes in the same dtype, or when its inputs and parameters are changed by their rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3
from se3_fast.backends.torch import second_derivatives
from se3_fast.backends.torch import tfn_conv as aligned
from se3_fast.backends.triton import tfn_conv_by_source as fused_by_source
from tests.fuzz.cases import Case, Problem, Run, Tensors
from tests.support import random_rotation, wigner_of_rotation

TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 3e-2}
AMPLIFIED = 64.0
"""Times the change of `dense` that is allowed: a sum of n products, as of the outer product of features and h in one row, may lose
sqrt(n) times the rounding of one, and n is up to some thousands."""

NEGLIGIBLE = 1e-3
"""A gradient smaller than this part of the largest one, up to zero, is compared with that part of it."""

PERTURBATIONS = 6

KINDS = ("output", "gradient", "second")
"""What the names of results begin with."""


def check(case: Case, *backends: str, compiler: str | None = None) -> None:
    """Compare backends with `dense`; where ``compiler`` is given, their modules compiled by it.

    Raises:
        AssertionError: where one differs.
    """
    truth = evaluate(case, "dense", _in_float64(case.run))
    for backend in backends:
        found = evaluate(case, backend, compiler=compiler)
        _compare(case, backend, found, truth, TOLERANCE[case.run.precision])
        if compiler is None:
            again = evaluate(case, backend)
            _report(case, backend, {name: "two runs differ" for name in found if not _same_bits(found[name], again[name])})
            if case.run.precision == torch.float64:
                _check_equivariance(case, backend, truth)


def _compare(case: Case, backend: str, found: Tensors, truth: Tensors, tolerance: float) -> None:
    errors = {name: error for name, error in _errors(found, truth).items() if not error <= tolerance}
    if errors:
        allowed = _allowed(case)
        _report(case, backend, {name: error for name, error in errors.items() if not error <= allowed[name]})


def evaluate(
    case: Case, backend: str, run: Run | None = None, change: Callable[[Problem], None] | None = None, compiler: str | None = None
) -> Tensors:
    """Outputs ``output <degree>``, gradients ``gradient of <name>`` and second derivatives ``second <name>`` of a case.

    Args:
        case: what is evaluated.
        backend: by which backend.
        run: how, if not as the case says.
        change: what is done to the problem before.
        compiler: of ``torch.compile``.
    """
    run = run or case.run
    problem = _prepared(case, run)
    if change is not None:
        change(problem)
    if compiler is not None:
        torch.compiler.reset()  # of one piece of code only so many versions are kept
        problem.module.compile(backend=compiler, fullgraph=True)
    with se3_fast.backend(backend), _forced(run):
        if run.mode == "no_grad":
            with torch.no_grad():
                return {f"output {name}": output for name, output in _outputs(problem, problem.inputs, run).items()}
        if run.mode == "inference":
            forget_constants()
            with torch.inference_mode():
                _outputs(problem, problem.inputs, run)
        try:
            return _derivatives(problem, run)
        finally:
            if run.mode == "inference":
                forget_constants()


def forget_constants() -> None:
    """Empty the caches of constant tables, so that a case does not depend on the cases before."""
    for name, module in list(sys.modules.items()):
        if name.startswith(
            ("se3_fast.so3", "se3_fast.contraction", "se3_fast.geometry", "se3_fast.backends.triton", "se3_fast.backends.cpp.tfn")
        ):
            for member in vars(module).values():
                if callable(getattr(member, "cache_clear", None)) and not isinstance(member, torch.Tensor):
                    member.cache_clear()


def _prepared(case: Case, run: Run) -> Problem:
    """The problem in the dtype and the memory layout of the run."""
    problem = case.problem()
    dtype, exact = getattr(torch, run.dtype), getattr(torch, case.run.dtype)  # the truth has the same rounded values
    problem.module.to(exact).to(dtype)
    problem.inputs = {name: _laid_out(tensor.to(exact).to(dtype), run) for name, tensor in problem.inputs.items()}
    return problem


def _laid_out(tensor: Tensor, run: Run) -> Tensor:
    """Each second value of twice as many, first axis last, where inputs are to be strided."""
    if not run.is_strided:
        return tensor
    places = torch.full((*tensor.shape[1:], tensor.shape[0], 2), float("nan"), dtype=tensor.dtype)
    places[..., 0] = tensor.movedim(0, -1)
    return places[..., 0].movedim(-1, 0)


def _in_float64(run: Run) -> Run:
    mode = "first" if run.mode in ("inference", "again") else run.mode
    plain = {"is_autocast": False, "is_strided": False, "is_chunked": False, "is_poisoned": False, "threads": 1}
    return replace(run, dtype="float64", mode=mode, **plain)


@contextmanager
def _forced(run: Run) -> Iterator[None]:
    with ExitStack() as stack:
        if run.order != "auto":
            stack.enter_context(patch.object(ConvSE3, "contraction_order", run.order))
        if run.is_chunked:
            stack.enter_context(patch.dict(aligned.CHUNK_BYTES, cpu=1))
            stack.enter_context(patch.object(aligned, "SMALLEST_CHUNK", 7))
            stack.enter_context(patch.object(fused_by_source, "BUFFER_BYTES", 1))
            stack.enter_context(patch.object(second_derivatives, "CHUNK_BYTES", 1))
        stack.enter_context(_settings(run))
        yield


@contextmanager
def _settings(run: Run) -> Iterator[None]:
    """PyTorch's own; memory is filled where deterministic algorithms are asked for."""
    threads, fills = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(run.threads)
    torch.use_deterministic_algorithms(run.is_poisoned, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = run.is_poisoned
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def _outputs(problem: Problem, inputs: Tensors, run: Run) -> Tensors:
    with torch.autocast("cpu", torch.bfloat16) if run.is_autocast else nullcontext():
        outputs = problem.apply(inputs)
    assert list(outputs) == sorted(outputs, key=int), f"expected degrees ascending, got {list(outputs)}"
    return outputs


def _derivatives(problem: Problem, run: Run) -> Tensors:
    parameters = {f"parameter {name}": parameter for name, parameter in problem.module.named_parameters()}
    sources = {"parameters": parameters, "some parameters": dict(list(parameters.items())[::2])}
    for kind in ("nodes", "edges", "positions"):
        sources[kind] = {name: tensor for name, tensor in problem.inputs.items() if name.startswith(kind)}
    wanted = {name: tensor for kind in run.gradients_of for name, tensor in sources[kind].items()}
    for name, tensor in (parameters | problem.inputs).items():
        tensor.requires_grad_(run.is_pruned or name in wanted)
    outputs = _outputs(problem, problem.inputs, run)
    results = {f"output {name}": output.detach() for name, output in outputs.items()}
    chosen = {name: output for name, output in outputs.items() if output.requires_grad}
    if run.loss == "partial":
        chosen = dict(list(chosen.items())[:1])
    if not wanted or not chosen:
        return results
    cotangents = _cotangents(chosen, run)
    loss = sum((cotangents[name] * output).sum() for name, output in chosen.items()) if run.loss != "sum" else _sum(chosen)
    second = run.mode == "second"
    if run.mode == "again":
        _gradients(loss, wanted, retain_graph=True)
    gradients = _gradients(loss, wanted, create_graph=second)
    results |= {f"gradient of {name}": gradient.detach() for name, gradient in gradients.items()}
    if second:  # zero where the gradients are constants, whether or not autograd knows that they are
        again = wanted | ({f"cotangent {name}": x for name, x in cotangents.items()} if run.loss != "sum" else {})
        contracted = _contracted(gradients, run)
        found = {} if contracted is None else _gradients(contracted, again)
        results |= {f"second {name}": found.get(name, torch.zeros_like(x)) for name, x in again.items()}
    return results


def _sum(outputs: Tensors) -> Tensor:
    return torch.stack([output.sum() for output in outputs.values()]).sum()


def _cotangents(outputs: Tensors, run: Run) -> Tensors:
    """Random weights of the outputs, divided by their size, so that none hides the others."""
    generator = torch.Generator().manual_seed(run.seed + 1)
    return {
        name: torch.randn(output.shape, generator=generator, dtype=torch.float64)
        .to(output.dtype)
        .requires_grad_(run.mode == "second")
        for name, output in outputs.items()
    }


def _contracted(gradients: Tensors, run: Run) -> Tensor | None:
    """The gradients times random vectors, in a sum; None if all are constants.

    Which of them autograd takes for constants is a backend's affair; the vectors are the same.
    """
    generator = torch.Generator().manual_seed(run.seed + 2)
    parts = []
    for gradient in gradients.values():
        vector = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.dtype)
        if gradient.requires_grad:
            parts.append((vector * gradient).sum())
    return torch.stack(parts).sum() if parts else None


def _gradients(loss: Tensor, wanted: Tensors, **options: bool) -> Tensors:
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, **options)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(wanted.items(), found, strict=True)
    }


def _errors(found: Tensors, truth: Tensors) -> dict[str, float]:
    """The error of every tensor; what is not finite in the truth is not compared."""
    assert found.keys() == truth.keys(), (sorted(found), sorted(truth))
    norms = {name: float(tensor.detach().double().norm()) for name, tensor in truth.items()}
    largest = {kind: max((norm for name, norm in norms.items() if name.startswith(kind)), default=0.0) for kind in KINDS}
    errors = {}
    for name, tensor in truth.items():
        if not tensor.isfinite().all():
            continue
        assert found[name].shape == tensor.shape, (name, found[name].shape, tensor.shape)
        scale = max(norms[name], NEGLIGIBLE * largest[_kind(name)])
        difference = float((found[name].detach().double() - tensor.detach().double()).norm())
        errors[name] = difference / scale if scale > 0 else difference
    return errors


def _kind(name: str) -> str:
    return next(kind for kind in KINDS if name.startswith(kind))


def _allowed(case: Case) -> dict[str, float]:
    """By how much rounding may change the tensors: of each kind by as much as the one that it changes most."""
    rounding, run = torch.finfo(case.run.precision).eps, _in_float64(case.run)
    truth = evaluate(case, "dense", run)
    changed = [evaluate(case, "dense", run, partial(_perturb, rounding, number)) for number in range(PERTURBATIONS)]
    if case.run.precision != torch.float64:
        plain = replace(run, dtype=case.run.dtype, is_autocast=case.run.is_autocast)
        changed += [evaluate(case, "dense", same) for same in (plain, case.run)]
    errors = [_errors(tensors, truth) for tensors in changed]
    if case.run.precision == torch.float64:
        # What cancels on the way, as in a softmax that is nearly one-hot, no change of the inputs shows: float32 does.
        ratio = rounding / torch.finfo(torch.float32).eps
        of_float32 = _errors(evaluate(case, "dense", replace(run, dtype="float32")), truth)
        errors.append({name: ratio * error for name, error in of_float32.items()})
    largest = {
        kind: max((x for error in errors for name, x in error.items() if name.startswith(kind)), default=0.0) for kind in KINDS
    }
    return {name: AMPLIFIED * largest[_kind(name)] for name in truth}


def _perturb(rounding: float, number: int, problem: Problem) -> None:
    """Change parameters and inputs by about their rounding error."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for tensor in (*problem.module.parameters(), *problem.inputs.values()):
            tensor *= 1 + rounding * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _check_equivariance(case: Case, backend: str, truth: Tensors) -> None:
    rotation = random_rotation(case.run.seed)

    def rotate(problem: Problem) -> None:
        for name, tensor in problem.inputs.items():
            degree = 1 if name == "positions" else int(name.partition(".")[2])
            matrix = rotation if name == "positions" else wigner_of_rotation(rotation, degree)
            tensor.copy_(tensor @ matrix.T)

    run = replace(case.run, mode="no_grad")
    turned = evaluate(case, backend, run, rotate)
    expected = {}
    for name, tensor in truth.items():
        if name.startswith("output"):
            degree = int(name.split()[1])
            expected[name] = tensor if degree == 0 else tensor @ wigner_of_rotation(rotation, degree).T
    _compare(replace(case, run=run), f"{backend}, rotated", turned, expected, 10 * TOLERANCE[torch.float64])


def _report(case: Case, backend: str, errors: dict[str, float] | dict[str, str]) -> None:
    assert not errors, f"{backend}: {dict(sorted(errors.items()))} in {case!r}"
