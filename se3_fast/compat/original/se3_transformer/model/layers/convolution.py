"""The convolution, and the published parts of one, which compute with everything materialised."""

from __future__ import annotations

from torch import Tensor, nn

from se3_fast.layers import ConvSE3, ConvSE3FuseLevel

__all__ = ["ConvSE3", "ConvSE3FuseLevel", "RadialProfile", "VersatileConvSE3"]


class RadialProfile(nn.Module):
    """The radial network of one convolution: [E, edge_dim] to [E, num_freq * channels_in * channels_out].

    :class:`ConvSE3` has another that leaves the last layer to the kernel; the parameters have the same names.
    """

    def __init__(
        self,
        num_freq: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int = 1,
        mid_dim: int = 32,
        use_layer_norm: bool = False,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for width in (edge_dim, mid_dim):
            norm = [nn.LayerNorm(mid_dim)] if use_layer_norm else []
            modules += [nn.Linear(width, mid_dim), *norm, nn.ReLU()]
        self.net = nn.Sequential(*modules, nn.Linear(mid_dim, num_freq * channels_in * channels_out, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """All weights of all edges."""
        return self.net(features)


class VersatileConvSE3(nn.Module):
    """One radial profile contracted with gathered features and a basis; ``freq_sum`` is the basis' number of paths."""

    def __init__(
        self,
        freq_sum: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int,
        use_layer_norm: bool,
        fuse_level: ConvSE3FuseLevel,
    ) -> None:
        super().__init__()
        self.freq_sum, self.channels_in, self.channels_out = freq_sum, channels_in, channels_out
        self.fuse_level = fuse_level
        self.radial_func = RadialProfile(freq_sum, channels_in, channels_out, edge_dim, use_layer_norm=use_layer_norm)

    def forward(self, features: Tensor, invariant_edge_feats: Tensor, basis: Tensor | None) -> Tensor:
        """Messages [E, channels_out, k].

        Args:
            features: [E, channels_in, l], those of the edges' sources.
            invariant_edge_feats: [E, edge_dim].
            basis: [E, l, freq_sum, k]; None for the pair of degrees (0, 0), l = k = freq_sum = 1.
        """
        weights = self.radial_func(invariant_edge_feats).view(-1, self.channels_out, self.channels_in * self.freq_sum)
        if basis is None:
            return weights @ features
        coupled = features @ basis.flatten(2)  # [E, channels_in, freq_sum * k]
        return weights @ coupled.view(len(features), self.channels_in * self.freq_sum, basis.shape[-1])
