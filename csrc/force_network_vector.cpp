// A force field's network on the CPU, some nodes at a time (formula: se3_fast/layers/interaction.py).
//
//     b_d = scale a_d U_d;   p = all b x b of degree d;   y_d = (b_d, p, x_d by element) W_d;   z_d = (b_0, p, x_0 by element) G_d
//     x'_0 = s(y_0),  x'_d = sigmoid(z_d) y_d             s, sigmoid with the scales that make their second moments 1
// A component of a node is a row of C channels; a component of all nodes is a matrix whose rows lie a node apart. Backward, for the
// gradients of the features alone, the same products with transposed matrices:
//     dy_0 = s'(y_0) dx'_0,  dy_d = sigmoid(z_d) dx'_d,  dz_d = sigmoid'(z_d) sum over components of y_d dx'_d
//     d(part) = dy_d W_d^T, of degree 0 + sum over d of dz_d G_d^T,   db = d(b) and what the products leave,   da = scale db U^T

#include "force_network_nodes.h"
#include "transpose.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// of_mixed += what the gradient of a product leaves for its factors.
template <typename T>
void differentiate_product(
    const InteractionShape& shape, const DegreeProduct& product, int64_t count, const T* mixed, const T* of_result, T* of_mixed) {
    const int64_t channels = shape.channels, size = (2 * product.degree + 1) * channels;
    const int64_t to_left = first_of(product.degree_first) * channels, to_right = first_of(product.degree_second) * channels;
    for (int64_t node = 0; node < count; ++node) {
        const int64_t row = node * shape.row_hidden();
        for (int64_t index = product.first_term; index < product.stop_term; ++index) {
            const ProductTerm& term = shape.terms[index];
            const int64_t left = row + to_left + term.first * channels, right = row + to_right + term.second * channels;
            const T* const given = of_result + node * size + term.out * channels;
            for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
                const Vector<T> value = broadcast(T(term.coefficient)) * load(given + channel);
                const Vector<T> a = load(mixed + left + channel), b = load(mixed + right + channel);
                store(of_mixed + left + channel, load(of_mixed + left + channel) + value * b);
                store(of_mixed + right + channel, load(of_mixed + right + channel) + value * a);
            }
        }
    }
}

// x' of a node from what stands before the nonlinearities.
template <typename T>
void activate_node(const InteractionShape& shape, const T* before, T* next) {
    const int64_t channels = shape.channels;
    for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
        const Vector<T> x = load(before + channel);
        store(next + channel, broadcast(T(SILU_SCALE)) * logistic<T>(x) * x);
        for (int64_t degree = 1; degree <= shape.degree_out; ++degree) {
            const Vector<T> z = load(before + shape.row_out() + (degree - 1) * channels + channel);
            const Vector<T> gate = broadcast(T(SIGMOID_SCALE)) * logistic<T>(z);
            for (int64_t component = first_of(degree); component < first_of(degree + 1); ++component)
                store(next + component * channels + channel, gate * load(before + component * channels + channel));
        }
    }
}

template <typename T>
void differentiate_node(const InteractionShape& shape, const T* before, const T* of_next, T* of_before) {
    const int64_t channels = shape.channels;
    const Vector<T> one = broadcast(T(1));
    for (int64_t channel = 0; channel < channels; channel += LANES<T>) {
        const Vector<T> x = load(before + channel), sigmoid = logistic<T>(x);
        const Vector<T> slope = broadcast(T(SILU_SCALE)) * sigmoid * (one + x * (one - sigmoid));
        store(of_before + channel, slope * load(of_next + channel));
        for (int64_t degree = 1; degree <= shape.degree_out; ++degree) {
            const int64_t place = shape.row_out() + (degree - 1) * channels + channel;
            const Vector<T> opened = logistic<T>(load(before + place)), gate = broadcast(T(SIGMOID_SCALE)) * opened;
            Vector<T> of_gate{};
            for (int64_t component = first_of(degree); component < first_of(degree + 1); ++component) {
                const int64_t row = component * channels + channel;
                const Vector<T> given = load(of_next + row);
                of_gate += given * load(before + row);
                store(of_before + row, gate * given);
            }
            store(of_before + place, gate * (one - opened) * of_gate);
        }
    }
}

}  // namespace

template <typename T>
void transpose_matrix(const T* from, int64_t rows, int64_t columns, T* into) {
    for (int64_t row = 0; row < rows; row += LANES<T>)
        for (int64_t column = 0; column < columns; column += LANES<T>) {
            Vector<T> square[LANES<T>];
            for (int lane = 0; lane < LANES<T>; ++lane) square[lane] = load(from + (row + lane) * columns + column);
            transpose<T>(square);
            for (int lane = 0; lane < LANES<T>; ++lane) store(into + (column + lane) * rows + row, square[lane]);
        }
}

template <typename T>
void map_components(
    int64_t count, int64_t max_degree, int64_t channels, const T* const* matrices, double scale, bool is_added, const T* from, T* into) {
    const int64_t row = first_of(max_degree + 1) * channels;
    for (int64_t degree = 0; degree <= max_degree; ++degree)
        for (int64_t component = first_of(degree); component < first_of(degree + 1); ++component)
            through(is_added, count, channels, from + component * channels, row, matrices[degree], into + component * channels, row);
    if (scale != 1) scale_row(into, count * row, scale);
}

template <typename T>
int64_t interaction_workspace_size(const InteractionShape& shape) {
    const int64_t largest = shape.degree_hidden > shape.degree_out ? shape.degree_hidden : shape.degree_out;
    const int64_t of_product = (2 * largest + 1) * shape.channels;
    return INTERACTION_NODES * (of_product + shape.row_in() + 2 * shape.row_before());
}

template <typename T>
void interact(
    const InteractionShape& shape, const InteractionMatrices<T>& matrices, int64_t count, const int64_t* kinds, const T* features,
    const T* arrived, T* mixed, T* before, T* next, T* workspace) {
    const int64_t channels = shape.channels, row = shape.row_before();
    map_components<T>(count, shape.degree_hidden, channels, matrices.after, shape.scale, false, arrived, mixed);
    const Part<T> part{shape, matrices, count};
    fill_zero(before, count * row);
    for (int64_t degree = 0; degree <= shape.degree_out; ++degree)
        part.add_to(degree, 0, mixed + first_of(degree) * channels, shape.row_hidden(), before);
    for_each_product(shape, [&](int64_t degree, int64_t number, const DegreeProduct& product) {
        multiply_degrees(shape, product, count, mixed, workspace);
        part.add_to(degree, number, workspace, (2 * degree + 1) * channels, before);
    });
    add_own_parts(shape, matrices, count, kinds, features, before, workspace);
    for (int64_t node = 0; node < count; ++node) activate_node(shape, before + node * row, next + node * shape.row_out());
}

template <typename T>
void interact_backward(
    const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const int64_t* kinds, const T* of_next,
    const T* mixed, const T* before, T* of_features, T* of_mixed, T* of_arrived, T* workspace) {
    const int64_t channels = shape.channels, row_in = shape.row_in(), row = shape.row_before(), row_hidden = shape.row_hidden();
    T* const of_before = workspace;
    T* const given = of_before + INTERACTION_NODES * row;  // of the nodes of one element
    T* const of_part = given + INTERACTION_NODES * row;    // of a product, or of these nodes
    for (int64_t node = 0; node < count; ++node)
        differentiate_node(shape, before + node * row, of_next + node * shape.row_out(), of_before + node * row);
    const Part<T> part{shape, transposed, count};
    fill_zero(of_mixed, count * row_hidden);
    for (int64_t degree = 0; degree <= shape.degree_out; ++degree)
        part.take_from(degree, 0, of_before, false, of_mixed + first_of(degree) * channels, row_hidden);
    for_each_product(shape, [&](int64_t degree, int64_t number, const DegreeProduct& product) {
        part.take_from(degree, number, of_before, false, of_part, (2 * degree + 1) * channels);
        differentiate_product(shape, product, count, mixed, of_part, of_mixed);
    });
    scale_row(of_mixed, count * row_hidden, shape.scale);
    map_components<T>(count, shape.degree_hidden, channels, transposed.after, 1.0, false, of_mixed, of_arrived);
    if (of_features == nullptr) return;
    fill_zero(of_features, count * row_in);
    for_each_element(shape, count, kinds, [&](int64_t element, int64_t found, const int64_t* places) {
        for (int64_t place = 0; place < found; ++place) copy_row(of_before + places[place] * row, row, given + place * row);
        fill_zero(of_part, found * row_in);
        const Part<T> own_part{shape, transposed, found};
        for (int64_t degree = 0; degree <= smaller(shape.degree_in, shape.degree_out); ++degree)
            own_part.take_from(degree, 1 + num_products_of(shape, degree) + element, given, false,
                               of_part + first_of(degree) * channels, row_in);
        for (int64_t place = 0; place < found; ++place) copy_row(of_part + place * row_in, row_in, of_features + places[place] * row_in);
    });
}

template <typename T>
void read_out(
    const HeadMatrices<T>& head, int64_t count, int64_t stride, const T* features, T* energies, T* of_features, T* workspace) {
    const int64_t channels = head.channels, width = head.width;
    T *const hidden = workspace, *const slopes = workspace + count * width;
    multiply<false, false>(Product<T>{count, width, channels, features, stride, head.first, width, hidden, width});
    for (int64_t node = 0; node < count; ++node) add_row(head.bias, width, hidden + node * width);
    activate(hidden, count * width, slopes);
    const Vector<T> unscaled = broadcast(T(1 / SILU_SCALE));
    for (int64_t node = 0; node < count; ++node) {
        Vector<T> energy{};
        for (int64_t unit = 0; unit < width; unit += LANES<T>) {
            const Vector<T> last = unscaled * load(head.last + unit);
            T* const slope = slopes + node * width + unit;
            energy += last * load(hidden + node * width + unit);
            store(slope, last * load(slope));
        }
        energies[node] = sum<T>(energy) + head.constant;
    }
    fill_zero(of_features, count * stride);
    multiply<false, false>(Product<T>{count, channels, width, slopes, width, head.first_transposed, channels, of_features, stride});
}

#define SE3_FAST_INSTANTIATE(T)                                                                                                     \
    template void transpose_matrix<T>(const T*, int64_t, int64_t, T*);                                                              \
    template void map_components<T>(int64_t, int64_t, int64_t, const T* const*, double, bool, const T*, T*);                        \
    template int64_t interaction_workspace_size<T>(const InteractionShape&);                                                        \
    template void interact<T>(                                                                                                      \
        const InteractionShape&, const InteractionMatrices<T>&, int64_t, const int64_t*, const T*, const T*, T*, T*, T*, T*);       \
    template void interact_backward<T>(                                                                                             \
        const InteractionShape&, const InteractionMatrices<T>&, int64_t, const int64_t*, const T*, const T*, const T*, T*, T*, T*, T*); \
    template void read_out<T>(const HeadMatrices<T>&, int64_t, int64_t, const T*, T*, T*, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
