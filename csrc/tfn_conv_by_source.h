// TFN convolution on the CPU, by source: what the driver (tfn_conv_by_source.cpp) and the loops over vectors
// (tfn_conv_by_source_vector.cpp) share.
//
// Channels and the width K of h are padded to whole cache lines of PADDING bytes, whatever the instruction set. Weights are cut
// into tiles: one aligned weight (m, parity, d_in, d_out) of a radial group, C_in x C_out x K values. A block is the outgoing edges
// of some source nodes; what a block needs in between is its thread's workspace.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t PADDING = 64;        // bytes
constexpr int64_t SLICE_BYTES = 128;   // output channels of a tile that are treated together in the forward pass
constexpr int64_t SLICE_CHANNELS = 16; // the same in the backward pass
constexpr int64_t CHUNK_EDGES = 36;    // edges of a source that are treated together
constexpr int64_t MOST_SEGMENTS = 16;  // of a block
constexpr int64_t BLOCK_BYTES = 512 << 10;  // of a block's aligned messages

template <typename T>
constexpr int64_t padded(int64_t count) {
    constexpr int64_t step = PADDING / int64_t(sizeof(T));
    return (count + step - 1) / step * step;
}

// Features of one degree on one side: place of its components in an edge's row of aligned features, [2d+1][padded channels].
struct SourceDegree {
    int64_t degree, channels, start;
    int64_t size() const { return 2 * degree + 1; }
    int64_t wigner() const { return degree * (4 * degree * degree - 1) / 3; }
};

struct SourceGroup {
    int64_t channels_in, channels_out, paths;
};

// Tiles are ordered by group, then by input degree.
struct SourceTile {
    int64_t group, input, output;  // input and output: numbers of SourceDegree
    int64_t order;                 // m
    bool is_odd;
    int64_t first_path, num_paths;  // what of the group's path axis it is made of
    const double* alignment;        // [num_paths]
    int64_t forward;  // first element of its packed weights [slice][K][C_in][slice channels]
    int64_t blocks;   // of [C_out][C_in][padded K], which is also the layout of its gradient
    int64_t transposed;  // of [C_out][padded K][padded C_in]
};

// Some outgoing edges of a source node: places first .. first + count - 1 of the edges ordered by source.
struct SourceSegment {
    int64_t node, first, count;
    int64_t gradient_row;  // of the node's gradients: the node, or a row after all nodes where another thread has some of its edges
};

// Features, h and their gradients stand in memory as type S, which is computed with as type T.
template <typename T, typename S>
struct SourceProblem {
    int64_t num_inputs, num_outputs, num_groups, num_tiles;
    const SourceDegree* inputs;
    const SourceDegree* outputs;
    const SourceGroup* groups;
    const SourceTile* tiles;
    const double* const* generators;  // by degree, [3][2d+1][2d+1]
    const int64_t* order;             // edges by source
    const int64_t* dst;               // where messages are summed at their destinations, else null
    const T* wigner;
    int64_t wigner_stride;
    int64_t width;              // K
    int64_t row_length;         // of an edge's aligned messages
    const S* const* nodes;      // by input
    const S* const* hidden;     // by group, [E][K]
    const T* const* weights;    // by group, [C_out][C_in][paths][K]
    const T* forward_weights;
    const T* blocks;
    const T* transposed;
};

// Where a block's results go, and the gradients that its backward pass starts from.
template <typename T, typename S>
struct SourceResults {
    S* const* messages;          // forward: [E][C][2d+1] by output
    T* sums;                     // forward, summed at destinations: [N][row_length]
    const S* const* gradients;   // backward: of messages or sums, [E or N][C][2d+1] by output
    T* const* node_gradients;    // backward, by input; added to what is there in the segments' rows
    S* const* hidden_gradients;  // backward, by group
    T* block_gradients;          // backward, or null
    T* torque;                   // backward, [E][3], or null
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Packs the weights of a tile for the forward pass.
    template <typename T, typename S> void pack_forward(const SourceProblem<T, S>& problem, const SourceTile& tile, T* packed);

    // Packs them for the backward pass, twice (see SourceTile).
    template <typename T, typename S> void pack_backward(const SourceProblem<T, S>& problem, const SourceTile& tile, T* blocks, T* transposed);

    // Gradient of the weights of a group for one output channel, from `count` gradients of the blocks, `stride` apart.
    template <typename T, typename S> void unpack_gradient(
        const SourceProblem<T, S>& problem, int64_t group, int64_t channel, const T* gradients, int64_t count, int64_t stride,
        T* result);

    // Elements of workspace for blocks of so many edges.
    template <typename T, typename S> int64_t workspace_size(const SourceProblem<T, S>& problem, int64_t most_edges, bool is_backward);

    // Messages of a block.
    template <typename T, typename S> void forward_block(
        const SourceProblem<T, S>& problem, const SourceSegment* segments, int64_t num_segments, const SourceResults<T, S>& results,
        T* workspace);

    // Gradients of a block.
    template <typename T, typename S> void backward_block(
        const SourceProblem<T, S>& problem, const SourceSegment* segments, int64_t num_segments, const SourceResults<T, S>& results,
        T* workspace);

    // Features [C][2d+1] of a degree from components [2d+1][padded C], summed over `count` tables, `stride` apart.
    template <typename T, typename S> void write_sums(
        const SourceDegree& degree, const T* components, int64_t count, int64_t stride, S* features);
)
