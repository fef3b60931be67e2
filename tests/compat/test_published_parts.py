"""The parts of the published package that the models here do without compute what they did."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from se3_fast import ConvSE3FuseLevel, Fiber, SE3TransformerPooled, get_basis, update_basis_with_fused
from tests.support import make_convolution, random_features, random_graph, relative_error

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.parametrize("use_pad_trick", [False, True], ids=["plain", "padded"])
def test_bases_from_their_parts(use_pad_trick: bool) -> None:
    from se3_transformer.model import basis

    rel_pos = random_graph(5, 9, zero_length_edges=1).edata["rel_pos"]
    couplings = basis.get_all_clebsch_gordon(2, rel_pos.device)
    harmonics = basis.get_spherical_harmonics(rel_pos, 2)
    assert [tuple(part.shape) for part in harmonics] == [(9, 2 * degree + 1) for degree in range(5)]
    assert couplings[1][0].shape == (3, 1, 3) and len(couplings) == 9
    made = basis.get_basis_script(2, use_pad_trick, harmonics, couplings, False)
    truth = get_basis(rel_pos, 2, use_pad_trick=use_pad_trick)
    assert list(made) == list(truth)
    for key, value in made.items():
        assert relative_error(value, truth[key]) < 1e-12
    assert basis.get_basis_script(1, False, harmonics, basis.get_all_clebsch_gordon(1, "cpu"), True)["1,1"].dtype == torch.float16


def test_one_materialised_convolution() -> None:
    from se3_transformer.model.layers.convolution import VersatileConvSE3

    fiber = Fiber.create(3, 3)
    graph = random_graph(5, 11)
    nodes = random_features(fiber, 5)
    invariants = torch.rand(11, 1, 1, dtype=torch.float64)
    ours = make_convolution(fiber, fiber, pool=False)
    theirs = VersatileConvSE3(19, 3, 3, 1, True, ConvSE3FuseLevel.FULL).double()
    theirs.load_state_dict(ours.conv.state_dict())
    bases = update_basis_with_fused(get_basis(graph.edata["rel_pos"], 2), 2, use_pad_trick=False, fully_fused=True)
    gathered = torch.cat([nodes[str(degree)][graph.src] for degree in range(3)], -1)
    value = theirs(gathered, invariants[..., 0], bases["fully_fused"])
    truth = ours(nodes, {"0": invariants}, graph, bases)
    assert relative_error(value, torch.cat([truth[str(degree)] for degree in range(3)], -1)) < 1e-12
    scalar = VersatileConvSE3(1, 3, 3, 1, False, ConvSE3FuseLevel.NONE).double()
    weights = scalar.radial_func(invariants[..., 0]).view(11, 3, 3)
    assert relative_error(scalar(nodes["0"][graph.src], invariants[..., 0], None), weights @ nodes["0"][graph.src]) < 1e-12


def test_utilities() -> None:
    from se3_transformer.model.transformer import get_populated_edge_features
    from se3_transformer.runtime import utils

    fiber = Fiber({0: 2, 1: 3})
    features, more = random_features(fiber, 4), random_features(Fiber({1: 3}), 4, seed=2)
    assert set(utils.aggregate_residual(features, more, "add")) == {"1"}
    assert torch.equal(utils.aggregate_residual(more, features, "sum")["1"], features["1"] + more["1"])
    assert torch.equal(utils.aggregate_residual(more, features, "cat")["1"], torch.cat([features["1"], more["1"]], 1))
    with pytest.raises(ValueError, match="method: expected"):
        utils.aggregate_residual(features, more, "product")
    fused = torch.randn(4, 5, 9)
    assert {key: part.shape[-1] for key, part in utils.unfuse_features(fused, [0, 1, 2]).items()} == {"0": 1, "1": 3, "2": 5}
    assert utils.str2bool("yes") and utils.str2bool(True) and not utils.str2bool("0")
    with pytest.raises(argparse.ArgumentTypeError):
        utils.str2bool("perhaps")
    assert not utils.init_distributed() and utils.get_local_rank() == 0
    assert utils.rank_zero_only(lambda value: value + 1)(1) == 2
    rel_pos = torch.tensor([[3.0, 0.0, 4.0]])
    assert get_populated_edge_features(rel_pos)["0"].tolist() == [[[5.0]]]
    given = {"0": torch.ones(1, 2, 1)}
    assert get_populated_edge_features(rel_pos, given)["0"].flatten().tolist() == [1, 1, 5] and given["0"].shape[1] == 2


def test_options_of_the_model_on_a_command_line() -> None:
    from se3_transformer.model import SE3TransformerPooled as Published

    parser = Published.add_argparse_args(argparse.ArgumentParser())
    options: dict[str, Any] = vars(parser.parse_args(["--num_channels", "4", "--num_heads", "2", "--num_layers", "1", "--norm"]))
    model = Published(fiber_in=Fiber({0: 3}), fiber_out=Fiber({0: 8}), fiber_edge=Fiber({}), output_dim=1, **options)
    assert isinstance(model, SE3TransformerPooled) and model.transformer.num_layers == 1
