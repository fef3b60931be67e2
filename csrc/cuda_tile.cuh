// Matrix products of a warp on tiles in shared memory: Tile<Half> on the tensor cores, Tile<float> on the ordinary cores.
//
//     sums[row, column] += sum_k left[row, k] right[column, k],     k < DEPTH = 32,   32 columns,   ROWS rows
//
// Both operands lie in shared memory with k contiguous, rows STRIDE elements apart: 16 bytes more than they are long, so that eight
// neighbouring rows lie in different banks. Every thread holds sums of two rows: sum j of a thread belongs to row
// row_of(lane, slot_of(j)) and column column_of(lane, j), whatever the hardware; so a row is scaled without going through memory.
//
// Which thread holds which element of an operand is that of mma.m8n8k4 (Volta; row-major A, column-major B) and of mma.m16n8k8
// (Turing and later) in NVIDIA's PTX ISA. The order of k within a product is free as long as both operands agree: it is chosen so
// that a thread's elements are contiguous and load 16 bytes at a time.

#pragma once

#include "cuda_device.cuh"

constexpr int WARP = 32;
constexpr int DEPTH = 32;
constexpr int COLUMNS = 32;

// Sums j, j + 1, j + 4, .. of a thread belong to its first row, j + 2, j + 3, .. to its second.
__device__ __forceinline__ constexpr int slot_of(int sum) { return (sum >> 1) & 1; }

template <typename Element>
struct Tile;

// Left operands whose elements are those of A times factors, plus or minus those of B times factors; made where they are needed.
template <typename A, typename Scale>
struct Scaled {
    A a;
    Scale by_a;
};
template <bool IS_DIFFERENCE, typename A, typename Scale>
struct Combined {
    A a;
    Scale by_a;
    A b;
    Scale by_b;
};

template <typename A, typename Scale>
__device__ __forceinline__ Scaled<A, Scale> scaled(const A& a, const Scale& by_a) {
    return {a, by_a};
}
// a by_a + b by_b
template <typename A, typename Scale>
__device__ __forceinline__ Combined<false, A, Scale> sum_of(const A& a, const Scale& by_a, const A& b, const Scale& by_b) {
    return {a, by_a, b, by_b};
}
// a by_a - b by_b
template <typename A, typename Scale>
__device__ __forceinline__ Combined<true, A, Scale> difference_of(const A& a, const Scale& by_a, const A& b, const Scale& by_b) {
    return {a, by_a, b, by_b};
}

template <>
struct Tile<Half> {
    static constexpr int ROWS = 16;
    static constexpr int SUMS = 16;
    static constexpr int STRIDE = DEPTH + 8;
    static constexpr bool IS_IN_REGISTERS = true;  // what left() returns no longer needs its tile

    // Eight values of k.
    struct alignas(16) Quad {
        HalfPair pairs[4];
    };
    static __device__ __forceinline__ Quad quad(const Half* from) { return *reinterpret_cast<const Quad*>(from); }

#if MATRIX_ARCHITECTURE < 750
    static constexpr int LINES = 1;   // rows of an operand that a thread holds a part of
    static constexpr int PAIRS = 16;  // pairs of each: all 32 values of k

    // A quarter of the warp (four threads of each half) multiplies 8 rows by 8 columns.
    static __device__ __forceinline__ int line_of(int lane) { return (lane & 3) + ((lane & 16) >> 2); }
    static __device__ __forceinline__ int left_line(int lane, int) { return line_of(lane) + 2 * (lane & 4); }
    static __device__ __forceinline__ int right_line(int lane, int) { return line_of(lane) + (lane & 8); }
    static __device__ __forceinline__ int first_k(int) { return 0; }
    static __device__ __forceinline__ int row_of(int lane, int slot) {
        return (lane & 1) + 2 * slot + ((lane & 16) >> 2) + 2 * (lane & 4);
    }
    static __device__ __forceinline__ int column_of(int lane, int sum) {
        return (sum & 1) + (lane & 2) + (sum & 4) + (lane & 8) + 2 * (sum & 8);
    }
    static __device__ __forceinline__ void multiply_quad(float* sums, const Quad (&rows)[LINES], const Quad& columns) {
#pragma unroll
        for (int pair = 0; pair < 4; pair += 2)
            mma_m8n8k4(sums, rows[0].pairs[pair], rows[0].pairs[pair + 1], columns.pairs[pair], columns.pairs[pair + 1]);
    }
#else
    static constexpr int LINES = 2;
    static constexpr int PAIRS = 4;

    static __device__ __forceinline__ int left_line(int lane, int line) { return (lane >> 2) + 8 * line; }
    static __device__ __forceinline__ int right_line(int lane, int line) { return (lane >> 2) + 8 * line; }
    static __device__ __forceinline__ int first_k(int lane) { return 8 * (lane & 3); }
    static __device__ __forceinline__ int row_of(int lane, int slot) { return (lane >> 2) + 8 * slot; }
    static __device__ __forceinline__ int column_of(int lane, int sum) {
        return (sum & 1) + 2 * (lane & 3) + 2 * (sum & 4) + 2 * (sum & 8);
    }
    static __device__ __forceinline__ void multiply_quad(float* sums, const Quad (&rows)[LINES], const Quad& columns) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) mma_m16n8k8(sums, rows[0].pairs[pair], rows[1].pairs[pair], columns.pairs[pair]);
    }
#endif

    // This thread's part of ROWS rows: in registers, or where it stands.
    struct Left {
        Quad quads[LINES][PAIRS / 4];

        __device__ __forceinline__ Quad at(int line, int place) const { return quads[line][place]; }
    };
    struct StoredLeft {
        const Half* lines[LINES];

        __device__ __forceinline__ Quad at(int line, int place) const { return quad(lines[line] + 8 * place); }
    };
    // One factor per row, or one per k.
    struct RowScale {
        HalfPair lines[LINES];

        __device__ __forceinline__ Quad at(int line, int) const { return {{lines[line], lines[line], lines[line], lines[line]}}; }
    };
    struct DepthScale {
        const Half* factors;

        __device__ __forceinline__ Quad at(int, int place) const { return quad(factors + 8 * place); }
    };

    static __device__ __forceinline__ StoredLeft stored_left(const Half* rows, int lane) {
        StoredLeft result;
#pragma unroll
        for (int line = 0; line < LINES; ++line) result.lines[line] = rows + left_line(lane, line) * STRIDE + first_k(lane);
        return result;
    }
    static __device__ __forceinline__ Left left(const Half* rows, int lane) {
        const StoredLeft stored = stored_left(rows, lane);
        Left result;
#pragma unroll
        for (int line = 0; line < LINES; ++line)
#pragma unroll
            for (int place = 0; place < PAIRS / 4; ++place) result.quads[line][place] = stored.at(line, place);
        return result;
    }
    static __device__ __forceinline__ RowScale row_scale(const Half* factors, int lane) {
        RowScale result;
#pragma unroll
        for (int line = 0; line < LINES; ++line) result.lines[line] = both(factors[left_line(lane, line)]);
        return result;
    }
    static __device__ __forceinline__ DepthScale depth_scale(const Half* factors, int lane) { return {factors + first_k(lane)}; }

    template <typename A>
    static __device__ __forceinline__ Quad values(const A& left, int line, int place) {
        return left.at(line, place);
    }
    template <typename A, typename Scale>
    static __device__ __forceinline__ Quad values(const Scaled<A, Scale>& left, int line, int place) {
        const Quad a = left.a.at(line, place), by_a = left.by_a.at(line, place);
        Quad result;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) result.pairs[pair] = multiply(a.pairs[pair], by_a.pairs[pair]);
        return result;
    }
    template <bool IS_DIFFERENCE, typename A, typename Scale>
    static __device__ __forceinline__ Quad values(const Combined<IS_DIFFERENCE, A, Scale>& left, int line, int place) {
        const Quad b = left.b.at(line, place), by_b = left.by_b.at(line, place);
        Quad result = values(scaled(left.a, left.by_a), line, place);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair)
            result.pairs[pair] = multiply_add(
                IS_DIFFERENCE ? negative(b.pairs[pair]) : b.pairs[pair], by_b.pairs[pair], result.pairs[pair]);
        return result;
    }

    // sums += left right, for COLUMNS rows of right.
    template <typename A>
    static __device__ __forceinline__ void multiply_into(float (&sums)[SUMS], const A& left, const Half* right, int lane) {
#pragma unroll
        for (int place = 0; place < PAIRS / 4; ++place) {
            Quad rows[LINES];
#pragma unroll
            for (int line = 0; line < LINES; ++line) rows[line] = values(left, line, place);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int line = 0; line < LINES; ++line) {
                    const Quad columns = quad(right + (16 * half + right_line(lane, line)) * STRIDE + first_k(lane) + 8 * place);
                    multiply_quad(sums + 8 * half + 4 * line, rows, columns);
                }
        }
    }

    // The same for two left operands: what they share is read once.
    template <typename A, typename B>
    static __device__ __forceinline__ void multiply_both_into(
        float (&sums)[SUMS], const A& left, float (&other_sums)[SUMS], const B& other, const Half* right, int lane) {
#pragma unroll
        for (int place = 0; place < PAIRS / 4; ++place) {
            Quad rows[LINES], other_rows[LINES];
#pragma unroll
            for (int line = 0; line < LINES; ++line) {
                rows[line] = values(left, line, place);
                other_rows[line] = values(other, line, place);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int line = 0; line < LINES; ++line) {
                    const Quad columns = quad(right + (16 * half + right_line(lane, line)) * STRIDE + first_k(lane) + 8 * place);
                    multiply_quad(sums + 8 * half + 4 * line, rows, columns);
                    multiply_quad(other_sums + 8 * half + 4 * line, other_rows, columns);
                }
        }
    }
};

// Four threads side by side have 8 rows, two each; eight have 32 columns, every eighth each.
template <>
struct Tile<float> {
    static constexpr int ROWS = 8;
    static constexpr int SUMS = 8;
    static constexpr int STRIDE = DEPTH + 4;
    static constexpr bool IS_IN_REGISTERS = false;

    static __device__ __forceinline__ int row_of(int lane, int slot) { return (lane >> 3) + 4 * slot; }
    static __device__ __forceinline__ int column_of(int lane, int sum) { return (lane & 7) + 8 * ((sum & 1) + ((sum & 4) >> 1)); }

    // Four values of k.
    struct alignas(16) Quad {
        float values[4];
    };
    static __device__ __forceinline__ Quad quad(const float* from) { return *reinterpret_cast<const Quad*>(from); }

    struct Left {
        const float* slots[2];

        __device__ __forceinline__ Quad at(int slot, int k) const { return quad(slots[slot] + k); }
    };
    struct RowScale {
        float slots[2];

        __device__ __forceinline__ Quad at(int slot, int) const { return {{slots[slot], slots[slot], slots[slot], slots[slot]}}; }
    };
    struct DepthScale {
        const float* factors;

        __device__ __forceinline__ Quad at(int, int k) const { return quad(factors + k); }
    };

    static __device__ __forceinline__ Left left(const float* rows, int lane) {
        return {{rows + row_of(lane, 0) * STRIDE, rows + row_of(lane, 1) * STRIDE}};
    }
    static __device__ __forceinline__ Left stored_left(const float* rows, int lane) { return left(rows, lane); }
    static __device__ __forceinline__ RowScale row_scale(const float* factors, int lane) {
        return {{factors[row_of(lane, 0)], factors[row_of(lane, 1)]}};
    }
    static __device__ __forceinline__ DepthScale depth_scale(const float* factors, int) { return {factors}; }

    static __device__ __forceinline__ Quad values(const Left& left, int slot, int k) { return left.at(slot, k); }
    template <typename Scale>
    static __device__ __forceinline__ Quad values(const Scaled<Left, Scale>& left, int slot, int k) {
        const Quad a = left.a.at(slot, k), by_a = left.by_a.at(slot, k);
        Quad result;
#pragma unroll
        for (int next = 0; next < 4; ++next) result.values[next] = a.values[next] * by_a.values[next];
        return result;
    }
    template <bool IS_DIFFERENCE, typename Scale>
    static __device__ __forceinline__ Quad values(const Combined<IS_DIFFERENCE, Left, Scale>& left, int slot, int k) {
        const Quad b = left.b.at(slot, k), by_b = left.by_b.at(slot, k);
        Quad result = values(scaled(left.a, left.by_a), slot, k);
#pragma unroll
        for (int next = 0; next < 4; ++next)
            result.values[next] += (IS_DIFFERENCE ? -b.values[next] : b.values[next]) * by_b.values[next];
        return result;
    }

    template <typename A>
    static __device__ __forceinline__ void multiply_into(float (&sums)[SUMS], const A& left, const float* right, int lane) {
#pragma unroll 2
        for (int k = 0; k < DEPTH; k += 4) {
            const Quad rows[2] = {values(left, 0, k), values(left, 1, k)};
#pragma unroll
            for (int column = 0; column < 4; ++column) {
                const int sum = (column & 1) + 2 * (column & 2);  // that of the first row; the second's is sum + 2
                const Quad factors = quad(right + column_of(lane, sum) * STRIDE + k);
#pragma unroll
                for (int next = 0; next < 4; ++next) {
                    sums[sum] += rows[0].values[next] * factors.values[next];
                    sums[sum + 2] += rows[1].values[next] * factors.values[next];
                }
            }
        }
    }

    template <typename A, typename B>
    static __device__ __forceinline__ void multiply_both_into(
        float (&sums)[SUMS], const A& left, float (&other_sums)[SUMS], const B& other, const float* right, int lane) {
        multiply_into(sums, left, right, lane);
        multiply_into(other_sums, other, right, lane);
    }
};
