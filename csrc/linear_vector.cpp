// Linear maps of channels on the CPU, some nodes of a degree at a time (formula: se3_fast/backends/dense/linear.py).
//
//     out[n, o, m] = sum over c of W[o, c] x[n, c, m]          x: the channels of all parts side by side
// A node's component is a row of channels: X [node, component][channel], out = X W^T. Backward the same map with W, and
//     dW[o, c] = sum over n, m of g[n, o, m] x[n, c, m] = G^T X
// Products of small matrices (small_product.h); rows are made, and put back, by shuffles (rows.h).

#include "linear.h"
#include "rows.h"
#include "small_product.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// The rows of `count` nodes, [node, component][stride].
template <typename T, typename S>
void take_rows(int64_t size, const LinearSide<const S>& side, int64_t first, int64_t count, int64_t stride, T* rows) {
    for (int64_t row = 0; row < count * size; ++row)
        fill_zero(rows + row * stride + side.channels, stride - side.channels);
    with_size(size, [&](auto components) {
        T* into = rows;
        for (const LinearPart<const S>* part = side.parts; part < side.parts + side.num_parts; into += part->channels, ++part)
            for (int64_t node = 0; node < count; ++node)
                take_apart(part->values + (first + node) * part->channels * size, part->channels, components,
                           into + node * size * stride, stride);
    });
}

template <typename T, typename S>
void put_rows(int64_t size, const LinearSide<S>& side, int64_t first, int64_t count, int64_t stride, const T* rows) {
    with_size(size, [&](auto components) {
        const T* from = rows;
        for (const LinearPart<S>* part = side.parts; part < side.parts + side.num_parts; from += part->channels, ++part)
            for (int64_t node = 0; node < count; ++node)
                put_together(from + node * size * stride, stride, part->channels, components,
                             part->values + (first + node) * part->channels * size);
    });
}

}  // namespace

template <typename T>
int64_t linear_stride(int64_t channels) {
    return padded<T>(channels);
}

template <typename T>
int64_t linear_workspace_size(int64_t size, int64_t inputs, int64_t outputs) {
    return LINEAR_NODES * size * (padded<T>(inputs) + padded<T>(outputs));
}

template <typename T>
void pack_linear(const T* weight, int64_t outputs, int64_t inputs, T* matrix) {
    const int64_t stride = padded<T>(outputs);
    for (int64_t input = 0; input < inputs; ++input) {
        for (int64_t output = 0; output < outputs; ++output) matrix[input * stride + output] = weight[output * inputs + input];
        fill_zero(matrix + input * stride + outputs, stride - outputs);
    }
}

template <typename T>
void pack_transposed(const T* weight, int64_t outputs, int64_t inputs, T* matrix) {
    const int64_t stride = padded<T>(inputs);
    for (int64_t output = 0; output < outputs; ++output) {
        for (int64_t input = 0; input < inputs; ++input) matrix[output * stride + input] = weight[output * inputs + input];
        fill_zero(matrix + output * stride + inputs, stride - inputs);
    }
}

template <typename T, typename S>
void map_nodes(const LinearMap<T, S>& map, int64_t first, int64_t count, T* workspace) {
    const int64_t rows = count * map.size, stride = padded<T>(map.inputs.channels), out_stride = padded<T>(map.outputs.channels);
    T* const outputs = workspace + rows * stride;
    take_rows(map.size, map.inputs, first, count, stride, workspace);
    multiply<false, false>(Product<T>{
        rows, out_stride, map.inputs.channels, workspace, stride, map.matrix, out_stride, outputs, out_stride});
    put_rows(map.size, map.outputs, first, count, out_stride, outputs);
}

template <typename T, typename S>
void add_weight_gradients(
    int64_t size, const LinearSide<const S>& left, const LinearSide<const S>& right, int64_t first, int64_t count, T* sums,
    T* workspace) {
    const int64_t rows = count * size, stride = padded<T>(left.channels), right_stride = padded<T>(right.channels);
    T* const of_right = workspace + rows * stride;
    take_rows(size, left, first, count, stride, workspace);
    take_rows(size, right, first, count, right_stride, of_right);
    multiply<true, true>(Product<T>{
        left.channels, right_stride, rows, workspace, stride, of_right, right_stride, sums, right_stride});
}

#define SE3_FAST_INSTANTIATE(T)                                                                                              \
    template int64_t linear_stride<T>(int64_t);                                                                              \
    template int64_t linear_workspace_size<T>(int64_t, int64_t, int64_t);                                                     \
    template void pack_linear<T>(const T*, int64_t, int64_t, T*);                                                            \
    template void pack_transposed<T>(const T*, int64_t, int64_t, T*);

#define SE3_FAST_INSTANTIATE_STORED(T, S)                                                                                    \
    template void map_nodes<T, S>(const LinearMap<T, S>&, int64_t, int64_t, T*);                                             \
    template void add_weight_gradients<T, S>(                                                                                \
        int64_t, const LinearSide<const S>&, const LinearSide<const S>&, int64_t, int64_t, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)
SE3_FAST_INSTANTIATE_STORED(float, float)
SE3_FAST_INSTANTIATE_STORED(float, BFloat16)
SE3_FAST_INSTANTIATE_STORED(double, double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
