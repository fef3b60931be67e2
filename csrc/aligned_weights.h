// The last radial weights of a convolution by edge, as one of its contractions reads them (tfn_conv.h), and their gradients.
//
// They are made for one pair of degrees when its turn has come, in the place of the pair's before: so they stay in the caches until all
// edges of a wave have been contracted with them. Made for all pairs at once they would go to memory and come back with every block of
// edges; that takes longer than to make them anew, even where an earlier call has left them and only their contents must be compared.

#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "tensor.h"
#include "tfn_conv.h"
#include "tfn_conv_plan.h"
#include "workspace.h"

namespace se3_fast {

constexpr int64_t CHANNELS_PER_TASK = 8;
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
        : given_(given), contraction_(contraction), is_backward_(is_backward), memory_(contraction.most_weights_of_a_pair()) {}

    // Those of a pair of degrees, there until another pair's are made.
    const T* make(int64_t pair) const {
        struct Task {
            const PairTile* part;
            int64_t first, last;  // channels of the other side
        };
        std::vector<Task> tasks;
        const auto parts = contraction_.pair_tiles(given_.plan, pair);
        const DegreePair& degrees = given_.plan.pairs[pair];
        const int64_t channels = is_backward_ ? degrees.channels_out : degrees.channels_in;
        for (const PairTile& part : parts)
            for (int64_t first = 0; first < channels; first += CHANNELS_PER_TASK)
                tasks.push_back({&part, first, std::min(first + CHANNELS_PER_TASK, channels)});
        for_each_task(int64_t(tasks.size()), [&](int64_t index) {
            const Task& task = tasks[index];
            const auto slices = given_.starts(*task.part, memory_.data());
            const Scratch<T> squares(MOST_PAIR_PATHS * given_.lanes * given_.lanes);
            for (int64_t channel = task.first; channel < task.last; ++channel)
                SE3_FAST_CALL(align_weights<T>, given_.aligned_part(*task.part, is_backward_), read<T>(given_.tensors[degrees.group]),
                              channel, slices.data(), squares.data());
        });
        return memory_;
    }

private:
    const RadialWeights& given_;
    const Contraction& contraction_;
    const bool is_backward_;
    const Scratch<T> memory_;
};

// The gradient of the weights of a pair in their own layout, from that of the contraction forward.
template <typename T>
void write_weight_gradient(
    const RadialWeights& given, const Contraction& contraction, int64_t pair, T* of_pair, const Tensors& results) {
    const auto parts = contraction.pair_tiles(given.plan, pair);
    const DegreePair& degrees = given.plan.pairs[pair];
    for_each_task(int64_t(parts.size()) * degrees.channels_in, [&](int64_t index) {
        const PairTile& part = parts[index / degrees.channels_in];
        const int64_t channel = index % degrees.channels_in;
        const int64_t width = part.vectors * given.lanes, slice_size = given.plan.width_hidden * 2 * width;
        const Scratch<T> squares(MOST_PAIR_PATHS * given.lanes * given.lanes);
        std::vector<T*> slices = given.starts(part, of_pair);
        for (T*& slice : slices)
            slice += &slice > slices.data() ? channel * slice_size : channel / 2 * slice_size + channel % 2 * width;
        SE3_FAST_CALL(align_weights_backward<T>, given.aligned_part(part, false), slices.data(), channel,
                      write<T>(results[degrees.group]), squares.data());
        SE3_FAST_CALL(finish_weight_gradient);
    });
}

}  // namespace se3_fast
