// TFN convolution on the CPU, by source: the loops over vectors (layouts: tfn_conv_by_source.h; formulas: DESIGN 1.1 and 1.3).
//
// For a tile (m, parity, d_in, d_out) with weights W[i, k, c], a source j with features x[i, l] and its edges e:
//     T[l; k, c] = sum_i x[i, l] W[i, k, c]           once per source
//     U[e; l, c] = sum_k h[e, k] T[l; k, c]
//     y~[e; ±m, c] += sum_l A±[e; l] U[e; l, c]       A- = D[l, -m], A+ = D[l, +m] (even);   A- = D[l, +m], A+ = -D[l, -m] (odd)
// Backward, with g~ the gradient of y~:
//     dU[e; l, c] = A-[e; l] g~[e; -m, c] + A+[e; l] g~[e; +m, c]
//     dh[e, k] += sum_{l, c} dU[e; l, c] T[l; k, c],     dT[l; k, c] = sum_e h[e, k] dU[e; l, c]
//     dx[i, l] += sum_{k, c} dT[l; k, c] W[i, k, c],     dW[i, k, c] += sum_{j, l} x[j; i, l] dT[j; l; k, c]
// At the default shape (4 degrees, 32 channels, K = 32) T costs 7.2 M multiply-adds a source and U 0.22 M an edge; backward makes T
// again and costs three times the forward in all. Nearly all of it is products of small matrices (small_product.h), bound by the
// multiply-add units: T of a block's sources stays in the second-level cache, U of a source in the first.

#include "small_product.h"
#include "tfn_conv_by_source.h"
#include "transpose.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// Scratch memory handed out piece by piece.
template <typename T>
class Workspace {
public:
    // Without memory it only counts.
    explicit Workspace(T* memory) : memory_(memory) {}

    T* take(int64_t size) {
        T* result = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += padded<T>(size);
        return result;
    }

    int64_t used() const { return used_; }

private:
    T* memory_;
    int64_t used_ = 0;
};

// Rows of T are this much apart: not a multiple of a page, so that a column does not fall into few sets of the cache.
template <typename T>
constexpr int64_t row_stride(int64_t size) {
    return size + PADDING / int64_t(sizeof(T));
}

template <typename T>
constexpr int64_t SLICE = SLICE_BYTES / int64_t(sizeof(T));

template <typename T>
void fill_zero(T* values, int64_t count) {
    for (int64_t index = 0; index < count; ++index) values[index] = 0;
}

template <typename T, typename S>
int64_t largest_degree_size(const SourceProblem<T, S>& problem) {
    int64_t size = 1;
    for (int64_t input = 0; input < problem.num_inputs; ++input)
        if (problem.inputs[input].size() > size) size = problem.inputs[input].size();
    for (int64_t output = 0; output < problem.num_outputs; ++output)
        if (problem.outputs[output].size() > size) size = problem.outputs[output].size();
    return size;
}

template <typename T, typename S>
int64_t most_channels(const SourceProblem<T, S>& problem) {
    int64_t channels = 1;
    for (int64_t input = 0; input < problem.num_inputs; ++input)
        if (problem.inputs[input].channels > channels) channels = problem.inputs[input].channels;
    for (int64_t output = 0; output < problem.num_outputs; ++output)
        if (problem.outputs[output].channels > channels) channels = problem.outputs[output].channels;
    return padded<T>(channels);
}

// The buffers of a block, in the order in which they stand in the workspace.
template <typename T>
struct Buffers {
    int64_t table_stride;
    T* messages;   // y~ or, backward, g~: [edge][row_length]
    T* hidden;     // [edge][padded K]
    T* features;   // x of one input degree, [segment][2d+1][C_in]
    T* table;      // T, [segment][2d+1][row_stride]
    T* products;   // U or dU of a chunk, [edge][2d+1][slice]
    T* components;  // of one edge and degree, [2d+1][padded C]
    T* hidden_gradient;   // [edge][padded K]
    T* feature_gradient;  // [segment][2d+1][padded C_in]
    T* table_gradient;    // dT, as the table

    template <typename S>
    Buffers(const SourceProblem<T, S>& problem, int64_t most_edges, bool is_backward, Workspace<T>& workspace) {
        const int64_t size = largest_degree_size(problem), channels = most_channels(problem);
        const int64_t slice = is_backward ? SLICE_CHANNELS : SLICE<T>;
        table_stride = row_stride<T>(padded<T>(problem.width) * slice);
        messages = workspace.take(most_edges * problem.row_length);
        hidden = workspace.take(most_edges * padded<T>(problem.width));
        features = workspace.take(MOST_SEGMENTS * size * channels);
        table = workspace.take(MOST_SEGMENTS * size * table_stride);
        products = workspace.take(CHUNK_EDGES * size * slice);
        components = workspace.take(size * channels);
        hidden_gradient = is_backward ? workspace.take(most_edges * padded<T>(problem.width)) : nullptr;
        feature_gradient = is_backward ? workspace.take(MOST_SEGMENTS * size * channels) : nullptr;
        table_gradient = is_backward ? workspace.take(MOST_SEGMENTS * size * table_stride) : nullptr;
    }
};

// The buffers of the torque, beside those of the forward pass.
template <typename T>
struct TorqueBuffers {
    T* gradients;  // g~, [edge][row_length]
    T* overlap;    // <dU[l], U[l']> summed over tiles, [edge][2d+1][2d+1]
    T* torque;     // [edge][3]

    template <typename S>
    TorqueBuffers(const SourceProblem<T, S>& problem, int64_t most_edges, Workspace<T>& workspace) {
        const int64_t size = largest_degree_size(problem);
        gradients = workspace.take(most_edges * problem.row_length);
        overlap = workspace.take(most_edges * size * size);
        torque = workspace.take(most_edges * 3);
    }
};

// A block: its segments, and the numbers of its edges in the order of the segments.
struct Block {
    const SourceSegment* segments;
    int64_t num_segments;

    int64_t num_edges() const {
        int64_t count = 0;
        for (int64_t segment = 0; segment < num_segments; ++segment) count += segments[segment].count;
        return count;
    }

    // Calls visit(place in the block, number of the edge) for every edge.
    template <typename Visit>
    void for_each_edge(const int64_t* order, const Visit& visit) const {
        int64_t place = 0;
        for (int64_t segment = 0; segment < num_segments; ++segment)
            for (int64_t index = 0; index < segments[segment].count; ++index)
                visit(place++, order[segments[segment].first + index]);
    }

    // Calls visit(segment, first place in the block, place in the edges by source, number of edges) for chunks of every segment.
    template <typename Visit>
    void for_each_chunk(const Visit& visit) const {
        int64_t place = 0;
        for (int64_t segment = 0; segment < num_segments; ++segment) {
            const int64_t count = segments[segment].count, num_chunks = (count + CHUNK_EDGES - 1) / CHUNK_EDGES;
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
                const int64_t start = chunk * count / num_chunks, stop = (chunk + 1) * count / num_chunks;
                visit(segment, place + start, segments[segment].first + start, stop - start);
            }
            place += count;
        }
    }
};

// h of a block's edges, with zeros behind K.
template <typename T, typename S>
void gather_hidden(const SourceProblem<T, S>& problem, const Block& block, const S* hidden, T* into) {
    const int64_t width = problem.width, stride = padded<T>(width);
    block.for_each_edge(problem.order, [&](int64_t place, int64_t edge) {
        const S* row = hidden + edge * width;
        for (int64_t k = 0; k < width; ++k) into[place * stride + k] = row[k];
        for (int64_t k = width; k < stride; ++k) into[place * stride + k] = 0;
    });
}

// [l][padded C] to [C][l], written or added.
template <bool IS_ADDED, typename T, typename S>
void transpose_components(const T* components, int64_t size, int64_t channels, int64_t stride, S* features) {
    with_size(size, [=](auto components_each) {
        for (int64_t channel = 0; channel < channels; ++channel)
            for (int64_t l = 0; l < components_each; ++l) {
                S& into = features[channel * components_each + l];
                into = IS_ADDED ? into + components[l * stride + channel] : components[l * stride + channel];
            }
    });
}

// [C][l] to [l][padded C].
template <typename T, typename S>
void transpose_features(const S* features, int64_t size, int64_t channels, int64_t stride, T* components) {
    with_size(size, [=](auto components_each) {
        for (int64_t channel = 0; channel < channels; ++channel)
            for (int64_t l = 0; l < components_each; ++l)
                components[l * stride + channel] = features[channel * components_each + l];
    });
}

// x of a block's sources, [segment][l][i].
template <typename T, typename S>
void gather_features(const SourceDegree& degree, const S* features, const Block& block, T* into) {
    const int64_t size = degree.size(), channels = degree.channels;
    for (int64_t segment = 0; segment < block.num_segments; ++segment) {
        const S* from = features + block.segments[segment].node * channels * size;
        transpose_features(from, size, channels, channels, into + segment * size * channels);
    }
}

// left[row][vectors] = sum over columns of D[row][column] right[column][vectors], or of D[column][row].
template <bool IS_TRANSPOSED, typename T>
void turn(const T* frame, int64_t size, int64_t stride, const T* right, T* left) {
    for (int64_t column = 0; column < stride; column += LANES<T>)
        for (int64_t row = 0; row < size; ++row) {
            Vector<T> total{};
            for (int64_t other = 0; other < size; ++other) {
                const T factor = frame[IS_TRANSPOSED ? other * size + row : row * size + other];
                total += broadcast(factor) * load(right + other * stride + column);
            }
            store(left + row * stride + column, total);
        }
}

// The columns of D that a tile turns the components of an edge with: A-[l] = minus_sign * frame[l * size + minus], and A+ likewise.
template <typename T>
struct Turn {
    int64_t minus, plus;
    T plus_sign;

    Turn(const SourceTile& tile, int64_t degree)
        : minus(degree + (tile.is_odd ? tile.order : -tile.order)),
          plus(degree + (tile.is_odd ? -tile.order : tile.order)),
          plus_sign(tile.is_odd ? T(-1) : T(1)) {}
};

// T of a block's sources for `channels` columns of each of `count` slabs of weights, [slab][C_in][channels].
template <typename T>
void multiply_features(
    const Buffers<T>& buffers, int64_t rows, int64_t channels_in, const T* weights, int64_t count, int64_t columns) {
    for (int64_t slab = 0; slab < count; ++slab)
        multiply<false, false>(Product<T>{
            rows, columns, channels_in, buffers.features, channels_in, weights + slab * channels_in * columns, columns,
            buffers.table + slab * columns, buffers.table_stride});
}

// Adds to the rows of y~ for -m and +m of one edge, VECTORS vectors of channels of each: sum over l of A-[l] U[l] and of A+[l] U[l].
template <int VECTORS, bool HAS_PLUS, typename T>
void add_rows(const Turn<T>& turn, const T* frame, int64_t size, const T* products, int64_t slice, T* minus, T* plus) {
    Vector<T> to_minus[VECTORS], to_plus[VECTORS];
    for (int index = 0; index < VECTORS; ++index) {
        to_minus[index] = load(minus + index * LANES<T>);
        if (HAS_PLUS) to_plus[index] = load(plus + index * LANES<T>);
    }
    for (int64_t l = 0; l < size; ++l) {
        const Vector<T> of_minus = broadcast(frame[l * size + turn.minus]);
        const Vector<T> of_plus = HAS_PLUS ? broadcast(turn.plus_sign * frame[l * size + turn.plus]) : Vector<T>{};
        for (int index = 0; index < VECTORS; ++index) {
            const Vector<T> values = load(products + l * slice + index * LANES<T>);
            to_minus[index] += of_minus * values;
            if (HAS_PLUS) to_plus[index] += of_plus * values;
        }
    }
    for (int index = 0; index < VECTORS; ++index) {
        store(minus + index * LANES<T>, to_minus[index]);
        if (HAS_PLUS) store(plus + index * LANES<T>, to_plus[index]);
    }
}

// Adds the parts of y~ of a chunk that a slice of a tile's channels contributes.
template <bool HAS_PLUS, typename T, typename S>
void add_messages(
    const SourceProblem<T, S>& problem, const SourceTile& tile, const T* products, int64_t slice, int64_t first_channel, int64_t place,
    const int64_t* edges, int64_t count, T* messages) {
    const SourceDegree &input = problem.inputs[tile.input], &output = problem.outputs[tile.output];
    const int64_t size = input.size(), stride = padded<T>(output.channels);
    const Turn<T> turn(tile, input.degree);
    for (int64_t index = 0; index < count; ++index) {
        const T* frame = problem.wigner + edges[index] * problem.wigner_stride + input.wigner();
        T* middle = messages + (place + index) * problem.row_length + output.start + output.degree * stride + first_channel;
        T *minus = middle - tile.order * stride, *plus = middle + tile.order * stride;
        const T* from = products + index * size * slice;
        int64_t column = 0;
        for (; column + 2 * LANES<T> <= slice; column += 2 * LANES<T>)
            add_rows<2, HAS_PLUS>(turn, frame, size, from + column, slice, minus + column, plus + column);
        if (column < slice) add_rows<1, HAS_PLUS>(turn, frame, size, from + column, slice, minus + column, plus + column);
    }
}

// overlap[l][l'] += sum_c dU[l, c] U[l', c] on the edges of a chunk.
template <typename T, typename S>
void add_overlap(
    const SourceProblem<T, S>& problem, const SourceTile& tile, const T* products, int64_t slice, int64_t first_channel, int64_t place,
    const int64_t* edges, int64_t count, const TorqueBuffers<T>& buffers) {
    const SourceDegree &input = problem.inputs[tile.input], &output = problem.outputs[tile.output];
    const int64_t size = input.size(), stride = padded<T>(output.channels);
    const Turn<T> turn(tile, input.degree);
    for (int64_t index = 0; index < count; ++index) {
        const T* frame = problem.wigner + edges[index] * problem.wigner_stride + input.wigner();
        const T* row = buffers.gradients + (place + index) * problem.row_length;
        const T* middle = row + output.start + output.degree * stride + first_channel;
        T* overlap = buffers.overlap + (place + index) * size * size;
        for (int64_t right = 0; right < size; ++right) {
            Vector<T> of_minus{}, of_plus{};
            for (int64_t column = 0; column < slice; column += LANES<T>) {
                const Vector<T> values = load(products + (index * size + right) * slice + column);
                of_minus += values * load(middle - tile.order * stride + column);
                of_plus += values * load(middle + tile.order * stride + column);
            }
            const T minus = sum<T>(of_minus), plus = tile.order > 0 ? turn.plus_sign * sum<T>(of_plus) : T(0);
            for (int64_t left = 0; left < size; ++left)
                overlap[left * size + right] += frame[left * size + turn.minus] * minus + frame[left * size + turn.plus] * plus;
        }
    }
}

// torque[a] = sum over l, l' of overlap[l][l'] G_a[l][l'].
template <typename T>
void generator_product(const double* generators, int64_t size, const T* overlap, T* torque) {
    for (int64_t axis = 0; axis < 3; ++axis) {
        T total = 0;
        for (int64_t index = 0; index < size * size; ++index) total += T(generators[axis * size * size + index]) * overlap[index];
        torque[axis] = total;
    }
}

// Subtracts the torque on the features of one input degree.
template <typename T, typename S>
void subtract_feature_torque(
    const SourceProblem<T, S>& problem, const SourceDegree& input, int64_t num_edges, const TorqueBuffers<T>& buffers) {
    const int64_t size = input.size();
    for (int64_t place = 0; place < num_edges; ++place) {
        T torque[3];
        generator_product(problem.generators[input.degree], size, buffers.overlap + place * size * size, torque);
        for (int axis = 0; axis < 3; ++axis) buffers.torque[place * 3 + axis] -= torque[axis];
    }
}

// Aligned messages y~ of a block; and the torque on its features, subtracted, where there are buffers for it.
template <typename T, typename S>
void make_messages(const SourceProblem<T, S>& problem, const Block& block, const Buffers<T>& buffers, const TorqueBuffers<T>* torque) {
    const int64_t num_edges = block.num_edges(), width = problem.width;
    fill_zero(buffers.messages, num_edges * problem.row_length);
    for (int64_t index = 0; index < problem.num_tiles; ++index) {
        const SourceTile& tile = problem.tiles[index];
        const SourceGroup& group = problem.groups[tile.group];
        const SourceDegree& input = problem.inputs[tile.input];
        const bool is_first_of_group = index == 0 || tile.group != problem.tiles[index - 1].group;
        const bool is_first = is_first_of_group || tile.input != problem.tiles[index - 1].input;
        const bool is_last = index + 1 == problem.num_tiles || tile.group != problem.tiles[index + 1].group ||
                             tile.input != problem.tiles[index + 1].input;
        const int64_t size = input.size(), stride = padded<T>(width);
        if (is_first_of_group) gather_hidden(problem, block, problem.hidden[tile.group], buffers.hidden);
        if (is_first) {
            gather_features(input, problem.nodes[tile.input], block, buffers.features);
            if (torque != nullptr) fill_zero(torque->overlap, num_edges * size * size);
        }
        const T* weights = problem.forward_weights + tile.forward;
        for (int64_t channel = 0; channel < padded<T>(group.channels_out); channel += SLICE<T>) {
            const int64_t rest = padded<T>(group.channels_out) - channel, slice = rest < SLICE<T> ? rest : SLICE<T>;
            multiply_features(buffers, block.num_segments * size, group.channels_in, weights, width, slice);
            weights += width * group.channels_in * slice;
            block.for_each_chunk([&](int64_t segment, int64_t place, int64_t first, int64_t count) {
                for (int64_t l = 0; l < size; ++l)
                    multiply<false, false>(Product<T>{
                        count, slice, width, buffers.hidden + place * stride, stride,
                        buffers.table + (segment * size + l) * buffers.table_stride, slice, buffers.products + l * slice,
                        size * slice});
                const int64_t* edges = problem.order + first;
                const auto add = tile.order > 0 ? add_messages<true, T, S> : add_messages<false, T, S>;
                add(problem, tile, buffers.products, slice, channel, place, edges, count, buffers.messages);
                if (torque != nullptr)
                    add_overlap(problem, tile, buffers.products, slice, channel, place, edges, count, *torque);
            });
        }
        if (is_last && torque != nullptr) subtract_feature_torque(problem, input, num_edges, *torque);
    }
}

// g~ of a block's edges.
template <typename T, typename S>
void align_gradients(
    const SourceProblem<T, S>& problem, const Block& block, const S* const* gradients, T* components, T* aligned) {
    block.for_each_edge(problem.order, [&](int64_t place, int64_t edge) {
        const int64_t row = problem.dst != nullptr ? problem.dst[edge] : edge;
        for (int64_t index = 0; index < problem.num_outputs; ++index) {
            const SourceDegree& output = problem.outputs[index];
            const int64_t size = output.size(), channels = output.channels, stride = padded<T>(channels);
            const S* from = gradients[index] + row * channels * size;
            transpose_features(from, size, channels, stride, components);
            for (int64_t k = 0; k < size; ++k) fill_zero(components + k * stride + channels, stride - channels);
            turn<true>(problem.wigner + edge * problem.wigner_stride + output.wigner(), size, stride, components,
                       aligned + place * problem.row_length + output.start);
        }
    });
}

// dU of a chunk for some channels of a tile, [edge][l][slice].
template <bool HAS_PLUS, typename T, typename S>
void gradient_of_products(
    const SourceProblem<T, S>& problem, const SourceTile& tile, int64_t slice, int64_t first_channel, int64_t place,
    const int64_t* edges, int64_t count, const T* gradients, T* into) {
    const SourceDegree &input = problem.inputs[tile.input], &output = problem.outputs[tile.output];
    const int64_t size = input.size(), stride = padded<T>(output.channels);
    const Turn<T> turn(tile, input.degree);
    for (int64_t index = 0; index < count; ++index) {
        const T* frame = problem.wigner + edges[index] * problem.wigner_stride + input.wigner();
        const T* middle = gradients + (place + index) * problem.row_length + output.start + output.degree * stride + first_channel;
        const T *minus = middle - tile.order * stride, *plus = middle + tile.order * stride;
        for (int64_t l = 0; l < size; ++l) {
            const T to_minus = frame[l * size + turn.minus], to_plus = turn.plus_sign * frame[l * size + turn.plus];
            T* row = into + (index * size + l) * slice;
            int64_t channel = 0;
            for (; channel + LANES<T> <= slice; channel += LANES<T>) {
                const Vector<T> values = broadcast(to_minus) * load(minus + channel);
                store(row + channel, HAS_PLUS ? values + broadcast(to_plus) * load(plus + channel) : values);
            }
            for (; channel < slice; ++channel)
                row[channel] = to_minus * minus[channel] + (HAS_PLUS ? to_plus * plus[channel] : T(0));
        }
    }
}

// Everything that some channels of a tile contribute to the gradients of a block.
template <typename T, typename S>
void add_gradients(
    const SourceProblem<T, S>& problem, const Block& block, const SourceTile& tile, int64_t channel, int64_t slice,
    const Buffers<T>& buffers, T* block_gradients) {
    const SourceGroup& group = problem.groups[tile.group];
    const int64_t size = problem.inputs[tile.input].size(), rows = block.num_segments * size;
    const int64_t stride = padded<T>(problem.width), channels_in = group.channels_in, padded_in = padded<T>(channels_in);
    const T* blocks = problem.blocks + tile.blocks + channel * channels_in * stride;
    multiply_features(buffers, rows, channels_in, blocks, slice, stride);
    const auto make_gradient = tile.order > 0 ? gradient_of_products<true, T, S> : gradient_of_products<false, T, S>;
    const auto first_part = multiply<true, false, T>, further_part = multiply<true, true, T>;
    block.for_each_chunk([&](int64_t segment, int64_t place, int64_t first, int64_t count) {
        make_gradient(problem, tile, slice, channel, place, problem.order + first, count, buffers.messages, buffers.products);
        const bool is_first = first == block.segments[segment].first;
        for (int64_t l = 0; l < size; ++l) {
            const int64_t row = (segment * size + l) * buffers.table_stride;
            multiply<false, true>(Product<T>{
                count, stride, slice, buffers.products + l * slice, size * slice, buffers.table + row, stride,
                buffers.hidden_gradient + place * stride, stride});
            (is_first ? first_part : further_part)(Product<T>{
                slice, stride, count, buffers.products + l * slice, size * slice, buffers.hidden + place * stride, stride,
                buffers.table_gradient + row, stride});
        }
    });
    multiply<false, true>(Product<T>{
        rows, padded_in, slice * stride, buffers.table_gradient, buffers.table_stride,
        problem.transposed + tile.transposed + channel * stride * padded_in, padded_in, buffers.feature_gradient, padded_in});
    if (block_gradients == nullptr) return;
    for (int64_t index = 0; index < slice; ++index)
        multiply<true, true>(Product<T>{
            channels_in, stride, rows, buffers.features, channels_in, buffers.table_gradient + index * stride, buffers.table_stride,
            block_gradients + tile.blocks + (channel + index) * channels_in * stride, stride});
}

template <typename T, typename S>
void scatter_hidden_gradient(const SourceProblem<T, S>& problem, const Block& block, const T* gradient, S* into) {
    const int64_t width = problem.width, stride = padded<T>(width);
    block.for_each_edge(problem.order, [&](int64_t place, int64_t edge) {
        for (int64_t k = 0; k < width; ++k) into[edge * width + k] = gradient[place * stride + k];
    });
}

// The torque on a block's edges: that on the messages, turned out of their frames, added to what is there.
template <typename T, typename S>
void finish_torque(
    const SourceProblem<T, S>& problem, const Block& block, const Buffers<T>& buffers, const TorqueBuffers<T>& torque, T* into) {
    block.for_each_edge(problem.order, [&](int64_t place, int64_t edge) {
        T aligned[3] = {0, 0, 0};
        for (int64_t index = 0; index < problem.num_outputs; ++index) {
            const SourceDegree& output = problem.outputs[index];
            const int64_t size = output.size(), stride = padded<T>(output.channels);
            const T* gradients = torque.gradients + place * problem.row_length + output.start;
            const T* messages = buffers.messages + place * problem.row_length + output.start;
            for (int64_t left = 0; left < size; ++left)
                for (int64_t right = 0; right < size; ++right) {
                    Vector<T> total{};
                    for (int64_t column = 0; column < stride; column += LANES<T>)
                        total += load(gradients + left * stride + column) * load(messages + right * stride + column);
                    torque.overlap[left * size + right] = sum<T>(total);
                }
            T part[3];
            generator_product(problem.generators[output.degree], size, torque.overlap, part);
            for (int axis = 0; axis < 3; ++axis) aligned[axis] += part[axis];
        }
        const T* frame = problem.wigner + edge * problem.wigner_stride + 1;  // the block of degree 1
        for (int axis = 0; axis < 3; ++axis) {
            T total = torque.torque[place * 3 + axis];
            for (int other = 0; other < 3; ++other) total += frame[axis * 3 + other] * aligned[other];
            into[edge * 3 + axis] = total;
        }
    });
}

// A square of the aligned weights of a tile: for channels `step` apart and as many k, what `from` points to the first path of. Behind
// num_rows channels and count values of k it is zero.
template <typename T>
inline void aligned_square(
    const SourceTile& tile, int64_t width, const T* from, int64_t step, int64_t num_rows, int64_t count, Vector<T> (&square)[LANES<T>]) {
    constexpr int N = LANES<T>;
    const bool is_whole = num_rows >= N && count >= N;
#pragma GCC unroll 16
    for (int row = 0; row < N; ++row) square[row] = Vector<T>{};
    for (int64_t path = 0; path < tile.num_paths; ++path) {
        const T coefficient = T(tile.alignment[path]);
        if (coefficient == 0) continue;
        const T* at = from + (tile.first_path + path) * width;
        if (is_whole) {
#pragma GCC unroll 16
            for (int row = 0; row < N; ++row) square[row] += broadcast(coefficient) * load(at + row * step);
        } else {
#pragma GCC unroll 16
            for (int row = 0; row < N; ++row)
                if (row < num_rows) square[row] += broadcast(coefficient) * load_part(at + row * step, count);
        }
    }
}

}  // namespace

template <typename T, typename S>
void pack_forward(const SourceProblem<T, S>& problem, const SourceTile& tile, T* packed) {
    constexpr int N = LANES<T>;
    const SourceGroup& group = problem.groups[tile.group];
    const int64_t width = problem.width, channels_in = group.channels_in, channels_out = padded<T>(group.channels_out);
    const int64_t of_input = group.paths * width, of_output = channels_in * of_input;
    for (int64_t first = 0; first < channels_out; first += SLICE<T>) {
        const int64_t slice = channels_out - first < SLICE<T> ? channels_out - first : SLICE<T>;
        for (int64_t channel_in = 0; channel_in < channels_in; ++channel_in)
            for (int64_t column = 0; column < slice; column += N)
                for (int64_t k = 0; k < width; k += N) {
                    const int64_t channel = first + column;
                    const T* from = problem.weights[tile.group] + channel * of_output + channel_in * of_input + k;
                    Vector<T> square[N];
                    aligned_square<T>(tile, width, from, of_output, group.channels_out - channel, width - k, square);
                    transpose<T>(square);
                    T* into = packed + (k * channels_in + channel_in) * slice + column;
#pragma GCC unroll 16
                    for (int row = 0; row < N; ++row) {
                        if (row >= width - k) break;
                        store(into + row * channels_in * slice, square[row]);
                    }
                }
        packed += width * channels_in * slice;
    }
}

template <typename T, typename S>
void pack_backward(const SourceProblem<T, S>& problem, const SourceTile& tile, T* blocks, T* transposed) {
    constexpr int N = LANES<T>;
    const SourceGroup& group = problem.groups[tile.group];
    const int64_t width = problem.width, stride = padded<T>(width), of_input = group.paths * width;
    const int64_t channels_in = group.channels_in, padded_in = padded<T>(channels_in);
    const T* weights = problem.weights[tile.group];
    for (int64_t channel = 0; channel < group.channels_out; ++channel) {
        for (int64_t first = 0; first < padded_in; first += N)
            for (int64_t k = 0; k < stride; k += N) {
                Vector<T> square[N];
                aligned_square<T>(tile, width, weights + first * of_input + k, of_input, channels_in - first, width - k, square);
#pragma GCC unroll 16
                for (int row = 0; row < N; ++row) {
                    if (row >= channels_in - first) break;
                    store(blocks + (first + row) * stride + k, square[row]);
                }
                transpose<T>(square);
#pragma GCC unroll 16
                for (int row = 0; row < N; ++row) store(transposed + (k + row) * padded_in + first, square[row]);
            }
        weights += channels_in * of_input;
        blocks += channels_in * stride;
        transposed += stride * padded_in;
    }
}

template <typename T, typename S>
void unpack_gradient(
    const SourceProblem<T, S>& problem, int64_t group_index, int64_t channel, const T* gradients, int64_t count, int64_t stride,
    T* result) {
    const SourceGroup& group = problem.groups[group_index];
    const int64_t width = problem.width, row = group.paths * width;
    fill_zero(result, group.channels_in * row);
    for (int64_t index = 0; index < problem.num_tiles; ++index) {
        const SourceTile& tile = problem.tiles[index];
        if (tile.group != group_index) continue;
        const T* block = gradients + tile.blocks + channel * group.channels_in * padded<T>(width);
        for (int64_t channel_in = 0; channel_in < group.channels_in; ++channel_in)
            for (int64_t path = 0; path < tile.num_paths; ++path) {
                const T coefficient = T(tile.alignment[path]);
                if (coefficient == 0) continue;
                T* into = result + channel_in * row + (tile.first_path + path) * width;
                for (int64_t part = 0; part < count; ++part) {
                    const T* from = block + part * stride + channel_in * padded<T>(width);
                    for (int64_t k = 0; k < width; ++k) into[k] += coefficient * from[k];
                }
            }
    }
}

template <typename T, typename S>
int64_t workspace_size(const SourceProblem<T, S>& problem, int64_t most_edges, bool is_backward) {
    Workspace<T> workspace(nullptr), of_torque(nullptr);
    Buffers<T>(problem, most_edges, is_backward, workspace);
    Buffers<T>(problem, most_edges, false, of_torque);
    TorqueBuffers<T>(problem, most_edges, of_torque);
    const int64_t size = workspace.used(), with_torque = of_torque.used();
    return is_backward && with_torque > size ? with_torque : size;
}

template <typename T, typename S>
void forward_block(
    const SourceProblem<T, S>& problem, const SourceSegment* segments, int64_t num_segments, const SourceResults<T, S>& results,
    T* memory) {
    const Block block{segments, num_segments};
    Workspace<T> workspace(memory);
    const Buffers<T> buffers(problem, block.num_edges(), false, workspace);
    make_messages<T>(problem, block, buffers, nullptr);
    block.for_each_edge(problem.order, [&](int64_t place, int64_t edge) {
        for (int64_t index = 0; index < problem.num_outputs; ++index) {
            const SourceDegree& output = problem.outputs[index];
            const int64_t size = output.size(), stride = padded<T>(output.channels);
            turn<false>(problem.wigner + edge * problem.wigner_stride + output.wigner(), size, stride,
                        buffers.messages + place * problem.row_length + output.start, buffers.components);
            if (problem.dst == nullptr) {
                S* into = results.messages[index] + edge * output.channels * size;
                transpose_components<false>(buffers.components, size, output.channels, stride, into);
            } else {
                T* into = results.sums + problem.dst[edge] * problem.row_length + output.start;
                for (int64_t column = 0; column < size * stride; column += LANES<T>)
                    store(into + column, load(into + column) + load(buffers.components + column));
            }
        }
    });
}

template <typename T, typename S>
void torque_block(
    const SourceProblem<T, S>& problem, const SourceSegment* segments, int64_t num_segments, const SourceResults<T, S>& results,
    T* memory) {
    const Block block{segments, num_segments};
    Workspace<T> workspace(memory);
    const Buffers<T> buffers(problem, block.num_edges(), false, workspace);
    const TorqueBuffers<T> torque(problem, block.num_edges(), workspace);
    align_gradients(problem, block, results.gradients, buffers.components, torque.gradients);
    fill_zero(torque.torque, block.num_edges() * 3);
    make_messages(problem, block, buffers, &torque);
    finish_torque(problem, block, buffers, torque, results.torque);
}

template <typename T, typename S>
void backward_block(
    const SourceProblem<T, S>& problem, const SourceSegment* segments, int64_t num_segments, const SourceResults<T, S>& results,
    T* memory) {
    const Block block{segments, num_segments};
    const int64_t num_edges = block.num_edges(), stride = padded<T>(problem.width);
    Workspace<T> workspace(memory);
    const Buffers<T> buffers(problem, num_edges, true, workspace);
    align_gradients(problem, block, results.gradients, buffers.components, buffers.messages);
    for (int64_t index = 0; index < problem.num_tiles; ++index) {
        const SourceTile& tile = problem.tiles[index];
        const SourceGroup& group = problem.groups[tile.group];
        const SourceDegree& input = problem.inputs[tile.input];
        const int64_t size = input.size(), padded_in = padded<T>(group.channels_in);
        const bool is_first_of_group = index == 0 || tile.group != problem.tiles[index - 1].group;
        const bool is_last_of_group = index + 1 == problem.num_tiles || tile.group != problem.tiles[index + 1].group;
        if (is_first_of_group) {
            gather_hidden(problem, block, problem.hidden[tile.group], buffers.hidden);
            fill_zero(buffers.hidden_gradient, num_edges * stride);
        }
        if (is_first_of_group || tile.input != problem.tiles[index - 1].input) {
            gather_features(input, problem.nodes[tile.input], block, buffers.features);
            fill_zero(buffers.feature_gradient, num_segments * size * padded_in);
        }
        for (int64_t channel = 0; channel < group.channels_out; channel += SLICE_CHANNELS) {
            const int64_t rest = group.channels_out - channel, slice = rest < SLICE_CHANNELS ? rest : SLICE_CHANNELS;
            add_gradients(problem, block, tile, channel, slice, buffers, results.block_gradients);
        }
        if (is_last_of_group || tile.input != problem.tiles[index + 1].input)
            for (int64_t segment = 0; segment < num_segments; ++segment)
                transpose_components<true>(
                    buffers.feature_gradient + segment * size * padded_in, size, group.channels_in, padded_in,
                    results.node_gradients[tile.input] + segments[segment].gradient_row * group.channels_in * size);
        if (is_last_of_group)
            scatter_hidden_gradient(problem, block, buffers.hidden_gradient, results.hidden_gradients[tile.group]);
    }
    if (results.torque != nullptr) torque_block(problem, segments, num_segments, results, memory);
}

template <typename T, typename S>
void write_sums(const SourceDegree& degree, const T* components, int64_t count, int64_t stride, S* features) {
    const int64_t channels = padded<T>(degree.channels);
    with_size(degree.size(), [=](auto size) {
        for (int64_t channel = 0; channel < degree.channels; ++channel)
            for (int64_t l = 0; l < size; ++l) {
                T sum = components[l * channels + channel];
                for (int64_t part = 1; part < count; ++part) sum += components[part * stride + l * channels + channel];
                features[channel * size + l] = sum;
            }
    });
}

#define SE3_FAST_INSTANTIATE(T, S)                                                                                               \
    template void pack_forward<T, S>(const SourceProblem<T, S>&, const SourceTile&, T*);                                         \
    template void pack_backward<T, S>(const SourceProblem<T, S>&, const SourceTile&, T*, T*);                                    \
    template void unpack_gradient<T, S>(const SourceProblem<T, S>&, int64_t, int64_t, const T*, int64_t, int64_t, T*);           \
    template int64_t workspace_size<T, S>(const SourceProblem<T, S>&, int64_t, bool);                                            \
    template void forward_block<T, S>(                                                                                           \
        const SourceProblem<T, S>&, const SourceSegment*, int64_t, const SourceResults<T, S>&, T*);                              \
    template void backward_block<T, S>(                                                                                          \
        const SourceProblem<T, S>&, const SourceSegment*, int64_t, const SourceResults<T, S>&, T*);                              \
    template void write_sums<T, S>(const SourceDegree&, const T*, int64_t, int64_t, S*);

SE3_FAST_INSTANTIATE(float, float)
SE3_FAST_INSTANTIATE(float, BFloat16)
SE3_FAST_INSTANTIATE(double, double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
