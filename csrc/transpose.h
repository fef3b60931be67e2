// Squares of as many vectors as a vector has elements, turned over.

#pragma once

#include "vector.h"

#include <utility>

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

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

// The first elements of a vector, and those alone: the end of an array.
template <typename T>
inline Vector<T> load_part(const T* from, int64_t count) {
    Vector<T> values{};
    for (int64_t lane = 0; lane < LANES<T> && lane < count; ++lane) values[lane] = from[lane];
    return values;
}

}  // namespace
}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
