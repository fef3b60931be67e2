// PyTorch's tensors as the operations take them: through the stable ABI (docs/building.md).

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bfloat16.h"

namespace se3_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

template <typename T>
const T* read(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Tensor empty(const Tensor& like, const Integers& sizes) {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

inline void fill_zero(const Tensor& tensor) {
    if (tensor.numel() > 0) std::memset(tensor.mutable_data_ptr(), 0, tensor.numel() * tensor.element_size());
}

// Calls run(0.0) for float64 tensors and run(0.0f) for float32 ones: the type of the argument is that of the values.
template <typename Run>
auto by_type(const Tensor& tensor, const Run& run) {
    return tensor.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
}

// Calls run(a value computed with, a value as it stands in the tensor): the two differ for bfloat16, which is computed with in
// float32.
template <typename Run>
auto by_stored_type(const Tensor& tensor, const Run& run) {
    if (tensor.scalar_type() == ScalarType::BFloat16) return run(0.0f, BFloat16());
    return by_type(tensor, [&](auto zero) { return run(zero, zero); });
}

// Sums of type T as they are to stand in memory, as type S, which is that of `like`.
template <typename T, typename S>
Tensors stored_sums(const Tensors& sums, const Tensor& like) {
    if constexpr (std::is_same_v<T, S>) return sums;
    Tensors result;
    for (const Tensor& sum : sums) {
        result.push_back(empty(like, {sum.size(0), sum.size(1), sum.size(2)}));
        std::copy_n(read<T>(sum), sum.numel(), write<S>(result.back()));
    }
    return result;
}

}  // namespace se3_fast
