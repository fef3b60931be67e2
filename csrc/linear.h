// Linear maps of channels on the CPU: what the driver (linear.cpp) and the loops over vectors (linear_vector.cpp) share.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t LINEAR_NODES = 24;  // that are treated together

// Features stand in memory as type S, which is computed with as type T.

// Some channels of the features of a degree, [node][channel][component].
template <typename S>
struct LinearPart {
    int64_t channels;
    S* values;
};

// The channels of a degree, those of one part after those of the other.
template <typename S>
struct LinearSide {
    const LinearPart<S>* parts;
    int64_t num_parts, channels;
};

// The map of one degree.
template <typename T, typename S>
struct LinearMap {
    int64_t size;     // 2d+1
    const T* matrix;  // [channels of the inputs][padded channels of the outputs]
    LinearSide<const S> inputs;
    LinearSide<S> outputs;
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // The length of a padded row of channels; elements of workspace.
    template <typename T> int64_t linear_stride(int64_t channels);
    template <typename T> int64_t linear_workspace_size(int64_t size, int64_t inputs, int64_t outputs);

    // The matrix [inputs][padded outputs] of a map with these weights [outputs][inputs], and that of its transpose.
    template <typename T> void pack_linear(const T* weight, int64_t outputs, int64_t inputs, T* matrix);
    template <typename T> void pack_transposed(const T* weight, int64_t outputs, int64_t inputs, T* matrix);

    // The outputs of `count` nodes from the first one on.
    template <typename T, typename S> void map_nodes(const LinearMap<T, S>& map, int64_t first, int64_t count, T* workspace);

    // Adds the gradients of the weights, [channels on the left][padded channels on the right], from the gradients of the outputs
    // (left) and the inputs (right) of `count` nodes.
    template <typename T, typename S> void add_weight_gradients(
        int64_t size, const LinearSide<const S>& left, const LinearSide<const S>& right, int64_t first, int64_t count, T* sums,
        T* workspace);
)
