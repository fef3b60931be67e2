// The norm-based nonlinearity on the CPU, a node and a degree at a time (formula: se3_fast/backends/dense/equivariant_norm.py).
//
//     n = max(|x|, 2^-24),   z = (n - mean n) / sqrt(var n + epsilon),   p = relu(z scale + shift),   out = x p / n
// Mean and variance are those of the channels. Backward makes n, z and p again; with g the gradient of out:
//     s = <g, x> / n,   dp = [p > 0] s,   dz = dp scale,   t = (dz - mean dz - z mean(z dz)) / sqrt(var n + epsilon)
//     dx = (g - x s / n) p / n + x t / n,   dscale = sum of dp z,   dshift = sum of dp
// where a norm was raised to 2^-24, s and t are 0 in dx. The bracket is a sum of its own: times p / n its terms may be large, and
// they cancel.
// Loops run over channels, whose components stand in a row each (rows.h). Bound by reading and writing the features.

#include "equivariant_norm.h"
#include "rows.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

template <typename T>
constexpr T LEAST_SQUARE = T(1) / (int64_t(1) << 48);  // of a norm

// What is known of one node while it is treated: padded rows of its channels.
template <typename T>
struct Node {
    static constexpr int64_t NUM_ROWS = 8;  // of one value a channel

    int64_t stride;
    T *squares, *norms, *normalised, *rectified, *factors, *overlaps;  // |x|^2, n, z, p, p / n, s
    T *scale_gradient, *shift_gradient;                                // of all nodes that are treated together
    T *features, *gradient, *result;                                   // a row for each component

    Node(int64_t channels, int64_t size, T* memory) : stride(padded<T>(channels)) {
        T** const rows[NUM_ROWS] = {
            &squares, &norms, &normalised, &rectified, &factors, &overlaps, &scale_gradient, &shift_gradient};
        for (T** row : rows) {
            *row = memory;
            memory += stride;
        }
        features = memory;
        gradient = features + size * stride;
        result = gradient + size * stride;
    }

    static int64_t workspace_size(int64_t channels, int64_t size) { return padded<T>(channels) * (NUM_ROWS + 3 * size); }
};

// Reads a node's features and makes its norms, z, p and p / n; returns 1 / sqrt(var n + epsilon).
template <typename T, typename S, typename Size>
inline T normalise(
    const NormChannels<T>& channels, const NormDegree<T, S>& degree, Size size, const S* values, const Node<T>& node) {
    const int64_t stride = node.stride;
    take_apart(values, channels.count, size, node.features, stride);
    for (int64_t c = 0; c < stride; c += LANES<T>) {
        Vector<T> square{};
        for (int64_t component = 0; component < size; ++component) {
            const Vector<T> value = load(node.features + component * stride + c);
            square += value * value;
        }
        store(node.squares + c, square);
    }
    for (int64_t c = 0; c < stride; ++c)
        node.norms[c] = square_root(node.squares[c] < LEAST_SQUARE<T> ? LEAST_SQUARE<T> : node.squares[c]);
    Vector<T> total{};
    for (int64_t c = 0; c < stride; c += LANES<T>) total += load(node.norms + c) * load(channels.mask + c);
    const Vector<T> mean = broadcast(sum<T>(total) / T(channels.count));
    Vector<T> squares{};
    for (int64_t c = 0; c < stride; c += LANES<T>) {
        const Vector<T> centred = (load(node.norms + c) - mean) * load(channels.mask + c);
        store(node.normalised + c, centred);
        squares += centred * centred;
    }
    const T inverse = 1 / square_root(sum<T>(squares) / T(channels.count) + T(channels.epsilon));
    for (int64_t c = 0; c < stride; c += LANES<T>) {
        const Vector<T> z = load(node.normalised + c) * broadcast(inverse);
        const Vector<T> p = rectified<T>(z * load(degree.scale + c) + load(degree.shift + c));
        store(node.normalised + c, z);
        store(node.rectified + c, p);
        store(node.factors + c, p / load(node.norms + c));
    }
    return inverse;
}

// s of a node, from its gradient.
template <typename T, typename Size>
inline void overlap_with_gradient(Size size, const Node<T>& node) {
    const int64_t stride = node.stride;
    for (int64_t c = 0; c < stride; c += LANES<T>) {
        Vector<T> overlap{};
        for (int64_t component = 0; component < size; ++component)
            overlap += load(node.gradient + component * stride + c) * load(node.features + component * stride + c);
        store(node.overlaps + c, overlap / load(node.norms + c));
    }
}

// s / n and t / n of a node in place of s and p, 0 where the norm was raised; adds the gradients of scale and shift.
template <typename T, typename S>
inline void differentiate_norms(const NormChannels<T>& channels, const NormDegree<T, S>& degree, T inverse, const Node<T>& node) {
    Vector<T> total{}, total_overlap{};
    for (int64_t c = 0; c < node.stride; c += LANES<T>) {
        const Vector<T> z = load(node.normalised + c);
        const Vector<T> dp = load(node.rectified + c) <= 0 ? Vector<T>{} : load(node.overlaps + c);
        store(node.scale_gradient + c, load(node.scale_gradient + c) + dp * z);
        store(node.shift_gradient + c, load(node.shift_gradient + c) + dp);
        const Vector<T> dz = dp * load(degree.scale + c);
        store(node.rectified + c, dz);
        total += dz;
        total_overlap += dz * z;
    }
    const Vector<T> mean = broadcast(sum<T>(total) / T(channels.count));
    const Vector<T> mean_overlap = broadcast(sum<T>(total_overlap) / T(channels.count));
    for (int64_t c = 0; c < node.stride; c += LANES<T>) {
        const Vector<T> t = broadcast(inverse) * (load(node.rectified + c) - mean - load(node.normalised + c) * mean_overlap);
        const auto is_raised = load(node.squares + c) < LEAST_SQUARE<T>;
        store(node.rectified + c, is_raised ? Vector<T>{} : t / load(node.norms + c));
        store(node.overlaps + c, is_raised ? Vector<T>{} : load(node.overlaps + c) / load(node.norms + c));
    }
}

}  // namespace

template <typename T>
int64_t norm_stride(int64_t channels) {
    return padded<T>(channels);
}

template <typename T>
int64_t norm_workspace_size(int64_t channels, int64_t largest_size) {
    return Node<T>::workspace_size(channels, largest_size);
}

template <typename T, typename S>
void normalise_nodes(const NormChannels<T>& channels, const NormDegree<T, S>& degree, int64_t first, int64_t count, T* workspace) {
    const Node<T> node(channels.count, degree.size, workspace);
    const int64_t stride = node.stride, row = channels.count * degree.size;
    fill_zero(node.features, degree.size * stride);  // what stands behind the last channel stays zero
    with_size(degree.size, [&](auto size) {
        for (int64_t at = first; at < first + count; ++at) {
            normalise(channels, degree, size, degree.values + at * row, node);
            for (int64_t c = 0; c < stride; c += LANES<T>)
                for (int64_t component = 0; component < size; ++component) {
                    const int64_t place = component * stride + c;
                    store(node.result + place, load(node.features + place) * load(node.factors + c));
                }
            put_together(node.result, stride, channels.count, size, degree.result + at * row);
        }
    });
}

template <typename T, typename S>
void normalise_nodes_backward(
    const NormChannels<T>& channels, const NormDegree<T, S>& degree, int64_t first, int64_t count, T* scale_gradient,
    T* shift_gradient, T* workspace) {
    const Node<T> node(channels.count, degree.size, workspace);
    const int64_t stride = node.stride, row = channels.count * degree.size;
    fill_zero(workspace, Node<T>::workspace_size(channels.count, degree.size));  // as above, and the sums
    with_size(degree.size, [&](auto size) {
        for (int64_t at = first; at < first + count; ++at) {
            const T inverse = normalise(channels, degree, size, degree.values + at * row, node);
            take_apart(degree.gradient + at * row, channels.count, size, node.gradient, stride);
            overlap_with_gradient(size, node);
            differentiate_norms(channels, degree, inverse, node);
            for (int64_t c = 0; c < stride; c += LANES<T>)
                for (int64_t component = 0; component < size; ++component) {
                    const int64_t place = component * stride + c;
                    const Vector<T> x = load(node.features + place);
                    const Vector<T> across = load(node.gradient + place) - x * load(node.overlaps + c);
                    store(node.result + place, across * load(node.factors + c) + x * load(node.rectified + c));
                }
            put_together(node.result, stride, channels.count, size, degree.result + at * row);
        }
    });
    for (int64_t c = 0; c < stride; ++c) {
        scale_gradient[c] += node.scale_gradient[c];
        shift_gradient[c] += node.shift_gradient[c];
    }
}

#define SE3_FAST_INSTANTIATE(T)                                \
    template int64_t norm_stride<T>(int64_t);                  \
    template int64_t norm_workspace_size<T>(int64_t, int64_t);

#define SE3_FAST_INSTANTIATE_STORED(T, S)                                                                             \
    template void normalise_nodes<T, S>(const NormChannels<T>&, const NormDegree<T, S>&, int64_t, int64_t, T*);       \
    template void normalise_nodes_backward<T, S>(                                                                     \
        const NormChannels<T>&, const NormDegree<T, S>&, int64_t, int64_t, T*, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)
SE3_FAST_INSTANTIATE_STORED(float, float)
SE3_FAST_INSTANTIATE_STORED(float, BFloat16)
SE3_FAST_INSTANTIATE_STORED(double, double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
