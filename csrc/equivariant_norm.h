// The norm-based nonlinearity on the CPU: what the driver (equivariant_norm.cpp) and the loops over vectors
// (equivariant_norm_vector.cpp) share. Rows of C values are padded to whole cache lines.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t NORM_NODES = 32;  // that are treated together

// One degree: its features, [node][channel][component], as they stand in memory, and its parameters.
template <typename T, typename S>
struct NormDegree {
    int64_t size;  // 2d+1
    const S* values;
    const T *scale, *shift;  // padded rows
    S* result;               // backward: the gradient of the values
    const S* gradient;       // backward: of the result
};

template <typename T>
struct NormChannels {
    int64_t count;
    double epsilon;  // added to the variance
    const T* mask;   // a padded row, 1 for every channel, then 0
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // The length of a padded row; elements of workspace.
    template <typename T> int64_t norm_stride(int64_t channels);
    template <typename T> int64_t norm_workspace_size(int64_t channels, int64_t largest_size);

    // The results of `count` nodes from the first one on.
    template <typename T, typename S> void normalise_nodes(
        const NormChannels<T>& channels, const NormDegree<T, S>& degree, int64_t first, int64_t count, T* workspace);

    // The gradients of their values; adds those of scale and shift to padded rows.
    template <typename T, typename S> void normalise_nodes_backward(
        const NormChannels<T>& channels, const NormDegree<T, S>& degree, int64_t first, int64_t count, T* scale_gradient,
        T* shift_gradient, T* workspace);
)
