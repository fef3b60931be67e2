from __future__ import annotations

import torch
from torch import nn

from se3_fast.ops.radial import RadialLayer, radial


def test_hidden_layers_equal_modules() -> None:
    torch.manual_seed(0)
    invariants = torch.randn(7, 3, dtype=torch.float64)
    modules = [nn.Linear(3, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU()]
    network = nn.Sequential(*modules).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    layers = tuple(
        RadialLayer(linear.weight, linear.bias, norm.weight, norm.bias)
        for linear, norm in ((modules[0], modules[1]), (modules[3], modules[4]))
    )
    (hidden,) = radial(invariants, [layers])
    torch.testing.assert_close(hidden, network(invariants), rtol=0, atol=1e-13)


def test_without_layer_norm() -> None:
    invariants = torch.randn(7, 3, dtype=torch.float64)
    first, second = (nn.Linear(width, 32).double() for width in (3, 32))
    layers = tuple(RadialLayer(linear.weight, linear.bias, None, None) for linear in (first, second))
    (hidden,) = radial(invariants, [layers])
    torch.testing.assert_close(hidden, second(first(invariants).relu()).relu(), rtol=0, atol=1e-13)


def test_no_edges() -> None:
    layer = RadialLayer(torch.ones(32, 2), torch.zeros(32), torch.ones(32), torch.zeros(32))
    inner = RadialLayer(torch.ones(32, 32), torch.zeros(32), torch.ones(32), torch.zeros(32))
    (hidden,) = radial(torch.zeros(0, 2), [(layer, inner)])
    assert hidden.shape == (0, 32)
