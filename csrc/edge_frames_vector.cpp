// Wigner blocks of edge frames on the CPU (formula: se3_fast/backends/dense/edge_frames.py, DESIGN 1.1).
//
//     D^d = Z(alpha) J_d Z(beta) J_d,   (Z(a) M)[row] = cos(m a) M[row] + sin(m a) M[-row],   m = d..-d from the first row on
// A vector is one value of several edges. About 2 (2d+1)^3 floating-point operations for each degree of an edge; bound by writing
// the blocks.

#include "edge_frames.h"
#include "rows.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// cos(m a) and sin(m a) of all edges for m = 0 .. count, [m][FRAME_EDGES], by the angle-addition recursion from those of m = 1.
template <typename T>
void multiples(int64_t count, T* cosines, T* sines) {
    for (int64_t edge = 0; edge < FRAME_EDGES; ++edge) {
        cosines[edge] = 1;
        sines[edge] = 0;
    }
    for (int64_t m = 2; m <= count; ++m)
        for (int64_t edge = 0; edge < FRAME_EDGES; ++edge) {
            const int64_t at = m * FRAME_EDGES + edge;
            const T cosine = cosines[FRAME_EDGES + edge], sine = sines[FRAME_EDGES + edge];
            cosines[at] = cosines[at - FRAME_EDGES] * cosine - sines[at - FRAME_EDGES] * sine;
            sines[at] = sines[at - FRAME_EDGES] * cosine + cosines[at - FRAME_EDGES] * sine;
        }
}

// The cosine and sine of both angles, of m = 1; alpha = 0 at the poles. All zero for an edge without direction and behind the last.
template <typename T>
void read_angles(const T* directions, int64_t count, T* cos_alpha, T* sin_alpha, T* cos_beta, T* sin_beta, T* has_direction) {
    for (int64_t edge = 0; edge < FRAME_EDGES; ++edge) {
        const T x = edge < count ? directions[3 * edge] : T(0), y = edge < count ? directions[3 * edge + 1] : T(0);
        const T z = edge < count ? directions[3 * edge + 2] : T(0);
        // scaled by the larger one, so that no square vanishes
        const T larger = __builtin_fabs(x) > __builtin_fabs(z) ? T(__builtin_fabs(x)) : T(__builtin_fabs(z));
        const T unit = larger > 0 ? larger : T(1), scaled_x = x / unit, scaled_z = z / unit;
        const T length = larger > 0 ? square_root(scaled_x * scaled_x + scaled_z * scaled_z) : T(1);
        cos_alpha[edge] = larger > 0 ? scaled_z / length : T(1);
        sin_alpha[edge] = larger > 0 ? scaled_x / length : T(0);
        cos_beta[edge] = y;
        sin_beta[edge] = larger > 0 ? length * unit : T(0);
        has_direction[edge] = x != 0 || y != 0 || z != 0 ? T(1) : T(0);
    }
}

// into[row][edge] = one column of Z(a) M for all edges: column[row] or column[row][edge].
template <typename T>
void turn_constant(int64_t degree, const T* cosines, const T* sines, const double* column, int64_t step, T* into) {
    for (int64_t row = 0; row <= 2 * degree; ++row) {
        const int64_t m = degree - row, order = m < 0 ? -m : m;
        const T same = T(column[row * step]), opposite = T(column[(2 * degree - row) * step]) * (m < 0 ? T(-1) : T(1));
        for (int64_t edge = 0; edge < FRAME_EDGES; edge += LANES<T>)
            store(into + row * FRAME_EDGES + edge, broadcast(same) * load(cosines + order * FRAME_EDGES + edge) +
                                                       broadcast(opposite) * load(sines + order * FRAME_EDGES + edge));
    }
}

template <typename T>
void turn(int64_t degree, const T* cosines, const T* sines, const T* column, T* into) {
    for (int64_t row = 0; row <= 2 * degree; ++row) {
        const int64_t m = degree - row, order = m < 0 ? -m : m;
        const Vector<T> sign = broadcast(m < 0 ? T(-1) : T(1));
        for (int64_t edge = 0; edge < FRAME_EDGES; edge += LANES<T>)
            store(into + row * FRAME_EDGES + edge,
                  load(column + row * FRAME_EDGES + edge) * load(cosines + order * FRAME_EDGES + edge) +
                      sign * load(column + (2 * degree - row) * FRAME_EDGES + edge) * load(sines + order * FRAME_EDGES + edge));
    }
}

// into[row][edge] = sum of J[row][other] column[other][edge].
template <typename T>
void swap_axes(int64_t size, const double* axis_swap, const T* column, T* into) {
    for (int64_t row = 0; row < size; ++row)
        for (int64_t edge = 0; edge < FRAME_EDGES; edge += LANES<T>) {
            Vector<T> total{};
            for (int64_t other = 0; other < size; ++other)
                total += broadcast(T(axis_swap[row * size + other])) * load(column + other * FRAME_EDGES + edge);
            store(into + row * FRAME_EDGES + edge, total);
        }
}

}  // namespace

int64_t frame_workspace_size(int64_t max_degree) { return FRAME_EDGES * (4 * (max_degree + 2) + 2 * (2 * max_degree + 1) + 1); }

template <typename T>
void wigner_blocks(const T* directions, int64_t count, int64_t max_degree, const double* axis_swaps, T* blocks, T* workspace) {
    const int64_t table = FRAME_EDGES * (max_degree + 2), column = FRAME_EDGES * (2 * max_degree + 1);
    T *cos_alpha = workspace, *sin_alpha = cos_alpha + table, *cos_beta = sin_alpha + table, *sin_beta = cos_beta + table;
    T *first = sin_beta + table, *second = first + column, *has_direction = second + column;
    read_angles(directions, count, cos_alpha + FRAME_EDGES, sin_alpha + FRAME_EDGES, cos_beta + FRAME_EDGES, sin_beta + FRAME_EDGES,
                has_direction);
    multiples(max_degree, cos_alpha, sin_alpha);
    multiples(max_degree, cos_beta, sin_beta);
    const int64_t length = (max_degree + 1) * (2 * max_degree + 1) * (2 * max_degree + 3) / 3;
    for (int64_t degree = 0; degree <= max_degree; ++degree) {
        const int64_t size = 2 * degree + 1;
        for (int64_t index = 0; index < size; ++index) {
            turn_constant(degree, cos_beta, sin_beta, axis_swaps + index, size, first);
            swap_axes(size, axis_swaps, first, second);
            turn(degree, cos_alpha, sin_alpha, second, first);
            for (int64_t row = 0; row < size; ++row)
                for (int64_t edge = 0; edge < count; ++edge)
                    blocks[edge * length + row * size + index] = first[row * FRAME_EDGES + edge] * has_direction[edge];
        }
        axis_swaps += size * size;
        blocks += size * size;
    }
}

#define SE3_FAST_INSTANTIATE(T) \
    template void wigner_blocks<T>(const T*, int64_t, int64_t, const double*, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
