"""As in ``.model.layers``: where a variant of the published package has it."""

from se3_fast.layers import AttentionBlockSE3, ConvSE3, GPooling, LinearSE3, NormSE3

__all__ = ["AttentionBlockSE3", "ConvSE3", "GPooling", "LinearSE3", "NormSE3"]
