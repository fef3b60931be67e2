"""The convolution by the CUDA kernels of ``csrc/`` against ``dense`` in float64: output and every gradient.

On a CUDA device where there is one; else the same sources run on the CPU (``tests/cuda_emulation``) as they are for compute
capability 7.0 and 7.5.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import se3_fast
from se3_fast import EdgeGeometry, Fiber
from se3_fast.backends import choice
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.cuda import library
from se3_fast.backends.cuda import tfn_conv as convolution
from se3_fast.backends.operands import Convolution
from se3_fast.ops import tfn_conv as operation
from tests.cuda_emulation import emulator
from tests.ops.test_tfn_conv import CASES, NONE, Case, Result, assert_equal, run, run_operation
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

pytest.importorskip("triton")
HAS_GPU = library.is_available()
pytestmark = pytest.mark.skipif(not HAS_GPU and emulator.COMPILER is None, reason="needs a CUDA device or g++")

ENGINES = ["device", "device, compute_70"] if HAS_GPU else ["emulated 7.0", "emulated 7.5"]
SEVERAL_BLOCKS = Case({0: 5, 1: 34}, {1: 33}, NONE, num_nodes=20, num_edges=140)
OPERATION_CASES = {
    "full, 4 degrees": CASES["full, 4 degrees"],
    "full, 3 to 17 channels": CASES["full, 3 to 17 channels"],
    "by output, mixed": CASES["by output, mixed"],
    "by input, mixed": CASES["by input, mixed"],
    "pairs, protein fibers": CASES["pairs, protein fibers"],
    "pairs, gaps in the degrees": CASES["pairs, gaps in the degrees"],
    "several blocks of edges and channels": SEVERAL_BLOCKS,
}

Use = Callable[..., str]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Make the convolution run on an engine; gives the backend to ask for: on the CPU the other operations run as ``torch``."""

    def choose(engine: str, is_reversed: bool = False) -> str:
        if engine.startswith("device"):
            if "compute_70" in engine:
                load_volta_kernels(monkeypatch)
            return "cuda"
        launch = emulator.Launcher(int(engine.removeprefix("emulated ").replace(".", "")) * 10, is_reversed)
        monkeypatch.setattr(library, "launch", launch)
        monkeypatch.setattr(choice, "selected_backend", lambda device: "cuda")
        return "torch"

    yield choose
    forget_loaded_kernels()


def load_volta_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Volta runs, on the device at hand."""
    try:
        library.compiled_kernels("compute_70")
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    monkeypatch.setattr(library, "PREBUILT", Path("nowhere"))
    monkeypatch.setattr(library, "_architecture", lambda capability: "compute_70")
    forget_loaded_kernels()


def forget_loaded_kernels() -> None:
    library._module.cache_clear()
    library._function.cache_clear()


def truth(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Result], *arguments: object, **options: object) -> Result:
    """What ``dense`` returns in float64, whatever engine is chosen."""
    with monkeypatch.context() as patch:
        patch.setattr(choice, "selected_backend", selected_backend)
        return function(*arguments, **options)


@pytest.mark.parametrize("name", CASES)
def test_layer_in_float32(name: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """All gradients, also that with respect to positions; half the cases pooled, half per edge.

    The quotients and roots of the radial layers before it are off by two units in the last place, as a GPU's are.
    """
    pool = list(CASES).index(name) % 2 == 0
    result = run(CASES[name], use(ENGINES[0]), torch.float32, pool=pool)
    assert_equal(result, truth(monkeypatch, run, CASES[name], "dense", pool=pool), 4 * TOLERANCE[torch.float32])


@pytest.mark.parametrize("pool", [False, True])
def test_second_derivatives(pool: bool, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's own gradients are differentiated, with respect to weights, features and positions."""

    def differentiated(backend: str, dtype: torch.dtype) -> torch.Tensor:
        fiber = Fiber({0: 2, 1: 3})
        module = make_convolution(fiber, fiber, fuse_level=NONE, pool=pool).to(dtype)
        graph = random_graph(4, 9)
        rel_pos = graph.edata["rel_pos"].to(dtype).requires_grad_()
        nodes = {key: value.to(dtype).requires_grad_() for key, value in random_features(fiber, 4).items()}
        with se3_fast.backend(backend):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
            outputs = module(nodes, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, geometry)
        variables = [rel_pos, *nodes.values(), *module.parameters()]
        loss = torch.stack([(output.double() ** 2).sum() for output in outputs.values()]).sum()
        gradients = torch.autograd.grad(loss, variables, create_graph=True)
        total = torch.stack([(gradient.double() ** 2).sum() for gradient in gradients]).sum()
        return torch.cat([gradient.double().flatten() for gradient in torch.autograd.grad(total, variables)])

    result = differentiated(use(ENGINES[0]), torch.float32)
    assert relative_error(result, truth(monkeypatch, differentiated, "dense", torch.float64)) < 10 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPERATION_CASES)
def test_operation_in_float16(name: str, engine: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tensor cores of each architecture."""
    result = run_operation(OPERATION_CASES[name], use(engine), torch.float16)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {torch.float16}
    expected = truth(monkeypatch, run_operation, OPERATION_CASES[name], "dense", torch.float64)
    assert_equal(result, expected, TOLERANCE[torch.float16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["by output, mixed", "several blocks of edges and channels"])
def test_operation_in_other_dtypes(name: str, dtype: torch.dtype, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_operation(OPERATION_CASES[name], use(ENGINES[0]), dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, truth(monkeypatch, run_operation, OPERATION_CASES[name], "dense", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_identical(engine: str, dtype: torch.dtype, use: Use) -> None:
    """In the emulator the warps of the second run take turns in the opposite order: nothing depends on who comes first."""
    results = [run_operation(CASES["by output, mixed"], use(engine, is_reversed), dtype) for is_reversed in (False, True)]
    first, second = (result.outputs | result.gradients for result in results)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.skipif(HAS_GPU, reason="there is a real driver")
def test_launches_through_the_driver(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher itself, with a driver that runs the emulator."""
    driver = pytest.importorskip("cuda.bindings.driver")
    success, loaded = driver.CUresult.CUDA_SUCCESS, []
    emulated, pack, packed = emulator.Launcher(700), library.PackedArguments, []
    forget_loaded_kernels()

    def launch_kernel(function: bytes, *numbers: int) -> tuple[object]:
        *grid, num_threads, one, also_one, shared_bytes, stream, address, extra = numbers
        assert (one, also_one, stream, extra) == (1, 1, 1234, 0)
        if function == b"none":
            return (driver.CUresult.CUDA_ERROR_NOT_FOUND,)
        emulated.run(function, tuple(grid), num_threads, shared_bytes, address, emulator.tensors_of(packed.pop()))
        return (success,)

    def packed_arguments(arguments: list[library.Argument]) -> library.PackedArguments:
        packed.append(arguments)
        return pack(arguments)

    monkeypatch.setattr(library, "PackedArguments", packed_arguments)
    monkeypatch.setattr(driver, "cuModuleLoadData", lambda image: (success, loaded.append(image) or "module"))
    monkeypatch.setattr(driver, "cuModuleGetFunction", lambda module, name: (success, name))
    monkeypatch.setattr(driver, "cuLaunchKernel", launch_kernel)
    monkeypatch.setattr(library, "PREBUILT", Path("nowhere"))
    monkeypatch.setattr(library, "compiled_kernels", lambda architecture: architecture.encode())
    monkeypatch.setattr(library, "_architecture", lambda capability: f"sm_{capability[0]}{capability[1]}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (index, 0))
    launch, backend = library.launch, use("emulated 7.0")
    monkeypatch.setattr(library, "launch", launch)
    result = run_operation(CASES["pairs, protein fibers"], backend, torch.float16)
    expected = truth(monkeypatch, run_operation, CASES["pairs, protein fibers"], "dense", torch.float64)
    assert_equal(result, expected, TOLERANCE[torch.float16])
    assert loaded == [b"sm_70\0"]
    with pytest.raises(RuntimeError, match="CUDA: CUDA_ERROR_NOT_FOUND"):
        library.launch("none", (1, 1, 1), 256, 0, [], torch.device("cpu"))


def test_other_radial_widths_and_float64_run_as_torch(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "tfn_conv", lambda call: pytest.fail("the kernels do not take this"))
    for dtype, width in ((torch.float64, 32), (torch.float32, 16)):
        backend = use(ENGINES[0])
        case = CASES["full, degree 0 only"]
        assert run_operation_of_width(case, backend, dtype, width) < TOLERANCE[dtype]


def run_operation_of_width(case: Case, backend: str, dtype: torch.dtype, width: int) -> float:
    """The relative error of the messages of one group of degree 0."""
    plan = se3_fast.contraction.ConvolutionPlan(
        ((0, 5),), (), ((0, 3),), (se3_fast.contraction.RadialGroup((0,), (0,), 5, 3, is_basis_free=True),)
    )
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    generator = torch.Generator().manual_seed(0)
    nodes, hidden, weight = (torch.randn(*shape, generator=generator) for shape in ((7, 5, 1), (33, width), (15, width)))
    graph = random_graph(7, 33).to(device)
    nodes, hidden, weight = (tensor.to(device, dtype) for tensor in (nodes, hidden, weight))
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 0)
        message = operation.tfn_conv(Convolution(plan, graph, geometry, {"0": nodes}, {}, [hidden], [weight], pool=False))["0"]
    radial = (hidden.double() @ weight.double().T).view(33, 3, 5)
    return relative_error(message, radial @ nodes.double()[graph.src])


FAULTS = {
    "align_float": ("Index(blockIdx.x) * block_edges;", "Index(blockIdx.x) * block_edges / 2;"),
    "rotate_sum_float": (
        "    float sum = 0.0f;\n    for (Index start",
        "    float sum = 0.0f * (static_cast<const volatile Index*>(offsets)[-1] == 7);\n    for (Index start",
    ),
    "contract_float_m0": ("            __syncthreads();\n", ""),
}
"""What is changed, where it stands first; by a kernel that has the fault then."""


@pytest.mark.skipif(HAS_GPU, reason="there is a real device")
def test_faults_are_found(use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks that overlap, an access out of bounds, and a barrier that is not there."""
    backend = use("emulated 7.5")
    for name in (library.SOURCE, *library.HEADERS):
        text = (library.source_directory() / name).read_text()
        for before, after in FAULTS.values() if name == library.SOURCE else ():
            assert before in text
            text = text.replace(before, after, 1)
        (tmp_path / name).write_text(text)
    launcher, found = emulator.Launcher(750, sources=tmp_path), {}

    def launch(name: str, *arguments: Any) -> None:
        try:
            launcher(name, *arguments)
        except AssertionError as error:
            found.setdefault(name, str(error))

    monkeypatch.setattr(library, "launch", launch)
    run_operation(SEVERAL_BLOCKS, backend, torch.float32)
    assert "two blocks write one address" in found["align_float"]
    assert "a read outside of all tensors" in found["rotate_sum_float"]
    assert "without a barrier" in found["contract_float_m0"]
    assert found.keys() <= {*FAULTS, "contract_float_odd"}
