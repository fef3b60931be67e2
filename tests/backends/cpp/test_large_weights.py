"""Weights of the compiled convolutions that are larger than a cache: written past it, kept, and more of them than may be kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from se3_fast import EdgeGeometry, Fiber
from se3_fast.backends.cpp import library
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

from se3_fast.backends.cpp.kept_weights import keep_weights, kept_weights
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.backends.cpp.tfn_conv_by_source import NativeConvolutionBySource
from tests.backends.cpp.test_kept_weights import BUDGET, as_array, nothing_kept

__all__ = ["nothing_kept"]  # a fixture


Kind = type[NativeConvolution]
KINDS: tuple[Kind, ...] = (NativeConvolution, NativeConvolutionBySource)


def large_convolution(num_edges: int, kind: Kind, dtype: torch.dtype) -> tuple[NativeConvolution, list[Tensor]]:
    """Four degrees of 32 channels: 5.5 MiB of float32, whose gradient is written past the caches."""
    fiber = Fiber.create(4, 32)
    plan = make_convolution(fiber, fiber).plan
    graph = random_graph(5, num_edges)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 3)
    generator = torch.Generator().manual_seed(7)
    tensors = [
        *random_features(fiber, 5).values(),
        torch.randn(num_edges, 32, generator=generator),
        torch.randn(45056, 32, generator=generator),
    ]
    return kind(plan, graph, geometry.wigner_as(dtype), pool=True), [tensor.to(dtype) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS, ids=["by edge", "by source"])
@pytest.mark.usefixtures("threads")
def test_large_weights(dtype: torch.dtype, kind: Kind) -> None:
    """Against the other contraction in float64, anew and, by source, kept; gradients too."""
    (other_kind,) = set(KINDS) - {kind}
    other, tensors = large_convolution(9, other_kind, torch.float64)
    messages = other.forward([tensor.double() for tensor in tensors])
    rel_pos = other.graph.edata["rel_pos"]
    truth, of_positions = other.backward(tensors, messages, rel_pos, True)
    keep_weights(0)
    keep_weights(BUDGET)
    convolution, values = large_convolution(9, kind, dtype)
    for _ in range(3):
        found = convolution.forward(values)
        gradients, positions = convolution.backward(values, [message.to(dtype) for message in messages], rel_pos.to(dtype), True)
        for value, expected in zip([*found, *gradients, positions], [*messages, *truth, of_positions], strict=True):
            assert value is not None and expected is not None
            assert relative_error(value, expected) < TOLERANCE[dtype]
    assert (kept_weights().num_weights > 0) == (kind is NativeConvolutionBySource)


def test_every_change_of_large_weights_is_looked_up_anew() -> None:
    """One element of 1.4 million, wherever it stands; two exchanged; and the contents of before are found again."""
    native, tensors = large_convolution(0, NativeConvolutionBySource, torch.float32)
    array = as_array(tensors[-1]).reshape(-1)
    for _ in range(3):
        native.forward(tensors)
    generator = torch.Generator().manual_seed(0)
    places = [0, 1, 15, 16, 1023, 1024, 65535, 65536, len(array) - 1]
    places += torch.randint(len(array), (15,), generator=generator).tolist()

    def misses(change: Callable[[], None], undo: Callable[[], None]) -> int:
        before = kept_weights().misses
        change()
        native.forward(tensors)
        undo()
        native.forward(tensors)
        return kept_weights().misses - before

    for place in places:
        value = array[place].copy()
        other = (place + 4099) % len(array)
        for new in (-value, value * (1 + 2e-7), 2 * value, float("nan")):
            assert misses(lambda: array.__setitem__(place, new), lambda: array.__setitem__(place, value)) == 1  # noqa: B023

        def exchange() -> None:
            array[[place, other]] = array[[other, place]]  # noqa: B023

        assert misses(exchange, exchange) == 1


def test_memory_is_bounded() -> None:
    """Of layers that are larger together than the budget a part is kept, and found in each call."""
    layers = [large_convolution(0, NativeConvolutionBySource, torch.float32) for _ in range(6)]
    for number, (_, tensors) in enumerate(layers):
        tensors[-1] += number
    evaluate_layers(layers[:1])
    budget = kept_weights().num_bytes * 7 // 2
    assert budget > 0
    keep_weights(0)
    keep_weights(budget)
    evaluate_layers(layers)
    before = kept_weights()
    assert before.num_weights == 3
    assert before.num_bytes <= budget
    for native, tensors in layers:
        native.forward(tensors)
    assert kept_weights().hits - before.hits == 3
    keep_weights(budget // 2)
    assert 0 < kept_weights().num_bytes <= budget // 2


def evaluate_layers(layers: list[tuple[NativeConvolution, list[Tensor]]]) -> None:
    for _ in range(3):
        for native, tensors in layers:
            native.forward(tensors)
