// The part of CUDA that csrc/*.cu uses, on the host: in place of the body of csrc/cuda_device.cuh if SE3_FAST_EMULATED is defined.
//
// A block runs in one host thread; its CUDA threads are contexts that take turns. A thread runs until it waits for others: at
// __syncthreads (for its block) or in a matrix product (for its warp). So whoever forgets to wait reads what was not written yet.
// Shared memory is filled with NaN before every block. Matrix products follow the fragment layouts of mma.m8n8k4 and mma.m16n8k8 in
// NVIDIA's PTX ISA; they are computed from what the lanes hand in, in float.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define MATRIX_ARCHITECTURE SE3_FAST_EMULATED

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)

struct Dimensions {
    unsigned x, y, z;
};
extern Dimensions threadIdx, blockIdx, blockDim, gridDim;

void* launch_memory();
void* block_memory_of(std::size_t bytes);

template <int BYTES>
void* block_memory() {
    return block_memory_of(BYTES);
}

void wait_for_block();
// Hands in this lane's operands, waits for the warp, and returns those of all 32 lanes.
struct LaneOperands {
    HalfPair a[2], b[2];
};
const LaneOperands* exchange_in_warp(const LaneOperands& operands);

inline void __syncthreads() { wait_for_block(); }

inline float to_float(Half value) {
    _Float16 number;
    std::memcpy(&number, &value, sizeof number);
    return static_cast<float>(number);
}

inline Half to_half(float value) {
    const _Float16 number = static_cast<_Float16>(value);
    Half result;
    std::memcpy(&result, &number, sizeof number);
    return result;
}

inline Half low(HalfPair pair) { return {static_cast<unsigned short>(pair.bits)}; }
inline Half high(HalfPair pair) { return {static_cast<unsigned short>(pair.bits >> 16)}; }
inline HalfPair pair_of(Half lower, Half upper) { return {lower.bits | static_cast<unsigned>(upper.bits) << 16}; }

// Products of halves are exact in float, and their sum with a half in double.
inline HalfPair multiply(HalfPair a, HalfPair b) {
    return pair_of(to_half(to_float(low(a)) * to_float(low(b))), to_half(to_float(high(a)) * to_float(high(b))));
}

inline Half multiply_add(Half a, Half b, Half c) {
    const double sum = static_cast<double>(to_float(a)) * to_float(b) + to_float(c);
    const _Float16 number = static_cast<_Float16>(sum);
    Half result;
    std::memcpy(&result, &number, sizeof number);
    return result;
}

inline HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) {
    return pair_of(multiply_add(low(a), low(b), low(c)), multiply_add(high(a), high(b), high(c)));
}

// Element i of a lane's operand registers.
inline float element(const HalfPair* pairs, int i) { return to_float(i % 2 ? high(pairs[i / 2]) : low(pairs[i / 2])); }

inline void mma_m8n8k4(float* sums, HalfPair a0, HalfPair a1, HalfPair b0, HalfPair b1) {
    const LaneOperands* lanes = exchange_in_warp({{a0, a1}, {b0, b1}});
    const int lane = threadIdx.x % 32, quarter = lane & 12;
    for (int i = 0; i < 8; ++i) {
        const int row = (lane & 1) + (i & 2) + (lane < 16 ? 0 : 4);
        const int column = (i & 4) + (lane & 2) + (i & 1);
        const LaneOperands& row_lane = lanes[quarter + row % 4 + (row < 4 ? 0 : 16)];
        const LaneOperands& column_lane = lanes[quarter + column % 4 + (column < 4 ? 0 : 16)];
        for (int k = 0; k < 4; ++k) sums[i] += element(row_lane.a, k) * element(column_lane.b, k);
    }
}

inline void mma_m16n8k8(float* sums, HalfPair a0, HalfPair a1, HalfPair b) {
    const LaneOperands* lanes = exchange_in_warp({{a0, a1}, {b, b}});
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; ++k) {
            const float a = element(lanes[row % 8 * 4 + k / 2].a, k % 2 + (row < 8 ? 0 : 2));
            sums[i] += a * element(lanes[column * 4 + k / 2].b, k % 2);
        }
    }
}
