// The hidden layers of the radial profile on the CPU: what the driver (radial.cpp) and the loops over vectors (radial_vector.cpp)
// share. Rows of K values are padded with zeros to whole cache lines.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t RADIAL_CHUNK = 48;  // edges that are treated together

struct RadialShape {
    int64_t inputs;  // e, the invariants of an edge
    int64_t width;   // K
    bool has_norm;
    double epsilon;

    // Parameters of a group as they are given: of each layer weight [K][inputs of the layer], bias, and with a norm scale, shift.
    int64_t layer_size(int64_t layer_inputs) const { return width * (layer_inputs + (has_norm ? 3 : 1)); }
    int64_t size() const { return layer_size(inputs) + layer_size(width); }
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of a group's packed parameters, of its packed gradients, and of the workspace of a chunk.
    template <typename T> int64_t radial_packed_size(const RadialShape& shape);
    template <typename T> int64_t radial_gradient_size(const RadialShape& shape);
    template <typename T> int64_t radial_workspace_size(const RadialShape& shape);

    // Packs a group's parameters.
    template <typename T> void pack_radial(const RadialShape& shape, const T* parameters, T* packed);

    // The gradient of a group's parameters from its packed ones, `count` of them, `stride` apart, which are summed.
    template <typename T> void unpack_radial_gradient(
        const RadialShape& shape, const T* gradients, int64_t count, int64_t stride, T* parameters);

    // h of a chunk of edges, [count][K], from their invariants, [count][e].
    template <typename T> void radial_chunk(
        const RadialShape& shape, const T* packed, const T* invariants, int64_t count, T* hidden, T* workspace);

    // Adds to the packed gradients, and to those of the invariants where they are not null.
    template <typename T> void radial_chunk_backward(
        const RadialShape& shape, const T* packed, const T* invariants, int64_t count, const T* hidden_gradient, T* gradients,
        T* invariant_gradient, T* workspace);
)
