// The depthwise convolution on the CPU: what the driver (depthwise_conv.cpp) and the loops over vectors (depthwise_conv_vector.cpp)
// share. Formula: se3_fast/backends/dense/depthwise_conv.py.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t DEPTHWISE_CHUNK = 16;  // edges that are treated together, a multiple of a vector's elements

// The table has rows of zero before its first knot and behind its last one, so that an edge at any place has four rows around it.
constexpr int64_t KNOTS_BEFORE = 3, KNOTS_BEHIND = 4;

// first .. stop - 1
struct IndexRange {
    int64_t first, stop;
};

// A component of the source's features and one of the message that a path couples: the matrix element between them is the sum of
// its terms.
struct DepthwisePair {
    int64_t component_in;
    IndexRange terms;
};

// The pairs of a path that give one component of the message.
struct DepthwiseRun {
    int64_t path, component_out;
    IndexRange pairs;
};

struct DepthwiseTerm {
    int64_t harmonic;
    double coefficient;
};

// A pair and the run that it is in, or a pair and what a harmonic counts for it.
struct DepthwiseMember {
    int64_t pair, run;
};
struct DepthwiseShare {
    int64_t pair;
    double coefficient;
};

struct DepthwiseShape {
    int64_t components_in, components_out, harmonics, paths;
    int64_t channels, knots;  // C is a multiple of a vector's elements
    int64_t num_runs, num_pairs;
    const DepthwiseRun* runs;  // by path
    const DepthwisePair* pairs;
    const DepthwiseTerm* terms;

    // The same in other orders: runs of a path, numbers of runs by component of the message, pairs by component of the features, pairs
    // by harmonic.
    const IndexRange *runs_of_path, *runs_to_component, *members_of_component, *shares_of_harmonic;
    const int64_t* runs_by_component;
    const DepthwiseMember* members;
    const DepthwiseShare* shares;

    int64_t rows() const { return paths * channels; }  // radial weights of an edge
    int64_t padded_table() const { return (KNOTS_BEFORE + knots + KNOTS_BEHIND) * rows(); }
};

// Tensors with a row for each edge or node; null where there is none.
template <typename T>
struct DepthwiseOperands {
    const T *features, *harmonics, *places;
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
    T *harmonics, *places;  // null where they are not wanted
    T* table;               // padded; as well
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of the workspace of a chunk.
    template <typename T> int64_t depthwise_workspace_size(const DepthwiseShape& shape);

    // Adds the messages of the edges to the rows of their destinations. table: padded, here and below.
    template <typename T> void depthwise_chunk(
        const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseEdges& edges, T* sums,
        T* workspace);

    // The gradients of all operands from that of the sums.
    template <typename T> void depthwise_chunk_backward(
        const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseEdges& edges,
        const T* gradient, const DepthwiseGradients<T>& into, T* workspace);

    // The derivatives of sums and gradients along a direction of the operands, the table and the gradient held fast.
    template <typename T> void depthwise_chunk_along(
        const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseOperands<T>& direction,
        const DepthwiseEdges& edges, const T* gradient, T* sums, const DepthwiseGradients<T>& into, T* workspace);
)
