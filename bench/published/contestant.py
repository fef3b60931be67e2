"""One contestant, in a process of its own: its model of a workload, what it computes, and what that takes.

The parameters and the batch of a workload are written by ours (:func:`write_workload`) and read by all.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import se3_fast
from bench.environment import commit_of, environment
from bench.peak_memory import give_back_freed_memory, peak_memory
from bench.timing import change_slightly, keep_freed_memory
from bench.workloads import DESCRIPTIONS, Workload, build
from se3_fast import Graph
from se3_fast.backends.choice import selected_backend
from se3_fast.compat import folders

PUBLISHED = "se3_transformer"
TOLERANCE = 1e-4
"""Largest relative RMS difference from ours, of every output and gradient."""

_workloads: list[Workload] = []
"""The one that was read last."""


def start_ours(folder: str, threads: int, keeps_freed_memory: bool) -> dict[str, Any]:
    """Be a checkout of ours.

    Args:
        folder: that holds ``se3_fast``.
        threads: that compute.
        keeps_freed_memory: whether the C library keeps what is freed.

    Returns:
        Its commit and backend, and the environment.

    Raises:
        ImportError: if ``se3_fast`` is not that of the folder.
    """
    _set(threads, keeps_freed_memory)
    check_origin(se3_fast, folder)
    details = {"commit": commit_of(Path(folder)), "backend": selected_backend(torch.device("cpu"))}
    return details | {"environment": environment()}


def start_published(folder: str, threads: int, keeps_freed_memory: bool) -> dict[str, Any]:
    """Be the published program, on DGL if it is installed and else on what stands in for it here.

    Args:
        folder: that holds ``se3_transformer``.
        threads: that compute.
        keeps_freed_memory: whether the C library keeps what is freed.

    Returns:
        Its commit, the digest of its files, and the versions of DGL and e3nn.

    Raises:
        ImportError: if it does not import, or is not that of the folder.
    """
    _set(threads, keeps_freed_memory)
    sys.path += [str(path) for path in folders(with_dgl=True) if (path / "dgl").is_dir()]
    if not torch.cuda.is_available():
        torch.cuda.nvtx.range = nullcontext  # marks for a profiler, which PyTorch without CUDA refuses to make
    check_origin(importlib.import_module(PUBLISHED), folder)
    files = sorted(Path(folder, PUBLISHED, "model").rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return {"commit": commit_of(Path(folder)), "sha256_of_model": digest, "dgl": _dgl(), "e3nn": _version("e3nn")}


def _set(threads: int, keeps_freed_memory: bool) -> None:
    torch.set_num_threads(threads)
    if keeps_freed_memory:
        keep_freed_memory()


def check_origin(module: Any, folder: str) -> None:
    """Raise an ImportError if a module does not come from a folder."""
    if Path(folder).resolve() not in Path(module.__file__).resolve().parents:
        raise ImportError(f"{module.__name__}: expected that of {folder}, got {module.__file__}")


def _dgl() -> str:
    module = importlib.import_module("dgl")
    is_ours = Path(se3_fast.__file__).parent in Path(module.__file__ or "").parents
    return "se3_fast.compat" if is_ours else str(module.__version__)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_workload(name: str, size: int, path: str) -> dict[str, int]:
    """Write the parameters and the batch of a workload; its nodes and edges."""
    workload = build(name, size)
    graph, nodes, edges = workload.inputs
    values = {
        "parameters": workload.model.state_dict(),
        "edges": (graph.src, graph.dst, graph.edata["rel_pos"]),
        "sizes": (graph.batch_num_nodes(), graph.batch_num_edges()),
        "features": (nodes, edges),
    }
    torch.save(values, path)
    return {"nodes": graph.num_nodes(), "edges": graph.num_edges()}


def read_ours(name: str, path: str) -> None:
    """Make our model of a workload."""
    _read(name, path, se3_fast, _graph)


def read_published(name: str, path: str) -> None:
    """Make the published model of a workload."""
    _read(name, path, importlib.import_module(f"{PUBLISHED}.model"), _dgl_graph)


def _read(name: str, path: str, package: Any, make_graph: Callable[..., Any]) -> None:
    values = torch.load(path, weights_only=True)
    model = DESCRIPTIONS[name].made_by(package)
    model.load_state_dict(values["parameters"])
    _workloads[:] = [Workload(model, (make_graph(*values["edges"], *values["sizes"]), *values["features"]))]


def _graph(src: Tensor, dst: Tensor, rel_pos: Tensor, nodes: Tensor, edges: Tensor) -> Graph:
    return Graph(src, dst, int(nodes.sum()), nodes, edges, edata={"rel_pos": rel_pos})


def _dgl_graph(src: Tensor, dst: Tensor, rel_pos: Tensor, nodes: Tensor, edges: Tensor) -> Any:
    graph = importlib.import_module("dgl").graph((src, dst), num_nodes=int(nodes.sum()))
    graph.set_batch_num_nodes(nodes)
    graph.set_batch_num_edges(edges)
    graph.edata["rel_pos"] = rel_pos
    return graph


def write_values(path: str) -> None:
    """Write the outputs, and the gradients of the parameters and of the features of nodes and edges."""
    (workload,) = _workloads
    graph, *features = workload.inputs
    leaves = [{degree: tensor.clone().requires_grad_() for degree, tensor in part.items()} for part in features]
    inputs = {f"{part} {degree}": leaf for part, of in zip(("node", "edge"), leaves, strict=True) for degree, leaf in of.items()}
    outputs = workload.model(graph, *leaves)
    outputs = outputs if isinstance(outputs, dict) else {"all": outputs}
    operands = inputs | dict(workload.model.named_parameters())
    loss = torch.stack([output.square().mean() for output in outputs.values()]).sum()
    gradients = torch.autograd.grad(loss, list(operands.values()))
    values = {f"output {degree}": output.detach() for degree, output in outputs.items()}
    torch.save(values | {f"gradient {name}": part for name, part in zip(operands, gradients, strict=True)}, path)


def difference(path: str, path_of_ours: str, name: str, tolerance: float = TOLERANCE) -> float:
    """The largest relative RMS difference between what a contestant of a name and ours wrote.

    Raises:
        ValueError: if they wrote other things, or it exceeds the tolerance.
    """
    found, ours = (torch.load(file, weights_only=True) for file in (path, path_of_ours))
    if found.keys() != ours.keys():
        raise ValueError(f"{name}: expected the values of ours, got {sorted(found.keys() ^ ours.keys())} of one alone")
    largest = 0.0
    for value, truth in ours.items():
        error = float((found[value].double() - truth.double()).norm() / truth.double().norm())
        if not error <= tolerance:
            raise ValueError(f"{name}: {value}: expected ours to {tolerance:g}, got a relative difference of {error:.3g}")
        largest = max(largest, error)
    return largest


def seconds_of(direction: str, at_least: float) -> list[float]:
    """Run a pass again and again for so many seconds; the seconds of each time.

    With one thread they are those of the processor, which other processes change little.

    Args:
        direction: ``forward``, or ``forward+backward``: a training step, after which the parameters change, without its optimizer.
        at_least: it runs once, whatever that takes.
    """
    (workload,) = _workloads
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    step = workload.forward_only if direction == "forward" else lambda: _training_step(workload)
    times = []
    end = time.perf_counter() + at_least
    while not times or time.perf_counter() < end:
        start = clock()
        step()
        times.append(clock() - start)
        if direction == "forward+backward":
            change_slightly(workload.model.parameters())
    return times


def _training_step(workload: Workload) -> None:
    workload.model.zero_grad()
    workload.forward().backward()


def peak_bytes() -> int:
    """Peak bytes of the first training steps of a model above model, gradients and batch, with what they keep for later ones."""
    (workload,) = _workloads
    for parameter in workload.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    give_back_freed_memory()
    with peak_memory() as peak:
        for _ in range(2):
            workload.forward_backward()
            change_slightly(workload.model.parameters())
    return peak.bytes
