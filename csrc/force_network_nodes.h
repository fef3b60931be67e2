// What the loops over a force field's nodes are made of, for *_vector.cpp files (formula: se3_fast/layers/interaction.py).
//
// A component of a node is a row of C channels; a component of all nodes is a matrix whose rows lie a node apart.

#pragma once

#include "activation.h"
#include "force_network.h"
#include "rows.h"
#include "small_product.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

constexpr double SIGMOID_SCALE = 1.8467;  // makes the second moment 1 for normal inputs

// The first component of a degree.
constexpr int64_t first_of(int64_t degree) { return degree * degree; }

// c (+)= a b for rows of nodes: a and c lie `a_stride` and `c_stride` apart, b is a square of C channels.
template <typename T>
void through(bool is_added, int64_t count, int64_t channels, const T* a, int64_t a_stride, const T* b, T* c, int64_t c_stride) {
    const Product<T> product{count, channels, channels, a, a_stride, b, channels, c, c_stride};
    if (is_added)
        multiply<false, true>(product);
    else
        multiply<false, false>(product);
}

template <typename T>
void scale_row(T* values, int64_t count, double scale) {
    for (int64_t index = 0; index < count; index += LANES<T>) store(values + index, load(values + index) * broadcast(T(scale)));
}

template <typename T>
void copy_row(const T* from, int64_t count, T* into) {
    for (int64_t index = 0; index < count; index += LANES<T>) store(into + index, load(from + index));
}

template <typename T>
void add_row(const T* from, int64_t count, T* into) {
    for (int64_t index = 0; index < count; index += LANES<T>) store(into + index, load(into + index) + load(from + index));
}

// The squares that make `before` of a part: it has as many of each degree as the degree has parts.
template <typename T>
struct Part {
    const InteractionShape& shape;
    const InteractionMatrices<T>& matrices;
    int64_t count;

    // before += part W, and of degree 0 the gates += part G. `rows`: component 0 of the degree, `stride` from node to node.
    void add_to(int64_t degree, int64_t number, const T* rows, int64_t stride, T* before) const {
        const int64_t channels = shape.channels, square = number * channels * channels, row = shape.row_before();
        for (int64_t component = 0; component < 2 * degree + 1; ++component)
            through(true, count, channels, rows + component * channels, stride, matrices.out[degree] + square,
                    before + (first_of(degree) + component) * channels, row);
        for (int64_t gate = 0; degree == 0 && gate < shape.degree_out; ++gate)
            through(true, count, channels, rows, stride, matrices.gates[gate] + square, before + shape.row_out() + gate * channels,
                    row);
    }

    // The gradient of the part from that of `before`, (+)= by transposed squares.
    void take_from(int64_t degree, int64_t number, const T* of_before, bool is_added, T* of_rows, int64_t stride) const {
        const int64_t channels = shape.channels, square = number * channels * channels, row = shape.row_before();
        for (int64_t component = 0; component < 2 * degree + 1; ++component)
            through(is_added, count, channels, of_before + (first_of(degree) + component) * channels, row,
                    matrices.out[degree] + square, of_rows + component * channels, stride);
        for (int64_t gate = 0; degree == 0 && gate < shape.degree_out; ++gate)
            through(true, count, channels, of_before + shape.row_out() + gate * channels, row, matrices.gates[gate] + square,
                    of_rows, stride);
    }
};

// Calls run(degree, number of the part, product) for all products; behind them stand the elements' parts.
template <typename Run>
void for_each_product(const InteractionShape& shape, const Run& run) {
    int64_t number = 0;
    for (int64_t index = 0; index < shape.num_products; ++index) {
        const DegreeProduct& product = shape.products[index];
        number = index > 0 && shape.products[index - 1].degree == product.degree ? number + 1 : 1;
        run(product.degree, number, product);
    }
}

inline int64_t num_products_of(const InteractionShape& shape, int64_t degree) {
    int64_t count = 0;
    for (int64_t index = 0; index < shape.num_products; ++index) count += shape.products[index].degree == degree;
    return count;
}

// Calls run(element, number of its nodes, their places) for every element that there is among the nodes.
template <typename Run>
void for_each_element(const InteractionShape& shape, int64_t count, const int64_t* kinds, const Run& run) {
    int64_t places[INTERACTION_NODES];
    for (int64_t element = 0; element < shape.num_elements; ++element) {
        int64_t found = 0;
        for (int64_t node = 0; node < count; ++node)
            if (kinds[node] == element) places[found++] = node;
        if (found > 0) run(element, found, places);
    }
}

inline int64_t smaller(int64_t first, int64_t second) { return first < second ? first : second; }

// The size of a product's result, of a node.
inline int64_t size_of(const InteractionShape& shape, const DegreeProduct& product) { return (2 * product.degree + 1) * shape.channels; }

template <typename T>
void multiply_degrees(const InteractionShape& shape, const DegreeProduct& product, int64_t count, const T* mixed, T* result) {
    const int64_t channels = shape.channels, size = (2 * product.degree + 1) * channels;
    fill_zero(result, count * size);
    for (int64_t node = 0; node < count; ++node) {
        const T* const left = mixed + node * shape.row_hidden() + first_of(product.degree_first) * channels;
        const T* const right = mixed + node * shape.row_hidden() + first_of(product.degree_second) * channels;
        for (int64_t index = product.first_term; index < product.stop_term; ++index) {
            const ProductTerm& term = shape.terms[index];
            const T *const a = left + term.first * channels, *const b = right + term.second * channels;
            T* const into = result + node * size + term.out * channels;
            for (int64_t channel = 0; channel < channels; channel += LANES<T>)
                store(into + channel,
                      load(into + channel) + broadcast(T(term.coefficient)) * load(a + channel) * load(b + channel));
        }
    }
}

// before += the parts of the nodes' own features. `workspace`: a row of the features and one of `before` for each node.
template <typename T>
void add_own_parts(
    const InteractionShape& shape, const InteractionMatrices<T>& matrices, int64_t count, const int64_t* kinds, const T* features,
    T* before, T* workspace) {
    const int64_t row_in = shape.row_in(), row = shape.row_before();
    T* const own = workspace;  // of the nodes of one element
    T* const of_element = own + INTERACTION_NODES * row_in;
    for_each_element(shape, count, kinds, [&](int64_t element, int64_t found, const int64_t* places) {
        for (int64_t place = 0; place < found; ++place) copy_row(features + places[place] * row_in, row_in, own + place * row_in);
        fill_zero(of_element, found * row);
        const Part<T> part{shape, matrices, found};
        for (int64_t degree = 0; degree <= smaller(shape.degree_in, shape.degree_out); ++degree)
            part.add_to(degree, 1 + num_products_of(shape, degree) + element, own + first_of(degree) * shape.channels, row_in, of_element);
        for (int64_t place = 0; place < found; ++place) add_row(of_element + place * row, row, before + places[place] * row);
    });
}

}  // namespace
}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
