"""The published implementation's numbers: outputs, every gradient, parameter names and order, file by file.

Each file of the directory ``SE3_FAST_GOLDEN_DIR`` (default: the selection in ``tests/golden``) is run in float64. What to build and
run comes from the file alone; a file of unknown kind fails. Where a file has ``intended.*`` arrays the published formula has a
known fault (the layer-norm branch of NormSE3) and the intended one is the truth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import ConvSE3, ConvSE3FuseLevel, EdgeGeometry, Fiber, Graph
from se3_fast.backends.cpp import library
from se3_fast.backends.dense.basis import spherical_harmonics
from se3_fast.so3 import wigner_3j
from tests.support import TRITON_DEVICE

TOLERANCE = 1e-10
BACKENDS = ("dense", "torch by edge", "torch by source", "cpp by edge", "cpp by source", "triton by edge", "triton by source")
LARGEST_INTERPRETED = {"triton by edge": 120_000, "triton by source": 40_000}
"""Bytes of the largest file that is run through Triton's interpreter."""
DIRECTORY = Path(os.environ.get("SE3_FAST_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
FILES = sorted(DIRECTORY.glob("*.npz"))


class Golden:
    """One file: its configuration and its arrays as float64 (int64 for indices) tensors."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        with np.load(path, allow_pickle=False) as arrays:
            self.config = json.loads(str(arrays["config"]))
            self.arrays = {
                name: torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)).to(device)
                for name in arrays.files
                if name != "config"
                for array in (arrays[name],)
            }

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def truth(self, name: str) -> Tensor:
        """What an output or a gradient must be."""
        return self.arrays.get(f"intended.{name}", self.arrays[name])

    def is_unknown(self, name: str) -> bool:
        """Whether the file has this gradient for the faulty published formula only, though others for the intended one."""
        return bool(self.family("intended.grad")) and f"intended.{name}" not in self.arrays

    def family(self, prefix: str) -> dict[str, Tensor]:
        """All arrays named ``prefix.<rest>``, by <rest>."""
        start = f"{prefix}."
        return {name.removeprefix(start): array for name, array in self.arrays.items() if name.startswith(start)}

    def leaves(self, prefix: str) -> dict[str, Tensor]:
        """The same as leaves that require grad."""
        return {name: array.clone().requires_grad_() for name, array in self.family(prefix).items()}

    def fiber(self, name: str) -> Fiber:
        return Fiber(self.config[name])

    def graph(self, rel_pos: Tensor | None = None) -> Graph:
        return Graph(
            self["src"],
            self["dst"],
            int(self["num_nodes"]),
            self["batch_num_nodes"],
            self["batch_num_edges"],
            edata={} if rel_pos is None else {"rel_pos": rel_pos},
        )


def assert_close(name: str, value: Tensor | None, truth: Tensor) -> None:
    value = torch.zeros_like(truth) if value is None else value
    assert value.shape == truth.shape, f"{name}: shape {list(value.shape)}, expected {list(truth.shape)}"
    scale = truth.norm()
    error = (value - truth).norm() / (scale if scale > 0 else 1.0)
    assert error < TOLERANCE, f"{name}: relative error {error:.2e}"


def check_parameters(golden: Golden, module: nn.Module) -> None:
    names_and_shapes = [[name, list(tensor.shape)] for name, tensor in module.state_dict().items()]
    assert names_and_shapes == golden.config["state_dict"]
    module.load_state_dict(golden.family("param"))


def check_parameter_gradients(golden: Golden, module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    is_intended = bool(golden.family("intended.gradparam"))
    for name in golden.family("gradparam"):
        assert_close(f"gradparam.{name}", parameters[name].grad, golden.truth(f"gradparam.{name}"))
    if is_intended:  # the checksums were taken with the published formula
        return
    for row, name in enumerate(golden.config["gradparam_checksums"]):
        gradient = parameters[name].grad
        gradient = torch.zeros_like(parameters[name]) if gradient is None else gradient
        matrix = gradient.reshape(len(gradient), -1)
        projections = golden["proj_u"][: matrix.shape[0]].double(), golden["proj_w"][: matrix.shape[1]].double()
        assert_sums_close(name, matrix, projections, golden["gradcheck_sum"][row])
        sampled = matrix.flatten()[golden["gradcheck_idx"][row]]
        assert_close(f"gradcheck {name}", sampled, golden["gradcheck_val"][row])


def assert_sums_close(name: str, matrix: Tensor, projections: tuple[Tensor, Tensor], truth: Tensor) -> None:
    """Compare the sum of a matrix, that of its absolute values, and its product with two vectors; relative to the second."""
    left, right = projections
    sums = torch.stack([matrix.sum(), matrix.abs().sum(), left @ matrix @ right])
    size = truth[1]
    error = (sums - truth).abs().max() / (size if size > 0 else 1.0)
    assert error < TOLERANCE, f"gradcheck {name}: relative error {error:.2e}"


def backward_of(outputs: Tensor | dict[str, Tensor], golden: Golden) -> None:
    """Compare the outputs, then differentiate their inner product with the file's cotangents."""
    named = {f".{key}": tensor for key, tensor in outputs.items()} if isinstance(outputs, dict) else {"": outputs}
    assert sorted(named) == sorted(name.removeprefix("out") for name in golden.arrays if name.startswith("out"))
    loss = torch.zeros((), dtype=torch.float64, device=golden.device)
    for suffix, output in named.items():
        assert_close(f"out{suffix}", output.detach(), golden.truth(f"out{suffix}"))
        loss = loss + (output * golden[f"cot{suffix}"]).sum()
    loss.backward()


def run_on_edges(
    golden: Golden,
    build: Callable[[], nn.Module],
    call: Callable[[nn.Module, Graph, dict[str, Tensor], dict[str, Tensor], Any], Any],
    max_degree: int,
    basis_form: str,
) -> None:
    """Run a module on the file's graph and compare everything."""
    module = build().double().to(golden.device)
    check_parameters(golden, module)
    rel_pos = golden["rel_pos"].clone().requires_grad_()
    nodes, edges = golden.leaves("node"), golden.leaves("edge")
    if basis_form == "differentiable geometry":
        basis: Any = EdgeGeometry.from_relative_positions(rel_pos, max_degree)
    elif basis_form == "constant geometry":
        basis = EdgeGeometry.from_relative_positions(rel_pos.detach(), max_degree)
    else:
        is_padded = bool(golden.config.get("use_pad_trick"))
        basis = se3_fast.get_basis(rel_pos.detach(), max_degree, use_pad_trick=is_padded)
        basis = se3_fast.update_basis_with_fused(basis, max_degree, is_padded, fully_fused=True)
    backward_of(call(module, golden.graph(rel_pos), nodes, edges, basis), golden)
    truth = "grad.rel_pos_full" if basis_form == "differentiable geometry" else "grad.rel_pos"
    if not golden.is_unknown(truth):
        assert_close(truth, rel_pos.grad, golden.truth(truth))
    for family, leaves in (("node", nodes), ("edge", edges)):
        for degree, leaf in leaves.items():
            assert_close(f"grad.{family}.{degree}", leaf.grad, golden.truth(f"grad.{family}.{degree}"))
    check_parameter_gradients(golden, module)


def with_length(graph: Graph, edges: dict[str, Tensor]) -> dict[str, Tensor]:
    length = graph.edata["rel_pos"].norm(dim=-1)[:, None, None]
    return {**edges, "0": torch.cat([edges["0"], length], 1) if "0" in edges else length}


def arguments(golden: Golden, *names: str) -> dict[str, Any]:
    return {name: golden.config[name] for name in names}


def run_convolution(golden: Golden, basis_form: str) -> None:
    def build() -> nn.Module:
        module = se3_fast.ConvSE3(
            golden.fiber("fiber_in"),
            golden.fiber("fiber_out"),
            golden.fiber("fiber_edge"),
            fuse_level=ConvSE3FuseLevel[golden.config["fuse_level"]],
            **arguments(golden, "pool", "use_layer_norm", "self_interaction", "max_degree", "allow_fused_output", "low_memory"),
        )
        assert module.used_fuse_level.name == golden.config["used_fuse_level"]
        return module

    run_on_edges(
        golden,
        build,
        call_layer,
        golden.config["max_degree"],
        basis_form,
    )


def call_layer(module: nn.Module, graph: Graph, nodes: dict[str, Tensor], edges: dict[str, Tensor], basis: Any) -> Any:
    return module(nodes, with_length(graph, edges), graph, basis)


def run_attention_block(golden: Golden, basis_form: str) -> None:
    def build() -> nn.Module:
        return se3_fast.AttentionBlockSE3(
            golden.fiber("fiber_in"),
            golden.fiber("fiber_out"),
            golden.fiber("fiber_edge"),
            fuse_level=ConvSE3FuseLevel[golden.config["fuse_level"]],
            **arguments(golden, "num_heads", "channels_div", "use_layer_norm", "max_degree", "low_memory"),
        )

    run_on_edges(
        golden,
        build,
        call_layer,
        golden.config["max_degree"],
        basis_form,
    )


MODEL_ARGUMENTS = (
    "num_layers",
    "num_heads",
    "channels_div",
    "norm",
    "use_layer_norm",
    "tensor_cores",
    "low_memory",
    "pooling",
)


def run_model(golden: Golden, basis_form: str) -> None:
    fibers = {name: golden.fiber(name) for name in ("fiber_in", "fiber_out", "fiber_edge")}
    if golden.config["kind"] == "SE3TransformerPooled":
        more = arguments(golden, *MODEL_ARGUMENTS, "num_degrees", "num_channels", "output_dim")
        max_degree = golden.config["num_degrees"] - 1

        def build() -> nn.Module:
            return se3_fast.SE3TransformerPooled(**fibers, **more)
    else:
        more = arguments(golden, *MODEL_ARGUMENTS, "return_type")
        hidden = golden.fiber("fiber_hidden")
        max_degree = max(*fibers["fiber_in"].degrees, *hidden.degrees, *fibers["fiber_out"].degrees)

        def build() -> nn.Module:
            return se3_fast.SE3Transformer(**fibers, fiber_hidden=hidden, **more)

    run_on_edges(
        golden,
        build,
        lambda module, graph, nodes, edges, basis: module(graph, nodes, edges, basis),
        max_degree,
        basis_form,
    )


def run_norm(golden: Golden) -> None:
    module = se3_fast.NormSE3(golden.fiber("fiber")).double().to(golden.device)
    check_parameters(golden, module)
    nodes = golden.leaves("node")
    backward_of(module(nodes), golden)
    for degree, leaf in nodes.items():
        assert_close(f"grad.node.{degree}", leaf.grad, golden.truth(f"grad.node.{degree}"))
    check_parameter_gradients(golden, module)


def run_pooling(golden: Golden) -> None:
    module = se3_fast.GPooling(**arguments(golden, "pool", "feat_type"))
    nodes = golden.leaves("node")
    backward_of(module(nodes, golden.graph()), golden)
    for degree, leaf in nodes.items():
        assert_close(f"grad.node.{degree}", leaf.grad, golden[f"grad.node.{degree}"])


def run_basis(golden: Golden) -> None:
    max_degree, is_padded = golden.config["max_degree"], golden.config["use_pad_trick"]
    rel_pos = golden["rel_pos"].clone().requires_grad_("grad.rel_pos" in golden.arrays)
    basis = se3_fast.get_basis(rel_pos, max_degree, compute_gradients=rel_pos.requires_grad, use_pad_trick=is_padded)
    if golden.config["fused"]:
        basis = se3_fast.update_basis_with_fused(basis, max_degree, is_padded, fully_fused=True)
    assert sorted(basis) == sorted(golden.config["keys"])
    for key, tensor in basis.items():
        assert_close(key, tensor.detach(), golden[f"basis.{key}"])
    for degree, harmonics in enumerate(spherical_harmonics(rel_pos.detach(), 2 * max_degree)):
        if f"sh.{degree}" in golden.arrays:
            assert_close(f"sh.{degree}", harmonics, golden[f"sh.{degree}"])
    if rel_pos.requires_grad:
        torch.autograd.backward(list(basis.values()), [golden[f"cot.{key}"] for key in basis])
        assert_close("grad.rel_pos", rel_pos.grad, golden["grad.rel_pos"])


def run_coupling(golden: Golden) -> None:
    for name, truth in golden.family("cg").items():
        degree, degree_in, degree_out = map(int, name.split("."))
        assert_close(name, wigner_3j(degree, degree_in, degree_out).permute(2, 1, 0), truth.cpu())


EDGE_RUNNERS = {
    "ConvSE3": run_convolution,
    "AttentionBlockSE3": run_attention_block,
    "SE3Transformer": run_model,
    "SE3TransformerPooled": run_model,
}
OTHER_RUNNERS = {"NormSE3": run_norm, "GPooling": run_pooling, "basis": run_basis, "cg": run_coupling}


def test_directory_has_files() -> None:
    assert FILES, f"no .npz file in {DIRECTORY}"


def runs(path: Path, backend: str) -> bool:
    return torch.cuda.is_available() or path.stat().st_size <= LARGEST_INTERPRETED.get(backend, path.stat().st_size)


@pytest.mark.parametrize(
    ("path", "backend"),
    [pytest.param(path, backend, id=f"{path.stem}-{backend}") for path in FILES for backend in BACKENDS if runs(path, backend)],
)
def test_golden(path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, order = backend.partition(" ")
    golden = Golden(path, TRITON_DEVICE if name == "triton" else torch.device("cpu"))
    kind = golden.config["kind"]
    if name == "triton":
        pytest.importorskip("triton")
    if name == "cpp" and not library.is_available():
        pytest.skip(f"the compiled operations, {library.reason()}")
    monkeypatch.setattr(ConvSE3, "contraction_order", order.removeprefix("by ") or "edge")
    with se3_fast.backend(name):
        if kind in EDGE_RUNNERS:
            for basis_form in ("constant geometry", "differentiable geometry", "published dict"):
                EDGE_RUNNERS[kind](golden, basis_form)
        elif kind in OTHER_RUNNERS:
            OTHER_RUNNERS[kind](golden)
        else:
            pytest.fail(f"{path.name}: unknown kind {kind!r}")
