// Weights in the layouts that convolutions by source read, kept from call to call while the parameters do not change. (Those by edge make
// theirs again, which takes less time than to read what was kept, aligned_weights.h.)
//
// What is kept is found by the contents that it was made from, by their fingerprint (fingerprint.h), and by nothing else: no address, no
// count of changes, no object. So it does not matter who changes a parameter and how, which models share one, or what stands at an
// address later. Every call reads the weights once for that.
//
// Weights are kept from the second call on that asks for them: a training step, after which they are others, keeps nothing. What
// MOST_IDLE look-ups have passed by is dropped. While there is no room nothing new is kept; so of a model larger than the budget a
// part is kept, instead of each layer driving out the next.

#pragma once

#include <cstdint>
#include <memory>

#include "fingerprint.h"
#include "tensor.h"
#include "workspace.h"

namespace se3_fast {

constexpr int64_t MOST_IDLE = 1024;

// What a look-up found: the weights, or null and whether they should be kept once they are made.
struct Found {
    std::shared_ptr<const void> weights;
    bool is_worth_keeping;
};

// How many bytes may be kept in all: what SE3_FAST_KEPT_WEIGHTS says in MiB, or 256 MiB.
int64_t kept_budget();

// Looks up weights of so many bytes by their fingerprint.
Found look_up(const Fingerprint& contents, int64_t bytes);

void keep(const Fingerprint& contents, const std::shared_ptr<const void>& weights, int64_t bytes);

// The layouts of a convolution's weights; what is made of the same weights differs by them.
enum class WeightLayout : int64_t { by_source, by_source_backward };

// The fingerprint of all that the weights of a convolution are made from.
Fingerprint fingerprint(WeightLayout layout, const Integers& description, const Tensor& coefficients, const Tensors& weights);

// An array of `size` elements that make(T*) fills, or one that it has filled from the same contents. Both are the same to the bit.
template <typename T, typename Contents, typename Make>
std::shared_ptr<const Scratch<T>> kept_or_made(int64_t size, const Contents& contents, const Make& make) {
    const auto made = [&]() {
        const auto result = std::make_shared<const Scratch<T>>(size);
        make(result->data());
        return result;
    };
    const int64_t bytes = size * int64_t(sizeof(T));
    if (bytes == 0 || bytes > kept_budget()) return made();
    const Fingerprint before = contents();
    const Found found = look_up(before, bytes);
    if (found.weights != nullptr) return std::static_pointer_cast<const Scratch<T>>(found.weights);
    const auto result = made();
    // Another thread may have written to the parameter in between; what was made then belongs to no contents.
    if (found.is_worth_keeping && contents() == before) keep(before, result, bytes);
    return result;
}

}  // namespace se3_fast
