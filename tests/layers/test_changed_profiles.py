"""Radial networks that were changed are evaluated as what they are, on every backend."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import se3_fast
from se3_fast import (
    AttentionBlockSE3,
    AttentionSE3,
    ConvSE3,
    ConvSE3FuseLevel,
    EdgeGeometry,
    Fiber,
    Graph,
    LinearSE3,
    get_basis,
    update_basis_with_fused,
)
from se3_fast.backends.choice import backend
from se3_fast.fiber import Features
from se3_fast.layers.convolution import RadialConvolution, RadialProfile
from tests.layers.test_given_bases import levels, model, on_all_backends
from tests.support import FAST_BACKENDS, make_convolution, random_features, random_graph, relative_error

LEVELS = list(ConvSE3FuseLevel)
FIBER = Fiber({0: 2, 1: 2})
NUM_NODES, NUM_EDGES = 6, 12


def problem() -> tuple[Graph, Features, Features]:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    return graph, random_features(FIBER, NUM_NODES), {"0": graph.edata["rel_pos"].norm(dim=-1)[:, None, None]}


# The changes


class ScaledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class SameLinear(nn.Linear):
    """Nothing else than a linear map."""


class WithLowRank(nn.Module):
    """A linear map and a correction of low rank, as adapters have it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.base(input) + self.up(self.down(input))


class OtherProfile(nn.Module):
    """A radial network by somebody else."""

    def __init__(self, profile: RadialProfile) -> None:
        super().__init__()
        self.layer = nn.Linear(profile.net[0].in_features, profile.net[-1].out_features)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features).sin()


class Gated(RadialProfile):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).tanh()


def replace_activation(profile: RadialProfile) -> None:
    for number, module in enumerate(profile.net):
        if isinstance(module, nn.ReLU):
            profile.net[number] = nn.SiLU()


def insert_dropout(profile: RadialProfile) -> None:
    profile.net = nn.Sequential(*profile.net[:3], nn.Dropout(0.5), *profile.net[3:])


def change_epsilon(profile: RadialProfile) -> None:
    profile.net[1].eps = 0.3


def drop_affine(profile: RadialProfile) -> None:
    nn.init.normal_(profile.net[4].weight)
    profile.net[1] = nn.LayerNorm(32, elementwise_affine=False)


def widen(profile: RadialProfile) -> None:
    edge_dim, num_weights = profile.net[0].in_features, profile.net[-1].out_features
    profile.net = RadialProfile(num_weights, 1, 1, edge_dim, mid_dim=48, use_layer_norm=True).net


def one_hidden_layer(profile: RadialProfile) -> None:
    profile.net = nn.Sequential(*profile.net[:3], profile.net[-1])


def last_with(make: Callable[[nn.Linear], nn.Module]) -> Callable[[RadialProfile], None]:
    def change(profile: RadialProfile) -> None:
        profile.net[6] = make(profile.net[6])

    return change


def weighted(kind: type[nn.Linear], bias: bool = False) -> Callable[[nn.Linear], nn.Module]:
    def make(linear: nn.Linear) -> nn.Module:
        return kind(linear.in_features, linear.out_features, bias=bias)

    return make


def old_weight_norm(profile: RadialProfile) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(profile.net[6])
        nn.utils.weight_norm(profile.net[0])
    with torch.no_grad():
        profile.net[6].weight_g.mul_(3.0)
        profile.net[0].weight_g.mul_(3.0)


def new_weight_norm(number: int) -> Callable[[RadialProfile], None]:
    def change(profile: RadialProfile) -> None:
        parametrizations.weight_norm(profile.net[number])
        with torch.no_grad():
            profile.net[number].parametrizations.weight.original0.mul_(3.0)

    return change


def hook_on(place: str, kind: str) -> Callable[[RadialProfile], None]:
    def change(profile: RadialProfile) -> None:
        module = profile.get_submodule(place)
        if kind == "forward":
            module.register_forward_hook(lambda module, inputs, output: output.sin())
        elif kind == "before":
            module.register_forward_pre_hook(lambda module, inputs: tuple(2.0 * value for value in inputs))
        else:
            module.register_full_backward_hook(lambda module, gradients, _: tuple(g if g is None else 2.0 * g for g in gradients))

    return change


def remove_norms(profile: RadialProfile) -> None:
    profile.net = nn.Sequential(*(module for module in profile.net if not isinstance(module, nn.LayerNorm)))


def replace_method(profile: RadialProfile) -> None:
    forward = profile.net[3].forward
    profile.net[3].forward = lambda input: forward(input).square()


def swap_parameters(profile: RadialProfile) -> None:
    profile.net[6] = nn.Linear(profile.net[6].in_features, profile.net[6].out_features, bias=False)


def convert_class(profile: RadialProfile) -> None:
    profile.__class__ = Gated


CHANGES: dict[str, Callable[[RadialProfile], None]] = {
    "activation": replace_activation,
    "dropout, not training": insert_dropout,
    "epsilon": change_epsilon,
    "no affine map": drop_affine,
    "width": widen,
    "one hidden layer": one_hidden_layer,
    "new last layer": swap_parameters,
    "last layer a subclass": last_with(weighted(ScaledLinear)),
    "last layer a subclass in name": last_with(weighted(SameLinear)),
    "last layer with bias": last_with(weighted(nn.Linear, bias=True)),
    "low rank": last_with(WithLowRank),
    "old weight norm": old_weight_norm,
    "weight norm of the last": new_weight_norm(6),
    "weight norm of a hidden layer": new_weight_norm(3),
    "spectral norm": lambda profile: parametrizations.spectral_norm(profile.net[6]) and None,
    "hook on a hidden layer": hook_on("net.0", "forward"),
    "hook on the last layer": hook_on("net.6", "forward"),
    "hook on the sequence": hook_on("net", "forward"),
    "hook on the profile": hook_on("", "forward"),
    "hook before a hidden layer": hook_on("net.3", "before"),
    "hook before the last layer": hook_on("net.6", "before"),
    "hook before the profile": hook_on("", "before"),
    "hook on gradients": hook_on("net.0", "backward"),
    "hook on gradients of the last": hook_on("net.6", "backward"),
    "method": replace_method,
    "class": convert_class,
    "without norms": remove_norms,
}


def changed(change: str, level: ConvSE3FuseLevel, **arguments: Any) -> ConvSE3:
    module = make_convolution(FIBER, FIBER, fuse_level=level, **arguments)
    torch.manual_seed(7)
    first = module.radial_profiles[0]
    for profile in module.radial_profiles[: 1 if change in ("width", "without norms") else None]:
        assert isinstance(profile, RadialProfile)
        CHANGES[change](profile)
    assert module.radial_profiles[0] is first
    return module.double().eval()


def run(module: ConvSE3, twice: bool = False) -> list[Tensor]:
    """Messages or sums, and all gradients."""
    graph, nodes, _ = problem()
    rel_pos = graph.edata["rel_pos"].requires_grad_()
    nodes = {key: value.requires_grad_() for key, value in nodes.items()}
    torch.manual_seed(3)
    output = module(nodes, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, EdgeGeometry(rel_pos, 1))
    inputs = [rel_pos, *nodes.values(), *(p for p in module.parameters() if p.requires_grad)]
    loss = sum(value.square().sum() for value in output.values())
    gradients = torch.autograd.grad(loss, inputs, create_graph=twice, allow_unused=True, materialize_grads=True)
    if twice:
        gradients += torch.autograd.grad(gradients[0].square().sum(), inputs, allow_unused=True, materialize_grads=True)
    return [*output.values(), *gradients]


@pytest.mark.parametrize(
    ("change", "name"),
    on_all_backends(
        CHANGES,
        [
            "activation",
            "epsilon",
            "width",
            "last layer a subclass",
            "low rank",
            "old weight norm",
            "weight norm of the last",
            "hook on a hidden layer",
            "hook on the last layer",
            "hook on the profile",
            "hook before the profile",
            "method",
            "class",
        ],
    ),
)
def test_changes_have_their_effect(change: str, name: str) -> None:
    for level in levels(name, change):
        module = changed(change, level)
        with backend("dense"):
            expected = run(module)
        with backend(name):
            found = run(module)
        for value, true in zip(found, expected, strict=True):
            assert relative_error(value, true) < 1e-10


def by_hand(module: ConvSE3) -> Features:
    """A pooled convolution of fuse level PARTIAL, pair by pair, its radial networks called."""
    graph, nodes, edges = problem()
    bases = get_basis(graph.edata["rel_pos"], 1)
    result = {}
    for degree_out in range(2):
        weights = module.conv_out[str(degree_out)].radial_func(edges["0"][..., 0]).view(NUM_EDGES, 2, 2, -1)
        total, start = torch.zeros(NUM_NODES, 2, 2 * degree_out + 1, dtype=torch.float64), 0
        for degree_in in range(2):
            basis = bases[f"{degree_in},{degree_out}"]
            paths = weights[..., start : start + basis.shape[2]]
            start += basis.shape[2]
            message = torch.einsum("eoif,elfk,eil->eok", paths, basis, nodes[str(degree_in)][graph.src])
            total = total.index_add(0, graph.dst, message)
        result[str(degree_out)] = total
    return result


@pytest.mark.parametrize("change", CHANGES)
def test_dense_calls_the_networks(change: str) -> None:
    module = changed(change, ConvSE3FuseLevel.PARTIAL)
    unchanged = make_convolution(FIBER, FIBER, fuse_level=ConvSE3FuseLevel.PARTIAL)
    graph, nodes, edges = problem()
    with backend("dense"):
        found = module(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 1))
        before = unchanged(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 1))
    for degree, true in by_hand(module).items():
        assert relative_error(found[degree], true) < 1e-12
    if "gradients" not in change and "dropout" not in change:  # these change no output
        assert max(relative_error(found[degree], before[degree]) for degree in found) > 1e-3


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
@pytest.mark.parametrize("low_memory", [False, True], ids=["kept", "low memory"])
def test_dropout_trains_with_one_mask(low_memory: bool, name: str) -> None:
    """Forward, backward and recomputation see the same mask: the gradients are those of the function that was evaluated."""
    for level in (ConvSE3FuseLevel.FULL, ConvSE3FuseLevel.NONE):
        expected = changed("dropout, not training", level).train()
        module = changed("dropout, not training", level, low_memory=low_memory).train()
        with backend("dense"):
            truth = run(expected)
        with backend(name):
            found = run(module)
        for value, true in zip(found, truth, strict=True):
            assert relative_error(value, true) < 1e-10
    with backend(name):
        graph, nodes, edges = problem()
        first, second = (module(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 1))["1"] for _ in range(2))
    assert relative_error(first, second) > 1e-3


@pytest.mark.parametrize(
    ("change", "name"), on_all_backends(["activation", "low rank", "dropout, not training"], ["activation", "low rank"])
)
def test_second_derivatives(change: str, name: str) -> None:
    module = changed(change, ConvSE3FuseLevel.PARTIAL)
    with backend("dense"):
        expected = run(module, twice=True)
    with backend(name):
        found = run(module, twice=True)
    for value, true in zip(found, expected, strict=True):
        assert relative_error(value, true) < 1e-9


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_hooks_on_all_modules(name: str) -> None:
    called: list[str] = []
    module = make_convolution(FIBER, FIBER)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: called.append(type(module).__name__))
    try:
        with backend(name):
            run(module)
    finally:
        handle.remove()
    assert called.count("Linear") == 3 and called.count("RadialProfile") == 1


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_hooks_on_all_modules_of_a_block(name: str) -> None:
    """What is fast together is called apart where somebody listens to everything."""
    graph, nodes, edges = problem()
    torch.manual_seed(0)
    block = AttentionBlockSE3(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1).double()
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: called.append(module))
    try:
        with backend(name):
            block(nodes, edges, graph)
    finally:
        handle.remove()
    for part in (block.to_key_value, block.to_query, block.attention, block.project):
        assert sum(module is part for module in called) == 1


@pytest.mark.parametrize(
    ("change", "name"),
    on_all_backends(["activation", "low rank", "width", "hook on the profile"], ["activation", "low rank"]),
)
def test_whole_models(change: str, name: str) -> None:
    """The attention blocks' convolutions too, one of two blocks unchanged; on triton, what is joined for all layers leaves the
    changed ones out."""
    for low_memory in (False, True) if name != "triton" else (change == "low rank",):
        transformer = model(ConvSE3FuseLevel.PARTIAL)
        block = transformer.graph_modules[0]
        block.low_memory = low_memory
        for profile in block.to_key_value.radial_profiles[:1]:
            CHANGES[change](profile)
        transformer.double()
        graph = problem()[0]
        nodes = random_features(FIBER, NUM_NODES)
        values = []
        for backend_name in ("dense", name):
            transformer.zero_grad()
            with backend(backend_name):
                output = transformer(graph, nodes)
                (output["0"].square().sum() + output["1"].square().sum()).backward()
            values.append([*output.values(), *(p.grad for p in transformer.parameters() if p.grad is not None)])
        for value, true in zip(*reversed(values), strict=True):
            assert relative_error(value, true) < 1e-10


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_quantised_layers(name: str) -> None:
    module = make_convolution(FIBER, FIBER, fuse_level=ConvSE3FuseLevel.PARTIAL).float().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    graph, nodes, edges = problem()
    nodes, edges = ({key: value.float() for key, value in features.items()} for features in (nodes, edges))
    geometry = EdgeGeometry(graph.edata["rel_pos"].float(), 1)
    with torch.no_grad():
        with backend("dense"):
            expected, exact = quantised(nodes, edges, graph, geometry), module(nodes, edges, graph, geometry)
        with backend(name):
            found = quantised(nodes, edges, graph, geometry)
    for degree, true in expected.items():
        assert relative_error(found[degree], true) < 1e-5
        assert relative_error(true, exact[degree]) > 1e-5


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_modules_are_looked_up(name: str) -> None:
    """Copies, replicas and exchanged modules have their own radial networks."""
    module = make_convolution(FIBER, FIBER, fuse_level=ConvSE3FuseLevel.PARTIAL)
    copied = copy.deepcopy(module)
    other = RadialConvolution(4, 2, 2, 1, True, ConvSE3FuseLevel.PARTIAL).double()
    copied.conv_out["1"] = other
    with torch.no_grad():
        copied.conv_out["0"].radial_func.net[6].weight.zero_()
    replica = module._replicate_for_data_parallel()
    replica.conv_out = copied.conv_out
    assert replica.radial_profiles[1] is other.radial_func and module.radial_profiles[1] is not other.radial_func
    graph, nodes, edges = problem()
    for convolution in (copied, replica):
        with backend(name):
            found = convolution(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 1))
        assert found["0"].abs().max() == 0
        assert relative_error(found["1"], by_hand(copied)["1"]) < 1e-10


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_parts_of_the_convolution_that_were_changed(name: str) -> None:
    class Doubled(RadialConvolution):
        def forward(self, features: Tensor, invariant_edge_feats: Tensor, basis: Tensor | None) -> Tensor:
            return 2.0 * super().forward(features, invariant_edge_feats, basis)

    graph, nodes, edges = problem()
    geometry = EdgeGeometry(graph.edata["rel_pos"], 1)
    for level in LEVELS:
        module = make_convolution(FIBER, FIBER, fuse_level=level)
        with backend("dense"):
            expected = module(nodes, edges, graph, geometry)
        hooked, replaced = copy.deepcopy(module), copy.deepcopy(module)
        for part in hooked.radial_convolutions:
            part.register_forward_hook(lambda module, inputs, output: 2.0 * output)
        for part in replaced.radial_convolutions:
            part.__class__ = Doubled
        for changed_module in (hooked, replaced):
            with backend(name):
                found = changed_module(nodes, edges, graph, geometry)
            for degree, true in expected.items():
                assert relative_error(found[degree], 2.0 * true) < 1e-10


@pytest.mark.parametrize("name", ["dense", "torch", "cpp"])
@pytest.mark.parametrize("change", ["activation", "low rank"])
def test_autocast(change: str, name: str) -> None:
    module = changed(change, ConvSE3FuseLevel.FULL)
    graph, nodes, edges = problem()
    with backend("dense"):
        expected = module(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 1))
    module.float()
    nodes, edges = ({key: value.float() for key, value in features.items()} for features in (nodes, edges))
    with backend(name), torch.autocast("cpu", torch.bfloat16):
        found = module(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"].float(), 1))
    for degree, true in expected.items():
        assert found[degree].dtype == torch.bfloat16
        assert relative_error(found[degree], true) < 3e-2


# Parts called by themselves


def test_a_radial_profile_by_itself() -> None:
    torch.manual_seed(0)
    profile = RadialProfile(num_freq=3, channels_in=2, channels_out=4, edge_dim=5, mid_dim=16, use_layer_norm=True)
    invariants = torch.randn(7, 5)
    linear, norm, _, *_, last = profile.net
    assert [tuple(layer.weight.shape) for layer in (linear, norm, last)] == [(16, 5), (16,), (24, 16)] and last.bias is None
    hidden = invariants
    for number in (0, 3):
        hidden = F.relu(profile.net[number + 1](profile.net[number](hidden)))
    assert relative_error(profile(invariants), hidden @ last.weight.T) < 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_the_parts_give_the_whole(level: ConvSE3FuseLevel) -> None:
    """Radial convolutions called as the published layer calls them."""
    module = make_convolution(FIBER, FIBER, fuse_level=level, pool=False)
    graph, nodes, edges = problem()
    bases = update_basis_with_fused(get_basis(graph.edata["rel_pos"], 1), 1, use_pad_trick=False, fully_fused=True)
    expected = module(nodes, edges, graph, bases)
    invariants = edges["0"].squeeze(-1)
    inputs = {degree: nodes[degree][graph.src] for degree in nodes}
    beside = torch.cat([inputs["0"], inputs["1"]], -1)
    if level is ConvSE3FuseLevel.FULL:
        assert (module.conv.freq_sum, module.conv.channels_in, module.conv.channels_out) == (6, 2, 2)
        assert module.conv.fuse_level is module.used_fuse_level is level
        found = dict(zip("01", module.conv(beside, invariants, bases["fully_fused"]).split([1, 3], -1), strict=True))
    elif level is ConvSE3FuseLevel.PARTIAL:
        assert [module.conv_out[degree].freq_sum for degree in "01"] == [2, 4]
        found = {degree: module.conv_out[degree](beside, invariants, bases[f"out{degree}_fused"]) for degree in "01"}
    else:
        assert module.conv["1,1"].freq_sum == 3
        found = {
            degree: sum(module.conv[f"{of},{degree}"](inputs[of], invariants, bases.get(f"{of},{degree}")) for of in "01")
            for degree in "01"
        }
    for degree, true in expected.items():
        assert relative_error(found[degree], true) < 1e-12


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_layers_make_the_geometry_from_the_graph(name: str) -> None:
    graph, nodes, edges = problem()
    rel_pos = graph.edata["rel_pos"].requires_grad_()
    torch.manual_seed(0)
    block = AttentionBlockSE3(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1).double()
    for module in (make_convolution(FIBER, FIBER), block):
        with backend(name):
            expected = module(nodes, edges, graph, EdgeGeometry.from_relative_positions(rel_pos, 1))
            for found in (module(nodes, edges, graph, None), module(nodes, edges, graph)):
                gradients = [torch.autograd.grad(value["1"].sum(), rel_pos, retain_graph=True)[0] for value in (found, expected)]
                assert all(torch.equal(found[degree], true) for degree, true in expected.items())
                assert torch.equal(*gradients) and gradients[0].abs().max() > 0
    with pytest.raises(ValueError, match=r"graph: expected edata\['rel_pos'\] of shape \[E, 3\]"):
        block(nodes, edges, Graph(graph.src, graph.dst, NUM_NODES), None)


def test_compiled_profiles_that_were_changed() -> None:
    for change in ("activation", "low rank", "epsilon"):
        module = changed(change, ConvSE3FuseLevel.PARTIAL)
        graph, nodes, edges = problem()
        geometry = EdgeGeometry(graph.edata["rel_pos"], 1)
        with se3_fast.backend("torch"):
            compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
            found = compiled(nodes, edges, graph, geometry)
        for degree, true in by_hand(module).items():
            assert relative_error(found[degree], true) < 1e-10


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_hooks_on_the_layers_of_a_block(name: str) -> None:
    """What is fast together is called apart where somebody listens."""
    graph, nodes, edges = problem()
    for part in ("to_key_value", "to_query", "attention", "project"):
        torch.manual_seed(0)
        block = AttentionBlockSE3(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1).double()
        seen: list[Any] = []
        block.get_submodule(part).register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        with backend(name):
            block(nodes, edges, graph)
        assert len(seen) == 1 and set(seen[0]) == {"0", "1"}


class LowRankMap(nn.Module):
    """A linear map of features and a correction of low rank, called as the published layers are."""

    def __init__(self, base: LinearSE3, fiber: Fiber) -> None:
        super().__init__()
        self.base = base
        self.correction = nn.Sequential(LinearSE3(fiber, Fiber.create(2, 1)), LinearSE3(Fiber.create(2, 1), FIBER))

    def forward(self, features: Features) -> Features:
        more = self.correction(features)
        return {degree: feature + more[degree] for degree, feature in self.base(features).items()}


class AttentionWithDropout(AttentionSE3):
    def forward(self, *args: Any) -> Features:
        return dropped(self, (), super().forward(*args))


def dropped(module: nn.Module, inputs: Any, output: Features) -> Features:
    return {degree: F.dropout(feature, 0.5) for degree, feature in output.items()}


@pytest.mark.parametrize("place", ["attention", "hook on the attention", "hook on the convolution"])
@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_dropout_within_a_block_is_recomputed_with_one_mask(name: str, place: str) -> None:
    graph, nodes, edges = problem()
    block = AttentionBlockSE3(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1)
    if place == "attention":
        block.attention = AttentionWithDropout(1, block.key_fiber, block.value_fiber)
    else:
        (block.attention if "attention" in place else block.to_key_value).register_forward_hook(dropped)
    block.double()
    gradients = []
    for low_memory in (False, True):
        block.low_memory = low_memory
        torch.manual_seed(0)
        with backend(name):
            loss = block(nodes, edges, graph)["1"].square().sum()
            gradients.append(torch.autograd.grad(loss, list(block.parameters()), materialize_grads=True))
    for kept, recomputed in zip(*gradients, strict=True):
        assert relative_error(recomputed, kept) < 1e-10


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_an_adapter_in_the_place_of_a_linear_map(name: str, low_memory: bool) -> None:
    """It gets what the map is made for, the projection the values with the features of the nodes beside them."""
    graph, nodes, edges = problem()
    block = AttentionBlockSE3(FIBER, FIBER, num_heads=1, channels_div=1, max_degree=1, low_memory=low_memory).double()
    with backend("dense"):
        expected = block(nodes, edges, graph)
    block.to_query = LowRankMap(block.to_query, FIBER).double()
    block.project = LowRankMap(block.project, FIBER * 2).double()  # type: ignore[arg-type]
    with backend(name):
        different = block(nodes, edges, graph)
        for part in (block.to_query, block.project):
            nn.init.zeros_(part.correction[1].weights["0"])
            nn.init.zeros_(part.correction[1].weights["1"])
        found = block(nodes, edges, graph)
    for degree, true in expected.items():
        assert relative_error(different[degree], true) > 1e-3
        assert relative_error(found[degree], true) < 1e-10
