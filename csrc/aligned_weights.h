// The last radial weights of a convolution by edge, as one of its contractions reads them (tfn_conv.h), and their gradients.
//
// They are made for one pair of degrees when its turn has come, in the place of the pair's before: so they stay in the caches until all
// edges of a wave have been contracted with them. Made for all pairs at once they would go to memory and come back with every block of
// edges; that takes longer than to make them anew, even where an earlier call has left them and only their contents must be compared.

#pragma once

#include <vector>

#include "tensor.h"
#include "tfn_conv.h"
#include "tfn_conv_plan.h"
#include "workspace.h"

namespace se3_fast {

constexpr int64_t MOST_PAIR_PATHS = 2 * MOST_DEGREE + 1;

// The weights as they were handed over, and what they belong to.
struct RadialWeights {
    const Description& plan;
    const Tensor& coefficients;
    const Tensors& tensors;
    const int64_t lanes;

    AlignedPart aligned_part(const PairTile& part, bool is_backward) const {
        const double* alignment = read<double>(coefficients) + part.pair.alignment;
        return {part.pair, alignment, plan.width_hidden, is_backward, part.first_channel, part.vectors};
    }

    // Where the slices of each aligned weight of a pair begin.
    template <typename T>
    std::vector<T*> starts(const PairTile& part, T* of_pair) const {
        std::vector<T*> result;
        for (int64_t weight = 0; weight < part.pair.paths(); ++weight) result.push_back(of_pair + part.start(weight, lanes));
        return result;
    }
};

template <typename T>
class AlignedWeights {
public:
    AlignedWeights(const RadialWeights& given, const Contraction& contraction, bool is_backward)
        : given_(given), contraction_(contraction), is_backward_(is_backward) {}

    // Memory for those of any pair of degrees.
    Scratch<T> memory() const { return Scratch<T>(contraction_.most_weights_of_a_pair()); }

    // Writes those of a pair there.
    void make(int64_t pair, T* of_pair) const {
        const DegreePair& degrees = given_.plan.pairs[pair];
        const int64_t channels = is_backward_ ? degrees.channels_out : degrees.channels_in;
        const Scratch<T> squares(MOST_PAIR_PATHS * given_.lanes * given_.lanes);
        for (const PairTile& part : contraction_.pair_tiles(given_.plan, pair)) {
            const auto slices = given_.starts(part, of_pair);
            for (int64_t channel = 0; channel < channels; ++channel)
                SE3_FAST_CALL(align_weights<T>, given_.aligned_part(part, is_backward_), read<T>(given_.tensors[degrees.group]),
                              channel, slices.data(), squares.data());
        }
    }

private:
    const RadialWeights& given_;
    const Contraction& contraction_;
    const bool is_backward_;
};

// The gradient of the weights of a pair in their own layout, from that of the contraction forward.
template <typename T>
void write_weight_gradient(
    const RadialWeights& given, const Contraction& contraction, int64_t pair, T* of_pair, const Tensors& results) {
    const DegreePair& degrees = given.plan.pairs[pair];
    const Scratch<T> squares(MOST_PAIR_PATHS * given.lanes * given.lanes);
    for (const PairTile& part : contraction.pair_tiles(given.plan, pair)) {
        const int64_t width = part.vectors * given.lanes, slice_size = given.plan.width_hidden * 2 * width;
        for (int64_t channel = 0; channel < degrees.channels_in; ++channel) {
            std::vector<T*> slices = given.starts(part, of_pair);
            for (T*& slice : slices)
                slice += &slice > slices.data() ? channel * slice_size : channel / 2 * slice_size + channel % 2 * width;
            SE3_FAST_CALL(align_weights_backward<T>, given.aligned_part(part, false), slices.data(), channel,
                          write<T>(results[degrees.group]), squares.data());
        }
    }
    SE3_FAST_CALL(finish_weight_gradient);
}

}  // namespace se3_fast
