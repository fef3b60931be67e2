// TFN convolution on the CPU, by edge: the operations tfn_conv and tfn_conv_backward of torch.ops.se3_fast_cpp.
//
// Edges are taken in the order of the nodes that their results are summed at (forward: destinations, backward: sources), block by
// block (tfn_conv.h): gather and rotate into the edges' frames, contract, rotate back. Blocks are shared among threads; then nodes
// are, for the sums, and slices of the weights, for their gradient. Every sum is one thread's and has a fixed order. Many edges are
// treated in waves, so that what is held per edge in between (messages; for the gradient of the weights x~ and g~) stays small.

#include "tfn_conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "check.h"
#include "kept_weights.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "tfn_conv_plan.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

constexpr int64_t WAVE_BYTES = int64_t(16) << 20;
constexpr int64_t NODES_PER_TASK = 16;
constexpr int64_t SLICES_PER_TASK = 8;
constexpr int64_t CHANNELS_PER_TASK = 8;
constexpr int64_t MOST_PAIR_PATHS = 2 * MOST_DEGREE + 1;

// What both directions share. Features, h and their gradients stand in memory as type S, which is computed with as type T.
template <typename T, typename S>
struct Convolution {
    const Integers& description;
    const Description plan;
    const int64_t lanes, padded;
    const Side inputs, outputs;
    const Tensor& coefficient_tensor;
    const double* coefficients;
    const T* wigner;
    const int64_t* src;
    const Tensors& nodes;
    const Tensors& edges;
    const Tensors& hidden;
    const Tensors& weights;
    const Tensor& wigner_tensor;
    const int64_t num_nodes, num_edges, wigner_size;

    Convolution(const Integers& description, const Tensor& coefficients, const Tensors& nodes,
                const Tensors& edges, const Tensors& hidden, const Tensors& weights,
                const Tensor& wigner, const Tensor& src)
        : description(description),
          plan(description),
          lanes(SE3_FAST_CALL(lanes<T>)),
          padded(SE3_FAST_CALL(padded_width<T>, plan.width_hidden)),
          inputs(plan.input_channels(), lanes, SE3_FAST_CALL(largest_tile)),
          outputs(plan.outputs, lanes, SE3_FAST_CALL(largest_tile)),
          coefficient_tensor(coefficients),
          coefficients(read<double>(coefficients)),
          wigner(read<T>(wigner)),
          src(read<int64_t>(src)),
          nodes(nodes),
          edges(edges),
          hidden(hidden),
          weights(weights),
          wigner_tensor(wigner),
          num_nodes(nodes[0].size(0)),
          num_edges(src.size(0)),
          wigner_size(wigner.size(1)) {}

    const T* frame(int64_t edge) const { return wigner + edge * wigner_size; }

    // The weights as a contraction reads them, kept from an earlier call where they were the same.
    std::shared_ptr<const Scratch<T>> aligned_weights(const Contraction& contraction, bool is_backward) const {
        const auto contents = [&]() {
            const auto layout = is_backward ? WeightLayout::by_edge_backward : WeightLayout::by_edge;
            return fingerprint(layout, description, coefficient_tensor, weights);
        };
        return kept_or_made<T>(contraction.num_weights, contents, [&](T* result) { align(contraction, is_backward, result); });
    }

    // Pairs of a group stand side by side in its weights. So they are taken together, channel by channel of the other side: the
    // memory is read nearly in its order.
    void align(const Contraction& contraction, bool is_backward, T* result) const {
        struct Task {
            std::vector<const PairTile*> parts;
            int64_t first, last;  // channels of the other side
        };
        std::vector<Task> tasks;
        const auto parts = contraction.pair_tiles(plan);
        for (const std::vector<const PairTile*>& together : of_one_group(parts)) {
            const DegreePair& pair = *together[0]->pair;
            const int64_t channels = is_backward ? pair.channels_out : pair.channels_in;
            for (int64_t first = 0; first < channels; first += CHANNELS_PER_TASK)
                tasks.push_back({together, first, std::min(first + CHANNELS_PER_TASK, channels)});
        }
        for_each_task(int64_t(tasks.size()), [&](int64_t index) {
            const Task& task = tasks[index];
            std::vector<std::vector<T*>> slices;
            for (const PairTile* part : task.parts) slices.push_back(starts(*part, result));
            const Scratch<T> squares(MOST_PAIR_PATHS * lanes * lanes);
            for (int64_t other = task.first; other < task.last; ++other)
                for (std::size_t place = 0; place < task.parts.size(); ++place) {
                    const PairTile& part = *task.parts[place];
                    SE3_FAST_CALL(align_weights<T>, aligned_part(part, is_backward), read<T>(weights[part.pair->group]), other,
                                  slices[place].data(), squares.data());
                }
            SE3_FAST_CALL(finish_aligned_weights);
        });
    }

    // Where the slices of each aligned weight of a pair begin.
    std::vector<T*> starts(const PairTile& part, T* all_slices) const {
        std::vector<T*> result;
        for (int64_t weight = 0; weight < part.pair->paths(); ++weight) result.push_back(all_slices + part.start(weight, lanes));
        return result;
    }

    AlignedPart aligned_part(const PairTile& part, bool is_backward) const {
        return {*part.pair, coefficients + part.pair->alignment, plan.width_hidden, is_backward, part.first_channel, part.vectors};
    }

    // Features of nodes, [N][C][2d+1] by degree, component-major: [N][side.components].
    Scratch<T> node_table(const Tensors& features, const Side& side) const {
        Scratch<T> table(num_nodes * side.components);
        for_each_task((num_nodes + NODES_PER_TASK - 1) / NODES_PER_TASK, [&](int64_t task) {
            const int64_t stop = std::min(num_nodes, (task + 1) * NODES_PER_TASK);
            for (int64_t node = task * NODES_PER_TASK; node < stop; ++node)
                for (std::size_t index = 0; index < side.degrees.size(); ++index)
                    read_components(features[index], node, side.degrees[index], 0, table + node * side.components);
        });
        return table;
    }

    void read_components(const Tensor& features, int64_t row, const DegreeLayout& layout, int64_t first_channel, T* into) const {
        const int64_t channels = features.size(1), size = channels * (2 * layout.degree + 1);
        SE3_FAST_CALL(to_components<T>, read<S>(features) + row * size, channels, first_channel, layout.degree, layout.vectors,
                      into + layout.component_start);
    }

    template <typename Stored>
    void write_components(const T* from, const DegreeLayout& layout, int64_t first_channel, bool is_added, const Tensor& features,
                          int64_t row) const {
        const int64_t channels = features.size(1), size = channels * (2 * layout.degree + 1);
        SE3_FAST_CALL(from_components<T>, from + layout.component_start, channels, first_channel, layout.degree, layout.vectors,
                      is_added, write<Stored>(features) + row * size);
    }

    // x~ of an edge, from its source's features and its own.
    void align_input(const T* table, int64_t edge, int64_t place, T* scratch, T* rows, T* tiles) const {
        const T* components = table + src[edge] * inputs.components;
        if (!edges.empty()) {
            std::memcpy(scratch, components, inputs.components * sizeof(T));
            components = scratch;
            for_edge_features([&](int64_t index, const DegreeLayout& layout, int64_t first_channel) {
                read_components(edges[index], edge, layout, first_channel, scratch);
            });
        }
        for (const DegreeLayout& layout : inputs.degrees)
            SE3_FAST_CALL(align_edge<T>, layout, frame(edge), components, place, rows, tiles);
    }

    template <typename Visit>
    void for_edge_features(const Visit& visit) const {
        for (std::size_t index = 0; index < edges.size(); ++index) {
            const int64_t place = Description::index_of(plan.nodes, plan.edges[index].first);
            visit(int64_t(index), inputs.degrees[place], plan.nodes[place].second);
        }
    }

    // h of a block's edges, [group][padded][BLOCK_STRIDE]; and by edge, [group][edge step][padded], if wanted.
    void read_hidden(const int64_t* block_edges, int64_t count, T* by_step, T* by_edge, int64_t group_step) const {
        for (int64_t group = 0; group < plan.num_groups; ++group) {
            const S* from = read<S>(hidden[group]);
            for (int64_t place = 0; place < count; ++place) {
                const S* row = from + block_edges[place] * plan.width_hidden;
                T* steps = by_step + group * padded * BLOCK_STRIDE + place;
                for (int64_t k = 0; k < padded; ++k) steps[k * BLOCK_STRIDE] = k < plan.width_hidden ? T(row[k]) : T(0);
                if (by_edge == nullptr) continue;
                T* copy = by_edge + group * group_step + place * padded;
                for (int64_t k = 0; k < padded; ++k) copy[k] = k < plan.width_hidden ? T(row[k]) : T(0);
            }
        }
    }
};

// Consecutive edges of an order (null: that of their numbers), cut into blocks.
struct Wave {
    int64_t first, last, block_edges;

    int64_t count() const { return last - first; }
    int64_t num_blocks() const { return (count() + block_edges - 1) / block_edges; }
    int64_t block_first(int64_t block) const { return first + block * block_edges; }
    int64_t block_count(int64_t block) const { return std::min(block_edges, last - block_first(block)); }
};

// The size of blocks for which the busiest thread has least to do; two edges' time goes by for every block's start.
int64_t best_block(int64_t num_edges) {
    const int64_t num_threads = torch::stable::get_num_threads();
    const auto time = [&](int64_t size) {
        const int64_t blocks = (num_edges + size - 1) / size;
        return (blocks + num_threads - 1) / num_threads * (size + 2);
    };
    int64_t best = BLOCK_EDGES;
    for (int64_t size = BLOCK_EDGES - 6; size >= 12; size -= 6)
        if (time(size) < time(best)) best = size;
    return best;
}

std::vector<Wave> waves(int64_t num_edges, int64_t bytes_per_edge) {
    const int64_t most = std::max(WAVE_BYTES / std::max(bytes_per_edge, int64_t(1)) / BLOCK_EDGES, int64_t(1)) * BLOCK_EDGES;
    std::vector<Wave> result;
    for (int64_t first = 0; first < num_edges; first += most) {
        const int64_t last = std::min(first + most, num_edges);
        result.push_back({first, last, best_block(last - first)});
    }
    return result;
}

// The numbers of a block's edges.
void read_order(const int64_t* order, int64_t first, int64_t count, int64_t* edges) {
    for (int64_t place = 0; place < count; ++place) edges[place] = order != nullptr ? order[first + place] : first + place;
}

// Adds the rows of a wave's edges, component-major, to the features of the nodes that they are ordered by.
template <typename T, typename S>
void add_to_nodes(const Convolution<T, S>& problem, const Side& side, const Wave& wave, const int64_t* order, const int64_t* offsets,
                  const int64_t* node_of_edge, const T* rows, const Tensors& features) {
    const int64_t first_node = node_of_edge[order[wave.first]], num_nodes = node_of_edge[order[wave.last - 1]] + 1 - first_node;
    for_each_task((num_nodes + NODES_PER_TASK - 1) / NODES_PER_TASK, [&](int64_t task) {
        const Scratch<T> total(side.components);
        const int64_t stop = first_node + std::min(num_nodes, (task + 1) * NODES_PER_TASK);
        for (int64_t node = first_node + task * NODES_PER_TASK; node < stop; ++node) {
            const int64_t first = std::max(offsets[node], wave.first), last = std::min(offsets[node + 1], wave.last);
            if (first >= last) continue;
            SE3_FAST_CALL(sum_rows<T>, rows + (first - wave.first) * side.components, last - first, side.components, total.data());
            for (std::size_t index = 0; index < side.degrees.size(); ++index)
                problem.template write_components<T>(total, side.degrees[index], 0, true, features[index], node);
        }
    });
}

Tensors features_of(const Tensor& like, int64_t count, const std::vector<std::pair<int64_t, int64_t>>& channels, bool is_zero) {
    Tensors result;
    for (const auto& [degree, size] : channels) {
        result.push_back(empty(like, {count, size, 2 * degree + 1}));
        if (is_zero) fill_zero(result.back());
    }
    return result;
}

template <typename T>
Scratch<T> zeroed(int64_t size) {
    Scratch<T> memory(size);
    std::memset(memory.data(), 0, size * sizeof(T));
    return memory;
}

template <typename T, typename S>
Tensors forward(const Convolution<T, S>& problem, const Tensor& in_order, const Tensor& in_offsets, const Tensor& dst, bool pool) {
    const Side& outputs = problem.outputs;
    const Contraction contraction(problem.plan, problem.inputs, outputs, false, problem.lanes);
    const auto results = pool ? features_of(problem.wigner_tensor, problem.num_nodes, problem.plan.outputs, true)
                              : features_of(problem.nodes[0], problem.num_edges, problem.plan.outputs, false);
    const auto weights = problem.aligned_weights(contraction, false);
    const Scratch<T> table = problem.node_table(problem.nodes, problem.inputs);
    const int64_t* order = pool ? read<int64_t>(in_order) : nullptr;
    for (const Wave& wave : waves(problem.num_edges, outputs.components * sizeof(T))) {
        const Scratch<T> messages(pool ? wave.count() * outputs.components : 0);
        share_tasks(wave.num_blocks(), [&](const auto& next) {
            const auto rows = zeroed<T>(problem.inputs.rows * BLOCK_STRIDE), tiles = zeroed<T>(outputs.tile_elements);
            const auto hidden = zeroed<T>(problem.plan.num_groups * problem.padded * BLOCK_STRIDE);
            const Scratch<T> scratch(problem.inputs.components), message(outputs.components);
            int64_t edges[BLOCK_EDGES];
            for (int64_t block = next(); block >= 0; block = next()) {
                const int64_t first = wave.block_first(block), count = wave.block_count(block);
                read_order(order, first, count, edges);
                problem.read_hidden(edges, count, hidden, nullptr, 0);
                for (int64_t place = 0; place < count; ++place)
                    problem.align_input(table, edges[place], place, scratch, rows, nullptr);
                SE3_FAST_CALL(contract_block<T>, contraction.tiles.data(), int64_t(contraction.tiles.size()),
                              contraction.terms.data(), weights->data(), rows.data(), hidden.data(), problem.padded, count,
                              tiles.data());
                for (int64_t place = 0; place < count; ++place) {
                    T* into = pool ? messages + (first - wave.first + place) * outputs.components : message;
                    for (std::size_t index = 0; index < outputs.degrees.size(); ++index) {
                        const DegreeLayout& layout = outputs.degrees[index];
                        SE3_FAST_CALL(rotate_edge<T>, layout, problem.frame(edges[place]), tiles.data(), place, into);
                        if (!pool) problem.template write_components<S>(into, layout, 0, false, results[index], edges[place]);
                    }
                }
            }
        });
        if (pool) add_to_nodes(problem, outputs, wave, order, read<int64_t>(in_offsets), read<int64_t>(dst), messages.data(), results);
    }
    return pool ? stored_sums<T, S>(results, problem.nodes[0]) : results;
}

// The part of the backward pass that walks over edges, and its results.
template <typename T, typename S>
struct Backward {
    const Convolution<T, S>& problem;
    const Tensors& grads;
    const int64_t* dst;     // null: there is a gradient for each edge, not for each node
    const Tensor* rel_pos;  // null: its gradient is not wanted
    const bool with_weights;

    const Side& inputs = problem.inputs;
    const Side& outputs = problem.outputs;

    const Contraction forward_terms{problem.plan, inputs, outputs, false, problem.lanes};
    const Contraction backward_terms{problem.plan, inputs, outputs, true, problem.lanes};
    const std::shared_ptr<const Scratch<T>> backward_weights = problem.aligned_weights(backward_terms, true);
    const std::shared_ptr<const Scratch<T>> forward_weights =
        rel_pos != nullptr ? problem.aligned_weights(forward_terms, false) : nullptr;
    const Scratch<T> table = problem.node_table(problem.nodes, inputs);
    const Scratch<T> grad_table = dst != nullptr ? problem.node_table(grads, outputs) : Scratch<T>(0);
    const Scratch<T> weight_gradients{std::size_t(with_weights ? forward_terms.num_weights : 0)};
    const std::vector<GeneratorEntry> input_generators = generators(problem.plan.nodes);
    const std::vector<GeneratorEntry> output_generators = generators(problem.plan.outputs);

    Tensors node_gradients = features_of(problem.wigner_tensor, problem.num_nodes, problem.plan.nodes, true);  // sums as yet
    Tensors edge_gradients = features_of(problem.nodes[0], problem.num_edges, problem.plan.edges, false);
    Tensors hidden_gradients = empty_hidden();
    Tensor position_gradient = rel_pos != nullptr ? empty(*rel_pos, {problem.num_edges, 3}) : Tensor();

    // What a wave leaves for the gradient of the weights and the sums at nodes.
    struct Held {
        Scratch<T> rows, gradient_tiles, hidden, messages;
    };

    // What a thread needs for a block.
    struct Local {
        Scratch<T> tiles, gradient_rows, gradient_sums, slice_weights, gradient, outputs, hidden, hidden_gradient, partial, scratch, components;
    };

    Tensors empty_hidden() const {
        Tensors result;
        for (const Tensor& hidden : problem.hidden) result.push_back(empty(hidden, {problem.num_edges, problem.plan.width_hidden}));
        return result;
    }

    std::vector<GeneratorEntry> generators(const std::vector<std::pair<int64_t, int64_t>>& degrees) const {
        std::vector<GeneratorEntry> result;
        const double* coefficient = problem.coefficients + problem.plan.first_generator;
        for (const auto& [degree, row, column, axis] : problem.plan.generators) {
            const int64_t index = Description::index_of(degrees, degree);
            if (index < int64_t(degrees.size())) result.push_back({index, row, column, axis, *coefficient});
            ++coefficient;
        }
        return result;
    }

    int64_t row_elements() const { return inputs.rows * BLOCK_STRIDE; }
    int64_t hidden_elements() const { return problem.plan.num_groups * problem.padded * BLOCK_STRIDE; }

    void run(const int64_t* order, const int64_t* offsets) {
        const int64_t held = (inputs.rows + problem.plan.num_groups * problem.padded) * 2 + outputs.components + inputs.components;
        bool is_first = true;
        for (const Wave& wave : waves(problem.num_edges, held * sizeof(T))) {
            const int64_t blocks = wave.num_blocks();
            const Held kept{Scratch<T>(blocks * row_elements()), Scratch<T>(blocks * outputs.tile_elements),
                            Scratch<T>(blocks * hidden_elements()), Scratch<T>(wave.count() * inputs.components)};
            share_tasks(blocks, [&](const auto& next) {
                const Local local = make_local();
                for (int64_t block = next(); block >= 0; block = next()) run_block(wave, block, order, kept, local);
            });
            add_to_nodes(problem, inputs, wave, order, offsets, problem.src, kept.messages.data(), node_gradients);
            if (with_weights) add_weight_gradients(wave, kept, is_first);
            is_first = false;
        }
        node_gradients = stored_sums<T, S>(node_gradients, problem.nodes[0]);
    }

    int64_t most_steps() const {
        int64_t result = 0;
        for (const Term& term : backward_terms.terms) result = std::max(result, term.steps);
        return result;
    }

    Local make_local() const {
        return {zeroed<T>(inputs.tile_elements),
                zeroed<T>(outputs.rows * BLOCK_STRIDE),
                Scratch<T>(outputs.rows * BLOCK_STRIDE),
                Scratch<T>(most_steps() * 3 * SE3_FAST_CALL(largest_tile) * problem.lanes),
                zeroed<T>(inputs.tile_elements),
                zeroed<T>(rel_pos != nullptr ? outputs.tile_elements : 0),
                zeroed<T>(hidden_elements()),
                zeroed<T>(hidden_elements()),
                Scratch<T>(problem.padded * BLOCK_STRIDE * problem.lanes),
                Scratch<T>(std::max(inputs.components, outputs.components)),
                Scratch<T>(inputs.components)};
    }

    void run_block(const Wave& wave, int64_t block, const int64_t* order, const Held& kept, const Local& local) {
        const int64_t first = wave.block_first(block), count = wave.block_count(block);
        T* rows = kept.rows + block * row_elements();
        T* gradient_tiles = kept.gradient_tiles + block * outputs.tile_elements;
        int64_t edges[BLOCK_EDGES];
        read_order(order, first, count, edges);
        problem.read_hidden(edges, count, local.hidden, kept.hidden + block * hidden_elements(), problem.padded * BLOCK_STRIDE);
        if (rel_pos != nullptr) std::memset(rows, 0, row_elements() * sizeof(T));
        for (int64_t place = 0; place < count; ++place) {
            problem.align_input(table, edges[place], place, local.scratch, rows, local.tiles);
            align_gradient(edges[place], place, local, gradient_tiles);
        }
        std::memset(local.hidden_gradient, 0, hidden_elements() * sizeof(T));
        const BlockGradient<T> operands{local.tiles, local.gradient_rows, local.gradient_sums, local.slice_weights, local.hidden,
                                        local.gradient, local.partial, local.hidden_gradient};
        SE3_FAST_CALL(contract_block_backward<T>, backward_terms.tiles.data(), int64_t(backward_terms.tiles.size()),
                      backward_terms.terms.data(), backward_weights->data(), outputs.degrees.data(), int64_t(outputs.degrees.size()),
                      problem.padded, count, operands);
        if (rel_pos != nullptr)
            SE3_FAST_CALL(contract_block<T>, forward_terms.tiles.data(), int64_t(forward_terms.tiles.size()),
                          forward_terms.terms.data(), forward_weights->data(), rows, local.hidden.data(), problem.padded, count,
                          local.outputs.data());
        for (int64_t place = 0; place < count; ++place) {
            write_hidden_gradient(edges[place], place, local);
            write_feature_gradient(edges[place], place, local, kept.messages + (first - wave.first + place) * inputs.components);
            if (rel_pos != nullptr) write_position_gradient(edges[place], place, local, gradient_tiles);
        }
    }

    void align_gradient(int64_t edge, int64_t place, const Local& local, T* gradient_tiles) const {
        const T* components = local.scratch;
        if (dst != nullptr)
            components = grad_table + dst[edge] * outputs.components;
        else
            for (std::size_t index = 0; index < outputs.degrees.size(); ++index)
                problem.read_components(grads[index], edge, outputs.degrees[index], 0, local.scratch);
        for (const DegreeLayout& layout : outputs.degrees)
            SE3_FAST_CALL(align_edge<T>, layout, problem.frame(edge), components, place, local.gradient_rows.data(),
                          gradient_tiles);
    }

    void write_hidden_gradient(int64_t edge, int64_t place, const Local& local) const {
        const int64_t width = problem.plan.width_hidden;
        for (int64_t group = 0; group < problem.plan.num_groups; ++group) {
            const T* from = local.hidden_gradient + (group * BLOCK_STRIDE + place) * problem.padded;
            std::copy_n(from, width, write<S>(hidden_gradients[group]) + edge * width);
        }
    }

    // The part of the node's features goes to `message`, to be summed later; that of the edge's own features is the gradient.
    void write_feature_gradient(int64_t edge, int64_t place, const Local& local, T* message) const {
        for (const DegreeLayout& layout : inputs.degrees)
            SE3_FAST_CALL(rotate_edge<T>, layout, problem.frame(edge), local.gradient.data(), place, message);
        problem.for_edge_features([&](int64_t index, const DegreeLayout& layout, int64_t first_channel) {
            problem.template write_components<S>(message, layout, first_channel, false, edge_gradients[index], edge);
        });
    }

    // (tau x r) / |r|^2 with the torque tau of DESIGN 1.2, whose component along the edge vanishes.
    void write_position_gradient(int64_t edge, int64_t place, const Local& local, const T* gradient_tiles) const {
        T from_outputs[2], from_inputs[2], tau[3];
        SE3_FAST_CALL(torque<T>, outputs.degrees.data(), output_generators.data(), int64_t(output_generators.size()),
                      gradient_tiles, local.outputs.data(), place, from_outputs);
        SE3_FAST_CALL(torque<T>, inputs.degrees.data(), input_generators.data(), int64_t(input_generators.size()),
                      local.gradient.data(), local.tiles.data(), place, from_inputs);
        const T about_x = from_outputs[0] - from_inputs[0], about_z = from_outputs[1] - from_inputs[1];
        const T* r = read<T>(*rel_pos) + 3 * edge;
        T* into = write<T>(position_gradient) + 3 * edge;
        // Scaled by the largest component, so that the square of the length neither vanishes nor overflows.
        const T largest = std::max({std::abs(r[0]), std::abs(r[1]), std::abs(r[2])});
        if (largest == 0 || problem.wigner_size == 1) {
            into[0] = into[1] = into[2] = 0;
            return;
        }
        const T* frame = problem.frame(edge) + 1;  // the block of degree 1
        for (int64_t axis = 0; axis < 3; ++axis) tau[axis] = frame[3 * axis] * about_x + frame[3 * axis + 2] * about_z;
        const T x = r[0] / largest, y = r[1] / largest, z = r[2] / largest;
        const T squared = (x * x + y * y + z * z) * largest;
        into[0] = (tau[1] * z - tau[2] * y) / squared;
        into[1] = (tau[2] * x - tau[0] * z) / squared;
        into[2] = (tau[0] * y - tau[1] * x) / squared;
    }

    void add_weight_gradients(const Wave& wave, const Held& kept, bool is_first) const {
        struct Task {
            const Tile* tile;
            const Term* term;
            int64_t first, last;
        };
        std::vector<Task> tasks;
        for (const Tile& tile : forward_terms.tiles)
            for (int64_t index = tile.first_term; index < tile.last_term; ++index) {
                const Term& term = forward_terms.terms[index];
                for (int64_t slice = 0; slice < term.slices; slice += SLICES_PER_TASK)
                    tasks.push_back({&tile, &term, slice, std::min(slice + SLICES_PER_TASK, term.slices)});
            }
        share_tasks(int64_t(tasks.size()), [&](const auto& next) {
            const Scratch<T> radial(BLOCK_STRIDE * 4 * problem.lanes);
            for (int64_t index = next(); index >= 0; index = next()) {
                const Task& task = tasks[index];
                for (int64_t block = 0; block < wave.num_blocks(); ++block) {
                    const T* hidden = kept.hidden + block * hidden_elements() + task.term->group * problem.padded * BLOCK_STRIDE;
                    SE3_FAST_CALL(weight_gradient<T>, *task.tile, *task.term, task.first, task.last,
                                  kept.rows + block * row_elements(), kept.gradient_tiles + block * outputs.tile_elements, hidden,
                                  wave.block_count(block), is_first && block == 0, radial.data(), weight_gradients.data());
                }
            }
        });
    }

    // The gradients of the last radial weights in their own layout.
    Tensors published_weight_gradients() const {
        Tensors result;
        for (const Tensor& weight : problem.weights) {
            result.push_back(empty(weight, {weight.size(0), weight.size(1)}));
            if (problem.num_edges == 0) fill_zero(result.back());
        }
        if (problem.num_edges == 0) return result;
        struct Task {
            const std::vector<const PairTile*>& parts;
            int64_t channel_in;
        };
        std::vector<Task> tasks;
        const auto parts = forward_terms.pair_tiles(problem.plan);
        const auto groups = of_one_group(parts);
        for (const std::vector<const PairTile*>& together : groups)
            for (int64_t channel = 0; channel < together[0]->pair->channels_in; ++channel) tasks.push_back({together, channel});
        for_each_task(int64_t(tasks.size()), [&](int64_t index) {
            const int64_t channel = tasks[index].channel_in;
            const Scratch<T> squares(MOST_PAIR_PATHS * problem.lanes * problem.lanes);
            for (const PairTile* part : tasks[index].parts) {
                const int64_t width = part->vectors * problem.lanes, slice_size = problem.plan.width_hidden * 2 * width;
                std::vector<T*> slices = problem.starts(*part, weight_gradients.data());
                for (T*& slice : slices)
                    slice += &slice > slices.data() ? channel * slice_size : channel / 2 * slice_size + channel % 2 * width;
                SE3_FAST_CALL(align_weights_backward<T>, problem.aligned_part(*part, false), slices.data(), channel,
                              write<T>(result[part->pair->group]), squares.data());
            }
            SE3_FAST_CALL(finish_aligned_weights);
        });
        return result;
    }
};

// Features of a side, by degree [rows, C, 2d+1].
void check_features(const char* name, const Tensors& features, ScalarType type, int64_t rows,
                    const std::vector<std::pair<int64_t, int64_t>>& channels) {
    check_count(name, features.size(), channels.size());
    for (std::size_t index = 0; index < features.size(); ++index)
        check_tensor({name, index}, features[index], type, {rows, channels[index].second, 2 * channels[index].first + 1});
}

// The plan, and whether the operands that both directions share have its sizes.
Description checked_plan(const Tensors& nodes, const Tensors& edges, const Tensors& hidden, const Tensors& weights,
                         const Tensor& wigner, const Tensor& src, const Tensor& dst, const Integers& description,
                         const Tensor& coefficients) {
    Description plan(description);
    if (nodes.empty()) refuse("nodes: expected a tensor or more, got none");
    const ScalarType type = stored_type({"nodes", 0}, nodes[0]);
    const int64_t num_nodes = rows_of({"nodes", 0}, nodes[0], 3), num_edges = rows_of("src", src, 1);
    check_features("nodes", nodes, type, num_nodes, plan.nodes);
    check_features("edges", edges, type, num_edges, plan.edges);
    check_count("hidden", hidden.size(), std::size_t(plan.num_groups));
    check_count("weights", weights.size(), std::size_t(plan.num_groups));
    for (int64_t group = 0; group < plan.num_groups; ++group) {
        const DegreePair& pair = *plan.first_of(group);
        check_tensor({"hidden", std::size_t(group)}, hidden[group], type, {num_edges, plan.width_hidden});
        check_tensor({"weights", std::size_t(group)}, weights[group], computed_type(type),
                     {pair.channels_out * pair.channels_in * pair.group_paths, plan.width_hidden});
    }
    check_wigner(wigner, computed_type(type), plan.max_degree(), num_edges);
    check_ends("src", src, num_nodes, num_edges);
    check_ends("dst", dst, num_nodes, num_edges);
    check_tensor("coefficients", coefficients, ScalarType::Double, {plan.num_coefficients});
    return plan;
}

}  // namespace

namespace se3_fast {

Tensors tfn_conv(Tensors nodes, Tensors edges, Tensors hidden, Tensors weights, Tensor wigner, Tensor src, Tensor dst,
                 Tensor in_order, Tensor in_offsets, Integers description, Tensor coefficients, bool pool) {
    checked_plan(nodes, edges, hidden, weights, wigner, src, dst, description, coefficients);
    check_order("in_order", in_order, "in_offsets", in_offsets, nodes[0].size(0), src.size(0), read<int64_t>(dst));
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        const Convolution<T, S> problem(description, coefficients, nodes, edges, hidden, weights, wigner, src);
        return forward(problem, in_order, in_offsets, dst, pool);
    };
    return by_stored_type(nodes[0], run);
}

}  // namespace se3_fast

namespace {

// Gradients of nodes, edges, hidden; of the weights and of rel_pos where they are wanted.
Tensors tfn_conv_backward(Tensors grads, Tensors nodes, Tensors edges, Tensors hidden, Tensors weights, Tensor wigner, Tensor src,
                          Tensor dst, Tensor out_order, Tensor out_offsets, Tensor rel_pos, Integers description,
                          Tensor coefficients, bool pool, bool with_weights, bool with_positions) {
    const Description plan = checked_plan(nodes, edges, hidden, weights, wigner, src, dst, description, coefficients);
    const int64_t num_nodes = nodes[0].size(0), num_edges = src.size(0);
    check_order("out_order", out_order, "out_offsets", out_offsets, num_nodes, num_edges, read<int64_t>(src));
    check_features("grads", grads, nodes[0].scalar_type(), pool ? num_nodes : num_edges, plan.outputs);
    if (with_positions) check_tensor("rel_pos", rel_pos, wigner.scalar_type(), {num_edges, 3});
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        const Convolution<T, S> problem(description, coefficients, nodes, edges, hidden, weights, wigner, src);
        const int64_t* node_of_gradient = pool ? read<int64_t>(dst) : nullptr;
        Backward<T, S> backward{problem, grads, node_of_gradient, with_positions ? &rel_pos : nullptr, with_weights};
        backward.run(read<int64_t>(out_order), read<int64_t>(out_offsets));
        Tensors results = backward.node_gradients;
        const auto append = [&](const Tensors& more) { results.insert(results.end(), more.begin(), more.end()); };
        append(backward.edge_gradients);
        append(backward.hidden_gradients);
        if (with_weights) append(backward.published_weight_gradients());
        if (with_positions) results.push_back(backward.position_gradient);
        return results;
    };
    return by_stored_type(nodes[0], run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "tfn_conv(Tensor[] nodes, Tensor[] edges, Tensor[] hidden, Tensor[] weights, Tensor wigner, Tensor src, Tensor dst, "
        "Tensor in_order, Tensor in_offsets, int[] description, Tensor coefficients, bool pool) -> Tensor[]");
    m.def(
        "tfn_conv_backward(Tensor[] grads, Tensor[] nodes, Tensor[] edges, Tensor[] hidden, Tensor[] weights, Tensor wigner, "
        "Tensor src, Tensor dst, Tensor out_order, Tensor out_offsets, Tensor rel_pos, int[] description, Tensor coefficients, "
        "bool pool, bool with_weights, bool with_positions) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("tfn_conv", TORCH_BOX(&tfn_conv));
    m.impl("tfn_conv_backward", TORCH_BOX(&tfn_conv_backward));
}
