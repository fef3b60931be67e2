// TFN convolution on the CPU, by edge: the loops over vectors (layouts: tfn_conv.h; formulas: DESIGN 1.1).
//
// Forward, for a tile of output channels o and an input channel i (a slice):
//     R[e, o] = sum_k h[e, k] W[i, k, o]                           a small matrix product whose result stays in registers
//     y~[+m] += R_even x~[+m, i] - R_odd x~[-m, i],   y~[-m] += R_even x~[-m, i] + R_odd x~[+m, i]
// Backward, for a tile of input channels i and a step k of h (a slice), with g~ the gradient of y~:
//     P[+m] = sum_o W_even[k, o, i] g~[+m, o] + W_odd[k, o, i] g~[-m, o]
//     P[-m] = sum_o W_even[k, o, i] g~[-m, o] - W_odd[k, o, i] g~[+m, o]
//     dx~[±m] += h[e, k] P[±m],   dh[e, k] += sum_i x~[+m, i] P[+m] + x~[-m, i] P[-m]
//     dW[i, k, o] = sum_e h[e, k] dR[e, o],   dR_even = g~[+m] x~[+m] + g~[-m] x~[-m],   dR_odd = g~[-m] x~[+m] - g~[+m] x~[-m]
// At the default shape (4 degrees, 32 channels, K = 32) forward costs 1.44 M multiply-adds an edge, backward 2.36 M for dx~ and dh
// and 1.44 M for dW, nearly all in three small matrix products. They are bound by the multiply-add units: a slice of W (8 KB) stays
// in the first-level cache for all edges of a block, and so do the tiles.

#include "tfn_conv.h"
#include "vector.h"

#include <utility>

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

// Edges whose sums stand in registers together, for a tile of VECTORS vectors: the rest of the registers holds weights.
template <int VECTORS>
constexpr int FORWARD_EDGES = REGISTERS == 32 ? (VECTORS == 2 ? 6 : 14) : (VECTORS == 2 ? 3 : 6);
template <int VECTORS>
constexpr int BACKWARD_EDGES = REGISTERS == 32 ? (VECTORS == 2 ? 6 : 7) : (VECTORS == 2 ? 2 : 6);

// Steps of h whose sums stand in registers together in the gradient of the weights; width of h is padded to it.
constexpr int WEIGHT_STEPS = REGISTERS == 32 ? 8 : 4;

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// sums[e][v] = sum over steps of factors[step][e] * weights[step][v].
template <typename T, int VECTORS, int EDGES>
inline void multiply(const T* factors, const T* weights, int64_t steps, Vector<T> (&sums)[EDGES][VECTORS]) {
#pragma GCC unroll 16
    for (int e = 0; e < EDGES; ++e)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[e][v] = Vector<T>{};
    for (int64_t step = 0; step < steps; ++step) {
        Vector<T> row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) row[v] = load(weights + v * LANES<T>);
#pragma GCC unroll 16
        for (int e = 0; e < EDGES; ++e) {
            const Vector<T> factor = broadcast(factors[e]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[e][v] += factor * row[v];
        }
        factors += BLOCK_STRIDE;
        weights += VECTORS * LANES<T>;
    }
}

template <typename T, int VECTORS, bool HAS_ODD>
void contract_term(const Term& term, const T* weights, const T* rows, const T* hidden, int64_t num_edges, T* tile) {
    constexpr int EDGES = FORWARD_EDGES<VECTORS>;
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    for (int64_t slice = 0; slice < term.slices; ++slice) {
        const int64_t first = HAS_ODD ? slice : 2 * slice;
        const int64_t second = HAS_ODD || first + 1 == term.channels ? first : first + 1;  // without a second one its weights are 0
        const T* plus = rows + (term.plus + first) * BLOCK_STRIDE;
        const T* minus = rows + (term.minus + second) * BLOCK_STRIDE;
        const T* slice_weights = weights + slice * term.steps * 2 * WIDTH;
        for (int64_t edge = 0; edge < num_edges; edge += EDGES) {
            Vector<T> radial[EDGES][2 * VECTORS];
            multiply<T, 2 * VECTORS, EDGES>(hidden + edge, slice_weights, term.steps, radial);
            T* into = tile + edge * WIDTH * (HAS_ODD ? 2 : 1);
#pragma GCC unroll 16
            for (int e = 0; e < EDGES; ++e) {
                const Vector<T> x_plus = broadcast(plus[edge + e]), x_minus = broadcast(minus[edge + e]);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) {
                    const Vector<T> even = radial[e][v], odd = radial[e][VECTORS + v];
                    T* at = into + v * LANES<T>;
                    if (HAS_ODD) {
                        store(at, load(at) + even * x_minus + odd * x_plus);
                        store(at + WIDTH, load(at + WIDTH) + even * x_plus - odd * x_minus);
                    } else {
                        store(at, load(at) + even * x_plus + odd * x_minus);
                    }
                }
                into += WIDTH * (HAS_ODD ? 2 : 1);
            }
        }
    }
}

// P of one slice for EDGES edges: at m > 0 P[-m], P[+m]; at m = 0 P of the slice's two steps.
template <typename T, int VECTORS, bool HAS_ODD, int EDGES>
inline void multiply_backward(
    const T* minus, const T* plus, const T* weights, int64_t steps, Vector<T> (&sums)[EDGES][2 * VECTORS]) {
    if (!HAS_ODD) {
        multiply<T, 2 * VECTORS, EDGES>(plus, weights, steps, sums);
        return;
    }
#pragma GCC unroll 16
    for (int e = 0; e < EDGES; ++e)
#pragma GCC unroll 4
        for (int v = 0; v < 2 * VECTORS; ++v) sums[e][v] = Vector<T>{};
    for (int64_t step = 0; step < steps; ++step) {
        Vector<T> even[VECTORS], odd[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            even[v] = load(weights + v * LANES<T>);
            odd[v] = load(weights + (VECTORS + v) * LANES<T>);
        }
#pragma GCC unroll 16
        for (int e = 0; e < EDGES; ++e) {
            const Vector<T> g_minus = broadcast(minus[e]), g_plus = broadcast(plus[e]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                sums[e][v] += g_minus * even[v];
                sums[e][VECTORS + v] += g_plus * even[v];
            }
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                sums[e][v] -= g_plus * odd[v];
                sums[e][VECTORS + v] += g_minus * odd[v];
            }
        }
        minus += BLOCK_STRIDE;
        plus += BLOCK_STRIDE;
        weights += 2 * VECTORS * LANES<T>;
    }
}

template <typename T, int VECTORS, bool HAS_ODD>
void contract_term_backward(
    const Term& term, const T* weights, const BlockGradient<T>& block, const T* hidden, const T* features, T* gradient,
    int64_t num_edges) {
    constexpr int EDGES = BACKWARD_EDGES<VECTORS>;
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    constexpr int64_t EDGE_STEP = WIDTH * (HAS_ODD ? 2 : 1);
    const T* minus = block.rows + term.minus * BLOCK_STRIDE;
    const T* plus = block.rows + term.plus * BLOCK_STRIDE;
    for (int64_t slice = 0; slice < term.slices; ++slice) {
        const T* slice_weights = weights + slice * term.steps * 2 * WIDTH;
        const T* first_hidden = hidden + (HAS_ODD ? slice : 2 * slice) * BLOCK_STRIDE;
        T* first_partial = block.partial + (HAS_ODD ? slice : 2 * slice) * BLOCK_STRIDE * LANES<T>;
        for (int64_t edge = 0; edge < num_edges; edge += EDGES) {
            Vector<T> products[EDGES][2 * VECTORS];
            multiply_backward<T, VECTORS, HAS_ODD, EDGES>(minus + edge, plus + edge, slice_weights, term.steps, products);
            const T* x = features + edge * EDGE_STEP;
            T* into = gradient + edge * EDGE_STEP;
            T* partial = first_partial + edge * LANES<T>;
#pragma GCC unroll 16
            for (int e = 0; e < EDGES; ++e) {
                const Vector<T> h = broadcast(first_hidden[edge + e]);
                Vector<T> h_sum = load(partial);
                if (HAS_ODD) {
#pragma GCC unroll 4
                    for (int v = 0; v < 2 * VECTORS; ++v) {
                        store(into + v * LANES<T>, load(into + v * LANES<T>) + h * products[e][v]);
                        h_sum += load(x + v * LANES<T>) * products[e][v];
                    }
                } else {
                    const Vector<T> h_second = broadcast(first_hidden[BLOCK_STRIDE + edge + e]);
                    Vector<T> second_sum = load(partial + BLOCK_STRIDE * LANES<T>);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) {
                        const Vector<T> first = products[e][v], second = products[e][VECTORS + v], at = load(x + v * LANES<T>);
                        store(into + v * LANES<T>, load(into + v * LANES<T>) + h * first + h_second * second);
                        h_sum += at * first;
                        second_sum += at * second;
                    }
                    store(partial + BLOCK_STRIDE * LANES<T>, second_sum);
                }
                store(partial, h_sum);
                x += EDGE_STEP;
                into += EDGE_STEP;
                partial += LANES<T>;
            }
        }
    }
}

// Adds the sums over lanes to dh of a radial group, [BLOCK_STRIDE][padded], and clears them.
template <typename T>
void finish_hidden_gradient(T* partial, int64_t padded, int64_t num_edges, T* hidden_gradient) {
    for (int64_t k = 0; k < padded; ++k)
        for (int64_t edge = 0; edge < num_edges; ++edge) {
            T* at = partial + (k * BLOCK_STRIDE + edge) * LANES<T>;
            hidden_gradient[edge * padded + k] += sum<T>(load(at));
            store(at, Vector<T>{});
        }
}

// dR of some edges for one slice, [edge][2][width].
template <typename T, int VECTORS, bool HAS_ODD>
inline void radial_gradient(const T* minus, const T* plus, const T* tile, int64_t num_edges, T* into) {
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    for (int64_t edge = 0; edge < num_edges; ++edge) {
        const Vector<T> x_plus = broadcast(plus[edge]), x_minus = broadcast(minus[edge]);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            if (HAS_ODD) {
                const Vector<T> g_minus = load(tile + v * LANES<T>), g_plus = load(tile + WIDTH + v * LANES<T>);
                store(into + v * LANES<T>, g_plus * x_plus + g_minus * x_minus);
                store(into + WIDTH + v * LANES<T>, g_minus * x_plus - g_plus * x_minus);
            } else {
                const Vector<T> g = load(tile + v * LANES<T>);
                store(into + v * LANES<T>, g * x_plus);
                store(into + WIDTH + v * LANES<T>, g * x_minus);
            }
        }
        tile += WIDTH * (HAS_ODD ? 2 : 1);
        into += 2 * WIDTH;
    }
}

// gradient[k][width] (+)= sum over edges of h[edge][k] dR[edge][width], for WEIGHT_STEPS steps k and two vectors.
template <typename T>
inline void multiply_edges(
    const T* hidden, int64_t padded, const T* radial, int64_t radial_step, int64_t num_edges, int64_t steps, bool is_first,
    T* gradient) {
    Vector<T> sums[WEIGHT_STEPS][2];
#pragma GCC unroll 16
    for (int k = 0; k < WEIGHT_STEPS; ++k) sums[k][0] = sums[k][1] = Vector<T>{};
    for (int64_t edge = 0; edge < num_edges; ++edge) {
        const Vector<T> left = load(radial), right = load(radial + LANES<T>);
#pragma GCC unroll 16
        for (int k = 0; k < WEIGHT_STEPS; ++k) {
            const Vector<T> h = broadcast(hidden[k]);
            sums[k][0] += h * left;
            sums[k][1] += h * right;
        }
        hidden += padded;
        radial += radial_step;
    }
#pragma GCC unroll 16
    for (int k = 0; k < WEIGHT_STEPS; ++k) {
        if (k == steps) break;
        store(gradient, is_first ? sums[k][0] : load(gradient) + sums[k][0]);
        store(gradient + LANES<T>, is_first ? sums[k][1] : load(gradient + LANES<T>) + sums[k][1]);
        gradient += radial_step;
    }
}

template <typename T, int VECTORS, bool HAS_ODD>
void add_weight_gradient(
    const Term& term, int64_t first_slice, int64_t last_slice, const T* rows, const T* tile, const T* hidden, int64_t num_edges,
    bool is_first, T* radial, T* gradient) {
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    const int64_t width_hidden = term.steps, padded = round_up(width_hidden, WEIGHT_STEPS);
    for (int64_t slice = first_slice; slice < last_slice; ++slice) {
        const int64_t first = HAS_ODD ? slice : 2 * slice;
        const int64_t second = HAS_ODD || first + 1 == term.channels ? first : first + 1;
        const T* plus = rows + (term.plus + first) * BLOCK_STRIDE;
        const T* minus = rows + (term.minus + second) * BLOCK_STRIDE;
        radial_gradient<T, VECTORS, HAS_ODD>(minus, plus, tile, num_edges, radial);
        T* slice_gradient = gradient + slice * width_hidden * 2 * WIDTH;
        for (int64_t k = 0; k < width_hidden; k += WEIGHT_STEPS) {
            const int64_t steps = width_hidden - k < WEIGHT_STEPS ? width_hidden - k : WEIGHT_STEPS;
            for (int64_t column = 0; column < 2 * WIDTH; column += 2 * LANES<T>)
                multiply_edges<T>(hidden + k, padded, radial + column, 2 * WIDTH, num_edges, steps, is_first,
                                  slice_gradient + k * 2 * WIDTH + column);
        }
    }
}

// Transposes a square of vectors by exchanging ever larger blocks.
template <typename T, int SPAN, bool IS_UPPER, std::size_t... LANE>
inline Vector<T> exchange(Vector<T> upper, Vector<T> lower, std::index_sequence<LANE...>) {
    constexpr int N = LANES<T>;
    if constexpr (IS_UPPER)
        return shuffle<T, (int(LANE) & SPAN ? N + int(LANE) - SPAN : int(LANE))...>(upper, lower);
    else
        return shuffle<T, (int(LANE) & SPAN ? N + int(LANE) : int(LANE) + SPAN)...>(upper, lower);
}

template <typename T, int SPAN = 1>
inline void transpose(Vector<T> (&rows)[LANES<T>]) {
    if constexpr (SPAN < LANES<T>) {
#pragma GCC unroll 16
        for (int row = 0; row < LANES<T>; ++row) {
            if (row & SPAN) continue;
            const Vector<T> upper = rows[row], lower = rows[row + SPAN];
            rows[row] = exchange<T, SPAN, true>(upper, lower, std::make_index_sequence<LANES<T>>());
            rows[row + SPAN] = exchange<T, SPAN, false>(upper, lower, std::make_index_sequence<LANES<T>>());
        }
        transpose<T, 2 * SPAN>(rows);
    }
}

// Some of a vector's elements, and those alone: the end of an array.
template <typename T>
inline Vector<T> load_part(const T* from, int64_t count) {
    Vector<T> values{};
    for (int64_t lane = 0; lane < count; ++lane) values[lane] = from[lane];
    return values;
}

template <typename T>
inline void store_part(T* to, Vector<T> values, int64_t count) {
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = values[lane];
}

template <typename T>
inline Vector<T> load_up_to(const T* from, int64_t count) {
    return count >= LANES<T> ? load(from) : load_part(from, count);
}

template <typename T>
inline void store_up_to(T* to, Vector<T> values, int64_t count) {
    if (count >= LANES<T>)
        store(to, values);
    else
        store_part(to, values, count);
}

// square[lane] = the sum over paths of map[path * map_step] times `count` values at values[path](lane), for some lanes; the others
// are zero. Half of a map is zero.
template <typename T, typename Values>
inline void combine(
    const double* map, int64_t map_step, int64_t paths, int64_t num_lanes, int64_t count, const Values& values,
    Vector<T> (&square)[LANES<T>]) {
    const bool is_full = num_lanes >= LANES<T> && count >= LANES<T>;
    Vector<T> sums[LANES<T>];
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES<T>; ++lane) sums[lane] = square[lane] = Vector<T>{};
    for (int64_t path = 0; path < paths; ++path) {
        const T factor = T(map[path * map_step]);
        if (factor == 0) continue;
        if (is_full) {
#pragma GCC unroll 16
            for (int lane = 0; lane < LANES<T>; ++lane) sums[lane] += broadcast(factor) * load(values(path, lane));
        } else {
            for (int64_t lane = 0; lane < LANES<T> && lane < num_lanes; ++lane)
                square[lane] += broadcast(factor) * load_up_to(values(path, lane), count);
        }
    }
    if (!is_full) return;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES<T>; ++lane) square[lane] = sums[lane];
}

}  // namespace

template <typename T>
int64_t lanes() {
    return LANES<T>;
}

int64_t largest_tile() {
    return REGISTERS == 32 ? 2 : 1;
}

template <typename T>
int64_t padded_width(int64_t width_hidden) {
    return round_up(round_up(width_hidden, WEIGHT_STEPS), 2);
}

// Row a of a pair's map makes the aligned weight R_even[a], a <= smaller; behind those come R_odd[1], R_odd[2] and so on.
template <typename T>
void align_weights(
    const DegreePair& pair, const double* alignment, const T* weight, int64_t width_hidden, bool is_backward, int64_t first_channel,
    int64_t vectors, int64_t first_other, int64_t last_other, T* const* slices) {
    constexpr int N = LANES<T>;
    const int64_t paths = pair.paths(), width = vectors * N, step_size = 2 * width;
    const int64_t tile_channels = is_backward ? pair.channels_in : pair.channels_out;
    const int64_t steps = is_backward ? pair.channels_out : width_hidden;
    const int64_t num_slices = is_backward ? width_hidden : pair.channels_in;
    const int64_t path_step = pair.group_paths * width_hidden;  // from one pair of channels to the next
    const int64_t lane_step = (is_backward ? 1 : pair.channels_in) * path_step;
    const int64_t other_step = (is_backward ? pair.channels_in : 1) * path_step;
    weight += pair.first_path * width_hidden;
    for (int64_t other = first_other; other < last_other; ++other)
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t k = 0; k < width_hidden; k += N) {
                const int64_t channels = tile_channels - first_channel - v * N;
                const T* from = weight + (first_channel + v * N) * lane_step + other * other_step + k;
                // The weights of one pair of degrees are short pieces far apart, which the processor does not foresee.
                if (other + 1 < last_other)
                    for (int64_t lane = 0; lane < N && lane < channels; ++lane)
                        for (int64_t path = 0; path < paths; ++path)
                            __builtin_prefetch(from + other_step + lane * lane_step + path * width_hidden);
                for (int64_t row = 0; row < paths; ++row) {
                    const auto values = [&](int64_t path, int64_t lane) { return from + lane * lane_step + path * width_hidden; };
                    Vector<T> square[N];
                    combine<T>(alignment + row * paths, 1, paths, channels, width_hidden - k, values, square);
                    transpose<T>(square);
                    for (int64_t lane = 0; lane < N && k + lane < width_hidden; ++lane) {
                        const int64_t slice = is_backward ? k + lane : other, step = is_backward ? other : k + lane;
                        const int64_t place = row > 0 ? (slice * steps + step) * step_size
                                                      : (slice / 2 * steps + step) * step_size + slice % 2 * width;
                        store(slices[row] + place + v * N, square[lane]);
                        if (row == 0 && slice + 1 == num_slices && slice % 2 == 0)  // nothing stands beside the last slice
                            store(slices[row] + place + width + v * N, Vector<T>{});
                    }
                }
            }
}

template <typename T>
void align_weights_backward(
    const DegreePair& pair, const double* alignment, const T* const* slices, int64_t vectors, int64_t width_hidden,
    int64_t first_channel, int64_t channel_in, T* weight_gradient) {
    constexpr int N = LANES<T>;
    const int64_t paths = pair.paths(), step_size = 2 * vectors * N;
    const int64_t path_step = pair.group_paths * width_hidden;
    T* into = weight_gradient + channel_in * path_step + pair.first_path * width_hidden;
    for (int64_t v = 0; v < vectors; ++v)
        for (int64_t k = 0; k < width_hidden; k += N)
            for (int64_t path = 0; path < paths; ++path) {
                const auto values = [&](int64_t row, int64_t lane) { return slices[row] + (k + lane) * step_size + v * N; };
                Vector<T> square[N];
                combine<T>(alignment + path, paths, paths, width_hidden - k, N, values, square);
                transpose<T>(square);
                for (int64_t lane = 0; lane < N && first_channel + v * N + lane < pair.channels_out; ++lane)
                    store_up_to(into + (first_channel + v * N + lane) * pair.channels_in * path_step + path * width_hidden + k,
                                square[lane], width_hidden - k);
            }
}

template <typename T>
void to_components(
    const T* features, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, T* components) {
    const int64_t stride = vectors * LANES<T>;
    with_size(2 * degree + 1, [=](auto size) {
        for (int64_t channel = 0; channel < channels; ++channel)
            for (int64_t component = 0; component < size; ++component)
                components[component * stride + first_channel + channel] = features[channel * size + component];
        for (int64_t component = 0; component < size; ++component)
            for (int64_t channel = first_channel + channels; channel < stride; ++channel)
                components[component * stride + channel] = 0;
    });
}

template <typename T>
void from_components(
    const T* components, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, bool is_added, T* features) {
    const int64_t stride = vectors * LANES<T>;
    with_size(2 * degree + 1, [=](auto size) {
        for (int64_t channel = 0; channel < channels; ++channel)
            for (int64_t component = 0; component < size; ++component) {
                T& to = features[channel * size + component];
                const T value = components[component * stride + first_channel + channel];
                to = is_added ? to + value : value;
            }
    });
}

template <typename T>
void align_edge(const DegreeLayout& layout, const T* wigner, const T* components, int64_t edge, T* rows, T* tiles) {
    constexpr int N = LANES<T>;
    const int64_t size = 2 * layout.degree + 1;
    wigner += layout.wigner;
    components += layout.component_start;
    for (int64_t m = 0; m < size; ++m)
        for (int64_t v = 0; v < layout.vectors; ++v) {
            Vector<T> turned{};
            for (int64_t l = 0; l < size; ++l)
                turned += broadcast(wigner[l * size + m]) * load(components + (l * layout.vectors + v) * N);
            if (tiles != nullptr) {
                const Place& place = layout.places[m * layout.vectors + v];
                store(tiles + place.start + edge * place.step, turned);
            }
            if (rows != nullptr) {
                T* at = rows + (layout.row + m * layout.channels + v * N) * BLOCK_STRIDE + edge;
                const int64_t channels = layout.channels - v * N;
                for (int64_t lane = 0; lane < N && lane < channels; ++lane) at[lane * BLOCK_STRIDE] = turned[lane];
            }
        }
}

template <typename T>
void rotate_edge(const DegreeLayout& layout, const T* wigner, const T* tiles, int64_t edge, T* components) {
    constexpr int N = LANES<T>;
    const int64_t size = 2 * layout.degree + 1;
    wigner += layout.wigner;
    components += layout.component_start;
    for (int64_t l = 0; l < size; ++l)
        for (int64_t v = 0; v < layout.vectors; ++v) {
            Vector<T> turned{};
            for (int64_t m = 0; m < size; ++m) {
                const Place& place = layout.places[m * layout.vectors + v];
                turned += broadcast(wigner[l * size + m]) * load(tiles + place.start + edge * place.step);
            }
            store(components + (l * layout.vectors + v) * N, turned);
        }
}

template <typename T>
void contract_block(
    const Tile* tiles, int64_t num_tiles, const Term* terms, const T* weights, const T* rows, const T* hidden, int64_t padded,
    int64_t num_edges, T* results) {
    for (const Tile* tile = tiles; tile < tiles + num_tiles; ++tile) {
        T* result = results + tile->start;
        const int64_t size = BLOCK_STRIDE * tile->vectors * LANES<T> * (tile->m > 0 ? 2 : 1);
        for (int64_t at = 0; at < size; at += LANES<T>) store(result + at, Vector<T>{});
        for (const Term* term = terms + tile->first_term; term < terms + tile->last_term; ++term) {
            const auto run = tile->vectors == 2 ? (tile->m > 0 ? contract_term<T, 2, true> : contract_term<T, 2, false>)
                                                : (tile->m > 0 ? contract_term<T, 1, true> : contract_term<T, 1, false>);
            run(*term, weights + term->weights, rows, hidden + term->group * padded * BLOCK_STRIDE, num_edges, result);
        }
    }
}

template <typename T>
void contract_block_backward(
    const Tile* tiles, int64_t num_tiles, const Term* terms, const T* weights, int64_t padded, int64_t num_edges,
    const BlockGradient<T>& block) {
    for (int64_t at = 0; at < padded * BLOCK_STRIDE * LANES<T>; at += LANES<T>) store(block.partial + at, Vector<T>{});
    int64_t group = -1;
    const auto finish = [&]() {
        if (group >= 0)
            finish_hidden_gradient<T>(block.partial, padded, num_edges, block.hidden_gradient + group * BLOCK_STRIDE * padded);
    };
    for (const Tile* tile = tiles; tile < tiles + num_tiles; ++tile) {
        T* gradient = block.gradient + tile->start;
        const int64_t size = BLOCK_STRIDE * tile->vectors * LANES<T> * (tile->m > 0 ? 2 : 1);
        for (int64_t at = 0; at < size; at += LANES<T>) store(gradient + at, Vector<T>{});
        for (const Term* term = terms + tile->first_term; term < terms + tile->last_term; ++term) {
            if (term->group != group) finish();
            group = term->group;
            const auto run =
                tile->vectors == 2 ? (tile->m > 0 ? contract_term_backward<T, 2, true> : contract_term_backward<T, 2, false>)
                                   : (tile->m > 0 ? contract_term_backward<T, 1, true> : contract_term_backward<T, 1, false>);
            run(*term, weights + term->weights, block, block.hidden + group * padded * BLOCK_STRIDE, block.tiles + tile->start,
                gradient, num_edges);
        }
    }
    finish();
}

template <typename T>
void weight_gradient(
    const Tile& tile, const Term& term, int64_t first_slice, int64_t last_slice, const T* rows, const T* gradient_tiles,
    const T* hidden, int64_t num_edges, bool is_first, T* radial, T* gradient) {
    const auto run = tile.vectors == 2 ? (tile.m > 0 ? add_weight_gradient<T, 2, true> : add_weight_gradient<T, 2, false>)
                                       : (tile.m > 0 ? add_weight_gradient<T, 1, true> : add_weight_gradient<T, 1, false>);
    run(term, first_slice, last_slice, rows, gradient_tiles + tile.start, hidden, num_edges, is_first, radial,
        gradient + term.weights);
}

template <typename T>
void torque(
    const DegreeLayout* layouts, const GeneratorEntry* entries, int64_t num_entries, const T* left, const T* right, int64_t edge,
    T* about_x_and_z) {
    Vector<T> sums[2] = {Vector<T>{}, Vector<T>{}};
    for (const GeneratorEntry* entry = entries; entry < entries + num_entries; ++entry) {
        const DegreeLayout& layout = layouts[entry->degree_index];
        for (int64_t v = 0; v < layout.vectors; ++v) {
            const Place& row = layout.places[entry->row * layout.vectors + v];
            const Place& column = layout.places[entry->column * layout.vectors + v];
            sums[entry->axis] += broadcast(T(entry->coefficient)) * load(left + row.start + edge * row.step) *
                                 load(right + column.start + edge * column.step);
        }
    }
    about_x_and_z[0] = sum<T>(sums[0]);
    about_x_and_z[1] = sum<T>(sums[1]);
}

template <typename T>
void sum_rows(const T* rows, int64_t count, int64_t width, T* total) {
    for (int64_t at = 0; at < width; at += LANES<T>) {
        Vector<T> values{};
        for (int64_t row = 0; row < count; ++row) values += load(rows + row * width + at);
        store(total + at, values);
    }
}

#define SE3_FAST_DEFINE(T)                                                                                                       \
    template int64_t lanes<T>();                                                                                                 \
    template int64_t padded_width<T>(int64_t);                                                                                   \
    template void align_weights<T>(                                                                                              \
        const DegreePair&, const double*, const T*, int64_t, bool, int64_t, int64_t, int64_t, int64_t, T* const*);               \
    template void align_weights_backward<T>(                                                                                     \
        const DegreePair&, const double*, const T* const*, int64_t, int64_t, int64_t, int64_t, T*);                              \
    template void to_components<T>(const T*, int64_t, int64_t, int64_t, int64_t, T*);                                            \
    template void from_components<T>(const T*, int64_t, int64_t, int64_t, int64_t, bool, T*);                                    \
    template void align_edge<T>(const DegreeLayout&, const T*, const T*, int64_t, T*, T*);                                       \
    template void rotate_edge<T>(const DegreeLayout&, const T*, const T*, int64_t, T*);                                          \
    template void contract_block<T>(                                                                                             \
        const Tile*, int64_t, const Term*, const T*, const T*, const T*, int64_t, int64_t, T*);                                  \
    template void contract_block_backward<T>(                                                                                    \
        const Tile*, int64_t, const Term*, const T*, int64_t, int64_t, const BlockGradient<T>&);                                 \
    template void weight_gradient<T>(                                                                                            \
        const Tile&, const Term&, int64_t, int64_t, const T*, const T*, const T*, int64_t, bool, T*, T*);                        \
    template void torque<T>(const DegreeLayout*, const GeneratorEntry*, int64_t, const T*, const T*, int64_t, T*);               \
    template void sum_rows<T>(const T*, int64_t, int64_t, T*);

SE3_FAST_DEFINE(float)
SE3_FAST_DEFINE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
