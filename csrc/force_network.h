// A force field's network on the CPU: what the driver (force_network.cpp) and the loops over vectors (force_network_vector.cpp)
// share. Formula: se3_fast/layers/interaction.py.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t INTERACTION_NODES = 24;  // that are treated together

// product[out] += coefficient * first * second, components counted from the first one of their degrees.
struct ProductTerm {
    int64_t first, second, out;
    double coefficient;
};

// The part of `degree` of the product of two degrees; its terms first_term .. stop_term - 1.
struct DegreeProduct {
    int64_t degree, degree_first, degree_second, first_term, stop_term;
};

// A layer. Features of a node are rows of C channels, one for each component, degrees ascending.
struct InteractionShape {
    int64_t degree_in, degree_hidden, degree_out;
    int64_t channels, num_elements;
    int64_t num_products;
    const DegreeProduct* products;  // by degree
    const ProductTerm* terms;
    double scale;  // of what arrives

    static constexpr int64_t components(int64_t degree) { return (degree + 1) * (degree + 1); }
    int64_t row_in() const { return components(degree_in) * channels; }
    int64_t row_hidden() const { return components(degree_hidden) * channels; }
    int64_t row_out() const { return components(degree_out) * channels; }
    // What stands before the nonlinearities: y of all components, then a gate for each degree but 0.
    int64_t row_before() const { return row_out() + degree_out * channels; }
};

// Matrices of a layer, by degree. `out` and `gates` are as many squares [C][C] one below the other as their degree has parts: what
// arrived, its products, the features of each element's atoms. For the backward pass every square is transposed.
template <typename T>
struct InteractionMatrices {
    const T *const* after, *const* out, *const* gates;
};

// The perceptron that makes the energy of an atom: first [C][width], its transpose, and vectors.
template <typename T>
struct HeadMatrices {
    int64_t channels, width;  // C and width fill cache lines
    const T *first, *first_transposed, *bias, *last;
    T constant;
};

// Values that the passes forward and back leave of a layer's nodes; of_mixed: the gradient of a U.
template <typename T>
struct InteractionValues {
    const T *features, *arrived, *mixed, *before, *of_next, *of_mixed;
};

// Their derivatives along a direction (features: null for zero).
template <typename T>
struct InteractionDots {
    const T *features, *arrived, *mixed, *before, *of_next;
};

// Where the gradients of a layer's matrices are added, each as its matrix is.
template <typename T>
struct InteractionGradients {
    T *const *after, *const *out, *const *gates;
};

template <typename T>
struct HeadGradients {
    T *first, *bias, *last, *constant;  // first: [width][C]
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // [columns][rows] from [rows][columns], both multiples of a cache line's elements.
    template <typename T> void transpose_matrix(const T* from, int64_t rows, int64_t columns, T* into);

    // The components of each degree through the matrix [C][C] of that degree, times a scale; rows of `count` nodes.
    template <typename T> void map_components(
        int64_t count, int64_t max_degree, int64_t channels, const T* const* matrices, double scale, bool is_added, const T* from,
        T* into);

    template <typename T> int64_t interaction_workspace_size(const InteractionShape& shape);

    // What arrived at `count` nodes, and their features, become the features of the next layer. `mixed`, [.][row_hidden], and `before`,
    // [.][row_before], are kept for the backward pass.
    template <typename T> void interact(
        const InteractionShape& shape, const InteractionMatrices<T>& matrices, int64_t count, const int64_t* kinds, const T* features,
        const T* arrived, T* mixed, T* before, T* next, T* workspace);

    // The gradients of what arrived, and of the features where they go straight to the next layer (null: not wanted); `of_mixed`, which
    // leads to the first, is that of a U.
    template <typename T> void interact_backward(
        const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const int64_t* kinds, const T* of_next,
        const T* mixed, const T* before, T* of_features, T* of_mixed, T* of_arrived, T* workspace);

    // Energies of `count` nodes, and their gradients by the first C of `stride` channels of each; the others are set to zero.
    template <typename T> void read_out(
        const HeadMatrices<T>& head, int64_t count, int64_t stride, const T* features, T* energies, T* of_features, T* workspace);

    // Adds the gradients of the maps of map_components from those of their outputs.
    template <typename T> void add_map_gradients(
        int64_t count, int64_t max_degree, int64_t channels, const T* inputs, const T* of_outputs, T* const* gradients);

    template <typename T> int64_t interaction_along_workspace_size(const InteractionShape& shape);

    // The derivatives of what `interact` makes.
    template <typename T> void interact_along(
        const InteractionShape& shape, const InteractionMatrices<T>& matrices, int64_t count, const int64_t* kinds,
        const InteractionValues<T>& values, const T* features_dot, const T* arrived_dot, T* mixed_dot, T* before_dot, T* next_dot,
        T* workspace);

    // The derivatives of what `interact_backward` makes; those of the gradients of the matrices are added up.
    template <typename T> void interact_backward_along(
        const InteractionShape& shape, const InteractionMatrices<T>& transposed, int64_t count, const int64_t* kinds,
        const InteractionValues<T>& values, const InteractionDots<T>& dots, T* of_features_dot, T* of_arrived_dot,
        const InteractionGradients<T>& gradients, T* workspace);

    // The derivatives of the gradients that `read_out` finds, and of those of the perceptron, for energies whose gradients are 1 and
    // have the derivatives `of_energies`. `workspace`: four rows of units for each node.
    template <typename T> void read_out_along(
        const HeadMatrices<T>& head, int64_t count, int64_t stride, const T* features, const T* features_dot, const T* of_energies,
        T* of_features_dot, const HeadGradients<T>& gradients, T* workspace);
)
