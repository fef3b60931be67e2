"""The layers, with the published constructor arguments, call signatures and parameter names."""

from se3_fast.layers.attention import AttentionBlockSE3, AttentionSE3
from se3_fast.layers.convolution import ConvSE3, ConvSE3FuseLevel
from se3_fast.layers.linear import LinearSE3
from se3_fast.layers.norm import NormSE3
from se3_fast.layers.pooling import GPooling

__all__ = ["AttentionBlockSE3", "AttentionSE3", "ConvSE3", "ConvSE3FuseLevel", "GPooling", "LinearSE3", "NormSE3"]
