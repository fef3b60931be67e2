// TFN convolution on the CPU, by edge: what the driver (tfn_conv.cpp) and the loops over vectors (tfn_conv_vector.cpp) share.
//
// A block of up to BLOCK_EDGES edges is treated at a time. Aligned features of a block are held in two layouts:
//
//   rows    [row][BLOCK_STRIDE edges], a row for each degree, component and channel: for values that multiply whole vectors.
//   tiles   one tile for each degree, order m and up to two vectors of channels: [BLOCK_STRIDE edges][signs][width], signs -m, +m
//           (m = 0: one), width a multiple of the vector length; channels that do not exist are zero.
//
// Weights of a tile and a term of its sum stand slice by slice, [slice][step][2][width]. At m > 0 the 2 are R_even and R_odd of one
// slice; at m = 0, which has no R_odd, they are two slices side by side. Forward a tile is of output channels, slices are input
// channels and steps k; backward a tile is of input channels, slices are k and steps output channels.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t BLOCK_EDGES = 42;
constexpr int64_t BLOCK_STRIDE = 48;  // edges are treated in small groups, the last of which may reach beyond the block

// A tile of aligned features.
struct Tile {
    int64_t degree_index;  // of its side's degrees
    int64_t m;
    int64_t vectors;  // 1 or 2
    int64_t first_channel;
    int64_t start;  // first element in the tiles of a block
};

// What one degree of the other side contributes to a tile.
struct Term {
    int64_t tile;    // its number
    int64_t group;   // radial group
    int64_t weights; // first element of its weights among those of its pair of degrees
    int64_t minus, plus;  // rows of the first channel of the other side's components -m and +m
    int64_t channels;     // of the other side
    int64_t slices, steps;
};

// A pair of degrees of a radial group.
struct DegreePair {
    int64_t group, degree_in, degree_out, index_in, index_out;
    int64_t channels_in, channels_out;
    int64_t first_path, group_paths;  // place on the group's path axis, and its length
    int64_t alignment;                // first element of the map from its paths to its aligned weights
    int64_t paths() const { return 2 * smaller() + 1; }
    int64_t smaller() const { return degree_in < degree_out ? degree_in : degree_out; }
};

// The aligned weights of a pair for the channels of one tile.
struct AlignedPart {
    const DegreePair& pair;
    const double* alignment;  // the map from its paths, [paths][paths]
    int64_t width_hidden;     // K
    bool is_backward;         // for tiles of input channels
    int64_t first_channel, vectors;
};

// Where the vector of one component and channel vector stands in the tiles of a block: start + edge * step.
struct Place {
    int64_t start, step;
};

// The features of one degree on one side.
struct DegreeLayout {
    int64_t degree, channels, vectors;  // vectors: of channels, the last one padded
    int64_t row;                        // first row
    int64_t wigner;                     // first element of its Wigner block, D[l][m]
    int64_t component_start;            // first element in an edge's component-major features, [2d+1][vectors]
    const Place* places;                // [2d+1][vectors]
};

// An entry of a generator of rotations about x (axis 0) or z (axis 1).
struct GeneratorEntry {
    int64_t degree_index, row, column, axis;
    double coefficient;
};

template <typename T>
struct BlockGradient {
    const T* tiles;   // x~ [tiles]
    const T* rows;    // g~ [rows]
    T* sums;          // scratch, as the rows: g~[+m] + g~[-m]
    T* weights;       // scratch, of a slice with its parities combined
    const T* hidden;  // [group][padded][BLOCK_STRIDE]
    T* gradient;      // dx~ [tiles]
    T* partial;       // scratch, [padded][BLOCK_STRIDE][lanes]
    T* hidden_gradient;  // [group][BLOCK_STRIDE][padded], zero at first, as gradient and partial
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of a vector.
    template <typename T> int64_t lanes();

    // Vectors of a tile at most.
    int64_t largest_tile();

    // The width K of h, padded: h of a block stands as [group][padded][BLOCK_STRIDE] or as [edge][padded].
    template <typename T> int64_t padded_width(int64_t width_hidden);

    // The last radial weight of a group, [C_out][C_in][paths][K], to a pair's aligned weights for the channels of a tile and one
    // channel of the other side. slices: for each aligned weight of the pair, where its slices begin. squares: scratch of the pair's
    // paths times the square of a vector.
    template <typename T> void align_weights(
        const AlignedPart& part, const T* weight, int64_t other, T* const* slices, T* squares);

    // Its transpose for the forward weights and one input channel: writes the pair's part of the gradient of the weight. slices:
    // where the gradients of the input channel's slices begin.
    template <typename T> void align_weights_backward(
        const AlignedPart& part, const T* const* slices, int64_t channel_in, T* weight_gradient, T* squares);

    // Makes what that has written visible to other threads; called once behind many of them.
    void finish_weight_gradient();

    // Features [C][2d+1] of a node or edge, as they stand in memory, to component-major [2d+1][vectors], from a channel on; channels behind them become zero.
    template <typename T, typename S> void to_components(
        const S* features, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, T* components);

    // And back; written or added.
    template <typename T, typename S> void from_components(
        const T* components, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, bool is_added, S* features);

    // D^T x of an edge's component-major features, into rows and tiles of a block (either may be null).
    template <typename T> void align_edge(
        const DegreeLayout& layout, const T* wigner, const T* components, int64_t edge, T* rows, T* tiles);

    // D x~ of an edge of a block, component-major.
    template <typename T> void rotate_edge(
        const DegreeLayout& layout, const T* wigner, const T* tiles, int64_t edge, T* components);

    // Adds the terms of a pair of degrees to y~ of a block: to tiles, from the rows of x~. weights: of the pair.
    template <typename T> void contract_block(
        const Tile* tiles, const Term* terms, int64_t num_terms, const T* weights, const T* rows, const T* hidden, int64_t padded,
        int64_t num_edges, T* results);

    // g~[+m] + g~[-m] of a block for m > 0, in the places of g~[+m]; layouts: of the rows.
    template <typename T> void add_opposite_orders(const DegreeLayout* layouts, int64_t num_layouts, const T* rows, T* sums);

    // Adds the terms of a pair of degrees to dx~, and to the partial sums of dh.
    template <typename T> void contract_block_backward(
        const Tile* tiles, const Term* terms, int64_t num_terms, const T* weights, int64_t padded, int64_t num_edges,
        const BlockGradient<T>& block);

    // Adds the partial sums to dh of a radial group, [BLOCK_STRIDE][padded], and clears them.
    template <typename T> void finish_hidden_gradient(T* partial, int64_t padded, int64_t num_edges, T* hidden_gradient);

    // A block's part of the gradient of some slices of a forward term's weights; written by the first block, added by others.
    // hidden: [edge][padded]; radial: scratch of BLOCK_STRIDE * 4 vectors.
    template <typename T> void weight_gradient(
        const Tile& tile, const Term& term, int64_t first_slice, int64_t last_slice, const T* rows, const T* gradient_tiles,
        const T* hidden, int64_t num_edges, bool is_first, T* radial, T* gradient);

    // <left, G right> on an edge of a block for the generators about x and z.
    template <typename T> void torque(
        const DegreeLayout* layouts, const GeneratorEntry* entries, int64_t num_entries, const T* left, const T* right,
        int64_t edge, T* about_x_and_z);

    // total[width] = the sum of rows[count][width].
    template <typename T> void sum_rows(const T* rows, int64_t count, int64_t width, T* total);
)
