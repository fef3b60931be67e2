// Operations of torch.ops.se3_fast_cpp that others are made of; each is described where it is defined.

#pragma once

#include "tensor.h"

namespace se3_fast {

Tensor radial(Tensor invariants, Tensor parameters, int64_t width, bool has_norm, double epsilon);

Tensors tfn_conv(Tensors nodes, Tensors edges, Tensors hidden, Tensors weights, Tensor wigner, Tensor src, Tensor dst,
                 Tensor in_order, Tensor in_offsets, Integers description, Tensor coefficients, bool pool);

Tensors edge_attention(Tensors messages, Tensors queries, Tensor order, Tensor offsets, Integers value_channels, int64_t heads);

Tensors linear(Tensors parts, Integers counts, Tensors weights);

Tensor depthwise_conv(Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers table,
                      std::vector<double> coefficients);

Tensors depthwise_conv_backward(Tensor gradient, Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers table,
                                std::vector<double> coefficients, bool with_weights);

Tensors depthwise_conv_along(Tensors direction, Tensor gradient, Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets,
                             Integers table, std::vector<double> coefficients);

}  // namespace se3_fast
