"""Run by tests/autograd/test_first_calls.py in a process of its own: the first calls of a process in some mode, then training.

Each case runs in a fork of a process that has imported everything and computed nothing, so that its constants are made by its own
first calls. Prints one JSON object: what went wrong in each case, or an empty text. With the argument ``all`` every mode is tried
on every backend, otherwise what has gone wrong before.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber, Graph, SE3TransformerPooled

TOLERANCE = 1e-10
BACKENDS = ("dense", "torch", "cpp", "triton")
ORDERS = ("by edge", "by source")


class Inputs(NamedTuple):
    graph: Graph
    nodes: dict[str, Tensor]
    geometry: EdgeGeometry | None = None

    def call(self, model: Callable[..., Tensor]) -> Tensor:
        return model(self.graph, self.nodes, None, self.geometry)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    fibers = {"fiber_in": Fiber({0: 2}), "fiber_out": Fiber({0: 2}), "fiber_edge": Fiber({})}
    sizes = {"num_degrees": 2, "num_channels": 2, "output_dim": 1, "num_layers": 1, "num_heads": 1, "channels_div": 1}
    return SE3TransformerPooled(**fibers, **sizes).to(torch.float64)  # type: ignore[arg-type]


def make_inputs(with_geometry: bool = False, with_gradients: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    src, dst = torch.tensor([0, 1, 1, 2, 3, 3, 0]), torch.tensor([1, 0, 2, 1, 4, 0, 4])
    rel_pos = torch.randn(7, 3, generator=generator, dtype=torch.float64).requires_grad_(with_gradients)
    nodes = {"0": torch.randn(5, 2, 1, generator=generator, dtype=torch.float64)}
    graph = Graph(src, dst, 5, edata={"rel_pos": rel_pos})
    return Inputs(graph, nodes, EdgeGeometry.from_relative_positions(rel_pos, 1) if with_geometry else None)


def train(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Energy, forces, and the gradients of a loss on both; from constant positions those of a loss on the energy."""
    rel_pos = inputs.graph.edata["rel_pos"]
    energy = inputs.call(model).sum()
    found = {"energy": energy.detach()}
    loss = energy.square()
    if rel_pos.requires_grad:
        (found["forces"],) = torch.autograd.grad(energy, rel_pos, create_graph=True)
        loss = loss + found["forces"].square().sum()
        rel_pos.grad = None
    model.zero_grad()
    loss.backward()
    found |= {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | train_bases()


def train_bases() -> dict[str, Tensor]:
    """The bases of the published API, and their gradients."""
    rel_pos = make_inputs().graph.edata["rel_pos"]
    bases = se3_fast.get_basis(rel_pos, 1, compute_gradients=True)
    bases = se3_fast.update_basis_with_fused(bases, 1, use_pad_trick=False, fully_fused=True)
    total = torch.stack([(basis * basis.detach()[:1]).sum() for basis in bases.values()]).sum()
    if total.requires_grad:
        total.backward()
    return {"bases": total.detach(), "gradient of the bases": rel_pos.grad if rel_pos.grad is not None else total.detach()}


def plainly(model: nn.Module, inputs: Inputs) -> None:
    inputs.call(model)
    train_bases()


def trained(model: nn.Module, inputs: Inputs) -> None:
    train(model, inputs)


def in_func_grad(model: nn.Module, inputs: Inputs) -> None:
    def energy(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (inputs.graph, inputs.nodes, None, inputs.geometry)).sum()

    torch.func.grad(energy)({name: parameter.detach() for name, parameter in model.named_parameters()})


def in_vmap(model: nn.Module, inputs: Inputs) -> None:
    torch.vmap(lambda feature: model(inputs.graph, {"0": feature}))(torch.stack(2 * [inputs.nodes["0"]]))


def compiled(model: nn.Module, inputs: Inputs) -> None:
    inputs.call(torch.compile(model, backend="aot_eager", fullgraph=True))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


class Mode(NamedTuple):
    """How the first call is made, and what the training after it shares with it.

    Attributes:
        context: what it is made in.
        call: how.
        may_fail: whether the mode itself may refuse the call.
        keeps: graph and geometry are used again.
        with_gradients: positions require grad.
        backends: that are tried; ``dense`` is not compiled.
    """

    context: Callable[[], Any]
    call: Callable[[nn.Module, Inputs], None] = plainly
    may_fail: bool = False
    keeps: bool = False
    with_gradients: bool = True
    backends: tuple[str, ...] = BACKENDS


MODES = {
    "none": Mode(torch.enable_grad, trained),
    "no_grad": Mode(torch.no_grad),
    "no_grad, same graph": Mode(torch.no_grad, keeps=True),
    "inference_mode": Mode(torch.inference_mode),
    "inference_mode, same graph": Mode(torch.inference_mode, keeps=True),
    "inference_mode, same graph, constant positions": Mode(torch.inference_mode, keeps=True, with_gradients=False),
    "autocast": Mode(lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast, same graph": Mode(lambda: torch.autocast("cpu", torch.bfloat16), keeps=True),
    "autocast to float16 in inference_mode": Mode(lambda: _both(torch.inference_mode(), torch.autocast("cpu", torch.float16))),
    "default device meta": Mode(lambda: torch.device("meta"), may_fail=True),
    "default dtype float64": Mode(lambda: default_dtype(torch.float64)),
    "default dtype bfloat16": Mode(lambda: default_dtype(torch.bfloat16)),
    "FakeTensorMode": Mode(fake_mode, may_fail=True),
    "torch.func.grad": Mode(torch.enable_grad, in_func_grad, may_fail=True),
    "torch.func.grad, same graph": Mode(torch.enable_grad, in_func_grad, may_fail=True, keeps=True),
    "vmap, same graph": Mode(torch.enable_grad, in_vmap, may_fail=True, keeps=True),
    "torch.compile": Mode(torch.no_grad, compiled, with_gradients=False, backends=BACKENDS[1:]),
    "torch.compile in inference_mode": Mode(torch.inference_mode, compiled, with_gradients=False, backends=BACKENDS[1:]),
    "torch.compile in inference_mode, same graph": Mode(
        torch.inference_mode, compiled, keeps=True, with_gradients=False, backends=BACKENDS[1:]
    ),
}

QUICK = {
    "inference_mode": BACKENDS,
    "inference_mode, same graph": BACKENDS,
    "autocast, same graph": ("dense", "cpp"),
    "default device meta": ("cpp", "triton"),
    "FakeTensorMode": ("torch",),
    "torch.func.grad, same graph": ("cpp",),
    "torch.compile in inference_mode, same graph": ("torch",),
}
"""What is tried without the argument ``all``, by mode."""


@contextlib.contextmanager
def _both(first: Any, second: Any) -> Iterator[None]:
    with first, second:
        yield


def run(backend: str, mode: Mode, truth: dict[str, Tensor]) -> str:
    model = make_model()
    inputs = make_inputs(with_geometry=mode.keeps, with_gradients=mode.with_gradients)
    with se3_fast.backend(backend):
        try:
            with mode.context():
                mode.call(model, inputs)
        except Exception:
            if not mode.may_fail:
                raise
        torch._dynamo.reset()
        found = train(model, inputs if mode.keeps else make_inputs(with_gradients=mode.with_gradients))
    assert found.keys() == truth.keys()
    errors = {name: float((value - truth[name]).norm() / max(float(truth[name].norm()), 1e-3)) for name, value in found.items()}
    return "".join(f"{name}: relative error {error:.1e}\n" for name, error in errors.items() if not error < TOLERANCE)


def choose_order(order: str) -> None:
    ConvSE3.contraction_order = "source" if order == "by source" else "edge"


def in_fork(function: Callable[[], str]) -> str:
    """What a function returns, or its traceback, from a fork of this process."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = function()
        except BaseException:
            text = traceback.format_exc(limit=-6)
        with os.fdopen(writable, "w") as stream:
            stream.write(text)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return text if status == 0 else f"{text}\nended with status {status}"


def main() -> None:
    torch.set_num_threads(1)

    def of_dense(with_gradients: bool) -> str:
        with se3_fast.backend("dense"):
            found = train(make_model(), make_inputs(with_gradients=with_gradients))
        return json.dumps({name: value.tolist() for name, value in found.items()})

    truths = {}
    for with_gradients in (True, False):
        listed = json.loads(in_fork(lambda flag=with_gradients: of_dense(flag)))  # type: ignore[misc]
        truths[with_gradients] = {name: torch.tensor(value, dtype=torch.float64) for name, value in listed.items()}
    results = {}
    is_complete = sys.argv[1:] == ["all"]
    for mode_name, mode in MODES.items():
        for backend in mode.backends if is_complete else QUICK.get(mode_name, ()):
            for order in ORDERS if is_complete and "inference_mode" in mode_name and backend != "dense" else ORDERS[:1]:

                def case(mode: Mode = mode, backend: str = backend, order: str = order) -> str:
                    choose_order(order)
                    return run(backend, mode, truths[mode.with_gradients])

                results[f"{mode_name}, {backend}, {order}"] = in_fork(case)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
