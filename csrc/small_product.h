// Products of small matrices, for *_vector.cpp files:
//
//     C[row][column] (+)= sum over steps of A[row][step] * B[step][column]
//
// B and C are row-major, with whole vectors of columns. A is row-major (A_IS_TRANSPOSED: it is stored as [step][row]). A tile of
// up to MOST_ROWS rows and two vectors of C stands in registers while the steps are walked over once: for each step two loads from
// B, one broadcast from A for each row. Bound by the multiply-add units where B stays in the first-level cache.

#pragma once

#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {

// Operands of a product: pointers, and elements from one row (A, C) or step (A, B) to the next. The inner step of A is 1.
template <typename T>
struct Product {
    int64_t rows, columns, steps;
    const T* a;
    int64_t a_stride;
    const T* b;
    int64_t b_stride;
    T* c;
    int64_t c_stride;
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 12;
#else
constexpr int MOST_ROWS = 6;
#endif

template <typename T, int ROWS, int VECTORS, bool A_IS_TRANSPOSED, bool IS_ADDED>
inline void product_tile(const Product<T>& product, const T* a, const T* b, T* c) {
    Vector<T> sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[row][v] = Vector<T>{};
    const int64_t a_stride = product.a_stride, b_stride = product.b_stride;
    for (int64_t step = product.steps; step > 0; --step) {
        Vector<T> right[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) right[v] = load(b + v * LANES<T>);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) {
            const Vector<T> left = broadcast(A_IS_TRANSPOSED ? a[row] : a[row * a_stride]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[row][v] += left * right[v];
        }
        a += A_IS_TRANSPOSED ? a_stride : 1;
        b += b_stride;
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            T* into = c + row * product.c_stride + v * LANES<T>;
            store(into, IS_ADDED ? load(into) + sums[row][v] : sums[row][v]);
        }
}

template <typename T, int ROWS, int VECTORS, bool A_IS_TRANSPOSED, bool IS_ADDED>
inline void product_rows(int rows, const Product<T>& product, const T* a, const T* b, T* c) {
    if (rows == ROWS)
        product_tile<T, ROWS, VECTORS, A_IS_TRANSPOSED, IS_ADDED>(product, a, b, c);
    else if constexpr (ROWS > 1)
        product_rows<T, ROWS - 1, VECTORS, A_IS_TRANSPOSED, IS_ADDED>(rows, product, a, b, c);
}

// Steps that are summed up before they are added to what is there: a sum of sums has less rounding error than one long sum.
constexpr int64_t MOST_STEPS = 128;

template <bool A_IS_TRANSPOSED, bool IS_ADDED, typename T>
void multiply_steps(const Product<T>& product) {
    const int64_t num_tiles = (product.rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t column = 0; column < product.columns; column += 2 * LANES<T>) {
        const bool is_pair = column + LANES<T> < product.columns;
        int64_t row = 0;
        for (int64_t tile = 0; tile < num_tiles; ++tile) {  // of nearly the same number of rows
            const int64_t stop = (tile + 1) * product.rows / num_tiles;
            const T* a = product.a + (A_IS_TRANSPOSED ? row : row * product.a_stride);
            T* c = product.c + row * product.c_stride + column;
            if (is_pair)
                product_rows<T, MOST_ROWS, 2, A_IS_TRANSPOSED, IS_ADDED>(int(stop - row), product, a, product.b + column, c);
            else
                product_rows<T, MOST_ROWS, 1, A_IS_TRANSPOSED, IS_ADDED>(int(stop - row), product, a, product.b + column, c);
            row = stop;
        }
    }
}

// The product. A_IS_TRANSPOSED, IS_ADDED: see above.
template <bool A_IS_TRANSPOSED, bool IS_ADDED, typename T>
void multiply(const Product<T>& product) {
    Product<T> part = product;
    part.steps = product.steps < MOST_STEPS ? product.steps : MOST_STEPS;
    multiply_steps<A_IS_TRANSPOSED, IS_ADDED>(part);
    for (int64_t done = part.steps; done < product.steps; done += part.steps) {
        part.a += A_IS_TRANSPOSED ? part.steps * part.a_stride : part.steps;
        part.b += part.steps * part.b_stride;
        part.steps = product.steps - done < MOST_STEPS ? product.steps - done : MOST_STEPS;
        multiply_steps<A_IS_TRANSPOSED, true>(part);
    }
}

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
