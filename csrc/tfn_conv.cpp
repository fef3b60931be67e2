// TFN convolution on the CPU, by edge: the operations tfn_conv and tfn_conv_backward of torch.ops.se3_fast_cpp.
//
// Edges are taken in the order of the nodes that their results are summed at (forward: destinations, backward: sources), block by
// block (tfn_conv.h): gather and rotate into the edges' frames, contract, rotate back. Blocks are shared among threads; then nodes
// are, for the sums, and pairs of degrees, for the gradient of the weights. Every sum is one thread's and has a fixed order. All blocks
// of a wave are contracted pair of degrees by pair, so that a pair's weights are made once for them (aligned_weights.h); edges beyond a
// wave make another one, so that what blocks hold in between stays small.

#include "tfn_conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "aligned_weights.h"
#include "check.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "tfn_conv_plan.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

constexpr int64_t WAVE_BYTES = int64_t(16) << 20;
constexpr int64_t NODES_PER_TASK = 16;
constexpr int64_t SLICES_TOGETHER = 8;  // whose gradients stay in the first-level cache from block to block
constexpr int64_t FEW_EDGES = 2 * BLOCK_EDGES;  // are not cut into smaller blocks for more threads
constexpr int64_t MANY_BLOCKS = 8;  // of a thread: it is worth making weights twice to share them more evenly

// What both directions share. Features, h and their gradients stand in memory as type S, which is computed with as type T.
template <typename T, typename S>
struct Convolution {
    const Description plan;
    const int64_t lanes, padded;
    const Side inputs, outputs;
    const double* coefficients;
    const T* wigner;
    const int64_t* src;
    const Tensors& nodes;
    const Tensors& edges;
    const Tensors& hidden;
    const RadialWeights weights;
    const Tensor& wigner_tensor;
    const int64_t num_nodes, num_edges, wigner_size;

    Convolution(const Integers& description, const Tensor& coefficients, const Tensors& nodes,
                const Tensors& edges, const Tensors& hidden, const Tensors& weights,
                const Tensor& wigner, const Tensor& src)
        : plan(description),
          lanes(SE3_FAST_CALL(lanes<T>)),
          padded(SE3_FAST_CALL(padded_width<T>, plan.width_hidden)),
          inputs(plan.input_channels(), lanes, SE3_FAST_CALL(largest_tile)),
          outputs(plan.outputs, lanes, SE3_FAST_CALL(largest_tile)),
          coefficients(read<double>(coefficients)),
          wigner(read<T>(wigner)),
          src(read<int64_t>(src)),
          nodes(nodes),
          edges(edges),
          hidden(hidden),
          weights{plan, coefficients, weights, lanes},
          wigner_tensor(wigner),
          num_nodes(nodes[0].size(0)),
          num_edges(src.size(0)),
          wigner_size(wigner.size(1)) {}

    const T* frame(int64_t edge) const { return wigner + edge * wigner_size; }

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
    if (num_edges <= FEW_EDGES) return BLOCK_EDGES;  // threads share degrees
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

// Contracts a wave's blocks with the weights of one pair of degrees after the other: contract(block, degree, pair, weights), where degree is
// a place in pairs_by_degree. Threads share the degrees of the results, each with all pairs that are summed up there, so that none
// waits for another between two pairs; and shares of the blocks where there are many of these or of the threads.
template <typename T, typename Contract>
void contract_blocks(const Wave& wave, const AlignedWeights<T>& weights, const std::vector<Integers>& pairs_by_degree, const Contract& contract) {
    const int64_t num_threads = torch::stable::get_num_threads(), num_blocks = wave.num_blocks();
    const int64_t num_degrees = int64_t(pairs_by_degree.size()), of_threads = (num_threads + num_degrees - 1) / num_degrees;
    const int64_t wanted = num_threads > 1 && num_blocks >= MANY_BLOCKS * of_threads ? 2 * of_threads : of_threads;
    const int64_t num_shares = std::min(num_blocks, wanted);
    for_each_task(num_degrees * num_shares, [&](int64_t task) {
        const int64_t degree = task / num_shares, share = task % num_shares;
        const Scratch<T> of_pair = weights.memory();
        for (const int64_t pair : pairs_by_degree[degree]) {
            weights.make(pair, of_pair);
            for (int64_t block = share * num_blocks / num_shares; block < (share + 1) * num_blocks / num_shares; ++block)
                contract(block, degree, pair, of_pair.data());
        }
    });
}

// The forward pass: messages of edges, or their sums at nodes.
template <typename T, typename S>
struct Forward {
    const Convolution<T, S>& problem;
    const bool is_pooled;
    const int64_t* order;  // null unless pooled

    const Side& outputs = problem.outputs;
    const Contraction contraction{problem.plan, problem.inputs, outputs, false, problem.lanes};
    const std::vector<Integers> pairs = contraction.pairs_by_degree();
    const AlignedWeights<T> weights{problem.weights, contraction, false};
    const std::vector<Wave> all_waves = waves(problem.num_edges, elements_per_edge() * sizeof(T));
    const Scratch<T> table = problem.node_table(problem.nodes, problem.inputs);
    const Scratch<T> messages{std::size_t(is_pooled && !all_waves.empty() ? all_waves[0].count() * outputs.components : 0)};
    Tensors results = is_pooled ? features_of(problem.wigner_tensor, problem.num_nodes, problem.plan.outputs, true)
                                : features_of(problem.nodes[0], problem.num_edges, problem.plan.outputs, false);

    // What belongs to a block.
    struct Local {
        Scratch<T> rows, tiles, hidden, scratch, message;
    };

    int64_t elements_per_edge() const {
        const int64_t of_block = problem.inputs.rows + problem.plan.num_groups * problem.padded;
        return of_block + outputs.tile_elements / BLOCK_STRIDE + (is_pooled ? outputs.components : 0);
    }

    Local make_local() const {
        return {zeroed<T>(problem.inputs.rows * BLOCK_STRIDE), Scratch<T>(outputs.tile_elements),
                zeroed<T>(problem.plan.num_groups * problem.padded * BLOCK_STRIDE), Scratch<T>(problem.inputs.components),
                Scratch<T>(outputs.components)};
    }

    void read_block(const Wave& wave, int64_t block, const Local& local) const {
        const int64_t count = wave.block_count(block);
        int64_t edges[BLOCK_EDGES];
        read_order(order, wave.block_first(block), count, edges);
        problem.read_hidden(edges, count, local.hidden, nullptr, 0);
        for (int64_t place = 0; place < count; ++place)
            problem.align_input(table, edges[place], place, local.scratch, local.rows, nullptr);
        std::memset(local.tiles.data(), 0, outputs.tile_elements * sizeof(T));
    }

    void contract(int64_t count, int64_t pair, const T* of_pair, const Local& local) const {
        SE3_FAST_CALL(contract_block<T>, contraction.tiles.data(), contraction.terms_of(pair), contraction.pairs[pair].count(), of_pair,
                      local.rows.data(), local.hidden.data(), problem.padded, count, local.tiles.data());
    }

    void write_block(const Wave& wave, int64_t block, const Local& local) const {
        const int64_t first = wave.block_first(block), count = wave.block_count(block);
        int64_t edges[BLOCK_EDGES];
        read_order(order, first, count, edges);
        for (int64_t place = 0; place < count; ++place) {
            T* into = is_pooled ? messages + (first - wave.first + place) * outputs.components : local.message;
            for (std::size_t index = 0; index < outputs.degrees.size(); ++index) {
                const DegreeLayout& layout = outputs.degrees[index];
                SE3_FAST_CALL(rotate_edge<T>, layout, problem.frame(edges[place]), local.tiles.data(), place, into);
                if (!is_pooled) problem.template write_components<S>(into, layout, 0, false, results[index], edges[place]);
            }
        }
    }

    Tensors run(const int64_t* offsets, const int64_t* dst) {
        for (const Wave& wave : all_waves) {
            std::vector<std::optional<Local>> locals(wave.num_blocks());
            for_each_task(wave.num_blocks(), [&](int64_t block) {
                locals[block].emplace(make_local());
                read_block(wave, block, *locals[block]);
            });
            contract_blocks(wave, weights, pairs, [&](int64_t block, int64_t, int64_t pair, const T* of_pair) {
                contract(wave.block_count(block), pair, of_pair, *locals[block]);
            });
            for_each_task(wave.num_blocks(), [&](int64_t block) { write_block(wave, block, *locals[block]); });
            if (is_pooled) add_to_nodes(problem, outputs, wave, order, offsets, dst, messages.data(), results);
        }
        return is_pooled ? stored_sums<T, S>(results, problem.nodes[0]) : results;
    }
};

// The part of the backward pass that walks over edges, and its results.
template <typename T, typename S>
struct Backward {
    const Convolution<T, S>& problem;
    const Tensors& grads;
    const int64_t* dst;     // null: there is a gradient for each edge, not for each node
    const Tensor* rel_pos;  // null: its gradient is not wanted
    const bool with_weights;
    const int64_t* order;

    const Side& inputs = problem.inputs;
    const Side& outputs = problem.outputs;

    const Contraction forward_terms{problem.plan, inputs, outputs, false, problem.lanes};
    const Contraction backward_terms{problem.plan, inputs, outputs, true, problem.lanes};
    const std::vector<Integers> pairs = backward_terms.pairs_by_degree(), forward_pairs = forward_terms.pairs_by_degree();
    // dh is summed up by degrees of the inputs: at once where threads share them, else one after the other.
    const int64_t num_parts = torch::stable::get_num_threads() > 1 ? int64_t(pairs.size()) : 1;
    const std::vector<Wave> all_waves = waves(problem.num_edges, elements_per_edge() * sizeof(T));
    const AlignedWeights<T> weights{problem.weights, backward_terms, true};
    const AlignedWeights<T> forward_weights{problem.weights, forward_terms, false};  // for positions
    const Scratch<T> table = problem.node_table(problem.nodes, inputs);
    const Scratch<T> grad_table = dst != nullptr ? problem.node_table(grads, outputs) : Scratch<T>(0);
    const Scratch<T> weight_gradients{std::size_t(num_weight_gradients())};
    const std::vector<GeneratorEntry> input_generators = generators(problem.plan.nodes);
    const std::vector<GeneratorEntry> output_generators = generators(problem.plan.outputs);

    Tensors node_gradients = features_of(problem.wigner_tensor, problem.num_nodes, problem.plan.nodes, true);  // sums as yet
    Tensors edge_gradients = features_of(problem.nodes[0], problem.num_edges, problem.plan.edges, false);
    Tensors hidden_gradients = empty_hidden();
    Tensors published_weight_gradients = empty_weight_gradients();
    Tensor position_gradient = rel_pos != nullptr ? empty(*rel_pos, {problem.num_edges, 3}) : Tensor();

    // Whether the sums of dh over a radial group and a degree end with a pair.
    const std::vector<bool> ends_sum = ends_of_sums();

    // What a wave leaves for the gradient of the weights and the sums at nodes.
    struct Held {
        Scratch<T> rows, gradient_tiles, hidden, messages;
    };

    // What belongs to a block until it is written. slice_weights, hidden_gradient and partial have num_parts parts.
    struct Local {
        Scratch<T> tiles, gradient_rows, gradient_sums, slice_weights, gradient, outputs, hidden, hidden_gradient, partial, scratch, components;
    };

    std::vector<bool> ends_of_sums() const {
        std::vector<bool> result(backward_terms.pairs.size());
        for (const Integers& of_degree : pairs)
            for (std::size_t place = 0; place < of_degree.size(); ++place) {
                const auto group = [&](std::size_t at) { return problem.plan.pairs[of_degree[at]].group; };
                result[of_degree[place]] = place + 1 == of_degree.size() || group(place + 1) != group(place);
            }
        return result;
    }

    // Waves after the first one add to the gradients of the weights of all pairs; a single one needs those of one pair at a time.
    bool has_one_wave() const { return all_waves.size() <= 1; }

    int64_t num_weight_gradients() const { return with_weights && !has_one_wave() ? forward_terms.num_weights : 0; }

    Tensors empty_weight_gradients() const {
        Tensors result;
        if (!with_weights) return result;
        for (const Tensor& weight : problem.weights.tensors) {
            result.push_back(empty(weight, {weight.size(0), weight.size(1)}));
            if (problem.num_edges == 0) fill_zero(result.back());
        }
        return result;
    }

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

    int64_t elements_per_edge() const {
        const int64_t of_inputs = inputs.rows + 2 * inputs.tile_elements / BLOCK_STRIDE + inputs.components;
        const int64_t of_outputs = 2 * outputs.rows + (rel_pos != nullptr ? 2 : 1) * outputs.tile_elements / BLOCK_STRIDE;
        return of_inputs + of_outputs + ((2 + num_parts) * problem.plan.num_groups + num_parts * problem.lanes) * problem.padded;
    }

    void run(const int64_t* offsets) {
        bool is_first = true;
        for (const Wave& wave : all_waves) {
            const int64_t blocks = wave.num_blocks();
            const Held held{Scratch<T>(blocks * row_elements()), Scratch<T>(blocks * outputs.tile_elements),
                            Scratch<T>(blocks * hidden_elements()), Scratch<T>(wave.count() * inputs.components)};
            std::vector<std::optional<Local>> locals(blocks);
            for_each_task(blocks, [&](int64_t block) {
                locals[block].emplace(make_local());
                read_block(wave, block, held, *locals[block]);
            });
            contract_blocks(wave, weights, pairs, [&](int64_t block, int64_t degree, int64_t pair, const T* of_pair) {
                contract(wave.block_count(block), pair, of_pair, block_of(*locals[block], num_parts > 1 ? degree : 0));
            });
            if (rel_pos != nullptr)
                contract_blocks(wave, forward_weights, forward_pairs, [&](int64_t block, int64_t, int64_t pair, const T* of_pair) {
                    contract_forward(wave.block_count(block), pair, of_pair, held.rows + block * row_elements(), *locals[block]);
                });
            for_each_task(blocks, [&](int64_t block) { write_block(wave, block, held, *locals[block]); });
            add_to_nodes(problem, inputs, wave, order, offsets, problem.src, held.messages.data(), node_gradients);
            if (with_weights) add_weight_gradients(wave, held, is_first);
            is_first = false;
        }
        node_gradients = stored_sums<T, S>(node_gradients, problem.nodes[0]);
    }

    int64_t most_steps() const {
        int64_t result = 0;
        for (const Term& term : backward_terms.terms) result = std::max(result, term.steps);
        return result;
    }

    int64_t slice_elements() const { return most_steps() * 3 * SE3_FAST_CALL(largest_tile) * problem.lanes; }
    int64_t partial_elements() const { return problem.padded * BLOCK_STRIDE * problem.lanes; }

    Local make_local() const {
        return {zeroed<T>(inputs.tile_elements),
                zeroed<T>(outputs.rows * BLOCK_STRIDE),
                Scratch<T>(outputs.rows * BLOCK_STRIDE),
                Scratch<T>(num_parts * slice_elements()),
                zeroed<T>(inputs.tile_elements),
                zeroed<T>(rel_pos != nullptr ? outputs.tile_elements : 0),
                zeroed<T>(hidden_elements()),
                zeroed<T>(num_parts * hidden_elements()),
                zeroed<T>(num_parts * partial_elements()),
                Scratch<T>(std::max(inputs.components, outputs.components)),
                Scratch<T>(inputs.components)};
    }

    void read_block(const Wave& wave, int64_t block, const Held& held, const Local& local) const {
        const int64_t count = wave.block_count(block);
        T* rows = held.rows + block * row_elements();
        T* gradient_tiles = held.gradient_tiles + block * outputs.tile_elements;
        int64_t edges[BLOCK_EDGES];
        read_order(order, wave.block_first(block), count, edges);
        problem.read_hidden(edges, count, local.hidden, held.hidden + block * hidden_elements(), problem.padded * BLOCK_STRIDE);
        if (rel_pos != nullptr) std::memset(rows, 0, row_elements() * sizeof(T));
        for (int64_t place = 0; place < count; ++place) {
            problem.align_input(table, edges[place], place, local.scratch, rows, local.tiles);
            align_gradient(edges[place], place, local, gradient_tiles);
        }
        SE3_FAST_CALL(add_opposite_orders<T>, outputs.degrees.data(), int64_t(outputs.degrees.size()), local.gradient_rows.data(),
                      local.gradient_sums.data());
    }

    BlockGradient<T> block_of(const Local& local, int64_t part) const {
        return {local.tiles, local.gradient_rows, local.gradient_sums, local.slice_weights + part * slice_elements(), local.hidden,
                local.gradient, local.partial + part * partial_elements(), local.hidden_gradient + part * hidden_elements()};
    }

    void contract(int64_t count, int64_t pair, const T* of_pair, const BlockGradient<T>& block) const {
        SE3_FAST_CALL(contract_block_backward<T>, backward_terms.tiles.data(), backward_terms.terms_of(pair),
                      backward_terms.pairs[pair].count(), of_pair, problem.padded, count, block);
        if (ends_sum[pair])
            SE3_FAST_CALL(finish_hidden_gradient<T>, block.partial, problem.padded, count,
                          block.hidden_gradient + problem.plan.pairs[pair].group * BLOCK_STRIDE * problem.padded);
    }

    void contract_forward(int64_t count, int64_t pair, const T* of_pair, const T* rows, const Local& local) const {
        SE3_FAST_CALL(contract_block<T>, forward_terms.tiles.data(), forward_terms.terms_of(pair), forward_terms.pairs[pair].count(),
                      of_pair, rows, local.hidden.data(), problem.padded, count, local.outputs.data());
    }

    void write_block(const Wave& wave, int64_t block, const Held& held, const Local& local) const {
        const int64_t first = wave.block_first(block), count = wave.block_count(block);
        const T* gradient_tiles = held.gradient_tiles + block * outputs.tile_elements;
        int64_t edges[BLOCK_EDGES];
        read_order(order, first, count, edges);
        for (int64_t place = 0; place < count; ++place) {
            write_hidden_gradient(edges[place], place, local);
            write_feature_gradient(edges[place], place, local, held.messages + (first - wave.first + place) * inputs.components);
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
            S* into = write<S>(hidden_gradients[group]) + edge * width;
            for (int64_t k = 0; k < width; ++k) {
                T total = from[k];
                for (int64_t part = 1; part < num_parts; ++part) total += from[part * hidden_elements() + k];
                into[k] = total;
            }
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

    // A wave's part of the gradients of the weights; behind the last one they are in their own layout.
    void add_weight_gradients(const Wave& wave, const Held& held, bool is_first) const {
        const int64_t num_pairs = forward_terms.num_pairs();
        for_each_task(num_pairs, [&](int64_t task) {
            const int64_t pair = num_pairs - 1 - task;  // those of large degrees first: they have most to do
            const PairTerms& of_pair = forward_terms.pairs[pair];
            const Scratch<T> own(has_one_wave() ? of_pair.num_weights : 0);
            T* gradient = has_one_wave() ? own.data() : weight_gradients + of_pair.first_weight;
            add_pair_gradients(wave, held, is_first, pair, gradient);
            if (wave.last == problem.num_edges)
                write_weight_gradient(problem.weights, forward_terms, pair, gradient, published_weight_gradients);
        });
    }

    void add_pair_gradients(const Wave& wave, const Held& held, bool is_first, int64_t pair, T* gradient) const {
        const Scratch<T> radial(BLOCK_STRIDE * 4 * problem.lanes);
        const Term* terms = forward_terms.terms_of(pair);
        for (const Term* term = terms; term < terms + forward_terms.pairs[pair].count(); ++term)
            for (int64_t first = 0; first < term->slices; first += SLICES_TOGETHER)
                for (int64_t block = 0; block < wave.num_blocks(); ++block) {
                    const T* hidden = held.hidden + block * hidden_elements() + term->group * problem.padded * BLOCK_STRIDE;
                    SE3_FAST_CALL(weight_gradient<T>, forward_terms.tiles[term->tile], *term, first,
                                  std::min(first + SLICES_TOGETHER, term->slices), held.rows + block * row_elements(),
                                  held.gradient_tiles + block * outputs.tile_elements, hidden, wave.block_count(block),
                                  is_first && block == 0, radial.data(), gradient);
                }
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
        Forward<T, S> pass{problem, pool, pool ? read<int64_t>(in_order) : nullptr};
        return pass.run(read<int64_t>(in_offsets), read<int64_t>(dst));
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
        Backward<T, S> backward{problem, grads, node_of_gradient, with_positions ? &rel_pos : nullptr, with_weights,
                                read<int64_t>(out_order)};
        backward.run(read<int64_t>(out_offsets));
        Tensors results = backward.node_gradients;
        const auto append = [&](const Tensors& more) { results.insert(results.end(), more.begin(), more.end()); };
        append(backward.edge_gradients);
        append(backward.hidden_gradients);
        append(backward.published_weight_gradients);
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
