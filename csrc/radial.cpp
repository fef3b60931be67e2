// The hidden layers of all radial profiles of a convolution on the CPU: the operations radial and radial_backward of
// torch.ops.se3_fast_cpp. Edges are cut into chunks, and the chunks dealt out to the threads in order; the gradients of the
// parameters are kept per thread and added up in the threads' order.

#include "radial.h"

#include <cstring>
#include <vector>

#include "check.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

// The packed parameters of all groups.
template <typename T>
Scratch<T> pack(const RadialShape& shape, const Tensor& parameters) {
    const int64_t size = SE3_FAST_CALL(radial_packed_size<T>, shape);
    Scratch<T> packed(parameters.size(0) * size);
    for (int64_t group = 0; group < parameters.size(0); ++group)
        SE3_FAST_CALL(pack_radial<T>, shape, read<T>(parameters) + group * shape.size(), packed.data() + group * size);
    return packed;
}

// The shape of the profiles, and whether the operands have it.
RadialShape checked_shape(const Tensor& invariants, const Tensor& parameters, int64_t width, bool has_norm, double epsilon) {
    const ScalarType type = value_type("invariants", invariants);
    const int64_t num_edges = rows_of("invariants", invariants, 2), inputs = invariants.size(1);
    check_number("width", width, 1, MOST_WIDTH);
    check_number("invariants", inputs, 0, MOST_INVARIANTS);
    if (!(epsilon >= 0)) refuse("epsilon: expected a number from 0 on, got ", epsilon);
    const RadialShape shape{inputs, width, has_norm, epsilon};
    check_tensor("invariants", invariants, type, {num_edges, inputs});
    check_tensor("parameters", parameters, type, {rows_of("parameters", parameters, 2), shape.size()});
    return shape;
}

}  // namespace

namespace se3_fast {

Tensor radial(Tensor invariants, Tensor parameters, int64_t width, bool has_norm, double epsilon) {
    const RadialShape shape = checked_shape(invariants, parameters, width, has_norm, epsilon);
    const int64_t num_groups = parameters.size(0), num_edges = invariants.size(0);
    const Tensor hidden = empty(invariants, {num_groups, num_edges, width});
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Scratch<T> packed = pack<T>(shape, parameters);
        const int64_t packed_size = SE3_FAST_CALL(radial_packed_size<T>, shape);
        const int64_t workspace_size = SE3_FAST_CALL(radial_workspace_size<T>, shape);
        const Chunks chunks(num_edges, RADIAL_CHUNK);
        for_each_task(chunks.num_shares, [&](int64_t share) {
            const Scratch<T> workspace(workspace_size);
            chunks.for_each(share, [&](int64_t edge, int64_t count) {
                for (int64_t group = 0; group < num_groups; ++group)
                    SE3_FAST_CALL(radial_chunk<T>, shape, packed.data() + group * packed_size,
                                  read<T>(invariants) + edge * shape.inputs, count,
                                  write<T>(hidden) + (group * num_edges + edge) * width, workspace.data());
            });
        });
    };
    by_type(invariants, run);
    return hidden;
}

}  // namespace se3_fast

namespace {

// Gradients of the parameters, and of the invariants where they are wanted.
Tensors radial_backward(Tensor gradient, Tensor invariants, Tensor parameters, int64_t width, bool has_norm,
                                    double epsilon, bool with_invariants) {
    const RadialShape shape = checked_shape(invariants, parameters, width, has_norm, epsilon);
    const int64_t num_groups = parameters.size(0), num_edges = invariants.size(0);
    check_tensor("gradient", gradient, invariants.scalar_type(), {num_groups, num_edges, width});
    Tensors results{torch::stable::empty_like(parameters)};
    if (with_invariants) results.push_back(torch::stable::empty_like(invariants));
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Scratch<T> packed = pack<T>(shape, parameters);
        const int64_t packed_size = SE3_FAST_CALL(radial_packed_size<T>, shape);
        const int64_t gradient_size = SE3_FAST_CALL(radial_gradient_size<T>, shape);
        const int64_t workspace_size = SE3_FAST_CALL(radial_workspace_size<T>, shape);
        const Chunks chunks(num_edges, RADIAL_CHUNK);
        T* const into = with_invariants ? write<T>(results[1]) : nullptr;
        const int64_t share_size = num_groups * gradient_size;
        const Scratch<T> gradients(chunks.num_shares * share_size);
        for_each_task(chunks.num_shares, [&](int64_t share) {
            const Scratch<T> workspace(workspace_size);
            T* const of_share = gradients.data() + share * share_size;
            std::memset(of_share, 0, share_size * sizeof(T));
            chunks.for_each(share, [&](int64_t edge, int64_t count) {
                T* const into_chunk = with_invariants ? into + edge * shape.inputs : nullptr;
                if (with_invariants) std::memset(into_chunk, 0, count * shape.inputs * sizeof(T));
                for (int64_t group = 0; group < num_groups; ++group)
                    SE3_FAST_CALL(radial_chunk_backward<T>, shape, packed.data() + group * packed_size,
                                  read<T>(invariants) + edge * shape.inputs, count,
                                  read<T>(gradient) + (group * num_edges + edge) * width, of_share + group * gradient_size,
                                  into_chunk, workspace.data());
            });
        });
        for_each_task(num_groups, [&](int64_t group) {
            SE3_FAST_CALL(unpack_radial_gradient<T>, shape, gradients.data() + group * gradient_size, chunks.num_shares, share_size,
                          write<T>(results[0]) + group * shape.size());
        });
    };
    by_type(invariants, run);
    return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def("radial(Tensor invariants, Tensor parameters, int width, bool has_norm, float epsilon) -> Tensor");
    m.def(
        "radial_backward(Tensor gradient, Tensor invariants, Tensor parameters, int width, bool has_norm, float epsilon, "
        "bool with_invariants) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("radial", TORCH_BOX(&radial));
    m.impl("radial_backward", TORCH_BOX(&radial_backward));
}
