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

// What of the operands gradients are wanted of; those of the features always are. Edges: harmonics and places.
struct DepthwiseWanted {
    bool edges, table;
};

// The gradients of the operands. Of edges that are not wanted they have the size 0; a table that is not wanted has none.
Tensors depthwise_gradients(
    const Tensor& gradient, const Tensors& operands, const Tensor& src, const Tensor& dst, const Tensor& order, const Tensor& offsets,
    const Integers& table, const std::vector<double>& coefficients, const DepthwiseWanted& wanted);

// The derivatives of the sums, then of the gradients, along a direction of features, harmonics and places; gradient and table stay.
Tensors depthwise_gradients_along(
    const Tensors& direction, const Tensor& gradient, const Tensors& operands, const Tensor& src, const Tensor& dst,
    const Tensor& order, const Tensor& offsets, const Integers& table, const std::vector<double>& coefficients,
    const DepthwiseWanted& wanted);

}  // namespace se3_fast
