"""The layers."""

from .attention import AttentionBlockSE3
from .convolution import ConvSE3
from .linear import LinearSE3
from .norm import NormSE3
from .pooling import GPooling

__all__ = ["AttentionBlockSE3", "ConvSE3", "GPooling", "LinearSE3", "NormSE3"]
