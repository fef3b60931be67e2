// Linear maps of the channels of each degree on the CPU: the operations linear and linear_backward of torch.ops.se3_fast_cpp.
//
// All degrees in one call, and the parts of the input as they lie in memory. Nodes are cut into chunks, and the chunks dealt out to
// the threads in order; the gradients of the weights are kept per thread and added up in the threads' order.

#include "linear.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

// What is mapped of one degree.
struct Degree {
    int64_t number;                 // of the degree among all
    int64_t size;                   // 2d+1
    int64_t outputs, inputs;        // channels
    int64_t first_part, num_parts;  // of the inputs
};

// parts: [N][channels][2d+1], in bfloat16 too, where the weights are float32; counts: how many of them belong to each degree; weights: [outputs][inputs].
std::vector<Degree> checked_degrees(const Tensors& parts, const Integers& counts, const Tensors& weights) {
    if (weights.empty()) refuse("weights: expected a tensor or more, got none");
    check_count("counts", counts.size(), weights.size());
    if (parts.empty()) refuse("parts: expected a tensor or more, got none");
    const ScalarType type = stored_type({"parts", 0}, parts[0]);
    std::vector<Degree> degrees;
    int64_t next = 0;
    for (std::size_t index = 0; index < weights.size(); ++index) {
        check_number("counts", counts[index], 1, int64_t(parts.size()) - next);
        rows_of({"weights", index}, weights[index], 2);
        rows_of({"parts", std::size_t(next)}, parts[next], 3);
        Degree degree{int64_t(index), parts[next].size(2), weights[index].size(0), weights[index].size(1), next, counts[index]};
        check_number("parts", degree.size, 1, 2 * MOST_DEGREE + 1);
        check_number("weights", degree.outputs, 0, MOST_CHANNELS);
        check_number("weights", degree.inputs, 0, MOST_CHANNELS);
        check_tensor({"weights", index}, weights[index], computed_type(type), {degree.outputs, degree.inputs});
        int64_t channels = 0;
        for (; next < degree.first_part + degree.num_parts; ++next) {
            const Name name("parts", std::size_t(next));
            rows_of(name, parts[next], 3);
            check_number("parts", parts[next].size(1), 0, degree.inputs - channels);
            check_tensor(name, parts[next], type, {parts[0].size(0), parts[next].size(1), degree.size});
            channels += parts[next].size(1);
        }
        if (channels != degree.inputs)
            refuse("parts: expected ", degree.inputs, " channels in all for weights[", index, "], got ", channels);
        degrees.push_back(degree);
    }
    check_count("parts", parts.size(), std::size_t(next));
    return degrees;
}

// The features of all degrees on one side of the maps: of each, channels in one tensor or several.
template <typename S>
std::vector<LinearPart<const S>> read_parts(const Tensors& tensors) {
    std::vector<LinearPart<const S>> parts;
    for (const Tensor& tensor : tensors) parts.push_back({tensor.size(1), read<S>(tensor)});
    return parts;
}

template <typename S>
std::vector<LinearPart<S>> written_parts(const Tensors& tensors) {
    std::vector<LinearPart<S>> parts;
    for (const Tensor& tensor : tensors) parts.push_back({tensor.size(1), write<S>(tensor)});
    return parts;
}

template <typename S>
LinearSide<S> inputs_of(const Degree& degree, const std::vector<LinearPart<S>>& parts) {
    return {parts.data() + degree.first_part, degree.num_parts, degree.inputs};
}

template <typename S>
LinearSide<S> outputs_of(const Degree& degree, const std::vector<LinearPart<S>>& parts) {
    return {parts.data() + degree.number, 1, degree.outputs};
}

// The matrices of all degrees in a row, [rows][padded columns] each.
template <typename T>
struct Matrices {
    std::vector<int64_t> strides, places{0};

    Matrices(const std::vector<Degree>& degrees, int64_t Degree::*rows, int64_t Degree::*columns) {
        for (const Degree& degree : degrees) {
            strides.push_back(SE3_FAST_CALL(linear_stride<T>, degree.*columns));
            places.push_back(places.back() + degree.*rows * strides.back());
        }
    }

    int64_t size() const { return places.back(); }
};

// Elements of a thread's workspace.
template <typename T>
int64_t workspace_size(const std::vector<Degree>& degrees) {
    int64_t largest = 0;
    for (const Degree& degree : degrees)
        largest = std::max(largest, SE3_FAST_CALL(linear_workspace_size<T>, degree.size, degree.inputs, degree.outputs));
    return largest;
}

// Calls run(degree, first node, number of nodes, workspace) for all degrees and nodes of a share.
template <typename T, typename Run>
void for_each_chunk(const std::vector<Degree>& degrees, const Chunks& chunks, int64_t share, const Run& run) {
    const Scratch<T> workspace(workspace_size<T>(degrees));
    for (const Degree& degree : degrees)
        chunks.for_each(share, [&](int64_t first, int64_t count) { run(degree, first, count, workspace.data()); });
}

// The maps of all degrees, from the inputs into the outputs; or transposed, from what belongs to the outputs into what belongs to
// the inputs.
template <typename T, typename S>
void apply_maps(const std::vector<Degree>& degrees, const Tensors& weights, bool is_transposed, const Tensors& from,
                const Tensors& into) {
    const auto given = read_parts<S>(from);
    const auto results = written_parts<S>(into);
    const Matrices<T> layout(degrees, is_transposed ? &Degree::outputs : &Degree::inputs,
                             is_transposed ? &Degree::inputs : &Degree::outputs);
    const Scratch<T> matrices(layout.size());
    std::vector<LinearMap<T, S>> maps;
    for (const Degree& degree : degrees) {
        T* const matrix = matrices.data() + layout.places[degree.number];
        const T* const weight = read<T>(weights[degree.number]);
        if (is_transposed) {
            SE3_FAST_CALL(pack_transposed<T>, weight, degree.outputs, degree.inputs, matrix);
            maps.push_back({degree.size, matrix, outputs_of(degree, given), inputs_of(degree, results)});
        } else {
            SE3_FAST_CALL(pack_linear<T>, weight, degree.outputs, degree.inputs, matrix);
            maps.push_back({degree.size, matrix, inputs_of(degree, given), outputs_of(degree, results)});
        }
        // Both operands of a product have the type that it is asked for in: the weights are rounded to that of the features.
        if constexpr (!std::is_same_v<T, S>)
            std::transform(matrix, matrices.data() + layout.places[degree.number + 1], matrix, [](T value) { return T(S(value)); });
    }
    const Chunks chunks(from[0].size(0), LINEAR_NODES);
    for_each_task(chunks.num_shares, [&](int64_t share) {
        for_each_chunk<T>(degrees, chunks, share, [&](const Degree& degree, int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(map_nodes<T>, maps[degree.number], first, count, workspace);
        });
    });
}

// The gradients of the weights, from the gradients of the outputs and the inputs.
template <typename T, typename S>
void differentiate_weights(const std::vector<Degree>& degrees, const Tensors& gradients, const Tensors& parts,
                           const Tensors& results) {
    const auto of_outputs = read_parts<S>(gradients), inputs = read_parts<S>(parts);
    const Matrices<T> layout(degrees, &Degree::outputs, &Degree::inputs);
    const Chunks chunks(parts[0].size(0), LINEAR_NODES);
    const Scratch<T> sums(chunks.num_shares * layout.size());
    for_each_task(chunks.num_shares, [&](int64_t share) {
        T* const of_share = sums.data() + share * layout.size();
        std::memset(of_share, 0, layout.size() * sizeof(T));
        for_each_chunk<T>(degrees, chunks, share, [&](const Degree& degree, int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(add_weight_gradients<T>, degree.size, outputs_of(degree, of_outputs), inputs_of(degree, inputs), first,
                          count, of_share + layout.places[degree.number], workspace);
        });
    });
    for (const Degree& degree : degrees) {
        T* const into = write<T>(results[degree.number]);
        fill_zero(results[degree.number]);
        for (int64_t share = 0; share < chunks.num_shares; ++share)
            for (int64_t output = 0; output < degree.outputs; ++output) {
                const T* const from = sums.data() + share * layout.size() + layout.places[degree.number] +
                                      output * layout.strides[degree.number];
                for (int64_t input = 0; input < degree.inputs; ++input) into[output * degree.inputs + input] += from[input];
            }
    }
}

}  // namespace

namespace se3_fast {

Tensors linear(Tensors parts, Integers counts, Tensors weights) {
    const std::vector<Degree> degrees = checked_degrees(parts, counts, weights);
    Tensors results;
    for (const Degree& degree : degrees) results.push_back(empty(parts[0], {parts[0].size(0), degree.outputs, degree.size}));
    by_stored_type(parts[0], [&](auto computed, auto stored) {
        apply_maps<decltype(computed), decltype(stored)>(degrees, weights, false, parts, results);
    });
    return results;
}

}  // namespace se3_fast

namespace {

// Gradients of the parts, if they are wanted, then of the weights, if they are.
Tensors linear_backward(Tensors gradients, Tensors parts, Integers counts, Tensors weights, bool with_parts, bool with_weights) {
    const std::vector<Degree> degrees = checked_degrees(parts, counts, weights);
    check_count("gradients", gradients.size(), degrees.size());
    for (std::size_t index = 0; index < degrees.size(); ++index)
        check_tensor({"gradients", index}, gradients[index], parts[0].scalar_type(),
                     {parts[0].size(0), degrees[index].outputs, degrees[index].size});
    Tensors of_parts, of_weights;
    if (with_parts)
        for (const Tensor& part : parts) of_parts.push_back(torch::stable::empty_like(part));
    if (with_weights)
        for (const Tensor& weight : weights) of_weights.push_back(torch::stable::empty_like(weight));
    by_stored_type(parts[0], [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        if (with_parts) apply_maps<T, S>(degrees, weights, true, gradients, of_parts);
        if (with_weights) differentiate_weights<T, S>(degrees, gradients, parts, of_weights);
    });
    of_parts.insert(of_parts.end(), of_weights.begin(), of_weights.end());
    return of_parts;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def("linear(Tensor[] parts, int[] counts, Tensor[] weights) -> Tensor[]");
    m.def(
        "linear_backward(Tensor[] gradients, Tensor[] parts, int[] counts, Tensor[] weights, bool with_parts, bool with_weights) "
        "-> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("linear", TORCH_BOX(&linear));
    m.impl("linear_backward", TORCH_BOX(&linear_backward));
}
