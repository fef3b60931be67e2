// The hidden layers of the radial profile on the CPU, a chunk of edges at a time (formula: se3_fast/backends/dense/radial.py).
//
//     z = W a + b,   n = (z - mean z) / sqrt(var z + epsilon),   h = relu(n scale + shift)          for both layers
// Backward makes the layers again and keeps n, h and 1 / sqrt(var z + epsilon) of the chunk:
//     dn = [h > 0] dh scale,   dz = (dn - mean dn - n mean(n dn)) / sqrt(var z + epsilon),   dW = dz a^T,   da = W^T dz
// 2 K (e + K) floating-point operations an edge forward, three times that backward, in products of small matrices
// (small_product.h) between values that stay in the first-level cache.

#include "radial.h"
#include "rows.h"
#include "small_product.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// The packed parameters of a layer, or their gradients: one after the other.
template <typename T>
struct Layer {
    int64_t inputs, width;
    T* by_input;   // W^T, [inputs][padded K]
    T* by_output;  // W, [K][padded inputs]; parameters only
    T *bias, *scale, *shift, *end;  // [padded K]; without a norm there is the bias alone
    T* mask;                        // [padded K], 1 up to K, then 0; parameters only

    Layer(int64_t inputs, int64_t width, bool has_norm, bool is_gradient, T* memory) : inputs(inputs), width(width) {
        by_input = memory;
        by_output = by_input + inputs * padded<T>(width);
        bias = by_output + (is_gradient ? 0 : width * padded<T>(inputs));
        end = bias + (has_norm ? 3 : 1) * padded<T>(width);
        mask = is_gradient ? nullptr : end;
        scale = has_norm ? bias + padded<T>(width) : nullptr;
        shift = has_norm ? scale + padded<T>(width) : nullptr;
    }

    static int64_t size(int64_t inputs, int64_t width, bool has_norm, bool is_gradient) {
        const int64_t parameters_only = is_gradient ? 0 : width * padded<T>(inputs) + padded<T>(width);
        return padded<T>(width) * (inputs + (has_norm ? 3 : 1)) + parameters_only;
    }
};

// Both layers in a row.
template <typename T>
struct Layers {
    Layer<T> first, second;

    Layers(const RadialShape& shape, bool is_gradient, T* memory)
        : first(shape.inputs, shape.width, shape.has_norm, is_gradient, memory),
          second(shape.width, shape.width, shape.has_norm, is_gradient,
                 memory + Layer<T>::size(shape.inputs, shape.width, shape.has_norm, is_gradient)) {}

    static int64_t size(const RadialShape& shape, bool is_gradient) {
        return Layer<T>::size(shape.inputs, shape.width, shape.has_norm, is_gradient) +
               Layer<T>::size(shape.width, shape.width, shape.has_norm, is_gradient);
    }
};

// What a layer leaves for its backward pass, for a chunk.
template <typename T>
struct Activations {
    T* normalised;  // [edge][padded K]
    T* outputs;     // [edge][padded K]
    T* inverse;     // [edge], 1 / sqrt(var z + epsilon)

    Activations(int64_t stride, T* memory)
        : normalised(memory), outputs(memory + RADIAL_CHUNK * stride), inverse(memory + 2 * RADIAL_CHUNK * stride) {}

    static int64_t size(int64_t stride) { return RADIAL_CHUNK * (2 * stride + 64 / int64_t(sizeof(T))); }
};

// One layer of a chunk: inputs [count][any stride].
template <typename T>
void apply_layer(
    const RadialShape& shape, const Layer<T>& layer, const T* inputs, int64_t input_stride, int64_t count,
    const Activations<T>& activations) {
    const int64_t stride = padded<T>(shape.width), width = shape.width;
    multiply<false, false>(Product<T>{
        count, stride, layer.inputs, inputs, input_stride, layer.by_input, stride, activations.outputs, stride});
    for (int64_t edge = 0; edge < count; ++edge) {
        T *outputs = activations.outputs + edge * stride, *normalised = activations.normalised + edge * stride;
        Vector<T> total{};
        for (int64_t k = 0; k < stride; k += LANES<T>) {
            const Vector<T> value = load(outputs + k) + load(layer.bias + k);
            store(outputs + k, shape.has_norm ? value : rectified<T>(value));
            total += value;
        }
        if (!shape.has_norm) continue;
        const Vector<T> mean = broadcast(sum<T>(total) / T(width));
        Vector<T> squares{};
        for (int64_t k = 0; k < stride; k += LANES<T>) {
            const Vector<T> centred = (load(outputs + k) - mean) * load(layer.mask + k);
            store(normalised + k, centred);
            squares += centred * centred;
        }
        const T inverse = 1 / square_root(sum<T>(squares) / T(width) + T(shape.epsilon));
        activations.inverse[edge] = inverse;
        for (int64_t k = 0; k < stride; k += LANES<T>) {
            const Vector<T> value = load(normalised + k) * broadcast(inverse);
            store(normalised + k, value);
            store(outputs + k, rectified<T>(value * load(layer.scale + k) + load(layer.shift + k)));
        }
    }
}

// dz of a chunk in place of dh, [count][padded K]; adds the gradients of bias, scale and shift.
template <typename T>
void differentiate_norm(
    const RadialShape& shape, const Layer<T>& layer, const Layer<T>& gradients, int64_t count, const Activations<T>& activations,
    T* gradient) {
    const int64_t stride = padded<T>(shape.width);
    for (int64_t edge = 0; edge < count; ++edge) {
        T* row = gradient + edge * stride;
        const T *outputs = activations.outputs + edge * stride, *normalised = activations.normalised + edge * stride;
        Vector<T> total{}, overlap{};
        for (int64_t k = 0; k < stride; k += LANES<T>) {
            Vector<T> values = load(outputs + k) <= 0 ? Vector<T>{} : load(row + k);
            if (shape.has_norm) {
                const Vector<T> n = load(normalised + k);
                store(gradients.scale + k, load(gradients.scale + k) + values * n);
                store(gradients.shift + k, load(gradients.shift + k) + values);
                values *= load(layer.scale + k);
                total += values;
                overlap += values * n;
            }
            store(row + k, values);
        }
        const Vector<T> mean = broadcast(sum<T>(total) / T(shape.width));
        const Vector<T> mean_overlap = broadcast(sum<T>(overlap) / T(shape.width));
        for (int64_t k = 0; k < stride; k += LANES<T>) {
            Vector<T> values = load(row + k);
            if (shape.has_norm) {
                const Vector<T> inverse = broadcast(activations.inverse[edge]) * load(layer.mask + k);
                values = inverse * (values - mean - load(normalised + k) * mean_overlap);
                store(row + k, values);
            }
            store(gradients.bias + k, load(gradients.bias + k) + values);
        }
    }
}

}  // namespace

template <typename T>
int64_t radial_packed_size(const RadialShape& shape) {
    return Layers<T>::size(shape, false);
}

template <typename T>
int64_t radial_gradient_size(const RadialShape& shape) {
    return Layers<T>::size(shape, true);
}

template <typename T>
int64_t radial_workspace_size(const RadialShape& shape) {
    const int64_t stride = padded<T>(shape.width);
    return 2 * Activations<T>::size(stride) + RADIAL_CHUNK * (2 * stride + padded<T>(shape.inputs));
}

template <typename T>
void pack_radial(const RadialShape& shape, const T* parameters, T* packed) {
    fill_zero(packed, radial_packed_size<T>(shape));
    const Layers<T> layers(shape, false, packed);
    const int64_t width = shape.width, stride = padded<T>(width);
    for (int index = 0; index < 2; ++index) {
        const Layer<T>& layer = index == 0 ? layers.first : layers.second;
        for (int64_t k = 0; k < width; ++k)
            for (int64_t input = 0; input < layer.inputs; ++input) {
                const T value = parameters[k * layer.inputs + input];
                layer.by_input[input * stride + k] = value;
                layer.by_output[k * padded<T>(layer.inputs) + input] = value;
            }
        parameters += width * layer.inputs;
        for (T* vector = layer.bias; vector < layer.end; vector += stride)
            for (int64_t k = 0; k < width; ++k) vector[k] = *parameters++;
        for (int64_t k = 0; k < width; ++k) layer.mask[k] = 1;
    }
}

template <typename T>
void unpack_radial_gradient(const RadialShape& shape, const T* gradients, int64_t count, int64_t part_stride, T* parameters) {
    fill_zero(parameters, shape.size());
    const int64_t width = shape.width, stride = padded<T>(width);
    for (int64_t part = 0; part < count; ++part) {
        T* into = parameters;
        const Layers<const T> layers(shape, true, gradients + part * part_stride);
        for (int index = 0; index < 2; ++index) {
            const Layer<const T>& layer = index == 0 ? layers.first : layers.second;
            for (int64_t k = 0; k < width; ++k)
                for (int64_t input = 0; input < layer.inputs; ++input) *into++ += layer.by_input[input * stride + k];
            for (const T* vector = layer.bias; vector < layer.end; vector += stride)
                for (int64_t k = 0; k < width; ++k) *into++ += vector[k];
        }
    }
}

template <typename T>
void radial_chunk(const RadialShape& shape, const T* packed, const T* invariants, int64_t count, T* hidden, T* workspace) {
    const int64_t stride = padded<T>(shape.width);
    const Layers<T> layers(shape, false, const_cast<T*>(packed));
    const Activations<T> first(stride, workspace), second(stride, workspace + Activations<T>::size(stride));
    apply_layer(shape, layers.first, invariants, shape.inputs, count, first);
    apply_layer(shape, layers.second, first.outputs, stride, count, second);
    for (int64_t edge = 0; edge < count; ++edge)
        for (int64_t k = 0; k < shape.width; ++k) hidden[edge * shape.width + k] = second.outputs[edge * stride + k];
}

template <typename T>
void radial_chunk_backward(
    const RadialShape& shape, const T* packed, const T* invariants, int64_t count, const T* hidden_gradient, T* all_gradients,
    T* invariant_gradient, T* workspace) {
    const int64_t width = shape.width, stride = padded<T>(width), input_stride = padded<T>(shape.inputs);
    const Layers<T> layers(shape, false, const_cast<T*>(packed)), gradients(shape, true, all_gradients);
    const Activations<T> first(stride, workspace), second(stride, workspace + Activations<T>::size(stride));
    T* of_second = workspace + 2 * Activations<T>::size(stride);
    T* of_first = of_second + RADIAL_CHUNK * stride;
    T* of_inputs = of_first + RADIAL_CHUNK * stride;
    apply_layer(shape, layers.first, invariants, shape.inputs, count, first);
    apply_layer(shape, layers.second, first.outputs, stride, count, second);
    for (int64_t edge = 0; edge < count; ++edge) {
        for (int64_t k = 0; k < width; ++k) of_second[edge * stride + k] = hidden_gradient[edge * width + k];
        fill_zero(of_second + edge * stride + width, stride - width);
    }
    differentiate_norm(shape, layers.second, gradients.second, count, second, of_second);
    multiply<true, true>(Product<T>{
        width, stride, count, first.outputs, stride, of_second, stride, gradients.second.by_input, stride});
    multiply<false, false>(Product<T>{count, stride, width, of_second, stride, layers.second.by_output, stride, of_first, stride});
    differentiate_norm(shape, layers.first, gradients.first, count, first, of_first);
    multiply<true, true>(Product<T>{
        shape.inputs, stride, count, invariants, shape.inputs, of_first, stride, gradients.first.by_input, stride});
    if (invariant_gradient == nullptr) return;
    multiply<false, false>(Product<T>{
        count, input_stride, width, of_first, stride, layers.first.by_output, input_stride, of_inputs, input_stride});
    for (int64_t edge = 0; edge < count; ++edge)
        for (int64_t input = 0; input < shape.inputs; ++input)
            invariant_gradient[edge * shape.inputs + input] += of_inputs[edge * input_stride + input];
}

#define SE3_FAST_INSTANTIATE(T)                                                                                  \
    template int64_t radial_packed_size<T>(const RadialShape&);                                                  \
    template int64_t radial_gradient_size<T>(const RadialShape&);                                                \
    template int64_t radial_workspace_size<T>(const RadialShape&);                                               \
    template void pack_radial<T>(const RadialShape&, const T*, T*);                                              \
    template void unpack_radial_gradient<T>(const RadialShape&, const T*, int64_t, int64_t, T*);                 \
    template void radial_chunk<T>(const RadialShape&, const T*, const T*, int64_t, T*, T*);                      \
    template void radial_chunk_backward<T>(const RadialShape&, const T*, const T*, int64_t, const T*, T*, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
