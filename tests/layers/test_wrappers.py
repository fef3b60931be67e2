"""Blocks that are recomputed, frozen or shared give the gradients of the plain model, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from se3_fast import AttentionBlockSE3, EdgeGeometry, Fiber, Graph, SE3Transformer, backend
from se3_fast.fiber import Features
from tests.support import BACKENDS, random_features, random_graph, relative_error

FIBER = Fiber({0: 2, 1: 2})


def make_model() -> SE3Transformer:
    torch.manual_seed(0)
    return SE3Transformer(2, FIBER, FIBER, FIBER, num_heads=1, channels_div=1, return_type=0).double()


def gradients(model: nn.Module, name: str) -> dict[str, Tensor | None]:
    graph: Graph = random_graph(5, 9)
    nodes = {key: tensor.requires_grad_() for key, tensor in random_features(FIBER, 5).items()}
    model.zero_grad()
    with backend(name):
        model(graph, nodes).square().sum().backward()
    return {parameter_name: parameter.grad for parameter_name, parameter in model.named_parameters()}


def recomputed(model: SE3Transformer) -> None:
    for index, module in enumerate(model.graph_modules):
        if isinstance(module, AttentionBlockSE3):
            model.graph_modules[index] = checkpoint_wrapper(module, checkpoint_impl=CheckpointImpl.NO_REENTRANT)


class RecomputedReentrant(nn.Module):
    """A block recomputed by the older kind of checkpointing, for which tensors that require gradients must be arguments."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = block

    def forward(self, nodes: dict[str, Tensor], *others: Any, **named: Any) -> dict[str, Tensor]:
        keys: list[str] = []

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            out = self._checkpoint_wrapped_module(dict(zip(nodes, tensors, strict=True)), *others, **named)
            keys[:] = out
            return tuple(out.values())

        out = checkpoint(run, *nodes.values(), use_reentrant=True)
        return dict(zip(keys, out, strict=True))


def recomputed_reentrant(model: SE3Transformer) -> None:
    for index, module in enumerate(model.graph_modules):
        if isinstance(module, AttentionBlockSE3):
            model.graph_modules[index] = RecomputedReentrant(module)


def with_hooks(model: SE3Transformer) -> None:
    for module in model.graph_modules:
        module.register_forward_pre_hook(lambda module, inputs: None)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "change", [recomputed, recomputed_reentrant, with_hooks], ids=["recomputed", "recomputed, reentrant", "hooks"]
)
def test_wrapped_blocks(change: Callable[[SE3Transformer], None], name: str) -> None:
    truth = gradients(make_model(), "dense")
    model = make_model()
    change(model)
    found = {key.replace("_checkpoint_wrapped_module.", ""): value for key, value in gradients(model, name).items()}
    assert found.keys() == truth.keys()
    for key, true in truth.items():
        value = found[key]
        assert (value is None) == (true is None), key
        assert value is None or true is None or relative_error(value, true) < 1e-9


@pytest.mark.parametrize("name", BACKENDS)
def test_a_frozen_block_and_frozen_networks(name: str) -> None:
    frozen = ("graph_modules.0.", "graph_modules.2.to_key_value.conv")
    truth = gradients(make_model(), "dense")
    model = make_model()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.startswith(frozen))
    for key, value in gradients(model, name).items():
        true = truth[key]
        if key.startswith(frozen):
            assert value is None
        else:
            assert (value is None) == (true is None), key
            assert value is None or true is None or relative_error(value, true) < 1e-9


@pytest.mark.parametrize("name", BACKENDS)
def test_tied_blocks(name: str) -> None:
    def tied() -> Any:
        model = make_model()
        model.graph_modules[2] = model.graph_modules[0]
        return model

    truth, found = gradients(tied(), "dense"), gradients(tied(), name)
    for key, true in truth.items():
        value = found[key]
        assert value is None or true is None or relative_error(value, true) < 1e-9


class Doubled(nn.Module):
    """A layer by somebody else, with the call signature of the published ones."""

    def forward(self, node_feats: Features, edge_feats: Features, graph: Graph, basis: EdgeGeometry) -> Features:
        return {degree: 2.0 * feature for degree, feature in node_feats.items()}


class DoubledBlock(AttentionBlockSE3):
    def forward(self, node_features: Features, edge_features: Features, graph: Graph, basis: EdgeGeometry) -> Features:  # type: ignore[override]
        return Doubled()(super().forward(node_features, edge_features, graph, basis), edge_features, graph, basis)


def with_a_layer_more(model: SE3Transformer) -> None:
    model.graph_modules.insert(1, Doubled())


def with_another_block(model: SE3Transformer) -> None:
    block = model.graph_modules[0]
    model.graph_modules[0] = DoubledBlock(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1, use_layer_norm=True).double()
    model.graph_modules[0].load_state_dict(block.state_dict())


def with_a_hook(model: SE3Transformer) -> None:
    model.graph_modules[0].register_forward_hook(lambda module, inputs, output: Doubled()(output, *inputs[1:], None, None))


@pytest.mark.parametrize("name", BACKENDS)
def test_layers_of_the_published_call_signature(name: str) -> None:
    """A model may hold layers by somebody else, or subclasses of its own; three ways of the same change."""
    fiber, graph = Fiber.create(2, 2), random_graph(5, 9)
    nodes, values = random_features(fiber, 5), []
    for change in (with_a_layer_more, with_another_block, with_a_hook):
        torch.manual_seed(0)
        model = SE3Transformer(2, fiber, fiber, fiber, num_heads=1, channels_div=1, return_type=0, tensor_cores=True).double()
        change(model)
        with backend(name):
            values.append(model(graph, nodes))
    assert relative_error(values[1], values[0]) < 1e-11 and relative_error(values[2], values[0]) < 1e-11
