// The depthwise convolution on the CPU, some edges at a time (formula: se3_fast/backends/dense/depthwise_conv.py).
//
//     R_p = sum over four knots of B(t - k) table[k][p]    radial weights of an edge at the place t, [path][channel] on chip only
//     m_k = sum over paths, l of R_p b_p[l, k] x_l         b_p[l, k] = sum over terms of coefficient Y
// Components of x and m are rows of C channels, so that all loops run over channels. Backward makes R again:
//     dR_p = sum b x g,  dx_l = sum R b g,  dY = sum over pairs of coefficient (sum over channels of R x g)
//     dt = sum over paths and channels of dR sum of B' table,  dtable[k] = sum over edges of B dR
// `along` differentiates all of that once more in a direction (x', Y', t') of the operands, by the rules of product and chain, value
// and derivative side by side: these are the gradients of the gradients.

#include <algorithm>
#include <cmath>

#include "depthwise_conv.h"
#include "rows.h"
#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// What the four rows of the table around an edge count: the cubic B-spline B, its first and its second derivative.
template <typename T>
struct Knots {
    int64_t row;  // of the padded table
    T factors[3][4];

    Knots(T place, int64_t num_knots) {
        const T first = -2, last = T(num_knots + 1);  // B is zero at all knots from there on
        const T inside = place < first ? first : place > last ? last : place;
        const T left = std::floor(inside), u = inside - left, v = 1 - u;
        const bool is_number = left == left;
        row = KNOTS_BEFORE - 1 + (is_number ? int64_t(left) : 0);
        const T found[3][4] = {{v * v * v / 6, (u * u * (3 * u - 6) + 4) / 6, (v * v * (3 * v - 6) + 4) / 6, u * u * u / 6},
                               {-v * v / 2, u * (T(1.5) * u - 2), v * (2 - T(1.5) * v), u * u / 2},
                               {v, 3 * u - 2, 3 * v - 2, u}};
        std::copy_n(&found[0][0], 12, &factors[0][0]);
    }
};

template <typename T>
struct Workspace {
    T* weights[3];                      // R of an edge and its derivatives by the place, [path][channel]
    T* weights_dot;                     // R'
    T *of_weights, *of_weights_dot;     // their gradients
    T *weighted, *weighted_dot;         // R g, [run][channel]
    T *harmonics;                       // of a chunk, [harmonic][edge]
    T *elements, *elements_dot;         // b of a chunk, [pair][edge]
    T *of_elements;                     // of an edge, by pair, a vector each

    Workspace(const DepthwiseShape& shape, T* memory) {
        const auto take = [&](int64_t size) {
            T* const taken = memory;
            memory += size;
            return taken;
        };
        for (T*& order : weights) order = take(shape.rows());
        weights_dot = take(shape.rows()), of_weights = take(shape.rows()), of_weights_dot = take(shape.rows());
        weighted = take(shape.num_runs * shape.channels), weighted_dot = take(shape.num_runs * shape.channels);
        harmonics = take(shape.harmonics * DEPTHWISE_CHUNK);
        elements = take(shape.num_pairs * DEPTHWISE_CHUNK), elements_dot = take(shape.num_pairs * DEPTHWISE_CHUNK);
        of_elements = take(shape.num_pairs * LANES<T>);
    }

    static int64_t size(const DepthwiseShape& shape) {
        return 6 * shape.rows() + 2 * shape.num_runs * shape.channels + (shape.harmonics + 2 * shape.num_pairs) * DEPTHWISE_CHUNK +
               shape.num_pairs * LANES<T>;
    }
};

// R of an edge, and as many of its derivatives.
template <int NUM_DERIVATIVES, typename T>
void interpolate(const DepthwiseShape& shape, const T* table, const Knots<T>& knots, const Workspace<T>& work) {
    const int64_t size = shape.rows();
    const T* const first = table + knots.row * size;
    for (int64_t column = 0; column < size; column += LANES<T>) {
        Vector<T> rows[4];
#pragma GCC unroll 4
        for (int knot = 0; knot < 4; ++knot) rows[knot] = load(first + knot * size + column);
#pragma GCC unroll 3
        for (int order = 0; order <= NUM_DERIVATIVES; ++order) {
            Vector<T> sum{};
#pragma GCC unroll 4
            for (int knot = 0; knot < 4; ++knot) sum += broadcast(knots.factors[order][knot]) * rows[knot];
            store(work.weights[order] + column, sum);
        }
    }
}

// dtable of an edge from dR. Along a direction, by which the place moves by place_dot: its derivative.
template <bool IS_ALONG, typename T>
void add_to_table(const DepthwiseShape& shape, const Knots<T>& knots, T place_dot, const Workspace<T>& work, T* of_table) {
    const int64_t size = shape.rows();
    T* const first = of_table + knots.row * size;
    for (int64_t column = 0; column < size; column += LANES<T>) {
        const Vector<T> given = load(work.of_weights + column);
        Vector<T> given_dot{};
        if (IS_ALONG) given_dot = load(work.of_weights_dot + column);
#pragma GCC unroll 4
        for (int knot = 0; knot < 4; ++knot) {
            T* const into = first + knot * size + column;
            const Vector<T> value = broadcast(knots.factors[0][knot]);
            if (IS_ALONG)
                store(into, load(into) + value * given_dot + broadcast(knots.factors[1][knot] * place_dot) * given);
            else
                store(into, load(into) + value * given);
        }
    }
}

// dt of an edge from dR; along a direction its derivative.
template <bool IS_ALONG, typename T>
T differentiate_place(const DepthwiseShape& shape, T place_dot, const Workspace<T>& work) {
    Vector<T> total{};
    for (int64_t column = 0; column < shape.rows(); column += LANES<T>) {
        const Vector<T> given = load(work.of_weights + column), slope = load(work.weights[1] + column);
        if (IS_ALONG)
            total += broadcast(place_dot) * load(work.weights[2] + column) * given + slope * load(work.of_weights_dot + column);
        else
            total += slope * given;
    }
    return sum<T>(total);
}

// b of a chunk from its harmonics, one vector of edges after the other.
template <typename T>
void make_elements(
    const DepthwiseShape& shape, const DepthwiseEdges& edges, const T* harmonics, const Workspace<T>& work, T* elements) {
    fill_zero(work.harmonics, shape.harmonics * DEPTHWISE_CHUNK);
    for (int64_t edge = 0; edge < edges.count; ++edge)
        for (int64_t harmonic = 0; harmonic < shape.harmonics; ++harmonic)
            work.harmonics[harmonic * DEPTHWISE_CHUNK + edge] = harmonics[edges.numbers[edge] * shape.harmonics + harmonic];
    for (int64_t number = 0; number < shape.num_pairs; ++number) {
        const IndexRange terms = shape.pairs[number].terms;
        for (int64_t edge = 0; edge < DEPTHWISE_CHUNK; edge += LANES<T>) {
            Vector<T> total{};
            for (int64_t term = terms.first; term < terms.stop; ++term)
                total += broadcast(T(shape.terms[term].coefficient)) *
                         load(work.harmonics + shape.terms[term].harmonic * DEPTHWISE_CHUNK + edge);
            store(elements + number * DEPTHWISE_CHUNK + edge, total);
        }
    }
}

// dY of an edge from those of its elements, which are still to be summed up lane by lane.
template <typename T>
void sum_harmonics(const DepthwiseShape& shape, const T* of_elements, T* gradient) {
    for (int64_t harmonic = 0; harmonic < shape.harmonics; ++harmonic) {
        const IndexRange shares = shape.shares_of_harmonic[harmonic];
        Vector<T> total{};
        for (int64_t index = shares.first; index < shares.stop; ++index)
            total += broadcast(T(shape.shares[index].coefficient)) * load(of_elements + shape.shares[index].pair * LANES<T>);
        gradient[harmonic] = sum<T>(total);
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

// The loops below hold what they look up in variables of their own: what a vector is stored to may be anything for the compiler, also
// a pointer in a struct.

// The message of an edge, added to the row of its destination.
template <int NUM_VECTORS, typename T>
inline void add_message_tile(
    const DepthwiseShape& shape, const T* features, const T* weights, const T* elements, int64_t channel, T* sums) {
    const int64_t channels = shape.channels, num_components = shape.components_out;
    const DepthwiseRun* const runs = shape.runs;
    const DepthwisePair* const pairs = shape.pairs;
    const int64_t* const by_component = shape.runs_by_component;
    const IndexRange* const ranges = shape.runs_to_component;
    features += channel, weights += channel, sums += channel;
    for (int64_t component = 0; component < num_components; ++component) {
        Tile<T, NUM_VECTORS> message;
        for (int64_t index = ranges[component].first; index < ranges[component].stop; ++index) {
            const DepthwiseRun& run = runs[by_component[index]];
            Tile<T, NUM_VECTORS> of_path;
            for (int64_t pair = run.pairs.first; pair < run.pairs.stop; ++pair) {
                const T* const feature = features + pairs[pair].component_in * channels;
                const Vector<T> element = broadcast(elements[pair * DEPTHWISE_CHUNK]);
#pragma GCC unroll 4
                for (int v = 0; v < NUM_VECTORS; ++v) of_path[v] += element * load(feature + v * LANES<T>);
            }
            const T* const weight = weights + run.path * channels;
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) message[v] += of_path[v] * load(weight + v * LANES<T>);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) add_to(sums + component * channels + v * LANES<T>, message[v]);
    }
}

template <typename T>
void add_message(const DepthwiseShape& shape, const T* features, const T* weights, const T* elements, T* sums) {
    for_each_tile<T, MOST_VECTORS>(shape.channels, [&](auto vectors, int64_t channel) {
        add_message_tile<vectors.value>(shape, features, weights, elements, channel, sums);
    });
}

// What an edge has beside its number: rows of its ends, and b. Dots are derivatives along the direction.
template <typename T>
struct EdgeRows {
    const T *features, *features_dot, *gradient;
    const T *elements, *elements_dot;
};

// dR of an edge; R g is left in the workspace.
template <int NUM_VECTORS, typename T>
inline void differentiate_weights_tile(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, const Workspace<T>& work) {
    const int64_t channels = shape.channels, num_paths = shape.paths;
    const DepthwiseRun* const runs = shape.runs;
    const DepthwisePair* const pairs = shape.pairs;
    const IndexRange* const ranges = shape.runs_of_path;
    const T *const features = edge.features + channel, *const gradient = edge.gradient + channel, *const elements = edge.elements;
    const T* const weights = work.weights[0] + channel;
    T *const of_weights = work.of_weights + channel, *const weighted = work.weighted + channel;
    for (int64_t path = 0; path < num_paths; ++path) {
        Tile<T, NUM_VECTORS> of_path;
        for (int64_t number = ranges[path].first; number < ranges[path].stop; ++number) {
            const DepthwiseRun& run = runs[number];
            Tile<T, NUM_VECTORS> message;
            for (int64_t pair = run.pairs.first; pair < run.pairs.stop; ++pair) {
                const T* const feature = features + pairs[pair].component_in * channels;
                const Vector<T> element = broadcast(elements[pair * DEPTHWISE_CHUNK]);
#pragma GCC unroll 4
                for (int v = 0; v < NUM_VECTORS; ++v) message[v] += element * load(feature + v * LANES<T>);
            }
            const T* const of_component = gradient + run.component_out * channels;
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const Vector<T> given = load(of_component + v * LANES<T>);
                of_path[v] += message[v] * given;
                store(weighted + number * channels + v * LANES<T>, given * load(weights + path * channels + v * LANES<T>));
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) store(of_weights + path * channels + v * LANES<T>, of_path[v]);
    }
}

// Adds to the gradient of the source's features; that of b is left in the workspace where it is wanted.
template <int NUM_VECTORS, bool WITH_ELEMENTS, typename T>
inline void differentiate_features_tile(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, const Workspace<T>& work, T* of_features) {
    const int64_t channels = shape.channels, num_components = shape.components_in;
    const DepthwiseMember* const members = shape.members;
    const IndexRange* const ranges = shape.members_of_component;
    const T *const features = edge.features + channel, *const elements = edge.elements, *const weighted = work.weighted + channel;
    T* const of_elements = work.of_elements;
    of_features += channel;
    for (int64_t component = 0; component < num_components; ++component) {
        Tile<T, NUM_VECTORS> feature, of_feature;
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) feature[v] = load(features + component * channels + v * LANES<T>);
        for (int64_t index = ranges[component].first; index < ranges[component].stop; ++index) {
            const DepthwiseMember member = members[index];
            const T* const row = weighted + member.run * channels;
            const Vector<T> element = broadcast(elements[member.pair * DEPTHWISE_CHUNK]);
            Vector<T> of_element{};
            if (WITH_ELEMENTS && channel > 0) of_element = load(of_elements + member.pair * LANES<T>);
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const Vector<T> given = load(row + v * LANES<T>);
                of_feature[v] += element * given;
                if (WITH_ELEMENTS) of_element += feature[v] * given;
            }
            if (WITH_ELEMENTS) store(of_elements + member.pair * LANES<T>, of_element);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) add_to(of_features + component * channels + v * LANES<T>, of_feature[v]);
    }
}

// Gradients of an edge: adds to that of the source's features; those of R and, where it is wanted, b are left in the workspace.
template <bool WITH_ELEMENTS, typename T>
void differentiate_message(const DepthwiseShape& shape, const EdgeRows<T>& edge, const Workspace<T>& work, T* of_features) {
    for_each_tile<T, MOST_VECTORS>(shape.channels, [&](auto vectors, int64_t channel) {
        differentiate_weights_tile<vectors.value>(shape, edge, channel, work);
        differentiate_features_tile<vectors.value, WITH_ELEMENTS>(shape, edge, channel, work, of_features);
    });
}

// The same two along a direction, the first one with the derivative of the message, which is added to `sums`.
template <int NUM_VECTORS, typename T>
inline void differentiate_weights_tile_along(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, const Workspace<T>& work, T* sums) {
    const int64_t channels = shape.channels, num_paths = shape.paths;
    const DepthwiseRun* const runs = shape.runs;
    const DepthwisePair* const pairs = shape.pairs;
    const IndexRange* const ranges = shape.runs_of_path;
    const T *const features = edge.features + channel, *const features_dot = edge.features_dot + channel;
    const T *const gradient = edge.gradient + channel, *const elements = edge.elements, *const elements_dot = edge.elements_dot;
    const T *const weights = work.weights[0] + channel, *const weights_dot = work.weights_dot + channel;
    T *const of_weights = work.of_weights + channel, *const of_weights_dot = work.of_weights_dot + channel;
    T *const weighted = work.weighted + channel, *const weighted_dot = work.weighted_dot + channel;
    sums += channel;
    for (int64_t path = 0; path < num_paths; ++path) {
        const int64_t row = path * channels;
        Tile<T, NUM_VECTORS> of_path, of_path_dot;
        for (int64_t number = ranges[path].first; number < ranges[path].stop; ++number) {
            const DepthwiseRun& run = runs[number];
            Tile<T, NUM_VECTORS> message, message_dot;
            for (int64_t pair = run.pairs.first; pair < run.pairs.stop; ++pair) {
                const int64_t column = pairs[pair].component_in * channels;
                const Vector<T> element = broadcast(elements[pair * DEPTHWISE_CHUNK]);
                const Vector<T> element_dot = broadcast(elements_dot[pair * DEPTHWISE_CHUNK]);
#pragma GCC unroll 4
                for (int v = 0; v < NUM_VECTORS; ++v) {
                    const Vector<T> feature = load(features + column + v * LANES<T>);
                    message[v] += element * feature;
                    message_dot[v] += element * load(features_dot + column + v * LANES<T>) + element_dot * feature;
                }
            }
            const int64_t row_out = run.component_out * channels, place = number * channels;
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const int64_t lane = v * LANES<T>;
                const Vector<T> given = load(gradient + row_out + lane);
                const Vector<T> weight = load(weights + row + lane), weight_dot = load(weights_dot + row + lane);
                add_to(sums + row_out + lane, weight * message_dot[v] + weight_dot * message[v]);
                of_path[v] += message[v] * given;
                of_path_dot[v] += message_dot[v] * given;
                store(weighted + place + lane, given * weight);
                store(weighted_dot + place + lane, given * weight_dot);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) {
            store(of_weights + row + v * LANES<T>, of_path[v]);
            store(of_weights_dot + row + v * LANES<T>, of_path_dot[v]);
        }
    }
}

template <int NUM_VECTORS, bool WITH_ELEMENTS, typename T>
inline void differentiate_features_tile_along(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, int64_t channel, const Workspace<T>& work, T* of_features) {
    const int64_t channels = shape.channels, num_components = shape.components_in;
    const DepthwiseMember* const members = shape.members;
    const IndexRange* const ranges = shape.members_of_component;
    const T *const features = edge.features + channel, *const features_dot = edge.features_dot + channel;
    const T *const elements = edge.elements, *const elements_dot = edge.elements_dot;
    const T *const weighted = work.weighted + channel, *const weighted_dot = work.weighted_dot + channel;
    T* const of_elements = work.of_elements;
    of_features += channel;
    for (int64_t component = 0; component < num_components; ++component) {
        const int64_t column = component * channels;
        Tile<T, NUM_VECTORS> feature, feature_dot, of_feature;
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) {
            feature[v] = load(features + column + v * LANES<T>);
            feature_dot[v] = load(features_dot + column + v * LANES<T>);
        }
        for (int64_t index = ranges[component].first; index < ranges[component].stop; ++index) {
            const DepthwiseMember member = members[index];
            const int64_t row = member.run * channels;
            const Vector<T> element = broadcast(elements[member.pair * DEPTHWISE_CHUNK]);
            const Vector<T> element_dot = broadcast(elements_dot[member.pair * DEPTHWISE_CHUNK]);
            Vector<T> of_element{};
            if (WITH_ELEMENTS && channel > 0) of_element = load(of_elements + member.pair * LANES<T>);
#pragma GCC unroll 4
            for (int v = 0; v < NUM_VECTORS; ++v) {
                const Vector<T> given = load(weighted + row + v * LANES<T>);
                const Vector<T> given_dot = load(weighted_dot + row + v * LANES<T>);
                of_feature[v] += element_dot * given + element * given_dot;
                if (WITH_ELEMENTS) of_element += feature[v] * given_dot + feature_dot[v] * given;
            }
            if (WITH_ELEMENTS) store(of_elements + member.pair * LANES<T>, of_element);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; ++v) add_to(of_features + column + v * LANES<T>, of_feature[v]);
    }
}

template <bool WITH_ELEMENTS, typename T>
void differentiate_message_along(
    const DepthwiseShape& shape, const EdgeRows<T>& edge, const Workspace<T>& work, T* sums, T* of_features) {
    for_each_tile<T, MOST_VECTORS_ALONG>(shape.channels, [&](auto vectors, int64_t channel) {
        differentiate_weights_tile_along<vectors.value>(shape, edge, channel, work, sums);
        differentiate_features_tile_along<vectors.value, WITH_ELEMENTS>(shape, edge, channel, work, of_features);
    });
}

// A chunk with gradients of harmonics and places, or without; that of the table where it is wanted.
template <bool WITH_EDGES, typename T>
void differentiate_chunk(
    const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseEdges& edges,
    const T* gradient, const DepthwiseGradients<T>& into, const Workspace<T>& work) {
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    make_elements(shape, edges, operands.harmonics, work, work.elements);
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        const int64_t number = edges.numbers[edge], source = edges.sources[edge];
        const Knots<T> knots(operands.places[number], shape.knots);
        interpolate<WITH_EDGES>(shape, table, knots, work);
        const EdgeRows<T> rows{
            operands.features + source * row_in, nullptr, gradient + edges.destinations[edge] * row_out, work.elements + edge, nullptr};
        differentiate_message<WITH_EDGES>(shape, rows, work, into.features + (source - into.first_node) * row_in);
        if (into.table != nullptr) add_to_table<false>(shape, knots, T(0), work, into.table);
        if (!WITH_EDGES) continue;
        sum_harmonics(shape, work.of_elements, into.harmonics + number * shape.harmonics);
        into.places[number] = differentiate_place<false>(shape, T(0), work);
    }
}

template <bool WITH_EDGES, typename T>
void differentiate_chunk_along(
    const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseOperands<T>& direction,
    const DepthwiseEdges& edges, const T* gradient, T* sums, const DepthwiseGradients<T>& into, const Workspace<T>& work) {
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    make_elements(shape, edges, operands.harmonics, work, work.elements);
    make_elements(shape, edges, direction.harmonics, work, work.elements_dot);
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        const int64_t number = edges.numbers[edge], source = edges.sources[edge], destination = edges.destinations[edge];
        const Knots<T> knots(operands.places[number], shape.knots);
        const T place_dot = direction.places[number];
        interpolate<1 + WITH_EDGES>(shape, table, knots, work);
        for (int64_t column = 0; column < shape.rows(); column += LANES<T>)
            store(work.weights_dot + column, broadcast(place_dot) * load(work.weights[1] + column));
        const EdgeRows<T> rows{operands.features + source * row_in, direction.features + source * row_in,
                               gradient + destination * row_out, work.elements + edge, work.elements_dot + edge};
        differentiate_message_along<WITH_EDGES>(
            shape, rows, work, sums + destination * row_out, into.features + (source - into.first_node) * row_in);
        if (into.table != nullptr) add_to_table<true>(shape, knots, place_dot, work, into.table);
        if (!WITH_EDGES) continue;
        sum_harmonics(shape, work.of_elements, into.harmonics + number * shape.harmonics);
        into.places[number] = differentiate_place<true>(shape, place_dot, work);
    }
}

}  // namespace

template <typename T>
int64_t depthwise_workspace_size(const DepthwiseShape& shape) {
    return Workspace<T>::size(shape);
}

template <typename T>
void depthwise_chunk(
    const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseEdges& edges, T* sums,
    T* workspace) {
    const Workspace<T> work(shape, workspace);
    const int64_t row_in = shape.components_in * shape.channels, row_out = shape.components_out * shape.channels;
    make_elements(shape, edges, operands.harmonics, work, work.elements);
    for (int64_t edge = 0; edge < edges.count; ++edge) {
        interpolate<0>(shape, table, Knots<T>(operands.places[edges.numbers[edge]], shape.knots), work);
        add_message(shape, operands.features + edges.sources[edge] * row_in, work.weights[0], work.elements + edge,
                    sums + edges.destinations[edge] * row_out);
    }
}

template <typename T>
void depthwise_chunk_backward(
    const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseEdges& edges,
    const T* gradient, const DepthwiseGradients<T>& into, T* workspace) {
    const Workspace<T> work(shape, workspace);
    if (into.harmonics != nullptr)
        differentiate_chunk<true>(shape, table, operands, edges, gradient, into, work);
    else
        differentiate_chunk<false>(shape, table, operands, edges, gradient, into, work);
}

template <typename T>
void depthwise_chunk_along(
    const DepthwiseShape& shape, const T* table, const DepthwiseOperands<T>& operands, const DepthwiseOperands<T>& direction,
    const DepthwiseEdges& edges, const T* gradient, T* sums, const DepthwiseGradients<T>& into, T* workspace) {
    const Workspace<T> work(shape, workspace);
    if (into.harmonics != nullptr)
        differentiate_chunk_along<true>(shape, table, operands, direction, edges, gradient, sums, into, work);
    else
        differentiate_chunk_along<false>(shape, table, operands, direction, edges, gradient, sums, into, work);
}

#define SE3_FAST_INSTANTIATE(T)                                                                                                     \
    template int64_t depthwise_workspace_size<T>(const DepthwiseShape&);                                                            \
    template void depthwise_chunk<T>(                                                                                               \
        const DepthwiseShape&, const T*, const DepthwiseOperands<T>&, const DepthwiseEdges&, T*, T*);                               \
    template void depthwise_chunk_backward<T>(                                                                                      \
        const DepthwiseShape&, const T*, const DepthwiseOperands<T>&, const DepthwiseEdges&, const T*,                              \
        const DepthwiseGradients<T>&, T*);                                                                                          \
    template void depthwise_chunk_along<T>(                                                                                         \
        const DepthwiseShape&, const T*, const DepthwiseOperands<T>&, const DepthwiseOperands<T>&, const DepthwiseEdges&,           \
        const T*, T*, const DepthwiseGradients<T>&, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
