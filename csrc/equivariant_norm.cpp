// The norm-based nonlinearity on the CPU: the operations equivariant_norm and equivariant_norm_backward of torch.ops.se3_fast_cpp,
// with ReLU. All degrees in one call; one degree is a layer normalisation. Nodes are cut into chunks, and the chunks dealt out to
// the threads in order; the gradients of scale and shift are kept per thread and added up in the threads' order.

#include "equivariant_norm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

// features: [N][C][components] of each degree, in bfloat16 too, where the parameters are float32; scale, shift: [degrees * C].
void check_operands(const Tensors& features, const Tensor& scale, const Tensor& shift, double epsilon) {
    if (features.empty()) refuse("features: expected a tensor or more, got none");
    const ScalarType type = stored_type({"features", 0}, features[0]);
    const int64_t num_nodes = rows_of({"features", 0}, features[0], 3), channels = features[0].size(1);
    check_number("features", channels, 0, MOST_CHANNELS);
    for (std::size_t index = 0; index < features.size(); ++index) {
        rows_of({"features", index}, features[index], 3);
        check_number("features", features[index].size(2), 1, 2 * MOST_DEGREE + 1);
        check_tensor({"features", index}, features[index], type, {num_nodes, channels, features[index].size(2)});
    }
    check_tensor("scale", scale, computed_type(type), {int64_t(features.size()) * channels});
    check_tensor("shift", shift, computed_type(type), {int64_t(features.size()) * channels});
    if (!(epsilon >= 0)) refuse("epsilon: expected a number from 0 on, got ", epsilon);
}

// The degrees, with their parameters and a mask in padded rows.
template <typename T, typename S>
class Norm {
public:
    const int64_t channels, stride;
    std::vector<NormDegree<T, S>> degrees;
    int64_t workspace_size;

    Norm(const Tensors& features, const Tensor& scale, const Tensor& shift)
        : channels(features[0].size(1)),
          stride(SE3_FAST_CALL(norm_stride<T>, channels)),
          rows_((2 * features.size() + 1) * stride) {
        std::memset(rows_.data(), 0, (2 * features.size() + 1) * stride * sizeof(T));
        int64_t largest = 0;
        for (std::size_t index = 0; index < features.size(); ++index) {
            const T* of_degree = row(2 * index);
            std::copy_n(read<T>(scale) + index * channels, channels, row(2 * index));
            std::copy_n(read<T>(shift) + index * channels, channels, row(2 * index + 1));
            degrees.push_back({features[index].size(2), read<S>(features[index]), of_degree, of_degree + stride, nullptr, nullptr});
            largest = std::max(largest, degrees.back().size);
        }
        std::fill_n(row(2 * features.size()), channels, T(1));
        workspace_size = SE3_FAST_CALL(norm_workspace_size<T>, channels, largest);
    }

    NormChannels<T> of_channels(double epsilon) const { return {channels, epsilon, row(2 * degrees.size())}; }

private:
    T* row(std::size_t number) const { return rows_.data() + number * stride; }

    Scratch<T> rows_;
};

Tensors equivariant_norm(Tensors features, Tensor scale, Tensor shift, double epsilon) {
    check_operands(features, scale, shift, epsilon);
    Tensors results;
    for (const Tensor& feature : features) results.push_back(torch::stable::empty_like(feature));
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        Norm<T, S> norm(features, scale, shift);
        for (std::size_t index = 0; index < results.size(); ++index) norm.degrees[index].result = write<S>(results[index]);
        const NormChannels<T> channels = norm.of_channels(epsilon);
        const Chunks chunks(features[0].size(0), NORM_NODES);
        for_each_task(chunks.num_shares, [&](int64_t share) {
            const Scratch<T> workspace(norm.workspace_size);
            chunks.for_each(share, [&](int64_t first, int64_t count) {
                for (const NormDegree<T, S>& degree : norm.degrees)
                    SE3_FAST_CALL(normalise_nodes<T>, channels, degree, first, count, workspace.data());
            });
        });
    };
    by_stored_type(features[0], run);
    return results;
}

// Gradients of the features, then of scale and shift.
Tensors equivariant_norm_backward(Tensors gradients, Tensors features, Tensor scale, Tensor shift, double epsilon) {
    check_operands(features, scale, shift, epsilon);
    check_count("gradients", gradients.size(), features.size());
    const int64_t num_nodes = features[0].size(0), num_degrees = int64_t(features.size());
    Tensors results;
    for (std::size_t index = 0; index < features.size(); ++index) {
        const Tensor& feature = features[index];
        check_tensor({"gradients", index}, gradients[index], feature.scalar_type(), {num_nodes, feature.size(1), feature.size(2)});
        results.push_back(torch::stable::empty_like(feature));
    }
    for (const Tensor* parameter : {&scale, &shift}) {
        results.push_back(torch::stable::empty_like(*parameter));
        fill_zero(results.back());
    }
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        Norm<T, S> norm(features, scale, shift);
        for (std::size_t index = 0; index < features.size(); ++index) {
            norm.degrees[index].gradient = read<S>(gradients[index]);
            norm.degrees[index].result = write<S>(results[index]);
        }
        const NormChannels<T> channels = norm.of_channels(epsilon);
        const Chunks chunks(num_nodes, NORM_NODES);
        const int64_t share_size = 2 * num_degrees * norm.stride;
        const Scratch<T> sums(chunks.num_shares * share_size);
        for_each_task(chunks.num_shares, [&](int64_t share) {
            const Scratch<T> workspace(norm.workspace_size);
            T* const of_share = sums.data() + share * share_size;
            std::memset(of_share, 0, share_size * sizeof(T));
            chunks.for_each(share, [&](int64_t first, int64_t count) {
                for (int64_t index = 0; index < num_degrees; ++index) {
                    T* const of_degree = of_share + 2 * index * norm.stride;
                    SE3_FAST_CALL(normalise_nodes_backward<T>, channels, norm.degrees[index], first, count, of_degree,
                                  of_degree + norm.stride, workspace.data());
                }
            });
        });
        for (int64_t share = 0; share < chunks.num_shares; ++share)
            for (int64_t row = 0; row < 2 * num_degrees; ++row) {
                T* const into = write<T>(results[num_degrees + row % 2]) + row / 2 * norm.channels;
                const T* const from = sums.data() + share * share_size + row * norm.stride;
                for (int64_t channel = 0; channel < norm.channels; ++channel) into[channel] += from[channel];
            }
    };
    by_stored_type(features[0], run);
    return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def("equivariant_norm(Tensor[] features, Tensor scale, Tensor shift, float epsilon) -> Tensor[]");
    m.def(
        "equivariant_norm_backward(Tensor[] gradients, Tensor[] features, Tensor scale, Tensor shift, float epsilon) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("equivariant_norm", TORCH_BOX(&equivariant_norm));
    m.impl("equivariant_norm_backward", TORCH_BOX(&equivariant_norm_backward));
}
