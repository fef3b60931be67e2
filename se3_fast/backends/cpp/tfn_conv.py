"""The convolution by the compiled CPU operations, which compute in float32 or float64 and also read and write bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, in_dtype
from se3_fast.backends.cpp.order_rates import RATES
from se3_fast.backends.cpp.stored_dtype import stored_dtype
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.backends.cpp.tfn_conv_by_source import NativeConvolutionBySource
from se3_fast.backends.operands import Convolution, FrameForm
from se3_fast.backends.torch.operand_convolution import OperandConvolution, orders_here
from se3_fast.backends.torch.second_derivatives import Setting

FRAMES: FrameForm = "wigner"
KEEPS_FRAMES = False


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`: messages by ascending degree."""
    given = call.hidden[0].dtype
    dtype, stored = accumulation_dtype(given), stored_dtype(given)
    make, make_backward = (
        partial(NativeConvolutionBySource if by_source else NativeConvolution, call.plan, call.graph, pool=call.pool)
        for by_source in orders_here(call, RATES)
    )
    features = (*call.node_features.values(), *call.edge_features.values(), *call.hidden)
    operands = (in_dtype(tensor, stored).contiguous() for tensor in features)
    weights = (in_dtype(weight, dtype).contiguous() for weight in call.weights)
    how, of_recipe = (None, ()) if call.make_hidden is None else call.make_hidden
    setting = Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, stored)
    operation = OperandConvolution(setting, make, make_backward, how)
    messages = operation.apply(call.geometry.wigner_as(dtype), call.geometry.rel_pos, *operands, *weights, *of_recipe)
    return tuple(in_dtype(message, given) for message in messages)
