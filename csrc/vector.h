// Vectors as wide as the instruction set that a *_vector.cpp file is compiled for (setup.py compiles such a file once for each),
// written with the vector extensions of GCC and Clang: +, * and comparison work element by element, a * b + c becomes one
// fused multiply-add where the instruction set has it.
//
// Everything of such a file stands in the namespace of its instruction set, and it includes no header with inline functions of the
// standard library: the linker might take the copy compiled for AVX-512 for the whole program.

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "bfloat16.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {

template <typename T>
struct VectorOf {
    typedef T type __attribute__((vector_size(SE3_FAST_VECTOR_BYTES)));
    typedef T unaligned __attribute__((vector_size(SE3_FAST_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

// Elements of a vector.
template <typename T>
constexpr int LANES = SE3_FAST_VECTOR_BYTES / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> values) {
    *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = values;
}

// Half a vector's bytes: the bits of as many values of bfloat16 as a vector has of float32.
typedef uint16_t HalfBits __attribute__((vector_size(SE3_FAST_VECTOR_BYTES / 2), aligned(2), may_alias));

// Values of bfloat16 as float32, and back (bfloat16.h).
inline Vector<float> load(const BFloat16* from) {
    const Vector<uint32_t> wide = __builtin_convertvector(*reinterpret_cast<const HalfBits*>(from), Vector<uint32_t>) << 16;
    return reinterpret_cast<Vector<float>>(wide);
}

inline void store(BFloat16* to, Vector<float> values) {
    const Vector<uint32_t> wide = reinterpret_cast<Vector<uint32_t>>(values);
    const Vector<uint32_t> rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    *reinterpret_cast<HalfBits*>(to) = __builtin_convertvector(values == values ? rounded : rounded * 0 + 0x7fc0, HalfBits);
}

// Whether a vector is a cache line that stream() writes past the caches. Lines written in parts would be slower that way.
#if defined(__AVX512F__)
constexpr bool CAN_STREAM = true;
#else
constexpr bool CAN_STREAM = false;
#endif

// Writes what is not read again soon, to an address that is a multiple of a vector: without reading the line first, and without
// driving others out of the caches. Behind the last one finish_stream() makes the values visible to other threads.
template <typename T>
inline void stream(T* to, Vector<T> values) {
#if !defined(__AVX512F__)
    store(to, values);
#elif defined(__clang__)
    __builtin_nontemporal_store(values, reinterpret_cast<Vector<T>*>(to));
#else
    if constexpr (sizeof(T) == 4)
        __builtin_ia32_movntps512(to, values);
    else
        __builtin_ia32_movntpd512(to, values);
#endif
}

inline void finish_stream() {
#if defined(__AVX512F__)
    __builtin_ia32_sfence();
#endif
}

template <typename T>
inline Vector<T> broadcast(T value) {
    return value - Vector<T>{};
}

// Elements of two vectors chosen by number, those of the second one counted on from those of the first.
template <typename T, int... ELEMENT>
inline Vector<T> shuffle(Vector<T> first, Vector<T> second) {
#if defined(__clang__)
    return __builtin_shufflevector(first, second, ELEMENT...);
#else
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    return __builtin_shuffle(first, second, Vector<Index>{ELEMENT...});
#endif
}

// Adds to every element the one SPAN places on, round and round; then the same for half the span, and so on.
template <typename T, int SPAN, int... LANE>
inline Vector<T> add_round(Vector<T> values, std::integer_sequence<int, LANE...> lanes) {
    values += shuffle<T, (LANE ^ SPAN)...>(values, values);
    if constexpr (SPAN > 1)
        return add_round<T, SPAN / 2>(values, lanes);
    else
        return values;
}

template <typename T>
inline T sum(Vector<T> values) {
    return add_round<T, LANES<T> / 2>(values, std::make_integer_sequence<int, LANES<T>>())[0];
}

// Calls run(2d+1), a constant for the usual degrees, so that loops over components are unrolled.
template <typename Run>
inline void with_size(int64_t size, const Run& run) {
    switch (size) {
        case 1: return run(std::integral_constant<int64_t, 1>());
        case 3: return run(std::integral_constant<int64_t, 3>());
        case 5: return run(std::integral_constant<int64_t, 5>());
        case 7: return run(std::integral_constant<int64_t, 7>());
        default: return run(size);
    }
}

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
