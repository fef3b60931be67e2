// The depthwise convolution on the CPU, a chunk of edges at a time (formula: se3_fast/backends/dense/depthwise_conv.py).
//
//     h = s(s(a W1) W2),  R = h W3                        radial profile, R [edge][path][channel] on chip only
//     m_k = sum over paths, l of R_p b_p[l, k] x_l        b_p[l, k] = sum over terms of coefficient Y
// Components of x and m are rows of C channels, so that all loops run over channels. Backward makes h and R again:
//     dR_p = sum b x g,  dx_l = sum R b g,  dY = sum over pairs of coefficient (sum over channels of R x g),  da, dW through h
// `along` differentiates all of that once more in a direction (x', Y', a') of the operands, by the rules of product and chain, value
// and derivative side by side: these are the gradients of the gradients.

#include "activation.h"
#include "depthwise_conv.h"
#include "rows.h"
#include "small_product.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// A layer of the profile for a chunk. Dots are derivatives along the direction.
template <typename T>
struct Hidden {
    T *values, *first, *second;  // s(z), s'(z), s''(z)
    T *z_dot, *dot;              // z', s'(z) z'
};

template <typename T>
struct Workspace {
    int64_t chunk_width, chunk_rows;
    T *radial, *radial_dot;  // [edge][inputs], gathered; later their gradients [edge][padded inputs]
    Hidden<T> layers[2];
    T *weights, *weights_dot, *of_weights, *of_weights_dot;  // R and its gradient, [edge][path][channel]
    T *of_hidden, *of_hidden_dot, *of_inner, *of_inner_dot;
    T *elements, *elements_dot;              // b of an edge, by pair
    T *of_elements;                          // by term's harmonic, a vector each

    static constexpr int64_t NUM_HIDDEN = 14;

    Workspace(const DepthwiseShape& shape, T* memory) {
        chunk_width = DEPTHWISE_CHUNK * shape.width;
        chunk_rows = DEPTHWISE_CHUNK * shape.rows();
        const int64_t chunk_inputs = DEPTHWISE_CHUNK * padded<T>(shape.inputs);
        const auto take = [&](int64_t size) {
            T* const taken = memory;
            memory += size;
            return taken;
        };
        radial = take(chunk_inputs), radial_dot = take(chunk_inputs);
        for (Hidden<T>& layer : layers)
            layer = {take(chunk_width), take(chunk_width), take(chunk_width), take(chunk_width), take(chunk_width)};
        of_hidden = take(chunk_width), of_hidden_dot = take(chunk_width);
        of_inner = take(chunk_width), of_inner_dot = take(chunk_width);
        weights = take(chunk_rows), weights_dot = take(chunk_rows);
        of_weights = take(chunk_rows), of_weights_dot = take(chunk_rows);
        elements = take(padded<T>(shape.num_pairs)), elements_dot = take(padded<T>(shape.num_pairs));
        of_elements = take(shape.harmonics * LANES<T>);
    }

    static int64_t size(const DepthwiseShape& shape) {
        return DEPTHWISE_CHUNK * (2 * padded<T>(shape.inputs) + NUM_HIDDEN * shape.width + 4 * shape.rows()) +
               2 * padded<T>(shape.num_pairs) + shape.harmonics * LANES<T>;
    }
};

template <typename T>
void gather_rows(const T* rows, int64_t width, const DepthwiseEdges& edges, T* into) {
    for (int64_t edge = 0; edge < edges.count; ++edge)
        for (int64_t column = 0; column < width; ++column) into[edge * width + column] = rows[edges.numbers[edge] * width + column];
}

// c (+)= a b: a [count][steps], b [steps][columns].
template <bool IS_ADDED, typename T>
void times(int64_t count, int64_t steps, int64_t columns, const T* a, const T* b, T* c) {
    multiply<false, IS_ADDED>(Product<T>{count, columns, steps, a, steps, b, columns, c, columns});
}

// c += a^T b: a [count][a_stride], of which `rows` columns are taken, b [count][columns].
template <typename T>
void add_transposed(int64_t count, int64_t rows, int64_t columns, const T* a, const T* b, T* c) {
    multiply<true, true>(Product<T>{rows, columns, count, a, rows, b, columns, c, columns});
}

// h and R of a chunk, with what the backward pass needs, and their derivatives along the direction if there is one.
template <typename T>
void make_weights(
    const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands, const T* radial_direction,
    const DepthwiseEdges& edges, bool is_backward, const Workspace<T>& work) {
    const int64_t width = shape.width, used = edges.count * width;
    const bool is_along = radial_direction != nullptr;
    gather_rows(operands.radial, shape.inputs, edges, work.radial);
    if (is_along) gather_rows(radial_direction, shape.inputs, edges, work.radial_dot);
    const T *input = work.radial, *input_dot = work.radial_dot;
    for (int number = 0; number < 2; ++number) {
        const Hidden<T>& layer = work.layers[number];
        const int64_t steps = number == 0 ? shape.inputs : width;
        const T* const matrix = number == 0 ? weights.first : weights.second;
        times<false>(edges.count, steps, width, input, matrix, layer.values);
        activate(layer.values, used, is_backward ? layer.first : nullptr, is_along ? layer.second : nullptr);
        if (is_along) {
            times<false>(edges.count, steps, width, input_dot, matrix, layer.z_dot);
            for (int64_t index = 0; index < used; index += LANES<T>)
                store(layer.dot + index, load(layer.first + index) * load(layer.z_dot + index));
        }
        input = layer.values, input_dot = layer.dot;
    }
    times<false>(edges.count, width, shape.rows(), input, weights.last, work.weights);
    if (is_along) times<false>(edges.count, width, shape.rows(), input_dot, weights.last, work.weights_dot);
}

// Gradients of the profile from that of R, `of_weights`; those of the weights are added to. Along a direction: their derivatives.
template <bool IS_ALONG, typename T>
void differentiate_weights(
    const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseEdges& edges,
    const DepthwiseGradients<T>& into, const Workspace<T>& work) {
    const int64_t count = edges.count, width = shape.width, used = count * width, columns = padded<T>(shape.inputs);
    const Hidden<T>&outer = work.layers[1], &inner = work.layers[0];
    const DepthwiseWeightGradients<T>& of = into.weights;
    if (of.last != nullptr) {
        add_transposed(count, width, shape.rows(), outer.values, IS_ALONG ? work.of_weights_dot : work.of_weights, of.last);
        if (IS_ALONG) add_transposed(count, width, shape.rows(), outer.dot, work.of_weights, of.last);
    }
    times<false>(count, shape.rows(), width, work.of_weights, weights.last_transposed, work.of_hidden);
    if (IS_ALONG) times<false>(count, shape.rows(), width, work.of_weights_dot, weights.last_transposed, work.of_hidden_dot);
    T *of_layer = work.of_hidden, *of_layer_dot = work.of_hidden_dot;
    for (int number = 1; number >= 0; --number) {
        const Hidden<T>& layer = number == 1 ? outer : inner;
        for (int64_t index = 0; index < used; index += LANES<T>) {
            const Vector<T> given = load(of_layer + index), slope = load(layer.first + index);
            if (IS_ALONG)
                store(of_layer_dot + index, load(layer.second + index) * load(layer.z_dot + index) * given +
                                                slope * load(of_layer_dot + index));
            store(of_layer + index, slope * given);
        }
        T* const of_matrix = number == 1 ? of.second : of.first;
        const int64_t steps = number == 1 ? width : shape.inputs;
        if (of_matrix != nullptr) {
            const T* const input = number == 1 ? inner.values : work.radial;
            add_transposed(count, steps, width, input, IS_ALONG ? of_layer_dot : of_layer, of_matrix);
            if (IS_ALONG) add_transposed(count, steps, width, number == 1 ? inner.dot : work.radial_dot, of_layer, of_matrix);
        }
        if (number == 0) break;
        times<false>(count, width, width, of_layer, weights.second_transposed, work.of_inner);
        if (IS_ALONG) times<false>(count, width, width, of_layer_dot, weights.second_transposed, work.of_inner_dot);
        of_layer = work.of_inner, of_layer_dot = work.of_inner_dot;
    }
    if (into.radial == nullptr) return;
    times<false>(count, width, columns, IS_ALONG ? of_layer_dot : of_layer, weights.first_transposed, work.radial);
    for (int64_t edge = 0; edge < count; ++edge)
        for (int64_t input = 0; input < shape.inputs; ++input)
            into.radial[edges.numbers[edge] * shape.inputs + input] = work.radial[edge * columns + input];
}

// b of an edge from its harmonics.
template <typename T>
void make_elements(const DepthwiseShape& shape, const T* harmonics, T* elements) {
    for (int64_t number = 0; number < shape.num_pairs; ++number) {
        const DepthwisePair& pair = shape.pairs[number];
        T sum = 0;
        for (int64_t term = pair.first_term; term < pair.stop_term; ++term)
            sum += T(shape.terms[term].coefficient) * harmonics[shape.terms[term].harmonic];
        elements[number] = sum;
    }
}

template <typename T>
void add_to(T* sum, Vector<T> value) {
    store(sum, load(sum) + value);
}

// Vectors of channels that are treated together, so that the tables are read once for all of them. What they are summed up in fits
// into the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_VECTORS = 4, MOST_VECTORS_ALONG = 4;
#else
constexpr int MOST_VECTORS = 4, MOST_VECTORS_ALONG = 2;
#endif

// Calls run(constant number of vectors, first channel) for all channels.
template <typename T, int NUM_VECTORS, typename Run>
inline void for_each_tile(int64_t channels, const Run& run, int64_t channel = 0) {
    for (; channel + NUM_VECTORS * LANES<T> <= channels; channel += NUM_VECTORS * LANES<T>)
        run(std::integral_constant<int, NUM_VECTORS>(), channel);
    if constexpr (NUM_VECTORS > 1) for_each_tile<T, NUM_VECTORS / 2>(channels, run, channel);
}

// A vector for each of a tile's.
template <typename T, int NUM_VECTORS>
struct Tile {
    Vector<T> vectors[NUM_VECTORS]{};

    Vector<T>& operator[](int number) { return vectors[number]; }
};

// The message of an edge, added to the row of its destination.
template <int NUM_VECTORS, typename T>
inline void add_message_tile(const DepthwiseShape& shape, const T* features, const T* weights, const T* elements, T* sums) {
    for (int64_t number = 0; number < shape.num_runs; ++number) {
        const DepthwiseRun& run = shape.runs[number];
        const T* const weight = weights + run.path * shape.channels;
        T* const into = sums + run.component_out * shape.channels;
        Tile<T, NUM_VECTORS> message;
        for (int64_t pair = run.first_pair; pair < run.stop_pair; ++pair) {
            const T* const feature = features + shape.pairs[pair].component_in * shape.channels;
            const Vector<T> element = broadcast(elements[pair]);
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) message[v] += element * load(feature + v * LANES<T>);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) add_to(into + v * LANES<T>, message[v] * load(weight + v * LANES<T>));
    }
}

template <typename T>
void add_message(const DepthwiseShape& shape, const T* features, const T* weights, const T* elements, T* sums) {
    for_each_tile<T, MOST_VECTORS>(shape.channels, [&](auto vectors, int64_t channel) {
        add_message_tile<vectors.value>(shape, features + channel, weights + channel, elements, sums + channel);
    });
}

// Adds what a pair's matrix element has for a gradient to the harmonics that it is made of, still lane by lane.
template <typename T>
inline void add_terms(const DepthwiseShape& shape, const DepthwisePair& pair, Vector<T> value, T* of_elements) {
    for (int64_t term = pair.first_term; term < pair.stop_term; ++term)
        add_to(of_elements + shape.terms[term].harmonic * LANES<T>, broadcast(T(shape.terms[term].coefficient)) * value);
}

template <typename T>
void sum_harmonics(const DepthwiseShape& shape, const T* of_elements, T* gradient) {
    for (int64_t harmonic = 0; harmonic < shape.harmonics; ++harmonic)
        gradient[harmonic] = sum<T>(load(of_elements + harmonic * LANES<T>));
}

// What an edge has beside its number: rows of its ends, R and dR, b.
template <typename T>
struct EdgeRows {
    const T *features, *direction, *gradient;
    const T *weights, *weights_dot;
    T *of_weights, *of_weights_dot;
    const T *elements, *elements_dot;
};

// Gradients of an edge: adds to that of the source's features, writes that of R; that of Y is left in `of_elements`.
template <int NUM_VECTORS, typename T>
inline void differentiate_message_tile(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, T* of_features, T* of_elements) {
    for (int64_t number = 0; number < shape.num_runs; ++number) {
        const DepthwiseRun& run = shape.runs[number];
        const int64_t row = run.path * shape.channels + channel;
        const T* const gradient = edge.gradient + run.component_out * shape.channels + channel;
        Tile<T, NUM_VECTORS> message, weighted;
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v)
            weighted[v] = load(gradient + v * LANES<T>) * load(edge.weights + row + v * LANES<T>);
        for (int64_t index = run.first_pair; index < run.stop_pair; ++index) {
            const DepthwisePair& pair = shape.pairs[index];
            const int64_t column = pair.component_in * shape.channels + channel;
            const Vector<T> element = broadcast(edge.elements[index]);
            Vector<T> of_element{};
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const Vector<T> feature = load(edge.features + column + v * LANES<T>);
                message[v] += element * feature;
                of_element += feature * weighted[v];
                add_to(of_features + column + v * LANES<T>, element * weighted[v]);
            }
            if (of_elements != nullptr) add_terms(shape, pair, of_element, of_elements);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v)
            add_to(edge.of_weights + row + v * LANES<T>, message[v] * load(gradient + v * LANES<T>));
    }
}

template <typename T>
void differentiate_message(const DepthwiseShape& shape, const EdgeRows<T>& edge, T* of_features, T* of_elements) {
    fill_zero(edge.of_weights, shape.rows());
    for_each_tile<T, MOST_VECTORS>(shape.channels, [&](auto vectors, int64_t channel) {
        differentiate_message_tile<vectors.value>(shape, edge, channel, of_features, of_elements);
    });
}

// The same along a direction, with the derivative of the message, which is added to `sums`.
template <int NUM_VECTORS, typename T>
inline void differentiate_message_tile_along(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, T* sums, T* of_features, T* of_elements) {
    for (int64_t number = 0; number < shape.num_runs; ++number) {
        const DepthwiseRun& run = shape.runs[number];
        const int64_t row = run.path * shape.channels + channel, row_out = run.component_out * shape.channels + channel;
        Tile<T, NUM_VECTORS> message, message_dot, weighted, weighted_dot;
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) {
            const Vector<T> given = load(edge.gradient + row_out + v * LANES<T>);
            weighted[v] = given * load(edge.weights + row + v * LANES<T>);
            weighted_dot[v] = given * load(edge.weights_dot + row + v * LANES<T>);
        }
        for (int64_t index = run.first_pair; index < run.stop_pair; ++index) {
            const DepthwisePair& pair = shape.pairs[index];
            const int64_t column = pair.component_in * shape.channels + channel;
            const Vector<T> element = broadcast(edge.elements[index]), element_dot = broadcast(edge.elements_dot[index]);
            Vector<T> of_element{};
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const Vector<T> feature = load(edge.features + column + v * LANES<T>);
                const Vector<T> feature_dot = load(edge.direction + column + v * LANES<T>);
                message[v] += element * feature;
                message_dot[v] += element * feature_dot + element_dot * feature;
                of_element += feature * weighted_dot[v] + feature_dot * weighted[v];
                add_to(of_features + column + v * LANES<T>, element_dot * weighted[v] + element * weighted_dot[v]);
            }
            if (of_elements != nullptr) add_terms(shape, pair, of_element, of_elements);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) {
            const int64_t lane = v * LANES<T>;
            const Vector<T> given = load(edge.gradient + row_out + lane);
            add_to(sums + row_out + lane,
                   load(edge.weights + row + lane) * message_dot[v] + load(edge.weights_dot + row + lane) * message[v]);
            add_to(edge.of_weights + row + lane, message[v] * given);
            add_to(edge.of_weights_dot + row + lane, message_dot[v] * given);
        }
    }
}

template <typename T>
void differentiate_message_along(const DepthwiseShape& shape, const EdgeRows<T>& edge, T* sums, T* of_features, T* of_elements) {
    fill_zero(edge.of_weights, shape.rows());
    fill_zero(edge.of_weights_dot, shape.rows());
    for_each_tile<T, MOST_VECTORS_ALONG>(shape.channels, [&](auto vectors, int64_t channel) {
        differentiate_message_tile_along<vectors.value>(shape, edge, channel, sums, of_features, of_elements);
    });
}

}  // namespace

template <typename T>
int64_t depthwise_workspace_size(const DepthwiseShape& shape) {
    return Workspace<T>::size(shape);
}

template <typename T>
int64_t depthwise_padded_inputs(const DepthwiseShape& shape) {
    return padded<T>(shape.inputs);
}

template <typename T>
void depthwise_chunk(
    const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
    const DepthwiseEdges& edges, T* sums, T* workspace) {
    const Workspace<T> work(shape, workspace);
    make_weights<T>(shape, weights, operands, nullptr, edges, false, work);
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        make_elements(shape, operands.harmonics + edges.numbers[edge] * shape.harmonics, work.elements);
        add_message(shape, operands.features + edges.sources[edge] * row_in, work.weights + edge * shape.rows(), work.elements,
                    sums + edges.destinations[edge] * row_out);
    }
}

template <typename T>
void depthwise_chunk_backward(
    const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
    const DepthwiseEdges& edges, const T* gradient, const DepthwiseGradients<T>& into, T* workspace) {
    const Workspace<T> work(shape, workspace);
    make_weights<T>(shape, weights, operands, nullptr, edges, true, work);
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    T* const of_elements = into.harmonics == nullptr ? nullptr : work.of_elements;
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        const int64_t number = edges.numbers[edge], source = edges.sources[edge];
        make_elements(shape, operands.harmonics + number * shape.harmonics, work.elements);
        const EdgeRows<T> rows{
            operands.features + source * row_in, nullptr, gradient + edges.destinations[edge] * row_out,
            work.weights + edge * shape.rows(), nullptr, work.of_weights + edge * shape.rows(), nullptr, work.elements, nullptr};
        if (of_elements != nullptr) fill_zero(of_elements, shape.harmonics * LANES<T>);
        differentiate_message(shape, rows, into.features + (source - into.first_node) * row_in, of_elements);
        if (of_elements != nullptr) sum_harmonics(shape, of_elements, into.harmonics + number * shape.harmonics);
    }
    differentiate_weights<false>(shape, weights, edges, into, work);
}

template <typename T>
void depthwise_chunk_along(
    const DepthwiseShape& shape, const DepthwiseWeights<T>& weights, const DepthwiseOperands<T>& operands,
    const DepthwiseOperands<T>& direction, const DepthwiseEdges& edges, const T* gradient, T* sums, const DepthwiseGradients<T>& into,
    T* workspace) {
    const Workspace<T> work(shape, workspace);
    make_weights<T>(shape, weights, operands, direction.radial, edges, true, work);
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    T* const of_elements = into.harmonics == nullptr ? nullptr : work.of_elements;
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        const int64_t number = edges.numbers[edge], source = edges.sources[edge], row = edge * shape.rows();
        make_elements(shape, operands.harmonics + number * shape.harmonics, work.elements);
        make_elements(shape, direction.harmonics + number * shape.harmonics, work.elements_dot);
        const EdgeRows<T> rows{
            operands.features + source * row_in, direction.features + source * row_in,
            gradient + edges.destinations[edge] * row_out, work.weights + row, work.weights_dot + row,
            work.of_weights + row, work.of_weights_dot + row, work.elements, work.elements_dot};
        if (of_elements != nullptr) fill_zero(of_elements, shape.harmonics * LANES<T>);
        differentiate_message_along(shape, rows, sums + edges.destinations[edge] * row_out,
                                    into.features + (source - into.first_node) * row_in, of_elements);
        if (of_elements != nullptr) sum_harmonics(shape, of_elements, into.harmonics + number * shape.harmonics);
    }
    differentiate_weights<true>(shape, weights, edges, into, work);
}

#define SE3_FAST_INSTANTIATE(T)                                                                                                     \
    template int64_t depthwise_workspace_size<T>(const DepthwiseShape&);                                                            \
    template int64_t depthwise_padded_inputs<T>(const DepthwiseShape&);                                                             \
    template void depthwise_chunk<T>(                                                                                               \
        const DepthwiseShape&, const DepthwiseWeights<T>&, const DepthwiseOperands<T>&, const DepthwiseEdges&, T*, T*);             \
    template void depthwise_chunk_backward<T>(                                                                                      \
        const DepthwiseShape&, const DepthwiseWeights<T>&, const DepthwiseOperands<T>&, const DepthwiseEdges&, const T*,            \
        const DepthwiseGradients<T>&, T*);                                                                                          \
    template void depthwise_chunk_along<T>(                                                                                         \
        const DepthwiseShape&, const DepthwiseWeights<T>&, const DepthwiseOperands<T>&, const DepthwiseOperands<T>&,                \
        const DepthwiseEdges&, const T*, T*, const DepthwiseGradients<T>&, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
