// The logistic function and what is made of it, for *_vector.cpp files.

#pragma once

#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

constexpr double SILU_SCALE = 1.6765324703310907;  // makes the second moment 1 for normal inputs

template <typename T>
struct ExponentOf;
template <>
struct ExponentOf<float> {
    using Integer = int32_t;
    static constexpr float ROUNDING = 12582912.0f, LARGEST = 87.0f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    static constexpr int FRACTION = 23, BIAS = 127, TERMS = 8;
};
template <>
struct ExponentOf<double> {
    using Integer = int64_t;
    static constexpr double ROUNDING = 6755399441055744.0, LARGEST = 700.0, LN2_HIGH = 0.693145751953125,
                            LN2_LOW = 1.42860682030941723212e-6;
    static constexpr int FRACTION = 52, BIAS = 1023, TERMS = 14;
};

// exp to rounding, between exp(-LARGEST) and exp(LARGEST); NaN stays.
template <typename T>
inline Vector<T> exponential(Vector<T> x) {
    using E = ExponentOf<T>;
    using Integers = typename VectorOf<typename E::Integer>::type;
    const Vector<T> largest = broadcast(E::LARGEST);
    x = x > largest ? largest : x;
    x = x < -largest ? -largest : x;
    const Vector<T> shifted = x * broadcast(T(1.4426950408889634)) + broadcast(E::ROUNDING);
    const Vector<T> whole = shifted - broadcast(E::ROUNDING);
    const Vector<T> rest = (x - whole * broadcast(E::LN2_HIGH)) - whole * broadcast(E::LN2_LOW);
    Vector<T> sum = broadcast(T(1));
#pragma GCC unroll 16
    for (int term = E::TERMS - 1; term >= 1; --term) sum = broadcast(T(1)) + sum * rest * broadcast(T(1.0 / term));
    const Integers power = ((Integers)shifted + typename E::Integer(E::BIAS)) << E::FRACTION;
    return sum * (Vector<T>)power;
}

template <typename T>
inline Vector<T> logistic(Vector<T> x) {
    const Vector<T> one = broadcast(T(1));
    return one / (one + exponential<T>(-x));
}

// z in place becomes s(z) = scale z / (1 + exp(-z)); s'(z) goes to `slopes`.
template <typename T>
void activate(T* z, int64_t count, T* slopes) {
    const Vector<T> one = broadcast(T(1)), scale = broadcast(T(SILU_SCALE));
    for (int64_t index = 0; index < count; index += LANES<T>) {
        const Vector<T> x = load(z + index), sigmoid = logistic<T>(x), scaled = scale * sigmoid;
        store(z + index, scaled * x);
        store(slopes + index, scaled * (one + x * (one - sigmoid)));
    }
}

}  // namespace
}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
