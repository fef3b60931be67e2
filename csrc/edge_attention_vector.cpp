// Attention over incoming edges on the CPU, node by node (formula: se3_fast/reference/edge_attention.py).
//
//     s[e, h] = <key[e, h], query[n, h]> / sqrt(F),   w = softmax over the node's edges,   out[n, h] = sum_e w[e, h] value[e, h]
// Backward, with g the gradient of out and the softmax made again:
//     dvalue[e, h] = w[e, h] g[n, h],   dw[e, h] = <g[n, h], value[e, h]>,   ds = w (dw - sum_e w dw)
//     dkey[e, h] = ds[e, h] query[n, h] / sqrt(F),   dquery[n, h] = sum_e ds[e, h] key[e, h] / sqrt(F)
// A few multiply-adds for each value read: bound by reading keys and values from memory, twice in all.

#include "edge_attention.h"
#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

inline float exponential(float value) { return __builtin_expf(value); }
inline double exponential(double value) { return __builtin_exp(value); }

template <typename T>
inline T inner_product(const T* left, const T* right, int64_t count) {
    T total = 0;
    for (int64_t index = 0; index < count; ++index) total += left[index] * right[index];
    return total;
}

template <typename T>
inline void add_scaled(T factor, const T* values, int64_t count, T* total) {
    for (int64_t index = 0; index < count; ++index) total[index] += factor * values[index];
}

template <typename T>
inline void write_scaled(T factor, const T* values, int64_t count, T* into) {
    for (int64_t index = 0; index < count; ++index) into[index] = factor * values[index];
}

template <typename T>
inline void fill_zero(T* values, int64_t count) {
    for (int64_t index = 0; index < count; ++index) values[index] = 0;
}

// total[row] = the sum over places of add(place, into)'s rows. Some places are summed up before they are added to the rest: a sum of
// sums has less rounding error than one long sum.
template <typename T, typename Add>
inline void sum_in_parts(int64_t count, int64_t row, T* partial, T* total, const Add& add) {
    constexpr int64_t PART = 32;
    fill_zero(total, row);
    for (int64_t first = 0; first < count; first += PART) {
        fill_zero(partial, row);
        for (int64_t place = first; place < count && place < first + PART; ++place) add(place, partial);
        for (int64_t index = 0; index < row; ++index) total[index] += partial[index];
    }
}

// w of a node's edges, [count][heads].
template <typename T>
void softmax_weights(const Attention<T>& attention, int64_t node, const int64_t* edges, int64_t count, T* weights) {
    const int64_t heads = attention.heads;
    fill_zero(weights, count * heads);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T>& part = attention.parts[index];
        const T* query = part.query + node * heads * part.key_run;
        for (int64_t place = 0; place < count && part.key_run > 0; ++place) {
            const T* key = part.key + edges[place] * part.key_stride;
            for (int64_t head = 0; head < heads; ++head)
                weights[place * heads + head] += inner_product(key + head * part.key_run, query + head * part.key_run, part.key_run);
        }
    }
    for (int64_t head = 0; head < heads; ++head) {
        T largest = weights[head];
        double total = 0;
        for (int64_t place = 1; place < count; ++place)
            if (weights[place * heads + head] > largest) largest = weights[place * heads + head];
        for (int64_t place = 0; place < count; ++place) {
            T& weight = weights[place * heads + head];
            weight = exponential(attention.scale * (weight - largest));
            total += weight;
        }
        for (int64_t place = 0; place < count; ++place) weights[place * heads + head] /= T(total);
    }
}

}  // namespace

template <typename T>
void attend(const Attention<T>& attention, int64_t node, const int64_t* edges, int64_t count, T* weights, T* partial) {
    const int64_t heads = attention.heads;
    if (count > 0) softmax_weights(attention, node, edges, count, weights);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T>& part = attention.parts[index];
        T* result = part.result + node * heads * part.value_run;
        sum_in_parts(count, heads * part.value_run, partial, result, [&](int64_t place, T* into) {
            const T* value = part.value + edges[place] * part.value_stride;
            for (int64_t head = 0; head < heads; ++head)
                add_scaled(weights[place * heads + head], value + head * part.value_run, part.value_run, into + head * part.value_run);
        });
    }
}

template <typename T>
void attend_backward(
    const Attention<T>& attention, int64_t node, const int64_t* edges, int64_t count, T* weights, T* weight_gradients,
    T* partial) {
    const int64_t heads = attention.heads;
    if (count > 0) softmax_weights(attention, node, edges, count, weights);
    fill_zero(weight_gradients, count * heads);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T>& part = attention.parts[index];
        const T* gradient = part.gradient + node * heads * part.value_run;
        for (int64_t place = 0; place < count; ++place) {
            const T* value = part.value + edges[place] * part.value_stride;
            T* value_gradient = part.value_gradient + edges[place] * part.value_stride;
            for (int64_t head = 0; head < heads; ++head) {
                const T* run = gradient + head * part.value_run;
                weight_gradients[place * heads + head] += inner_product(run, value + head * part.value_run, part.value_run);
                write_scaled(weights[place * heads + head], run, part.value_run, value_gradient + head * part.value_run);
            }
        }
    }
    for (int64_t head = 0; head < heads; ++head) {
        double total = 0;
        for (int64_t place = 0; place < count; ++place) total += weights[place * heads + head] * weight_gradients[place * heads + head];
        const T mean = T(total);
        for (int64_t place = 0; place < count; ++place) {
            T& gradient = weight_gradients[place * heads + head];
            gradient = attention.scale * weights[place * heads + head] * (gradient - mean);
        }
    }
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T>& part = attention.parts[index];
        if (part.key_run == 0) continue;
        const T* query = part.query + node * heads * part.key_run;
        T* query_gradient = part.query_gradient + node * heads * part.key_run;
        sum_in_parts(count, heads * part.key_run, partial, query_gradient, [&](int64_t place, T* into) {
            const T* key = part.key + edges[place] * part.key_stride;
            T* key_gradient = part.key_gradient + edges[place] * part.key_stride;
            for (int64_t head = 0; head < heads; ++head) {
                const T gradient = weight_gradients[place * heads + head];
                const int64_t run = head * part.key_run;
                write_scaled(gradient, query + run, part.key_run, key_gradient + run);
                add_scaled(gradient, key + run, part.key_run, into + run);
            }
        });
    }
}

#define SE3_FAST_INSTANTIATE(T)                                                                        \
    template void attend<T>(const Attention<T>&, int64_t, const int64_t*, int64_t, T*, T*);            \
    template void attend_backward<T>(const Attention<T>&, int64_t, const int64_t*, int64_t, T*, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
