"""The convolution and its parts."""

from se3_fast.layers import ConvSE3, ConvSE3FuseLevel
from se3_fast.layers.convolution import RadialConvolution as VersatileConvSE3
from se3_fast.layers.convolution import RadialProfile

__all__ = ["ConvSE3", "ConvSE3FuseLevel", "RadialProfile", "VersatileConvSE3"]
