"""Weights that the compiled convolutions by source keep: never out of date, the same to the bit as made anew, in bounded memory."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber
from se3_fast.backends.cpp import library
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

from se3_fast.backends.cpp.kept_weights import keep_weights, kept_weights
from se3_fast.backends.cpp.tfn_conv_by_source import NativeConvolutionBySource

BUDGET = 64 << 20
MOST_IDLE = 1024
FIBER_IN, FIBER_OUT = Fiber({0: 5, 1: 5, 2: 5}), Fiber({0: 3, 1: 3, 2: 3})
LAYOUTS = 2
"""Of the weights of a convolution: that of the forward pass, which positions need backwards too, and that of the backward pass."""
WEIGHT = "conv.radial_func.net.6.weight"


@pytest.fixture(autouse=True)
def by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvSE3, "contraction_order", "source")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Before each test; records of contents seen before stay, but no test makes the weights of another."""
    before = kept_weights().budget
    keep_weights(0)
    keep_weights(BUDGET)
    yield
    keep_weights(0)
    keep_weights(before)


def convolution(dtype: torch.dtype = torch.float64) -> ConvSE3:
    """With weights that no other has."""
    made = make_convolution(FIBER_IN, FIBER_OUT, pool=True).to(dtype)
    torch.seed()
    with torch.no_grad():
        last_weight(made).normal_(std=0.2)
    return made


def last_weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter(WEIGHT)


def evaluate(module: Callable[..., dict[str, Tensor]], backend: str = "cpp", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Messages, and the gradients of positions and features, which take the weights in all layouts."""
    graph = random_graph(6, 20)
    rel_pos = graph.edata["rel_pos"].to(dtype).requires_grad_()
    features = {key: value.to(dtype).requires_grad_() for key, value in random_features(FIBER_IN, 6).items()}
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
        messages = list(module(features, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, geometry).values())
    gradients = torch.autograd.grad(sum(message.square().sum() for message in messages), [rel_pos, *features.values()])
    return [*(message.detach() for message in messages), *gradients]


def assert_up_to_date(module: Any) -> None:
    for value, truth in zip(evaluate(module), evaluate(module, "dense"), strict=True):
        assert relative_error(value, truth) < TOLERANCE[torch.float64]


def keep(module: nn.Module) -> list[Tensor]:
    """Evaluates until the weights are kept, and says what comes of them."""
    for _ in range(3):
        result = evaluate(module)
    assert kept_weights().num_weights >= LAYOUTS
    return result


def as_array(weight: Tensor) -> Any:
    return weight.detach().numpy()


def step_of_optimizer(module: nn.Module) -> None:
    weight = last_weight(module)
    weight.grad = torch.randn_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()


def step_of_fused_optimizer(module: nn.Module) -> None:
    weight = last_weight(module)
    weight.grad = torch.randn_like(weight)
    torch.optim.Adam([weight], lr=0.1, fused=True).step()


def copy_into(module: nn.Module) -> None:
    with torch.no_grad():
        last_weight(module).copy_(torch.randn_like(last_weight(module)))


def load_state(module: nn.Module, assign: bool) -> None:
    module.load_state_dict({key: value + 0.1 for key, value in module.state_dict().items()}, assign=assign)


def add_to_data(module: nn.Module) -> None:
    last_weight(module).data.add_(0.1)


def other_data(module: nn.Module) -> None:
    last_weight(module).data = torch.randn_like(last_weight(module))


def data_of_other_strides(module: nn.Module) -> None:
    last_weight(module).data = torch.randn_like(last_weight(module)).t().contiguous().t()


def write_array(module: nn.Module) -> None:
    as_array(last_weight(module))[...] *= 1.5


def write_one_element(module: nn.Module) -> None:
    as_array(last_weight(module))[-1, -1] += 0.5


def flip_a_sign(module: nn.Module) -> None:
    as_array(last_weight(module))[7, 3] *= -1


def flip_all_signs(module: nn.Module) -> None:
    as_array(last_weight(module))[...] *= -1


def exchange_two(module: nn.Module) -> None:
    array = as_array(last_weight(module))
    array[[0, 5], 3] = array[[5, 0], 3]


def exchange_rows(module: nn.Module) -> None:
    array = as_array(last_weight(module))
    array[...] = array[::-1].copy()


def write_memory(module: nn.Module) -> None:
    weight = last_weight(module)
    values = torch.randn_like(weight)
    ctypes.memmove(weight.data_ptr(), values.data_ptr(), values.nbytes)


def write_from_another_process(module: nn.Module) -> None:
    last_weight(module).data.share_memory_()
    keep(module)
    process = multiprocessing.get_context("fork").Process(target=_scale_and_leave, args=(last_weight(module).detach(),))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def _scale_and_leave(shared: Tensor) -> None:
    shared.numpy()[...] *= 2
    os._exit(0)


def exchange_tensors(module: nn.Module) -> None:
    torch.utils.swap_tensors(last_weight(module), nn.Parameter(torch.randn_like(last_weight(module))))


def another_parameter(module: nn.Module) -> None:
    owner = module.get_submodule(WEIGHT.rpartition(".")[0])
    owner.weight = nn.Parameter(torch.randn_like(owner.weight))


def at_a_freed_address(module: nn.Module) -> None:
    """A storage where one was that is gone, as allocators hand them out."""
    owner = module.get_submodule(WEIGHT.rpartition(".")[0])
    memory, shape = bytearray(owner.weight.nbytes), owner.weight.shape
    for _ in range(2):
        del owner.weight
        memory[:] = torch.randn(shape, dtype=torch.float64).numpy().tobytes()
        owner.weight = nn.Parameter(torch.frombuffer(memory, dtype=torch.float64).view(shape))
        keep(module)
    del owner.weight
    memory[:] = torch.randn(shape, dtype=torch.float64).numpy().tobytes()
    owner.weight = nn.Parameter(torch.frombuffer(memory, dtype=torch.float64).view(shape))


def vector_to_parameters(module: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector + 0.1, module.parameters())


def parametrise(module: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(module.get_submodule(WEIGHT.rpartition(".")[0]))
    write_norm = module.get_submodule(WEIGHT.rpartition(".")[0]).parametrizations.weight.original0
    as_array(write_norm)[...] *= 2


def write_in_inference_mode(module: nn.Module) -> None:
    with torch.inference_mode():
        last_weight(module).mul_(2)


CHANGES: list[Callable[[nn.Module], None]] = [
    step_of_optimizer,
    step_of_fused_optimizer,
    copy_into,
    lambda module: load_state(module, assign=False),
    lambda module: load_state(module, assign=True),
    add_to_data,
    other_data,
    data_of_other_strides,
    write_array,
    write_one_element,
    flip_a_sign,
    flip_all_signs,
    exchange_two,
    exchange_rows,
    write_memory,
    write_from_another_process,
    exchange_tensors,
    another_parameter,
    at_a_freed_address,
    vector_to_parameters,
    parametrise,
    write_in_inference_mode,
]
NAMES = [change.__name__ if change.__name__ != "<lambda>" else f"load_state {index}" for index, change in enumerate(CHANGES)]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_changed_weights_are_seen(change: Callable[[nn.Module], None]) -> None:
    module = convolution()
    before = keep(module)
    change(module)
    assert_up_to_date(module)
    changes = [relative_error(found, value) for found, value in zip(evaluate(module), before, strict=True)]
    assert max(changes) > 1e-6  # it was one


def test_parameters_of_inference_mode() -> None:
    """Which count no changes."""
    with torch.inference_mode():
        module = convolution()
        graph = random_graph(6, 20)
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
        arguments = (random_features(FIBER_IN, 6), {"0": graph.edata["rel_pos"].norm(dim=-1)[:, None, None]}, graph, geometry)
        for _ in range(4):
            with se3_fast.backend("cpp"):
                found = module(*arguments)
            with se3_fast.backend("dense"):
                truth = module(*arguments)
            assert all(relative_error(found[key], truth[key]) < TOLERANCE[torch.float64] for key in truth)
            found = None
        assert kept_weights().num_weights == 1
        last_weight(module).neg_()
        with se3_fast.backend("cpp"):
            negated = module(*arguments)
        assert all(relative_error(-negated[key], truth[key]) < TOLERANCE[torch.float64] for key in truth)


def test_averages_that_are_exchanged_and_back() -> None:
    """As for a validation with averaged parameters: both are kept, and each is found again."""
    module = convolution()
    first = keep(module)
    average = copy.deepcopy(module.state_dict())
    average[WEIGHT] = average[WEIGHT] * 0.9
    own = copy.deepcopy(module.state_dict())
    for state in (average, own, average, own, average, own):
        module.load_state_dict(state)
        assert_up_to_date(module)
    misses = kept_weights().misses
    for found, truth in zip(evaluate(module), first, strict=True):
        assert torch.equal(found, truth)
    assert kept_weights().misses == misses


def test_functional_call() -> None:
    module = convolution()
    keep(module)
    other = {name: parameter * 1.1 for name, parameter in module.named_parameters()}

    def call(*arguments: Any) -> dict[str, Tensor]:
        return torch.func.functional_call(module, other, arguments)

    assert_up_to_date(call)
    assert_up_to_date(module)


def test_dtypes() -> None:
    """float64, float32 and back; weights that are zero have the same bytes in both."""
    module = convolution()
    for is_zero in (False, True):
        if is_zero:
            last_weight(module).data.zero_()
        keep(module.double())
        assert_up_to_date(module)
        for _ in range(3):
            found = evaluate(module.float(), dtype=torch.float32)
        for value, truth in zip(found, evaluate(module.double(), "dense"), strict=True):
            assert relative_error(value, truth) < TOLERANCE[torch.float32]


def test_memory_format() -> None:
    module = convolution()
    before = keep(module)
    module.to(memory_format=torch.contiguous_format)
    for found, truth in zip(evaluate(module), before, strict=True):
        assert torch.equal(found, truth)


PLANS = {
    "other channels": (({0: 2}, {0: 3}), ({0: 3}, {0: 2})),
    "other degrees": (({1: 2}, {1: 2}), ({1: 2}, {2: 2})),
}


@pytest.mark.parametrize("plans", PLANS.values(), ids=PLANS.keys())
def test_the_same_weights_for_another_plan(plans: tuple[tuple[dict[int, int], dict[int, int]], ...]) -> None:
    """Weights of the same shape, with the same contents."""
    modules = [make_convolution(Fiber(given), Fiber(made), pool=True) for given, made in plans]
    graph = random_graph(6, 20)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
    lengths = {"0": graph.edata["rel_pos"].norm(dim=-1)[:, None, None]}
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        other.data.copy_(one.data)
    for _ in range(4):
        for module, (fiber, _) in zip(modules, plans, strict=True):
            results = []
            for backend in ("cpp", "dense"):
                with se3_fast.backend(backend), torch.no_grad():
                    (result,) = module(random_features(Fiber(fiber), 6), lengths, graph, geometry).values()
                results.append(result)
            assert relative_error(*results) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.usefixtures("threads")
def test_kept_and_made_anew_are_identical(dtype: torch.dtype) -> None:
    module = convolution(dtype)
    kept = [evaluate(module, dtype=dtype) for _ in range(4)]
    assert kept_weights().num_weights == LAYOUTS
    keep_weights(0)
    anew = evaluate(module, dtype=dtype)
    assert kept_weights().num_weights == 0
    for found in kept:
        assert all(torch.equal(one, other) for one, other in zip(found, anew, strict=True))


def native_convolution(channels: int, width: int, num_nodes: int, num_edges: int) -> tuple[NativeConvolutionBySource, list[Tensor]]:
    """The calls of the operations alone, and their tensors."""
    fiber = Fiber({0: channels, 1: channels})
    plan = make_convolution(fiber, fiber).plan
    graph = random_graph(num_nodes, num_edges)
    wigner = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1).wigner
    native = NativeConvolutionBySource(plan, graph, wigner, pool=True)
    (group,) = plan.groups
    rows = group.channels_out * group.channels_in * group.num_paths
    torch.seed()
    hidden, weight = torch.randn(num_edges, width).double(), torch.randn(rows, width).double()
    return native, [*random_features(fiber, num_nodes).values(), hidden, weight]


@pytest.mark.parametrize("width", [1, 5, 32])
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_odd_shapes(channels: int, width: int) -> None:
    """With nodes that are isolated, and without edges: the same to the bit from what is kept."""
    for num_nodes, num_edges in ((4, 9), (1, 0)):
        native, tensors = native_convolution(channels, width, num_nodes, num_edges)
        results = []
        for _ in range(3):
            messages = native.forward(tensors)
            gradients, of_positions = native.backward(tensors, messages, native.graph.edata["rel_pos"], True)
            results.append([*messages, *gradients, of_positions])
        for found in results[1:]:
            assert all(torch.equal(one, other) for one, other in zip(found, results[0], strict=True))
    assert kept_weights().num_weights > 0


def test_a_training_step_keeps_nothing() -> None:
    module = convolution()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        evaluate_for_training(module)
        optimizer.step()
    assert kept_weights().num_weights == 0


def evaluate_for_training(module: ConvSE3) -> None:
    graph = random_graph(6, 20)
    with se3_fast.backend("cpp"):
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
        lengths = {"0": graph.edata["rel_pos"].norm(dim=-1)[:, None, None]}
        messages = module(random_features(FIBER_IN, 6), lengths, graph, geometry)
    sum(message.square().sum() for message in messages.values()).backward()


def test_nothing_is_left_of_a_model_that_is_gone() -> None:
    """Once others have been asked for long enough; or at once."""
    gone, other = convolution(), convolution()
    keep(gone)
    keep(other)
    assert kept_weights().num_weights == 2 * LAYOUTS
    del gone
    looked_up = kept_weights()
    while sum(kept_weights()[3:]) - sum(looked_up[3:]) <= MOST_IDLE:
        evaluate(other)
    assert kept_weights().num_weights == LAYOUTS
    keep_weights(0)
    assert kept_weights()[:2] == (0, 0)
    assert_up_to_date(other)


def test_a_negative_budget() -> None:
    with pytest.raises(RuntimeError, match="budget: expected 0 or more bytes, got -1"):
        keep_weights(-1)


def test_many_threads_at_once() -> None:
    """Some with a model of their own, two and two with one, all with one set of records that is too small for them."""
    modules = [convolution() for _ in range(3)]
    truth = [evaluate(module) for module in modules]
    keep_weights(kept_size(modules[0]) * 2)

    def work(number: int) -> bool:
        chosen = modules[number % 3]
        is_right = True
        for round_ in range(12):
            if round_ == 6:  # others, and back
                last = copy.deepcopy(chosen)
                as_array(last_weight(last))[...] *= -1
                evaluate(last)
            found = evaluate(chosen)
            is_right &= all(torch.equal(one, other) for one, other in zip(found, truth[number % 3], strict=True))
        return is_right

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def kept_size(module: ConvSE3) -> int:
    keep(module)
    size = kept_weights().num_bytes
    keep_weights(0)
    return size


IN_A_FORK = """
import os, threading, torch
from tests.backends.cpp.test_kept_weights import kept_weights, native_convolution
torch.set_num_threads(1)
native, tensors = native_convolution(5, 32, 6, 20)
for _ in range(3):
    truth = native.forward(tensors)
is_done = threading.Event()

def work():
    other, values = native_convolution(5, 32, 6, 20)
    while not is_done.is_set():
        other.forward(values)
        for _ in range(50):  # holds the records most of all
            kept_weights()

def is_right():
    return all(torch.equal(one, other) for one, other in zip(native.forward(tensors), truth))

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(100):
    child = os.fork()
    if child == 0:  # with the records as they were, which other threads were about to change
        was_right = is_right()
        tensors[-1].numpy()[...] *= -1
        truth = [-message for message in truth]
        os._exit(0 if was_right and is_right() else 1)
    codes.append(os.waitpid(child, 0)[1])
is_done.set()
for thread in threads:
    thread.join()
print(codes == [0] * 100 and is_right())
"""


def test_forked_processes() -> None:
    """While other threads compute, in a process of its own; one that waits for ever would end the test by its time limit.

    Without a sanitizer, whose allocator does not survive a fork.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "SE3_FAST_LIBRARY")}
    command = [sys.executable, "-c", IN_A_FORK]
    root = Path(__file__).parents[3]
    finished = subprocess.run(
        command,
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.stdout.strip() == "True", finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("text", "budget"), [("0", 0), ("1.5", 3 << 19), ("many", 256 << 20), ("-1", 256 << 20), ("8\n", 256 << 20)]
)
def test_budget_of_the_environment(text: str, budget: int) -> None:
    program = "from se3_fast.backends.cpp.kept_weights import kept_weights; print(kept_weights().budget)"
    environment = os.environ | {"SE3_FAST_KEPT_WEIGHTS": text}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == budget
    is_usual = budget == 256 << 20
    warning = f"warning: SE3_FAST_KEPT_WEIGHTS: expected a number of MiB from 0 on, got '{text}'; at most 256 are kept\n"
    assert (warning in found.stderr) == is_usual


def test_compiled_models() -> None:
    module = convolution()
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        evaluate(compiled)
    assert kept_weights().num_weights >= LAYOUTS
    for change in (write_array, flip_a_sign, other_data):
        change(module)
        for value, truth in zip(evaluate(compiled), evaluate(module, "dense"), strict=True):
            assert relative_error(value, truth) < TOLERANCE[torch.float64]
