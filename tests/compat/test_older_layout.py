"""State dicts of older versions, whose last convolution has another fuse level than the blocks, and names with a wrapper's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import (
    ConvSE3,
    ConvSE3FuseLevel,
    Fiber,
    SE3Transformer,
    SE3TransformerPooled,
    build_for_state_dict,
    check_state_dict,
    convert_fuse_level,
    fuse_level_of_state_dict,
    fuse_levels_of_state_dict,
)
from se3_fast.train import main as train
from se3_fast.training.model_config import build_model, match_parameterisation
from tests.models import SMALL_CONFIG
from tests.support import random_features, random_graph, relative_error

FULL, PARTIAL, NONE = ConvSE3FuseLevel.FULL, ConvSE3FuseLevel.PARTIAL, ConvSE3FuseLevel.NONE
FIBERS: dict[str, Any] = {
    "fiber_in": Fiber({0: 3}),
    "fiber_hidden": Fiber.create(3, 4),
    "fiber_out": Fiber.create(3, 2),
    "fiber_edge": Fiber({0: 2}),
}
ARGUMENTS: dict[str, Any] = {**FIBERS, "num_layers": 2, "num_heads": 2, "channels_div": 2}
PATHS = ["graph_modules.0.to_key_value", "graph_modules.2.to_key_value", "graph_modules.4"]
BACKENDS = ["dense", "torch", "auto"]


def older(blocks: ConvSE3FuseLevel, **arguments: Any) -> SE3Transformer:
    """A model as older versions make it: no fuse level is handed to the last convolution, so that it has the default."""
    torch.manual_seed(0)
    given = {**ARGUMENTS, **arguments}
    model = SE3Transformer(**given, fuse_level=blocks)
    last = ConvSE3(
        given["fiber_hidden"],
        given["fiber_out"],
        given["fiber_edge"],
        self_interaction=True,
        use_layer_norm=True,
        max_degree=model.max_degree,
    )
    model.graph_modules[-1] = last
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


def outputs(model: nn.Module) -> dict[str, Tensor]:
    graph = random_graph(6, 20, zero_length_edges=2)
    with torch.no_grad():
        return model.double()(graph, random_features(FIBERS["fiber_in"], 6), random_features(FIBERS["fiber_edge"], 20))


def assert_same_function(model: nn.Module, truth: nn.Module) -> None:
    for backend in BACKENDS:
        with se3_fast.backend(backend):
            values, expected = outputs(model), outputs(truth)
        for degree in expected:
            assert relative_error(values[degree], expected[degree]) < 1e-12, (backend, degree)


@pytest.mark.parametrize("blocks", ConvSE3FuseLevel)
def test_the_level_is_read_for_each_layer(blocks: ConvSE3FuseLevel) -> None:
    state = older(blocks).state_dict()
    assert fuse_levels_of_state_dict(state) == dict(zip(PATHS, [NONE, blocks, FULL], strict=True))  # the input is scalars alone
    assert fuse_level_of_state_dict(state) is blocks


@pytest.mark.parametrize("low_memory", [False, True], ids=["kept", "low memory"])
@pytest.mark.parametrize("fiber_in", [Fiber({0: 3}), Fiber.create(3, 4)], ids=["scalars", "all degrees"])
@pytest.mark.parametrize("blocks", ConvSE3FuseLevel)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_model_is_built_for_it(num_layers: int, blocks: ConvSE3FuseLevel, fiber_in: Fiber, low_memory: bool) -> None:
    """``low_memory`` means PARTIAL in the oldest versions: the parameters decide, whatever is passed."""
    state = older(blocks, num_layers=num_layers, fiber_in=fiber_in).state_dict()
    arguments = {**ARGUMENTS, "num_layers": num_layers, "fiber_in": fiber_in}
    rebuilt = build_for_state_dict(SE3Transformer, state, **arguments, low_memory=low_memory)
    assert rebuilt.low_memory is low_memory
    assert list(rebuilt.state_dict()) == list(state)
    for name, value in rebuilt.state_dict().items():
        assert torch.equal(value, state[name].float()), name


def test_the_model_built_is_the_same_function_and_keeps_its_layout() -> None:
    truth = older(PARTIAL)
    rebuilt = build_for_state_dict(SE3Transformer, truth.state_dict(), **ARGUMENTS)
    assert rebuilt.fuse_level is PARTIAL and rebuilt.graph_modules[-1].used_fuse_level is FULL
    exact = SE3Transformer(**ARGUMENTS, fuse_level=PARTIAL, final_fuse_level=FULL).double()
    exact.load_state_dict(truth.state_dict())
    assert_same_function(exact, truth)


@pytest.mark.parametrize(("blocks", "built"), [(PARTIAL, {}), (PARTIAL, {"low_memory": True}), (NONE, {"low_memory": True})])
def test_strict_loading_into_a_model_of_today(blocks: ConvSE3FuseLevel, built: dict[str, Any]) -> None:
    """What a pipeline does: it builds the model as it always did, and loads its file."""
    truth = older(blocks)
    model = SE3Transformer(**ARGUMENTS, **built).double()
    with pytest.warns(UserWarning, match=r"fuse levels converted, the function is the same: .*graph_modules.4 from FULL to"):
        model.load_state_dict(truth.state_dict(), strict=True)
    assert_same_function(model, truth)
    around = nn.Sequential(SE3Transformer(**ARGUMENTS, **built).double())
    with pytest.warns(UserWarning, match=r"0.graph_modules.4 from FULL"):
        around.load_state_dict(nn.Sequential(truth).state_dict(), strict=True)
    assert_same_function(around[0], truth)


def test_what_cannot_be_joined_is_refused_when_loading() -> None:
    state = SE3Transformer(**ARGUMENTS, fuse_level=NONE).state_dict()
    with pytest.raises(RuntimeError, match="to have equal hidden layers"):
        SE3Transformer(**ARGUMENTS, fuse_level=PARTIAL).load_state_dict(state)
    model = SE3Transformer(**ARGUMENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())  # its own layout: nothing is converted, nothing said
    part = {name: value for name, value in older(PARTIAL).state_dict().items() if "4.conv.radial_func.net.0" not in name}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(part)


@pytest.mark.parametrize("blocks", [PARTIAL, NONE])
def test_conversions_start_from_each_layers_level(blocks: ConvSE3FuseLevel) -> None:
    truth = older(blocks)
    state = convert_fuse_level(SE3Transformer, truth.state_dict(), NONE, **ARGUMENTS)
    converted = SE3Transformer(**ARGUMENTS, fuse_level=NONE).double()
    converted.load_state_dict(state)
    assert_same_function(converted, truth)
    with pytest.raises(ValueError, match="to have equal hidden layers"):
        convert_fuse_level(SE3Transformer, truth.state_dict(), FULL, **ARGUMENTS)


CONFIG = SMALL_CONFIG | {"fiber_in": {0: 3}, "fiber_edge": {0: 2}, "num_degrees": 1, "num_layers": 2}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("blocks", ConvSE3FuseLevel)
def test_the_command_lines_agree(blocks: ConvSE3FuseLevel, low_memory: bool) -> None:
    """Degree 0 alone, so that the pooled model's last convolution may be FULL."""
    config = {**CONFIG, "tensor_cores": not low_memory, "low_memory": low_memory}
    torch.manual_seed(0)
    fibers = {name: Fiber(CONFIG[name]) for name in ("fiber_in", "fiber_edge", "fiber_out")}
    model = SE3TransformerPooled(**{**CONFIG, **fibers}, fuse_level=blocks)
    for state in (model.state_dict(), _with_full_last(model).state_dict()):
        matched = match_parameterisation(config, state)
        rebuilt = build_model(matched)
        rebuilt.load_state_dict(state)
        assert list(rebuilt.state_dict()) == list(state)
        assert all(isinstance(value, str | int | bool | dict) for value in matched.values())
        wrapped = {f"module.{name}": value for name, value in state.items()}
        assert match_parameterisation(config, wrapped) == matched


def _with_full_last(model: SE3TransformerPooled) -> SE3TransformerPooled:
    hidden = Fiber({0: 4})
    last = ConvSE3(hidden, Fiber({0: 8}), Fiber({0: 2}), self_interaction=True, use_layer_norm=True, max_degree=0)
    model.transformer.graph_modules[-1] = last
    return model


def test_training_goes_on_from_such_a_checkpoint(tmp_path: Path) -> None:
    options = ["--num_layers", "1", "--num_degrees", "1", "--num_channels", "4", "--num_heads", "2", "--use_layer_norm"]
    run = ["--dataset", "sample", "--max_steps", "1", "--batch_size", "8", "--silent", "--device", "cpu"]
    config = {**CONFIG, "fiber_in": {0: 6}, "fiber_edge": {0: 4}, "fiber_out": {0: 4}, "num_layers": 1, "norm": False}
    model = build_model({**config, "tensor_cores": False, "final_fuse_level": "FULL"})
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "published.pth"
    torch.save({"state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": 0}, path)
    assert train([*options, *run, "--log_dir", str(tmp_path), "--load_ckpt_path", str(path)]) == 0


def test_names_with_a_wrapper_before_them() -> None:
    truth = older(PARTIAL)
    state = truth.state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        wrapped = {f"{prefix}{name}": value for name, value in state.items()}
        assert fuse_level_of_state_dict(wrapped) is PARTIAL
        assert list(fuse_levels_of_state_dict(wrapped)) == PATHS
        rebuilt = build_for_state_dict(SE3Transformer, wrapped, **ARGUMENTS)
        assert list(rebuilt.state_dict()) == list(state)
        with pytest.raises(ValueError, match=f"expected names as 'graph_modules.* got them with '{prefix}' of a wrapper before"):
            check_state_dict(truth, wrapped)
        name = next(iter(state))
        mixed = {**{key: value for key, value in wrapped.items() if key != f"{prefix}{name}"}, name: state[name]}
        with pytest.raises(ValueError, match=r"expected all names with the same wrappers before them, got '.*' and '.*'"):
            build_for_state_dict(SE3Transformer, mixed, **ARGUMENTS)
    check_state_dict(nn.DataParallel(truth), {f"module.{name}": value for name, value in state.items()})


def test_a_part_that_was_compiled() -> None:
    model = older(PARTIAL)
    state = {name.replace("graph_modules.0.", "graph_modules.0._orig_mod."): value for name, value in model.state_dict().items()}
    assert list(build_for_state_dict(SE3Transformer, state, **ARGUMENTS).state_dict()) == list(model.state_dict())
    twice = {**state, **model.state_dict()}
    with pytest.raises(ValueError, match="state_dict: expected every parameter once"):
        build_for_state_dict(SE3Transformer, twice, **ARGUMENTS)
    compiled = torch.compile(model)
    assert list(build_for_state_dict(SE3Transformer, compiled.state_dict(), **ARGUMENTS).state_dict()) == list(model.state_dict())
