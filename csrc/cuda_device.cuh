// What the CUDA kernels use of the device beyond plain C++: half precision, pairs of halves, the tensor cores' instructions.
//
// No CUDA header is included: NVRTC, which PyTorch's CUDA builds bring, comes without them. Conversions and products are PTX.
// The tests compile the same kernels as host C++ (SE3_FAST_EMULATED), with tests/cuda_emulation in place of this file's body.

#pragma once

struct Half {
    unsigned short bits;
};

// Two halves side by side, the lower address in the lower bits: an operand register of the tensor cores.
struct HalfPair {
    unsigned bits;
};

#if defined(SE3_FAST_EMULATED)

#include "cuda_emulation.h"

#else

#define MATRIX_ARCHITECTURE __CUDA_ARCH__

extern __shared__ uint4 launch_shared_memory[];

// The shared memory that the launch asked for.
__device__ __forceinline__ void* launch_memory() { return launch_shared_memory; }

// Shared memory of a size known here; one call per kernel.
template <int BYTES>
__device__ __forceinline__ void* block_memory() {
    __shared__ uint4 memory[(BYTES + 15) / 16];
    return memory;
}

__device__ __forceinline__ float to_float(Half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

__device__ __forceinline__ Half to_half(float value) {
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

__device__ __forceinline__ HalfPair multiply(HalfPair a, HalfPair b) {
    HalfPair result;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result.bits) : "r"(a.bits), "r"(b.bits));
    return result;
}

// a b + c, rounded once.
__device__ __forceinline__ HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) {
    HalfPair result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result.bits) : "r"(a.bits), "r"(b.bits), "r"(c.bits));
    return result;
}

#if MATRIX_ARCHITECTURE < 750

// sums += a b for four pairs of 8 x 4 and 4 x 8 matrices, one for each quarter of the warp (Volta).
__device__ __forceinline__ void mma_m8n8k4(float* sums, HalfPair a0, HalfPair a1, HalfPair b0, HalfPair b1) {
    asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
        "{%0, %1, %2, %3, %4, %5, %6, %7};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7])
        : "r"(a0.bits), "r"(a1.bits), "r"(b0.bits), "r"(b1.bits));
}

#else

// sums += a b for a 16 x 8 and an 8 x 8 matrix (Turing and later).
__device__ __forceinline__ void mma_m16n8k8(float* sums, HalfPair a0, HalfPair a1, HalfPair b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0.bits), "r"(a1.bits), "r"(b.bits));
}

#endif
#endif

// Sixteen bytes of values, as they are loaded and stored at once.
struct alignas(16) Words {
    static constexpr int COUNT = 4;
    unsigned words[COUNT];

    // Set value number `place`, zero until now.
    __device__ __forceinline__ void add(Half value, int place) { words[place / 2] |= unsigned(value.bits) << (place % 2 * 16); }
    __device__ __forceinline__ void add(float value, int place) { words[place] = *reinterpret_cast<const unsigned*>(&value); }

    __device__ __forceinline__ void get(int place, Half* to) const {
        to->bits = static_cast<unsigned short>(words[place / 2] >> (place % 2 * 16));
    }
    __device__ __forceinline__ void get(int place, float* to) const { *reinterpret_cast<unsigned*>(to) = words[place]; }
};

template <typename Element>
constexpr int PER_WORD = 4 / sizeof(Element);

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ void store(Half* target, float value) { *target = to_half(value); }
__device__ __forceinline__ void store(float* target, float value) { *target = value; }

__device__ __forceinline__ HalfPair both(Half value) { return {value.bits * 0x10001u}; }
__device__ __forceinline__ HalfPair negative(HalfPair value) { return {value.bits ^ 0x80008000u}; }
