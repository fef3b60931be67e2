"""The convolution by the compiled CPU operations, which compute in float32 or float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.backends.cpp.tfn_conv_by_source import NativeConvolutionBySource
from se3_fast.backends.operands import Convolution, FrameForm
from se3_fast.backends.torch.operand_convolution import OperandConvolution, is_by_source_here
from se3_fast.backends.torch.second_derivatives import Setting

FRAMES: FrameForm = "wigner"
KEEPS_FRAMES = False


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`: messages by ascending degree."""
    kind = NativeConvolutionBySource if is_by_source_here(call, forms_weights=True) else NativeConvolution
    given = call.hidden[0].dtype
    dtype = accumulation_dtype(given)
    make = partial(kind, call.plan, call.graph, pool=call.pool)
    tensors = (*call.node_features.values(), *call.edge_features.values(), *call.hidden, *call.weights)
    operands = (tensor.to(dtype).contiguous() for tensor in tensors)
    how, of_recipe = (None, ()) if call.make_hidden is None else call.make_hidden
    operation = OperandConvolution(Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, dtype), make, how)
    messages = operation.apply(call.geometry.wigner_as(dtype), call.geometry.rel_pos, *operands, *of_recipe)
    return tuple(message.to(given) for message in messages)
