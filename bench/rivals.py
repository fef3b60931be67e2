"""The convolution by others, where they are installed, beside ours: ``python -m bench.rivals``.

Each is given our graph, our node features and our radial profile; its result and its gradients are compared with ours before it is
timed. Libraries of tensor products take the weights of every edge from memory, so each has the same radial profile before it, a
matrix product with its last layer included, and gather and sum around it where it has none of its own.

Paths and scales of a library are not assumed but found: a tensor product is linear in its weights, so the response to one weight at
a time says which coupling (d_in, J, d_out) of ours that weight scales, and by how much (:func:`matched_paths`).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import se3_fast
from bench import plots
from bench.convolution import ComparedConvolution, OurConvolution, convolution
from bench.environment import device_name, device_title
from bench.peak_memory import peak_of_step
from bench.timing import change_slightly, keep_freed_memory, times_in_turns
from bench.workloads import BACKENDS, DEVICE, Workload
from se3_fast import Graph
from se3_fast.backends.dense.basis import spherical_harmonics
from se3_fast.fiber import Features
from se3_fast.so3 import wigner_3j

NUM_EDGES = 10_000 if DEVICE.type == "cuda" else 300
ROUNDS = 9 if DEVICE.type == "cuda" else 3
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Largest relative RMS difference from ours, of every output and gradient."""

PROBES = 4
"""Random operands that a path is recognised by: one would not tell the paths to degree 0 apart."""


class RivalError(RuntimeError):
    """A rival does not compute the function that it is compared for."""


class TensorProductConvolution(ComparedConvolution):
    """A tensor product with weights per edge, made the same function as ours.

    Args:
        ours: whose node features and radial profile are taken over.
        graph: its edges.
    """

    def __init__(self, ours: OurConvolution, graph: Graph) -> None:
        super().__init__()
        plan = ours.convolution.plan
        (group,) = plan.groups
        self.max_degree, self.channels = plan.max_degree, group.channels_in
        (profile,) = ours.convolution.radial_profiles
        self.hidden = copy.deepcopy(profile.net[:-1])
        nodes = [ours.nodes[str(degree)].detach().flatten(1) for degree in range(self.max_degree + 1)]
        self.nodes = nn.Parameter(torch.cat(nodes, 1))  # [N, sum of C (2d+1)]
        harmonics = spherical_harmonics(ours.rel_pos.to(self.nodes), 2 * self.max_degree)
        self.harmonics = torch.cat(harmonics, 1)  # [E, sum of 2J+1]
        self.graph = graph
        with _default_dtype(self.nodes.dtype):  # in which libraries keep their constants
            self.build(self.nodes.dtype)
        self._take_over(profile.last_weight.detach(), group.num_paths)

    @abstractmethod
    def build(self, dtype: torch.dtype) -> None:
        """Make the library's tensor product, for ``channels`` of the degrees 0..``max_degree`` and harmonics up to twice that."""

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        """Sums over incoming edges: gather, the library's product, sum; a library may do all of that itself.

        Args:
            nodes: [N, sum of C (2d+1)], a degree after the other, each [C, 2d+1].
            harmonics: [E, sum of 2J+1].
            weights: [E, P * C * C].
            graph: the edges.

        Returns:
            As ``nodes``.
        """
        return _summed(self.library(nodes[graph.src], harmonics, weights), graph)

    def weight_order(self, count: int) -> Tensor:
        """Where the library's weights stand in the order (path, channel in, channel out)."""
        return torch.arange(count, device=self.nodes.device)

    def _take_over(self, last_weight: Tensor, num_paths: int) -> None:
        """Bring the rows of the last radial weight into the library's order and scale."""
        paths, scales = matched_paths(self, num_paths)
        ours = last_weight.view(self.channels, self.channels, num_paths, -1)  # [C_out, C_in, F, K]
        numbers = torch.arange(ours[..., 0].numel(), device=last_weight.device).view(ours.shape[:3])
        rows = numbers.permute(2, 1, 0)[paths].flatten()  # the library's (path, channel in, channel out)
        order = self.weight_order(len(rows))
        self.rows = rows[order]
        self.scales = scales.repeat_interleave(self.channels**2)[order].unsqueeze(1)
        self.last_weight = nn.Parameter(last_weight[self.rows] / self.scales)

    def forward(self, graph: Graph, invariants: Tensor) -> Features:
        """Radial profile, then the library."""
        weights = F.linear(self.hidden(invariants.squeeze(-1)), self.last_weight)
        return self._by_degree(self.convolve(self.nodes, self.harmonics, weights, graph))

    def gradients(self) -> list[Tensor]:
        """In our layout."""
        last = torch.empty_like(self.last_weight)
        last[self.rows] = self.last_weight.grad / self.scales
        hidden = [parameter.grad for parameter in self.hidden.parameters()]
        return [*self._by_degree(self.nodes.grad).values(), *hidden, last]

    def _by_degree(self, values: Tensor) -> Features:
        degrees = range(self.max_degree + 1)
        parts = values.split([self.channels * (2 * degree + 1) for degree in degrees], 1)
        return {str(degree): part.unflatten(1, (self.channels, -1)) for degree, part in zip(degrees, parts, strict=True)}


def matched_paths(library: TensorProductConvolution, num_paths: int) -> tuple[Tensor, Tensor]:
    """Which of our paths each of the library's is, and how many times larger it is than ours.

    Returns:
        Numbers on our path axis [P] int64, and factors [P].

    Raises:
        RivalError: if a path of the library is none of ours.
    """
    nodes, harmonics, graph, weights = _probes(library, num_paths)
    with torch.no_grad():
        responses = library.convolve(nodes, harmonics, weights, graph)[: num_paths * PROBES]
    ours = _couplings(library, nodes[-PROBES:], harmonics[:PROBES])  # [P, PROBES * S]
    theirs = _first_channel(library, responses).double().view(num_paths, -1)
    products = theirs @ ours.T  # [library's path, our path]
    scales = products / ours.square().sum(1)
    differences = (theirs[:, None] - scales[..., None] * ours).square().sum(2) / theirs.square().sum(1, keepdim=True)
    best = differences.min(1)
    tolerance = TOLERANCE[nodes.dtype] ** 2
    if not (best.values < tolerance).all() or len(best.indices.unique()) != num_paths:
        raise RivalError(f"paths: expected those of ours, got {int((best.values >= tolerance).sum())} of {num_paths} that are none")
    return best.indices, scales.gather(1, best.indices[:, None]).squeeze(1).to(nodes)


def _probes(library: TensorProductConvolution, num_paths: int) -> tuple[Tensor, Tensor, Graph, Tensor]:
    """Node features, harmonics, edges and weights: to a node of its own for every path and probe, from the probe's node."""
    like = library.nodes
    generator = torch.Generator().manual_seed(0)
    sizes = (like.shape[1], library.harmonics.shape[1])
    sources, angular = (torch.randn(PROBES, size, generator=generator, dtype=torch.float64).to(like) for size in sizes)
    count = num_paths * PROBES
    dst = torch.arange(count, device=like.device)
    graph = Graph(count + dst % PROBES, dst, count + PROBES)
    nodes = torch.cat([sources.new_zeros(count, sources.shape[1]), sources])
    weights = like.new_zeros(num_paths, num_paths, library.channels**2)
    weights[range(num_paths), range(num_paths), 0] = 1.0
    weights = weights.flatten(1)
    weights = weights[:, library.weight_order(weights.shape[1])]
    return nodes, angular.repeat(num_paths, 1), graph, weights.repeat_interleave(PROBES, 0)


def _couplings(library: TensorProductConvolution, nodes: Tensor, harmonics: Tensor) -> Tensor:
    """Our couplings of the first channel, by path: [P, PROBES * S] float64 with S components of all degrees."""
    degrees = range(library.max_degree + 1)
    inputs = _first_channel(library, nodes).double().split([2 * degree + 1 for degree in degrees], 1)
    angular = harmonics.double().split([2 * degree + 1 for degree in range(2 * library.max_degree + 1)], 1)
    size = len(degrees) ** 2
    paths = []
    for degree_out, degree_in in product(degrees, repeat=2):
        for degree in range(abs(degree_in - degree_out), degree_in + degree_out + 1):
            coupling = wigner_3j(degree, degree_in, degree_out).to(nodes.device)
            values = torch.einsum("em,mlk,el->ek", angular[degree], coupling, inputs[degree_in])
            before = degree_out**2
            paths.append(F.pad(values, (before, size - before - values.shape[1])).flatten())
    return torch.stack(paths)


def _first_channel(library: TensorProductConvolution, values: Tensor) -> Tensor:
    """[N, sum of C (2d+1)] to [N, sum of 2d+1]."""
    return torch.cat([part[:, 0] for part in library._by_degree(values).values()], 1)


def _irreps(library: TensorProductConvolution) -> tuple[str, str]:
    """Of the node features and of the harmonics. All of even parity: the function is made of every coupling of rotations."""
    nodes = "+".join(f"{library.channels}x{degree}e" for degree in range(library.max_degree + 1))
    return nodes, "+".join(f"1x{degree}e" for degree in range(2 * library.max_degree + 1))


def _instructions(max_degree: int) -> list[tuple[int, int, int, str, bool]]:
    """Every coupling, each with a weight for every pair of channels."""
    return [
        (degree_in, degree, degree_out, "uvw", True)
        for degree_in, degree_out in product(range(max_degree + 1), repeat=2)
        for degree in range(abs(degree_in - degree_out), degree_in + degree_out + 1)
    ]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _summed(messages: Tensor, graph: Graph) -> Tensor:
    return messages.new_zeros(graph.num_nodes(), messages.shape[1]).index_add_(0, graph.dst, messages)


class E3nnConvolution(TensorProductConvolution):
    """``e3nn.o3.TensorProduct``."""

    def build(self, dtype: torch.dtype) -> None:
        """Without normalisation of its own."""
        from e3nn import o3

        nodes, harmonics = _irreps(self)
        self.library = o3.TensorProduct(
            nodes,
            harmonics,
            nodes,
            _instructions(self.max_degree),
            irrep_normalization="none",
            path_normalization="none",
            shared_weights=False,
            internal_weights=False,
        ).to(self.nodes.device, dtype)


class CuEquivarianceConvolution(TensorProductConvolution):
    """``cuequivariance_torch.FullyConnectedTensorProduct``: its CUDA kernels on a GPU, its PyTorch form on a CPU."""

    def build(self, dtype: torch.dtype) -> None:
        """In e3nn's basis and layout."""
        import cuequivariance
        from cuequivariance.group_theory.experimental.e3nn import O3_e3nn
        from cuequivariance_torch import FullyConnectedTensorProduct

        nodes, harmonics = (cuequivariance.Irreps(O3_e3nn, text) for text in _irreps(self))
        self.library = FullyConnectedTensorProduct(
            nodes,
            harmonics,
            nodes,
            layout=cuequivariance.mul_ir,
            shared_weights=False,
            internal_weights=False,
            device=self.nodes.device,
            dtype=dtype,
            method="fused_tp" if self.nodes.device.type == "cuda" else "naive",
        )


class OpenEquivarianceConvolution(TensorProductConvolution):
    """``openequivariance.TensorProductConv``, which gathers and sums by itself; CUDA only."""

    def build(self, dtype: torch.dtype) -> None:
        """Without normalisation of its own."""
        import numpy
        import openequivariance

        nodes, harmonics = _irreps(self)
        kind = {torch.float32: numpy.float32, torch.float64: numpy.float64}[dtype]
        problem = openequivariance.TPProblem(
            nodes,
            harmonics,
            nodes,
            _instructions(self.max_degree),
            irrep_normalization="none",
            path_normalization="none",
            shared_weights=False,
            internal_weights=False,
            irrep_dtype=kind,
            weight_dtype=kind,
        )
        self.library = openequivariance.TensorProductConv(problem, deterministic=False)

    def weight_order(self, count: int) -> Tensor:
        """Its own, read off the numbers 0..count - 1."""
        numbers = torch.arange(count, device=self.nodes.device, dtype=self.nodes.dtype).unsqueeze(0)
        return self.library.reorder_weights_from_e3nn(numbers, has_batch_dim=True).squeeze(0).round().long()

    def convolve(self, nodes: Tensor, harmonics: Tensor, weights: Tensor, graph: Graph) -> Tensor:
        """Rows are destinations, columns sources."""
        return self.library(nodes, harmonics, weights, graph.dst, graph.src)


class OriginalConvolution(ComparedConvolution):
    """The published implementation's ConvSE3, fully fused, with its bases made before.

    Args:
        ours: whose node features and parameters are taken over.
        graph: its edges; a DGLGraph is made of them.
    """

    def __init__(self, ours: OurConvolution, graph: Graph) -> None:
        super().__init__()
        import dgl
        from se3_transformer.model.basis import get_basis, update_basis_with_fused
        from se3_transformer.model.fiber import Fiber
        from se3_transformer.model.layers.convolution import ConvSE3, ConvSE3FuseLevel

        plan = ours.convolution.plan
        degree = plan.max_degree
        self.convolution = ConvSE3(
            fiber_in=Fiber(dict(plan.node_channels)),
            fiber_out=Fiber(dict(plan.channels_out)),
            fiber_edge=Fiber(dict(ours.convolution.fiber_edge.structure)),
            pool=True,
            use_layer_norm=True,
            max_degree=degree,
            fuse_level=ConvSE3FuseLevel.FULL,
        ).to(ours.rel_pos.device, ours.rel_pos.dtype)
        self.convolution.load_state_dict(ours.convolution.state_dict())
        self.nodes = copy.deepcopy(ours.nodes)
        bases = get_basis(ours.rel_pos, max_degree=degree, compute_gradients=False, use_pad_trick=False, amp=False)
        self.basis = update_basis_with_fused(bases, degree, use_pad_trick=False, fully_fused=True)
        self.dgl_graph = dgl.graph((graph.src, graph.dst), num_nodes=graph.num_nodes())

    def forward(self, graph: Graph, invariants: Tensor) -> Features:
        """Convolve."""
        return self.convolution(dict(self.nodes.items()), {"0": invariants}, self.dgl_graph, self.basis)

    def gradients(self) -> list[Tensor]:
        """Its layout is ours."""
        return [parameter.grad for parameter in (*self.nodes.values(), *self.convolution.conv.radial_func.parameters())]


@dataclass(frozen=True)
class Rival:
    """Who is compared.

    Attributes:
        package: what pip installs.
        module: what is imported.
        make: makes the convolution from ours and its graph.
    """

    package: str
    module: str
    make: Callable[[OurConvolution, Graph], ComparedConvolution]

    @cached_property
    def missing(self) -> str | None:
        """Why it is not there, or None where it is."""
        try:
            found = importlib.import_module(self.module)
        except ImportError as error:
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == self.module
            return "not installed" if is_absent else f"does not import: {error}"
        if Path(se3_fast.__file__).parent in Path(found.__file__ or "").parents:
            return "not installed"  # it is se3_fast.compat that stands in for it
        return None

    @property
    def version(self) -> str | None:
        """Of the package; None where it has none."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


RIVALS = {
    "e3nn": Rival("e3nn", "e3nn", E3nnConvolution),
    "cuEquivariance": Rival("cuequivariance-torch", "cuequivariance_torch", CuEquivarianceConvolution),
    "OpenEquivariance": Rival("openequivariance", "openequivariance", OpenEquivarianceConvolution),
    "original": Rival("se3-transformer", "se3_transformer", OriginalConvolution),
}


def workload_of(name: str, num_edges: int, max_degree: int = 3, dtype: torch.dtype = torch.float32) -> Workload:
    """The convolution by a backend or a rival; all have the same parameters and inputs."""
    workload = convolution(num_edges, max_degree, backend=name if name in BACKENDS else BACKENDS[-1], dtype=dtype)
    if name in BACKENDS:
        return workload
    model = RIVALS[name].make(workload.model, workload.graph)
    return Workload(model.to(DEVICE), workload.inputs)


def difference(rival: Workload, ours: Workload) -> float:
    """The largest relative RMS difference of outputs and gradients between two convolutions.

    Raises:
        RivalError: if it exceeds :data:`TOLERANCE`.
    """
    values = []
    for workload in (rival, ours):
        with torch.no_grad():
            outputs = list(workload.model(*workload.inputs).values())
        workload.forward_backward()
        values.append([*outputs, *workload.model.gradients()])
    largest = 0.0
    for number, (value, truth) in enumerate(zip(*values, strict=True)):
        error = float((value.double() - truth.double()).norm() / truth.double().norm())
        if not error <= TOLERANCE[truth.dtype]:
            what = f"output {number}" if number < len(outputs) else f"gradient {number - len(outputs)}"
            raise RivalError(f"{what}: expected ours to {TOLERANCE[truth.dtype]:g}, got a relative difference of {error:.3g}")
        largest = max(largest, error)
    return largest


def compared() -> list[str]:
    """All names: our backends, then the rivals, installed or not."""
    return [*BACKENDS, *RIVALS]


def missing(name: str) -> str | None:
    """Why there is nothing to measure of a name; None where there is."""
    return RIVALS[name].missing if name in RIVALS else None


def measure(name: str, num_edges: int = NUM_EDGES) -> dict[str, Any]:
    """Check a backend or rival against our fastest backend, then time it with ours taking turns.

    Returns:
        ``version``, ``nodes``, ``edges``, ``difference``; ``forward_ms``, ``step_ms`` (forward and backward), ``times_ours`` (ratio
        of the steps); ``peak_MiB`` of a step.

    Raises:
        RivalError: if it computes something else.
    """
    rival = RIVALS.get(name)
    workload, ours = workload_of(name, num_edges), workload_of(BACKENDS[-1], num_edges)
    result: dict[str, Any] = {"version": rival.version if rival else None}
    result |= {"nodes": ours.graph.num_nodes(), "edges": num_edges, "difference": difference(workload, ours)}
    steps = {
        "forward_ms": workload.forward_only,
        "step_ms": workload.forward_backward,
        "ours": ours.forward_backward,
    }
    parameters = [*workload.model.parameters(), *ours.model.parameters()]
    times = times_in_turns(steps, ROUNDS, partial(change_slightly, parameters))
    result |= {"times_ours": times["step_ms"] / times.pop("ours"), **times}
    del workload, ours, steps
    return result | {"peak_MiB": peaks(name, [(num_edges, 3)])[0] / 2**20}


def peaks(name: str, points: Sequence[tuple[int, int]]) -> list[int]:
    """Peak bytes of a step above what goes before it, for every (edges, largest degree); on the CPU in a process of its own.

    Raises:
        RuntimeError: if that process fails.
    """
    if DEVICE.type == "cuda":
        return [peak_of_step(workload_of(name, *point)) for point in points]
    texts = [f"{edges},{degree}" for edges, degree in points]
    command = [sys.executable, "-m", "bench.rivals", "--peaks", name, *texts]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{name}: {(finished.stderr.strip().splitlines() or ['ended by the system'])[-1]}")
    return [int(line) for line in finished.stdout.split()]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| convolution | version | forward, ms | forward+backward, ms | times ours | peak MiB | relative difference from ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], row.get("version") or ""]
        if "step_ms" in row:
            cells += [f"{row['forward_ms']:.1f}", f"{row['step_ms']:.1f}", f"{row['times_ours']:.1f}", f"{row['peak_MiB']:.0f}"]
            cells.append(f"{row['difference']:.1e}")
        else:
            cells += [row["reason"], "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """A plot of the rows with figures, in this folder."""
    title = f"One convolution, degrees 0 to 3, 32 channels, {NUM_EDGES:,} edges, float32, {device_title()}"
    plots.plot_rivals(rows, title, folder / f"rivals_{device_name()}.png")


def rows(num_edges: int = NUM_EDGES) -> Iterator[dict[str, Any]]:
    """A row for every name; where there is no figure, the ``reason``."""
    keep_freed_memory()
    for name in compared():
        if missing(name):
            yield {"name": name, "reason": missing(name)}
            continue
        try:
            yield {"name": name} | measure(name, num_edges)
        except Exception as error:
            yield {"name": name, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> int:
    """Print the table; or, for :func:`peaks`, the peak bytes of some sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=NUM_EDGES, help="size of the graph")
    parser.add_argument("--peaks", nargs="+", metavar="NAME EDGES,DEGREE", help="print the peak bytes of steps by NAME")
    arguments = parser.parse_args()
    if arguments.peaks:
        name, *points = arguments.peaks
        for point in points:
            edges, degree = map(int, point.split(","))
            print(peak_of_step(workload_of(name, edges, degree)), flush=True)
    else:
        print(table(rows(arguments.edges)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
