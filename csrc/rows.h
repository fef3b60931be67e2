// Rows of values, for *_vector.cpp files: padded with zeros to whole cache lines, so that loops run over whole vectors.
//
// Features of a degree stand as [channel][component], and vectors run over channels. So they are taken apart into a row for each
// component, [component][channel], and put together again: whole vectors of channels by shuffles, what is left one by one. They may
// stand as another type S, bfloat16.

#pragma once

#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {

// The length of a row of `count` values.
template <typename T>
constexpr int64_t padded(int64_t count) {
    constexpr int64_t step = 64 / int64_t(sizeof(T));
    return (count + step - 1) / step * step;
}

template <typename T>
inline void fill_zero(T* values, int64_t count) {
    for (int64_t index = 0; index < count; ++index) values[index] = 0;
}

inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

// Lets a NaN through, as PyTorch's does: 0 > NaN is false. The other way round the compiler needs a blend.
template <typename T>
inline Vector<T> rectified(Vector<T> values) {
    const Vector<T> zero{};
    return zero > values ? zero : values;
}

// SIZE vectors hold the values of LANES channels: that of a channel and a component stands at place channel * SIZE + component.

// `found` with the values of COMPONENT that stand in the vector BLOCK.
template <typename T, int SIZE, int COMPONENT, int BLOCK, int... LANE>
inline Vector<T> with_component(Vector<T> found, Vector<T> block, std::integer_sequence<int, LANE...>) {
    return shuffle<T, ((LANE * SIZE + COMPONENT) / LANES<T> == BLOCK ? LANES<T> + (LANE * SIZE + COMPONENT) % LANES<T> : LANE)...>(
        found, block);
}

// A component of LANES channels from the vectors of their values.
template <typename T, int SIZE, int COMPONENT, int... BLOCK>
inline Vector<T> component_of(const Vector<T>* blocks, std::integer_sequence<int, BLOCK...>) {
    Vector<T> found{};
    constexpr std::make_integer_sequence<int, LANES<T>> lanes;
    ((found = with_component<T, SIZE, COMPONENT, BLOCK>(found, blocks[BLOCK], lanes)), ...);
    return found;
}

// `found` with what the vector BLOCK has of COMPONENT.
template <typename T, int SIZE, int BLOCK, int COMPONENT, int... LANE>
inline Vector<T> with_block(Vector<T> found, Vector<T> component, std::integer_sequence<int, LANE...>) {
    return shuffle<T, ((BLOCK * LANES<T> + LANE) % SIZE == COMPONENT ? LANES<T> + (BLOCK * LANES<T> + LANE) / SIZE : LANE)...>(
        found, component);
}

// One of the vectors of values from the components of LANES channels.
template <typename T, int SIZE, int BLOCK, int... COMPONENT>
inline Vector<T> block_of(const Vector<T>* components, std::integer_sequence<int, COMPONENT...>) {
    Vector<T> found{};
    constexpr std::make_integer_sequence<int, LANES<T>> lanes;
    ((found = with_block<T, SIZE, BLOCK, COMPONENT>(found, components[COMPONENT], lanes)), ...);
    return found;
}

template <typename T, typename S, int... INDEX>
inline void take_lanes_apart(const S* values, T* rows, int64_t stride, std::integer_sequence<int, INDEX...> indices) {
    const Vector<T> blocks[] = {load(values + INDEX * LANES<T>)...};
    (store(rows + INDEX * stride, component_of<T, sizeof...(INDEX), INDEX>(blocks, indices)), ...);
}

template <typename T, typename S, int... INDEX>
inline void put_lanes_together(const T* rows, int64_t stride, S* values, std::integer_sequence<int, INDEX...> indices) {
    const Vector<T> components[] = {load(rows + INDEX * stride)...};
    (store(values + INDEX * LANES<T>, block_of<T, sizeof...(INDEX), INDEX>(components, indices)), ...);
}

// rows[component * stride + channel] = values[channel * size + component]; size: as with_size calls with it.
template <typename T, typename S, typename Size>
inline void take_apart(const S* values, int64_t channels, Size size, T* rows, int64_t stride) {
    int64_t channel = 0;
    if constexpr (!std::is_same_v<Size, int64_t>)
        for (; channel + LANES<T> <= channels; channel += LANES<T>)
            take_lanes_apart(values + channel * size, rows + channel, stride, std::make_integer_sequence<int, int(Size::value)>());
    for (; channel < channels; ++channel)
        for (int64_t component = 0; component < size; ++component)
            rows[component * stride + channel] = values[channel * size + component];
}

// The other way round.
template <typename T, typename S, typename Size>
inline void put_together(const T* rows, int64_t stride, int64_t channels, Size size, S* values) {
    int64_t channel = 0;
    if constexpr (!std::is_same_v<Size, int64_t>)
        for (; channel + LANES<T> <= channels; channel += LANES<T>)
            put_lanes_together(
                rows + channel, stride, values + channel * size, std::make_integer_sequence<int, int(Size::value)>());
    for (; channel < channels; ++channel)
        for (int64_t component = 0; component < size; ++component)
            values[channel * size + component] = rows[component * stride + channel];
}

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
