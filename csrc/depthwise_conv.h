// The depthwise convolution on the CPU: what the driver (depthwise_conv.cpp) and the loops over vectors (depthwise_conv_vector.cpp)
// share. Formula: se3_fast/backends/dense/depthwise_conv.py.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t DEPTHWISE_CHUNK = 24;  // edges that are treated together

// A component of the source's features and one of the message that a path couples: the matrix element between them is the sum of
// its terms, first_term .. stop_term - 1.
struct DepthwisePair {
    int64_t component_in, first_term, stop_term;
};

// The pairs of a path that give one component of the message, first_pair .. stop_pair - 1.
struct DepthwiseRun {
    int64_t path, component_out, first_pair, stop_pair;
};

struct DepthwiseTerm {
    int64_t harmonic;
    double coefficient;
};

struct DepthwiseShape {
    int64_t components_in, components_out, harmonics, paths;
    int64_t channels, width, inputs;  // C and K are multiples of a vector's elements
    int64_t num_runs, num_pairs;
    const DepthwiseRun* runs;  // by path
    const DepthwisePair* pairs;
    const DepthwiseTerm* terms;

    int64_t rows() const { return paths * channels; }  // radial weights of an edge
};

// Tensors with a row for each edge or node; null where there is none.
template <typename T>
struct DepthwiseOperands {
    const T *features, *harmonics, *radial;
};

// The radial profile: weights as they are given, [inputs][outputs], and transposed. The rows of first_transposed are padded.
template <typename T>
struct DepthwiseWeights {
    const T *first, *second, *last;
    const T *first_transposed, *second_transposed, *last_transposed;
};

template <typename T>
struct DepthwiseWeightGradients {
    T *first, *second, *last;
};

// Some edges: their numbers, and the nodes at their ends.
struct DepthwiseEdges {
    int64_t count;
    const int64_t *numbers, *sources, *destinations;
};

// Where a gradient goes: rows of nodes begin at `first_node`; rows of edges are written, those of nodes are added to.
template <typename T>
struct DepthwiseGradients {
    T* features;
    int64_t first_node;
    T *harmonics, *radial;                // null where they are not wanted
    DepthwiseWeightGradients<T> weights;  // as well
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of the workspace of a chunk, and of a row of first_transposed.
    template <typename T> int64_t depthwise_workspace_size(const DepthwiseShape& shape);
    template <typename T> int64_t depthwise_padded_inputs(const DepthwiseShape& shape);

    // Adds the messages of the edges to the rows of their destinations.
    template <typename T> void depthwise_chunk(
        const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
        const DepthwiseEdges& edges, T* sums, T* workspace);

    // The gradients of all operands from that of the sums.
    template <typename T> void depthwise_chunk_backward(
        const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
        const DepthwiseEdges& edges, const T* gradient, const DepthwiseGradients<T>& into, T* workspace);

    // The derivatives of sums and gradients along a direction of the operands, the weights and the gradient held fast.
    template <typename T> void depthwise_chunk_along(
        const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
        const DepthwiseOperands<T>& direction, const DepthwiseEdges& edges, const T* gradient, T* sums,
        const DepthwiseGradients<T>& into, T* workspace);
)
