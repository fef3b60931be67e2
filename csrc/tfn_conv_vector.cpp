// TFN convolution on the CPU, by edge: the loops over vectors (layouts: tfn_conv.h; formulas: DESIGN 1.1).
//
// Forward, for a tile of output channels o and an input channel i (a slice):
//     R[e, o] = sum_k h[e, k] W[i, k, o]                           a small matrix product whose result stays in registers
//     y~[+m] += R_even x~[+m, i] - R_odd x~[-m, i],   y~[-m] += R_even x~[-m, i] + R_odd x~[+m, i]
// Backward, for a tile of input channels i and a step k of h (a slice), with g~ the gradient of y~:
//     P[+m] = sum_o W_even[k, o, i] g~[+m, o] + W_odd[k, o, i] g~[-m, o]
//     P[-m] = sum_o W_even[k, o, i] g~[-m, o] - W_odd[k, o, i] g~[+m, o]
// in three products, P[+m] = Q + (W_odd - W_even) g~[-m] and P[-m] = Q - (W_odd + W_even) g~[+m] with Q = W_even (g~[+m] + g~[-m]),
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
template <int VECTORS, bool HAS_ODD>
constexpr int BACKWARD_EDGES = HAS_ODD ? (REGISTERS == 32 ? 8 : 4) / VECTORS : REGISTERS == 32 ? (VECTORS == 2 ? 6 : 7) : 6 / VECTORS;

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

// What the three products of an order m > 0 multiply, for one slice: W_even, W_odd - W_even, W_odd + W_even, [step][3][WIDTH].
template <typename T, int VECTORS>
inline void combine_parities(const T* weights, int64_t steps, T* into) {
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            const Vector<T> even = load(weights + v * LANES<T>), odd = load(weights + WIDTH + v * LANES<T>);
            store(into + v * LANES<T>, even);
            store(into + WIDTH + v * LANES<T>, odd - even);
            store(into + 2 * WIDTH + v * LANES<T>, odd + even);
        }
        weights += 2 * WIDTH;
        into += 3 * WIDTH;
    }
}

// sums[e][v] += factors[e] * weights[v].
template <typename T, int VECTORS, int EDGES>
inline void add_products(const T* factors, const T* weights, Vector<T> (&sums)[EDGES][VECTORS]) {
    Vector<T> row[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) row[v] = load(weights + v * LANES<T>);
#pragma GCC unroll 16
    for (int e = 0; e < EDGES; ++e) {
        const Vector<T> factor = broadcast(factors[e]);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[e][v] += factor * row[v];
    }
}

// P[-m], P[+m] of one slice for EDGES edges, weights as combine_parities makes them.
template <typename T, int VECTORS, int EDGES>
inline void multiply_orders(
    const T* minus, const T* plus, const T* total, const T* weights, int64_t steps, Vector<T> (&products)[EDGES][2 * VECTORS]) {
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    Vector<T> of_minus[EDGES][VECTORS], of_plus[EDGES][VECTORS], of_total[EDGES][VECTORS];
#pragma GCC unroll 16
    for (int e = 0; e < EDGES; ++e)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) of_minus[e][v] = of_plus[e][v] = of_total[e][v] = Vector<T>{};
    for (int64_t step = 0; step < steps; ++step) {
        add_products<T, VECTORS, EDGES>(total, weights, of_total);
        add_products<T, VECTORS, EDGES>(minus, weights + WIDTH, of_minus);
        add_products<T, VECTORS, EDGES>(plus, weights + 2 * WIDTH, of_plus);
        minus += BLOCK_STRIDE;
        plus += BLOCK_STRIDE;
        total += BLOCK_STRIDE;
        weights += 3 * WIDTH;
    }
#pragma GCC unroll 16
    for (int e = 0; e < EDGES; ++e)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            products[e][v] = of_total[e][v] - of_plus[e][v];
            products[e][VECTORS + v] = of_total[e][v] + of_minus[e][v];
        }
}

template <typename T, int VECTORS, bool HAS_ODD>
void contract_term_backward(
    const Term& term, const T* weights, const BlockGradient<T>& block, const T* hidden, const T* features, T* gradient,
    int64_t num_edges) {
    constexpr int EDGES = BACKWARD_EDGES<VECTORS, HAS_ODD>;
    constexpr int64_t WIDTH = VECTORS * LANES<T>;
    constexpr int64_t EDGE_STEP = WIDTH * (HAS_ODD ? 2 : 1);
    const T* minus = block.rows + term.minus * BLOCK_STRIDE;
    const T* plus = block.rows + term.plus * BLOCK_STRIDE;
    const T* total = block.sums + term.plus * BLOCK_STRIDE;
    for (int64_t slice = 0; slice < term.slices; ++slice) {
        const T* slice_weights = weights + slice * term.steps * 2 * WIDTH;
        if (HAS_ODD) combine_parities<T, VECTORS>(slice_weights, term.steps, block.weights);
        const T* first_hidden = hidden + (HAS_ODD ? slice : 2 * slice) * BLOCK_STRIDE;
        T* first_partial = block.partial + (HAS_ODD ? slice : 2 * slice) * BLOCK_STRIDE * LANES<T>;
        for (int64_t edge = 0; edge < num_edges; edge += EDGES) {
            Vector<T> products[EDGES][2 * VECTORS];
            if (HAS_ODD)
                multiply_orders<T, VECTORS, EDGES>(minus + edge, plus + edge, total + edge, block.weights, term.steps, products);
            else
                multiply<T, 2 * VECTORS, EDGES>(plus + edge, slice_weights, term.steps, products);
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

template <typename T, typename S>
void to_components(
    const S* features, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, T* components) {
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

template <typename T, typename S>
void from_components(
    const T* components, int64_t channels, int64_t first_channel, int64_t degree, int64_t vectors, bool is_added, S* features) {
    const int64_t stride = vectors * LANES<T>;
    with_size(2 * degree + 1, [=](auto size) {
        for (int64_t channel = 0; channel < channels; ++channel)
            for (int64_t component = 0; component < size; ++component) {
                S& to = features[channel * size + component];
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
    const Tile* tiles, const Term* terms, int64_t num_terms, const T* weights, const T* rows, const T* hidden, int64_t padded,
    int64_t num_edges, T* results) {
    for (const Term* term = terms; term < terms + num_terms; ++term) {
        const Tile& tile = tiles[term->tile];
        const auto run = tile.vectors == 2 ? (tile.m > 0 ? contract_term<T, 2, true> : contract_term<T, 2, false>)
                                           : (tile.m > 0 ? contract_term<T, 1, true> : contract_term<T, 1, false>);
        run(*term, weights + term->weights, rows, hidden + term->group * padded * BLOCK_STRIDE, num_edges, results + tile.start);
    }
}

template <typename T>
void add_opposite_orders(const DegreeLayout* layouts, int64_t num_layouts, const T* rows, T* sums) {
    for (const DegreeLayout* layout = layouts; layout < layouts + num_layouts; ++layout)
        for (int64_t m = 1; m <= layout->degree; ++m) {
            const int64_t plus = (layout->row + (layout->degree + m) * layout->channels) * BLOCK_STRIDE;
            const int64_t minus = (layout->row + (layout->degree - m) * layout->channels) * BLOCK_STRIDE;
            for (int64_t at = 0; at < layout->channels * BLOCK_STRIDE; ++at) sums[plus + at] = rows[plus + at] + rows[minus + at];
        }
}

template <typename T>
void contract_block_backward(
    const Tile* tiles, const Term* terms, int64_t num_terms, const T* weights, int64_t padded, int64_t num_edges,
    const BlockGradient<T>& block) {
    for (const Term* term = terms; term < terms + num_terms; ++term) {
        const Tile& tile = tiles[term->tile];
        const auto run =
            tile.vectors == 2 ? (tile.m > 0 ? contract_term_backward<T, 2, true> : contract_term_backward<T, 2, false>)
                              : (tile.m > 0 ? contract_term_backward<T, 1, true> : contract_term_backward<T, 1, false>);
        run(*term, weights + term->weights, block, block.hidden + term->group * padded * BLOCK_STRIDE, block.tiles + tile.start,
            block.gradient + tile.start, num_edges);
    }
}

template <typename T>
void finish_hidden_gradient(T* partial, int64_t padded, int64_t num_edges, T* hidden_gradient) {
    for (int64_t k = 0; k < padded; ++k)
        for (int64_t edge = 0; edge < num_edges; ++edge) {
            T* at = partial + (k * BLOCK_STRIDE + edge) * LANES<T>;
            hidden_gradient[edge * padded + k] += sum<T>(load(at));
            store(at, Vector<T>{});
        }
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
    template void align_edge<T>(const DegreeLayout&, const T*, const T*, int64_t, T*, T*);                                       \
    template void rotate_edge<T>(const DegreeLayout&, const T*, const T*, int64_t, T*);                                          \
    template void contract_block<T>(                                                                                             \
        const Tile*, const Term*, int64_t, const T*, const T*, const T*, int64_t, int64_t, T*);                                  \
    template void add_opposite_orders<T>(const DegreeLayout*, int64_t, const T*, T*);                                            \
    template void contract_block_backward<T>(                                                                                    \
        const Tile*, const Term*, int64_t, const T*, int64_t, int64_t, const BlockGradient<T>&);                                 \
    template void finish_hidden_gradient<T>(T*, int64_t, int64_t, T*);                                                           \
    template void weight_gradient<T>(                                                                                            \
        const Tile&, const Term&, int64_t, int64_t, const T*, const T*, const T*, int64_t, bool, T*, T*);                        \
    template void torque<T>(const DegreeLayout*, const GeneratorEntry*, int64_t, const T*, const T*, int64_t, T*);               \
    template void sum_rows<T>(const T*, int64_t, int64_t, T*);

#define SE3_FAST_DEFINE_STORED(T, S)                                                                         \
    template void to_components<T, S>(const S*, int64_t, int64_t, int64_t, int64_t, T*);                     \
    template void from_components<T, S>(const T*, int64_t, int64_t, int64_t, int64_t, bool, S*);

SE3_FAST_DEFINE(float)
SE3_FAST_DEFINE(double)
SE3_FAST_DEFINE_STORED(float, float)
SE3_FAST_DEFINE_STORED(float, BFloat16)
SE3_FAST_DEFINE_STORED(double, double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
