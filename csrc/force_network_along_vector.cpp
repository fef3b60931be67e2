// The derivatives of a force field's network along a direction of the relative positions, some nodes at a time (formulas:
// force_network_vector.cpp, se3_fast/layers/interaction.py).
//
// Every value v of the passes forward and back has a derivative v' along the direction, by the rules of sum, product and chain: here
// these are made of the values that the passes left. The gradient of a matrix, whose product with rows r has the gradient g, is
// r^T g: along the direction r^T g' + r'^T g.

#include "force_network_nodes.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// c += a^T b, a square of C channels from rows of nodes that lie `a_stride` and `b_stride` apart.
template <typename T>
void add_square(int64_t count, int64_t channels, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c) {
    multiply<true, true>(Product<T>{channels, channels, count, a, a_stride, b, b_stride, c, channels});
}

// The gradients of the squares of a part.
template <typename T>
struct PartGradients {
    const InteractionShape& shape;
    const InteractionGradients<T>& into;
    int64_t count;

    // dW += part^T of_before, of degree 0 dG too. `rows`, `stride`: as of Part.
    void add(int64_t degree, int64_t number, const T* rows, int64_t stride, const T* of_before) const {
        const int64_t channels = shape.channels, square = number * channels * channels, row = shape.row_before();
        for (int64_t component = 0; component < 2 * degree + 1; ++component)
            add_square(count, channels, rows + component * channels, stride, of_before + (first_of(degree) + component) * channels,
                       row, into.out[degree] + square);
        for (int64_t gate = 0; degree == 0 && gate < shape.degree_out; ++gate)
            add_square(count, channels, rows, stride, of_before + shape.row_out() + gate * channels, row, into.gates[gate] + square);
    }
};

// Calls run(coefficient, row of the first factor, of the second one, of the result) for all terms of a product of all nodes.
template <typename Run>
void for_each_term(const InteractionShape& shape, const DegreeProduct& product, int64_t count, const Run& run) {
    const int64_t channels = shape.channels;
    for (int64_t node = 0; node < count; ++node) {
        const int64_t to_left = node * shape.row_hidden() + first_of(product.degree_first) * channels;
        const int64_t to_right = node * shape.row_hidden() + first_of(product.degree_second) * channels;
        for (int64_t index = product.first_term; index < product.stop_term; ++index) {
            const ProductTerm& term = shape.terms[index];
            run(term.coefficient, to_left + term.first * channels, to_right + term.second * channels,
                node * size_of(shape, product) + term.out * channels);
        }
    }
}

template <typename T>
void multiply_degrees_along(
    const InteractionShape& shape, const DegreeProduct& product, int64_t count, const T* mixed, const T* mixed_dot, T* result) {
    fill_zero(result, count * size_of(shape, product));
    for_each_term(shape, product, count, [=, channels = shape.channels](double coefficient, int64_t left, int64_t right, int64_t out) {
        for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
            const Vector<T> a = load(mixed + left + channel), a_dot = load(mixed_dot + left + channel);
            const Vector<T> b = load(mixed + right + channel), b_dot = load(mixed_dot + right + channel);
            T* const into = result + out + channel;
            store(into, load(into) + broadcast(T(coefficient)) * (a_dot * b + a * b_dot));
        }
    });
}

// of_mixed_dot += what the gradient of a product, and its derivative, leave for the factors.
template <typename T>
void differentiate_product_along(
    const InteractionShape& shape, const DegreeProduct& product, int64_t count, const T* mixed, const T* mixed_dot,
    const T* of_result, const T* of_result_dot, T* of_mixed_dot) {
    for_each_term(shape, product, count, [=, channels = shape.channels](double coefficient, int64_t left, int64_t right, int64_t out) {
        const Vector<T> factor = broadcast(T(coefficient));
        for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
            const Vector<T> given = factor * load(of_result + out + channel);
            const Vector<T> given_dot = factor * load(of_result_dot + out + channel);
            const Vector<T> a = load(mixed + left + channel), a_dot = load(mixed_dot + left + channel);
            const Vector<T> b = load(mixed + right + channel), b_dot = load(mixed_dot + right + channel);
            T *const of_left = of_mixed_dot + left + channel, *const of_right = of_mixed_dot + right + channel;
            store(of_left, load(of_left) + given_dot * b + given * b_dot);
            store(of_right, load(of_right) + given_dot * a + given * a_dot);
        }
    });
}

// s' and s'' of silu with its scale.
template <typename T>
struct Slopes {
    Vector<T> first, second;

    explicit Slopes(Vector<T> x) {
        const Vector<T> one = broadcast(T(1)), sigmoid = logistic<T>(x), falling = one - sigmoid;
        const Vector<T> scaled = broadcast(T(SILU_SCALE)) * sigmoid;
        first = scaled * (one + x * falling);
        second = scaled * falling * (one + one + x * (falling - sigmoid));
    }
};

// The gate of z with its scale, and its derivatives by z.
template <typename T>
struct Gate {
    Vector<T> value, first, second;

    explicit Gate(Vector<T> z) {
        const Vector<T> one = broadcast(T(1)), opened = logistic<T>(z);
        value = broadcast(T(SIGMOID_SCALE)) * opened;
        first = value * (one - opened);
        second = first * (one - opened - opened);
    }
};

template <typename T>
void activate_node_along(const InteractionShape& shape, const T* before, const T* before_dot, T* next_dot) {
    const int64_t channels = shape.channels;
    for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
        store(next_dot + channel, Slopes<T>(load(before + channel)).first * load(before_dot + channel));
        for (int64_t degree = 1; degree <= shape.degree_out; ++degree) {
            const int64_t place = shape.row_out() + (degree - 1) * channels + channel;
            const Gate<T> gate(load(before + place));
            const Vector<T> gate_dot = gate.first * load(before_dot + place);
            for (int64_t row = first_of(degree) * channels + channel; row < first_of(degree + 1) * channels; row += channels)
                store(next_dot + row, gate_dot * load(before + row) + gate.value * load(before_dot + row));
        }
    }
}

// The gradients of what stands before the nonlinearities, and their derivatives.
template <typename T>
void differentiate_node_along(
    const InteractionShape& shape, const T* before, const T* before_dot, const T* of_next, const T* of_next_dot, T* of_before,
    T* of_before_dot) {
    const int64_t channels = shape.channels;
    for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
        const Slopes<T> slopes(load(before + channel));
        const Vector<T> of_scalar = load(of_next + channel);
        store(of_before + channel, slopes.first * of_scalar);
        store(of_before_dot + channel,
              slopes.second * load(before_dot + channel) * of_scalar + slopes.first * load(of_next_dot + channel));
        for (int64_t degree = 1; degree <= shape.degree_out; ++degree) {
            const int64_t place = shape.row_out() + (degree - 1) * channels + channel;
            const Gate<T> gate(load(before + place));
            const Vector<T> z_dot = load(before_dot + place), gate_dot = gate.first * z_dot;
            Vector<T> of_gate{}, of_gate_dot{};
            for (int64_t row = first_of(degree) * channels + channel; row < first_of(degree + 1) * channels; row += channels) {
                const Vector<T> given = load(of_next + row), given_dot = load(of_next_dot + row), y = load(before + row);
                of_gate += given * y;
                of_gate_dot += given_dot * y + given * load(before_dot + row);
                store(of_before + row, gate.value * given);
                store(of_before_dot + row, gate_dot * given + gate.value * given_dot);
            }
            store(of_before + place, gate.first * of_gate);
            store(of_before_dot + place, gate.second * z_dot * of_gate + gate.first * of_gate_dot);
        }
    }
}

template <typename T>
void gather_nodes(const T* rows, int64_t row, int64_t count, const int64_t* places, T* into) {
    for (int64_t place = 0; place < count; ++place) copy_row(rows + places[place] * row, row, into + place * row);
}

// What the products of what arrived leave: of the squares' gradients, and in of_mixed_dot. `workspace`: four rows of a product.
template <typename T>
void differentiate_products_along(
    const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const InteractionValues<T>& values,
    const InteractionDots<T>& dots, const T* of_before, const T* of_before_dot, const InteractionGradients<T>& gradients,
    T* of_mixed_dot, T* workspace) {
    const Part<T> part{shape, transposed, count};
    const PartGradients<T> of_part{shape, gradients, count};
    for_each_product(shape, [&](int64_t degree, int64_t number, const DegreeProduct& product) {
        const int64_t size = size_of(shape, product);
        T *const result = workspace, *const result_dot = result + count * size;
        T *const of_result = result_dot + count * size, *const of_result_dot = of_result + count * size;
        multiply_degrees(shape, product, count, values.mixed, result);
        multiply_degrees_along(shape, product, count, values.mixed, dots.mixed, result_dot);
        of_part.add(degree, number, result, size, of_before_dot);
        of_part.add(degree, number, result_dot, size, of_before);
        part.take_from(degree, number, of_before, false, of_result, size);
        part.take_from(degree, number, of_before_dot, false, of_result_dot, size);
        differentiate_product_along(
            shape, product, count, values.mixed, dots.mixed, of_result, of_result_dot, of_mixed_dot);
    });
}

// The same of the nodes' own features. `workspace`: three rows of features and two of what stands before the nonlinearities.
template <typename T>
void differentiate_own_along(
    const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const int64_t* kinds, const T* features,
    const T* features_dot, const T* of_before, const T* of_before_dot, const InteractionGradients<T>& gradients, T* of_features_dot,
    T* workspace) {
    const int64_t row_in = shape.row_in(), row = shape.row_before();
    T *const own = workspace, *const own_dot = own + INTERACTION_NODES * row_in, *const of_own = own_dot + INTERACTION_NODES * row_in;
    T *const given = of_own + INTERACTION_NODES * row_in, *const given_dot = given + INTERACTION_NODES * row;
    for_each_element(shape, count, kinds, [&](int64_t element, int64_t found, const int64_t* places) {
        gather_nodes(features, row_in, found, places, own);
        if (features_dot != nullptr) gather_nodes(features_dot, row_in, found, places, own_dot);
        gather_nodes(of_before, row, found, places, given);
        gather_nodes(of_before_dot, row, found, places, given_dot);
        fill_zero(of_own, found * row_in);
        const Part<T> part{shape, transposed, found};
        const PartGradients<T> of_part{shape, gradients, found};
        for (int64_t degree = 0; degree <= smaller(shape.degree_in, shape.degree_out); ++degree) {
            const int64_t number = 1 + num_products_of(shape, degree) + element, column = first_of(degree) * shape.channels;
            of_part.add(degree, number, own + column, row_in, given_dot);
            if (features_dot != nullptr) of_part.add(degree, number, own_dot + column, row_in, given);
            part.take_from(degree, number, given_dot, false, of_own + column, row_in);
        }
        for (int64_t place = 0; place < found; ++place)
            copy_row(of_own + place * row_in, row_in, of_features_dot + places[place] * row_in);
    });
}

}  // namespace

template <typename T>
void add_map_gradients(
    int64_t count, int64_t max_degree, int64_t channels, const T* inputs, const T* of_outputs, T* const* gradients) {
    const int64_t row = first_of(max_degree + 1) * channels;
    for (int64_t degree = 0; degree <= max_degree; ++degree)
        for (int64_t component = first_of(degree); component < first_of(degree + 1); ++component)
            add_square(count, channels, inputs + component * channels, row, of_outputs + component * channels, row, gradients[degree]);
}

template <typename T>
int64_t interaction_along_workspace_size(const InteractionShape& shape) {
    const int64_t of_product = (2 * shape.degree_out + 1) * shape.channels;
    return INTERACTION_NODES * (4 * of_product + 3 * shape.row_in() + 4 * shape.row_before() + shape.row_hidden());
}

template <typename T>
void interact_along(
    const InteractionShape& shape, const InteractionMatrices<T>& matrices, int64_t count, const int64_t* kinds,
    const InteractionValues<T>& values, const T* features_dot, const T* arrived_dot, T* mixed_dot, T* before_dot, T* next_dot,
    T* workspace) {
    const int64_t channels = shape.channels, row = shape.row_before();
    map_components<T>(count, shape.degree_hidden, channels, matrices.after, shape.scale, false, arrived_dot, mixed_dot);
    const Part<T> part{shape, matrices, count};
    fill_zero(before_dot, count * row);
    for (int64_t degree = 0; degree <= shape.degree_out; ++degree)
        part.add_to(degree, 0, mixed_dot + first_of(degree) * channels, shape.row_hidden(), before_dot);
    for_each_product(shape, [&](int64_t degree, int64_t number, const DegreeProduct& product) {
        multiply_degrees_along(shape, product, count, values.mixed, mixed_dot, workspace);
        part.add_to(degree, number, workspace, size_of(shape, product), before_dot);
    });
    if (features_dot != nullptr) add_own_parts(shape, matrices, count, kinds, features_dot, before_dot, workspace);
    for (int64_t node = 0; node < count; ++node)
        activate_node_along(shape, values.before + node * row, before_dot + node * row, next_dot + node * shape.row_out());
}

template <typename T>
void interact_backward_along(
    const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const int64_t* kinds,
    const InteractionValues<T>& values, const InteractionDots<T>& dots, T* of_features_dot, T* of_arrived_dot,
    const InteractionGradients<T>& gradients, T* workspace) {
    const int64_t channels = shape.channels, row = shape.row_before(), row_hidden = shape.row_hidden();
    T *const of_before = workspace, *const of_before_dot = of_before + INTERACTION_NODES * row;
    T* const of_mixed_dot = of_before_dot + INTERACTION_NODES * row;
    T* const rest = of_mixed_dot + INTERACTION_NODES * row_hidden;
    for (int64_t node = 0; node < count; ++node)
        differentiate_node_along(
            shape, values.before + node * row, dots.before + node * row, values.of_next + node * shape.row_out(),
            dots.of_next + node * shape.row_out(), of_before + node * row, of_before_dot + node * row);
    const Part<T> part{shape, transposed, count};
    const PartGradients<T> of_part{shape, gradients, count};
    fill_zero(of_mixed_dot, count * row_hidden);
    for (int64_t degree = 0; degree <= shape.degree_out; ++degree) {
        const int64_t column = first_of(degree) * channels;
        of_part.add(degree, 0, values.mixed + column, row_hidden, of_before_dot);
        of_part.add(degree, 0, dots.mixed + column, row_hidden, of_before);
        part.take_from(degree, 0, of_before_dot, false, of_mixed_dot + column, row_hidden);
    }
    differentiate_products_along(
        shape, transposed, count, values, dots, of_before, of_before_dot, gradients, of_mixed_dot, rest);
    scale_row(of_mixed_dot, count * row_hidden, shape.scale);
    add_map_gradients(count, shape.degree_hidden, channels, values.arrived, of_mixed_dot, gradients.after);
    add_map_gradients(count, shape.degree_hidden, channels, dots.arrived, values.of_mixed, gradients.after);
    map_components<T>(count, shape.degree_hidden, channels, transposed.after, 1.0, false, of_mixed_dot, of_arrived_dot);
    fill_zero(of_features_dot, count * shape.row_in());
    differentiate_own_along(shape, transposed, count, kinds, values.features, dots.features, of_before, of_before_dot, gradients,
                            of_features_dot, rest);
}

template <typename T>
void read_out_along(
    const HeadMatrices<T>& head, int64_t count, int64_t stride, const T* features, const T* features_dot, const T* of_energies,
    T* of_features_dot, const HeadGradients<T>& gradients, T* workspace) {
    const int64_t channels = head.channels, width = head.width;
    T *const z = workspace, *const z_dot = z + count * width, *const of_z_dot = z_dot + count * width, *const of_z = of_z_dot + count * width;
    multiply<false, false>(Product<T>{count, width, channels, features, stride, head.first, width, z, width});
    multiply<false, false>(Product<T>{count, width, channels, features_dot, stride, head.first, width, z_dot, width});
    const Vector<T> unscaled = broadcast(T(1 / SILU_SCALE));
    for (int64_t node = 0; node < count; ++node) {
        const Vector<T> given_dot = broadcast(of_energies[node]);
        *gradients.constant += of_energies[node];
        for (int64_t unit = 0; unit < width; unit += LANES<T>) {
            const int64_t place = node * width + unit;
            const Vector<T> x = load(z + place) + load(head.bias + unit), x_dot = load(z_dot + place);
            const Vector<T> last = unscaled * load(head.last + unit);
            const Slopes<T> slopes(x);
            const Vector<T> of_x_dot = last * (slopes.second * x_dot + slopes.first * given_dot);
            store(of_z + place, last * slopes.first);
            store(of_z_dot + place, of_x_dot);
            store(gradients.bias + unit, load(gradients.bias + unit) + of_x_dot);
            store(gradients.last + unit,
                  load(gradients.last + unit) + logistic<T>(x) * x * given_dot + unscaled * slopes.first * x_dot);
        }
    }
    multiply<true, true>(Product<T>{width, channels, count, of_z_dot, width, features, stride, gradients.first, channels});
    multiply<true, true>(Product<T>{width, channels, count, of_z, width, features_dot, stride, gradients.first, channels});
    fill_zero(of_features_dot, count * stride);
    multiply<false, false>(
        Product<T>{count, channels, width, of_z_dot, width, head.first_transposed, channels, of_features_dot, stride});
}

#define SE3_FAST_INSTANTIATE(T)                                                                                                     \
    template void add_map_gradients<T>(int64_t, int64_t, int64_t, const T*, const T*, T* const*);                                   \
    template int64_t interaction_along_workspace_size<T>(const InteractionShape&);                                                  \
    template void interact_along<T>(                                                                                                \
        const InteractionShape&, const InteractionMatrices<T>&, int64_t, const int64_t*, const InteractionValues<T>&, const T*,     \
        const T*, T*, T*, T*, T*);                                                                                                  \
    template void interact_backward_along<T>(                                                                                       \
        const InteractionShape&, const InteractionMatrices<T>&, int64_t, const int64_t*, const InteractionValues<T>&,               \
        const InteractionDots<T>&, T*, T*, const InteractionGradients<T>&, T*);                                                     \
    template void read_out_along<T>(                                                                                                \
        const HeadMatrices<T>&, int64_t, int64_t, const T*, const T*, const T*, T*, const HeadGradients<T>&, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
