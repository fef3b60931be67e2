"""How many launches one training step issues to the device: ``python -m bench.launches [WORKLOAD] [--amp]``, backend ``triton``.

A step is: gradients set to none, a forward pass on a batch of which edge orders and edges without length are known (as of data
resident on the device), a backward pass, and one step of the fused AdamW optimizer.

With a CUDA device, what PyTorch's profiler saw on it is counted: kernels, copies and fills. Without one, the operations issued are
counted instead: every launch of a Triton kernel (asked for through Triton's interpreter, but not carried out), and every PyTorch
operation that the dispatcher sees and that is neither a view nor an allocation. Most of those are one kernel on a GPU; sorts, long
sums, concatenations of more than a hundred tensors and the update of the optimizer can be several, and a matrix product may be two.
The output says which of the two it is.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import se3_fast
from bench.workloads import BUILDERS, DEVICE, Workload, build
from se3_fast import AttentionBlockSE3, ConvSE3, EdgeGeometry, Graph, NormSE3, SE3Transformer
from se3_fast.layers import AttentionSE3, GPooling, LinearSE3

LAYERS = (AttentionBlockSE3, AttentionSE3, ConvSE3, GPooling, LinearSE3, NormSE3)
"""Layers that launches are counted for; those of other modules are under ``model``."""

SIZES = {"qm9": 240, "qm9_complete": 32, "protein_full": 300, "protein_refine": 300, "protein_wide": 300}
"""Those of DESIGN section 5; molecules of a batch, or residues."""

NOT_LAUNCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
"""Operations that only allocate, or return a view though they are not marked as views."""

NOT_COUNTED = ("profiler", "se3_fast")
"""Name spaces of operations that consist of others, which are counted, or of nothing."""


@dataclass
class Launches:
    """Launches by what issued them (a kind of layer, or the phase of the step) and their name."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def table(self) -> str:
        """A Markdown table: launches by issuer, and by name."""
        issuers = list(dict.fromkeys(issuer for issuer, _ in sorted(self.counts)))
        lines = [f"| name | all | {' | '.join(issuers)} |", "|---" * (len(issuers) + 2) + "|"]
        by_name: Counter[str] = Counter()
        for (_, name), count in self.counts.items():
            by_name[name] += count
        for name, total in by_name.most_common():
            cells = [str(self.counts[issuer, name] or "") for issuer in issuers]
            lines.append(f"| {name} | {total} | {' | '.join(cells)} |")
        totals = [sum(count for (of, _), count in self.counts.items() if of == issuer) for issuer in issuers]
        return "\n".join([*lines, f"| all | {self.counts.total()} | {' | '.join(map(str, totals))} |"])


def training_step(workload: Workload, optimizer: torch.optim.Optimizer, is_amp: bool) -> None:
    """One training step on the workload's batch, as if the batch were new: nothing is kept from one step to the next."""
    fresh = as_if_new(workload)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE.type, torch.float16, enabled=is_amp):
        loss = fresh.forward()
    loss.backward()
    optimizer.step()


def inference_step(workload: Workload, is_amp: bool) -> None:
    """A forward pass on the workload's batch without gradients, as if the batch were new."""
    fresh = as_if_new(workload)
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.float16, enabled=is_amp):
        fresh.model(*fresh.inputs)


def as_if_new(workload: Workload) -> Workload:
    """With a graph of which nothing is known but its edge orders, and that no edge is without length."""
    graph, nodes, edges = workload.inputs
    fresh = Graph.from_orders(
        graph.src,
        graph.dst,
        graph.incoming(),
        graph.outgoing(),
        graph.batch_num_nodes(),
        graph.batch_num_edges(),
        graph.ndata,
        graph.edata,
    )
    max_degree = next(module.max_degree for module in workload.model.modules() if isinstance(module, SE3Transformer))
    geometry = EdgeGeometry(graph.edata["rel_pos"], max_degree, zero_length_edges=graph.src.new_empty(0))
    return Workload(workload.model, (fresh, nodes, edges, geometry))


def count(workload: Workload, is_amp: bool) -> Launches:
    """The launches of one training step, the second one, so that nothing is counted that is made once per process."""
    optimizer = torch.optim.AdamW(workload.model.parameters(), fused=True)

    def step() -> None:
        training_step(workload, optimizer, is_amp)

    if DEVICE.type == "cuda":
        step()
        return _profiled(step)
    with OperationCounter() as counter, counter.of_kernels():
        step()
        counter.launches.counts.clear()
        step()
    return counter.launches


def _profiled(step: Callable[[], None]) -> Launches:
    """What the profiler sees on the device; it does not know which layer it belongs to."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    launches = Launches()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launches.counts["step", event.name] += 1
    return launches


class OperationCounter(TorchDispatchMode):
    """Counts dispatched operations by the layer that issues them, in the backward pass by the layer that made the autograd node."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = Launches()
        self._stack: list[str] = []
        self._spans: list[tuple[int, int, str]] = []  # first and last number of the autograd nodes that a layer made
        self._forwards = {kind: kind.forward for kind in LAYERS}

    def __enter__(self) -> OperationCounter:
        for kind, forward in self._forwards.items():  # not by hooks: layers that have any are computed in another way
            kind.forward = self._followed(forward)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for kind, forward in self._forwards.items():
            kind.forward = forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if not func.is_view and name not in NOT_LAUNCHED and func.namespace not in NOT_COUNTED:
            self.add(name, _touched(func, args, kwargs or {}, result))
        return result

    def add(self, name: str, touched: Sequence[Tensor] = ()) -> None:
        """Count one launch; ``touched``: what an operation reads, and what it writes."""
        self.launches.counts[self.issuer(name), name] += 1

    @contextmanager
    def of_kernels(self) -> Iterator[None]:
        """Count launches of Triton kernels instead of interpreting them; what they would write stays as it is allocated."""
        from triton.runtime.interpreter import GridExecutor

        launch = GridExecutor.__call__
        GridExecutor.__call__ = lambda executor, *args, **kwargs: self.add(kernel_name(executor.fn))
        try:
            yield
        finally:
            GridExecutor.__call__ = launch

    def _followed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def follow(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._enter_layer(module)
            result = forward(module, *args, **kwargs)
            self._leave_layer(module)
            return result

        return follow

    def _enter_layer(self, module: nn.Module) -> None:
        self._stack.append(type(module).__name__)
        self._spans.append((torch.autograd._get_sequence_nr(), -1, type(module).__name__))

    def _leave_layer(self, module: nn.Module) -> None:
        name = self._stack.pop()
        position = max(place for place, (_, stop, layer) in enumerate(self._spans) if stop < 0 and layer == name)
        self._spans[position] = (self._spans[position][0], torch.autograd._get_sequence_nr(), name)

    def issuer(self, name: str) -> str:
        """The kind of layer that issues a launch, or the phase of the step."""
        if "adam" in name or name == "_foreach_add_":
            return "optimizer"
        node = torch._C._current_autograd_node()
        if node is None:
            return self._stack[-1] if self._stack else "model"
        number = node._sequence_nr()
        layers = [layer for start, stop, layer in self._spans if start <= number < stop]
        return layers[-1] if layers else "model"  # the innermost was entered last


def _touched(operation: Any, args: Any, kwargs: Any, result: Any) -> list[Tensor]:
    """The tensors that an operation reads or returns, and once more those that it overwrites."""
    arguments = operation._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    overwritten = [given.get(argument.name) for argument in arguments if argument.alias_info and argument.alias_info.is_write]
    different = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result))}
    return [leaf for leaf in (*different.values(), *tree_leaves(overwritten)) if isinstance(leaf, Tensor)]


def kernel_name(kernel: Any) -> str:
    """Module and name of a kernel, such as ``linear.forward``."""
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__.removeprefix('_').removesuffix('_kernel')}"


def main() -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?", default="qm9", choices=list(BUILDERS), help="model and batch (default: qm9)")
    parser.add_argument("--amp", action="store_true", help="under autocast to float16")
    arguments = parser.parse_args()
    if DEVICE.type != "cuda":
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    with se3_fast.backend("triton"):
        launches = count(build(arguments.workload, SIZES[arguments.workload]), arguments.amp)
    kind = "kernels, copies and fills on the device" if DEVICE.type == "cuda" else "operations issued, counted without a GPU"
    precision = "autocast to float16" if arguments.amp else "float32"
    print(f"{arguments.workload}, {precision}: {launches.counts.total()} launches per training step ({kind})\n")
    print(launches.table())


if __name__ == "__main__":
    main()
