// TFN convolution on the CPU, by source: the operations tfn_conv_by_source and tfn_conv_by_source_backward of
// torch.ops.se3_fast_cpp.
//
// The source nodes are dealt out to the threads in ranges of about the same cost; a thread walks over its range block by block
// (tfn_conv_by_source.h). A source with many edges may belong to several threads. Messages and gradients of h belong to edges, hence
// to one thread; gradients of such a source, sums at destinations and gradients of weights are kept per thread and added up in the
// threads' order. So results depend on the number of threads in their last digits, and on nothing else.

#include "tfn_conv_by_source.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "kept_weights.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

constexpr int64_t MOST_SEGMENT_EDGES = 1024;  // a source with more is cut up
constexpr int64_t SOURCE_COST = 24;           // of T, in edges
constexpr int64_t LEAST_COST = 4 * SOURCE_COST;  // of what is worth a thread

template <typename T>
std::vector<const T*> read_all(const Tensors& tensors) {
    std::vector<const T*> result;
    for (const Tensor& tensor : tensors) result.push_back(read<T>(tensor));
    return result;
}

template <typename T>
std::vector<T*> write_all(const Tensors& tensors) {
    std::vector<T*> result;
    for (const Tensor& tensor : tensors) result.push_back(write<T>(tensor));
    return result;
}

// The edges by source, cut into segments, and these shared out: thread t has the segments bounds[t] .. bounds[t + 1] - 1.
struct Shares {
    std::vector<SourceSegment> segments;
    Integers bounds{0};
    Integers continued;  // nodes of which a share before has edges too, for each of their gradients' rows after those of all nodes

    Shares(const Tensor& out_offsets, int64_t num_nodes) {
        const int64_t* offsets = read<int64_t>(out_offsets);
        int64_t total = 0;
        for (int64_t node = 0; node < num_nodes; ++node)
            for (int64_t first = offsets[node]; first < offsets[node + 1]; first += MOST_SEGMENT_EDGES) {
                segments.push_back({node, first, std::min(offsets[node + 1] - first, MOST_SEGMENT_EDGES), node});
                total += SOURCE_COST + segments.back().count;
            }
        const int64_t num_shares = std::clamp<int64_t>(total / LEAST_COST, 1, torch::stable::get_num_threads());
        int64_t done = 0;
        for (std::size_t index = 0; index < segments.size(); ++index) {
            done += SOURCE_COST + segments[index].count;
            if (done * num_shares >= total * int64_t(bounds.size())) bounds.push_back(int64_t(index + 1));
        }
        for (int64_t share = 1; share < count(); ++share) set_rows(bounds[share], bounds[share + 1], num_nodes);
    }

    int64_t count() const { return int64_t(bounds.size()) - 1; }

private:
    // If the node of a share's first segment began in the share before, its segments here have a row of gradients of their own.
    void set_rows(int64_t first, int64_t stop, int64_t num_nodes) {
        const int64_t node = segments[first].node;
        if (node != segments[first - 1].node) return;
        for (int64_t index = first; index < stop && segments[index].node == node; ++index)
            segments[index].gradient_row = num_nodes + int64_t(continued.size());
        continued.push_back(node);
    }
};

// A plan as integers (se3_fast/backends/launch_tables.py writes them). Of the tiles, what depends on no operand.
struct SourcePlan {
    std::vector<SourceDegree> inputs, outputs;
    std::vector<SourceGroup> groups;
    std::vector<SourceTile> tiles;
    int64_t max_degree, num_coefficients = 0;

    explicit SourcePlan(const Integers& description) {
        IntegerReader reader("description", description);
        for (const auto& [degree, channels] : reader.take_channels("a number of input degrees")) inputs.push_back({degree, channels, 0});
        for (const auto& [degree, channels] : reader.take_channels("a number of output degrees"))
            outputs.push_back({degree, channels, 0});
        for (int64_t count = reader.take_count("a number of groups"); count > 0; --count) {
            const int64_t channels_in = reader.take("channels", 0, MOST_CHANNELS);
            const int64_t channels_out = reader.take("channels", 0, MOST_CHANNELS);
            groups.push_back({channels_in, channels_out, reader.take("a number of paths", 1, MOST_PATHS)});
        }
        if (inputs.empty() || outputs.empty() || groups.empty())
            refuse("description: expected an input degree, an output degree and a group or more, got ", inputs.size(), ", ",
                   outputs.size(), " and ", groups.size());
        for (int64_t count = reader.take_count("a number of aligned weights"); count > 0; --count) read_tile(reader);
        max_degree = reader.take("the largest degree", std::max(inputs.back().degree, outputs.back().degree), MOST_DEGREE);
        reader.finish();
        for (int64_t degree = 0; degree <= max_degree; ++degree) num_coefficients += 3 * (2 * degree + 1) * (2 * degree + 1);
    }

    // Ordered by group and input.
    void read_tile(IntegerReader& reader) {
        const SourceTile last = tiles.empty() ? SourceTile{} : tiles.back();
        SourceTile tile{};
        tile.group = reader.take("the next group", last.group, int64_t(groups.size()) - 1);
        const SourceGroup& group = groups[tile.group];
        tile.input = reader.take("the next input", tile.group == last.group ? last.input : 0, int64_t(inputs.size()) - 1);
        tile.output = reader.take("an output", 0, int64_t(outputs.size()) - 1);
        const SourceDegree &input = inputs[tile.input], &output = outputs[tile.output];
        if (input.channels != group.channels_in || output.channels != group.channels_out)
            refuse("description: expected degrees with the channels of group ", tile.group, ", got ", input.channels, " and ",
                   output.channels, " channels");
        tile.order = reader.take("an order", 0, std::min(input.degree, output.degree));
        tile.is_odd = reader.take("1 for odd", 0, tile.order > 0 ? 1 : 0) != 0;
        tile.first_path = reader.take("a path", 0, group.paths - 1);
        tile.num_paths = reader.take("a number of paths", 1, group.paths - tile.first_path);
        num_coefficients += tile.num_paths;
        tiles.push_back(tile);
    }
};

void check_operands(const Tensors& nodes, const Tensors& hidden, const Tensors& weights, const Tensor& wigner, const Tensor& dst,
                    const Tensor& out_order, const Tensor& out_offsets, const SourcePlan& plan, const Tensor& coefficients) {
    check_count("nodes", nodes.size(), plan.inputs.size());
    const ScalarType type = stored_type({"nodes", 0}, nodes[0]);
    check_count("hidden", hidden.size(), plan.groups.size());
    check_count("weights", weights.size(), plan.groups.size());
    const int64_t num_nodes = rows_of({"nodes", 0}, nodes[0], 3), num_edges = rows_of("dst", dst, 1);
    rows_of({"hidden", 0}, hidden[0], 2);
    const int64_t width = hidden[0].size(1);
    check_number("hidden", width, 1, MOST_WIDTH);
    for (std::size_t index = 0; index < nodes.size(); ++index)
        check_tensor({"nodes", index}, nodes[index], type, {num_nodes, plan.inputs[index].channels, plan.inputs[index].size()});
    for (std::size_t index = 0; index < hidden.size(); ++index) {
        const SourceGroup& group = plan.groups[index];
        check_tensor({"hidden", index}, hidden[index], type, {num_edges, width});
        check_tensor({"weights", index}, weights[index], computed_type(type), {group.channels_out * group.channels_in * group.paths, width});
    }
    check_wigner(wigner, computed_type(type), std::max(plan.inputs.back().degree, plan.outputs.back().degree), num_edges);
    check_ends("dst", dst, num_nodes, num_edges);
    check_order("out_order", out_order, "out_offsets", out_offsets, num_nodes, num_edges, nullptr);
    check_tensor("coefficients", coefficients, ScalarType::Double, {plan.num_coefficients});
}

// A plan, and the operands as the loops over vectors read them.
template <typename T, typename S>
struct Convolution {
    const Integers& description;
    const Tensor& coefficients;
    const Tensors& weight_tensors;
    std::vector<SourceDegree> inputs, outputs;
    std::vector<SourceGroup> groups;
    std::vector<SourceTile> tiles;
    std::vector<const double*> generators;
    std::vector<const S*> nodes, hidden;
    std::vector<const T*> weights;
    int64_t forward_size = 0, blocks_size = 0, transposed_size = 0;
    SourceProblem<T, S> problem{};

    Convolution(const Tensors& node_features, const Tensors& all_hidden, const Tensors& all_weights, const Tensor& wigner,
                const Tensor& order, const Tensor& dst, const Integers& description, const Tensor& coefficients, bool pool)
        : description(description),
          coefficients(coefficients),
          weight_tensors(all_weights),
          nodes(read_all<S>(node_features)),
          hidden(read_all<S>(all_hidden)),
          weights(read_all<T>(all_weights)) {
        const int64_t width = all_hidden[0].size(1);
        const int64_t row_length = read_description(read<double>(coefficients), width);
        problem = {int64_t(inputs.size()), int64_t(outputs.size()), int64_t(groups.size()), int64_t(tiles.size()),
                   inputs.data(), outputs.data(), groups.data(), tiles.data(), generators.data(), read<int64_t>(order),
                   pool ? read<int64_t>(dst) : nullptr, read<T>(wigner), wigner.size(1), width, row_length,
                   nodes.data(), hidden.data(), weights.data(), nullptr, nullptr, nullptr};
    }

    Convolution(const Convolution&) = delete;

    // Reads the plan; returns the length of an edge's aligned messages.
    int64_t read_description(const double* coefficients, int64_t width) {
        const SourcePlan plan(description);
        inputs = plan.inputs;
        groups = plan.groups;
        int64_t row_length = 0;
        for (const SourceDegree& output : plan.outputs) {
            outputs.push_back({output.degree, output.channels, row_length});
            row_length += output.size() * padded<T>(output.channels);
        }
        for (SourceTile tile : plan.tiles) {
            const SourceGroup& group = groups[tile.group];
            tile.alignment = coefficients;
            tile.forward = forward_size;
            tile.blocks = blocks_size;
            tile.transposed = transposed_size;
            tiles.push_back(tile);
            coefficients += tile.num_paths;
            forward_size += padded<T>(group.channels_out) * width * group.channels_in;
            blocks_size += group.channels_out * group.channels_in * padded<T>(width);
            transposed_size += group.channels_out * padded<T>(width) * padded<T>(group.channels_in);
        }
        for (int64_t degree = 0; degree <= plan.max_degree; ++degree) {
            generators.push_back(coefficients);
            coefficients += 3 * (2 * degree + 1) * (2 * degree + 1);
        }
        return row_length;
    }

    // The weights packed for the forward pass, kept from an earlier call where they were the same.
    std::shared_ptr<const Scratch<T>> forward_weights() const {
        return kept_or_made<T>(forward_size, contents(WeightLayout::by_source), [&](T* packed) {
            for_each_task(problem.num_tiles, [&](int64_t tile) {
                SE3_FAST_CALL(pack_forward<T>, problem, problem.tiles[tile], packed + problem.tiles[tile].forward);
            });
        });
    }

    // And for the backward pass: blocks, then transposed ones.
    std::shared_ptr<const Scratch<T>> backward_weights() const {
        return kept_or_made<T>(blocks_size + transposed_size, contents(WeightLayout::by_source_backward), [&](T* packed) {
            for_each_task(problem.num_tiles, [&](int64_t index) {
                const SourceTile& tile = problem.tiles[index];
                SE3_FAST_CALL(pack_backward<T>, problem, tile, packed + tile.blocks, packed + blocks_size + tile.transposed);
            });
        });
    }

    auto contents(WeightLayout layout) const {
        return [this, layout]() { return fingerprint(layout, description, coefficients, weight_tensors); };
    }

    // Calls run(share, segments, their number, workspace) for all blocks.
    template <typename Run>
    void for_each_block(const Shares& shares, bool is_backward, const Run& run) const {
        const int64_t fitting = BLOCK_BYTES / int64_t(sizeof(T)) / std::max(problem.row_length, int64_t(1));
        const int64_t most_edges = std::max(fitting, MOST_SEGMENT_EDGES);
        const int64_t size = SE3_FAST_CALL(workspace_size<T>, problem, most_edges, is_backward);
        for_each_task(shares.count(), [&](int64_t share) {
            const Scratch<T> workspace(size);
            for (int64_t first = shares.bounds[share], stop = shares.bounds[share + 1]; first < stop;) {
                int64_t last = first, edges = 0;
                const auto fits = [&]() { return last == first || edges + shares.segments[last].count <= fitting; };
                while (last < stop && last - first < MOST_SEGMENTS && fits()) edges += shares.segments[last++].count;
                run(share, shares.segments.data() + first, last - first, workspace.data());
                first = last;
            }
        });
    }
};

template <typename T>
Scratch<T> zeroed(int64_t size) {
    Scratch<T> memory(size);
    std::memset(memory.data(), 0, size * sizeof(T));
    return memory;
}

template <typename T, typename S>
Tensors forward(Convolution<T, S>& convolution, const Shares& shares, const Tensor& like, int64_t num_nodes, int64_t num_edges,
                bool pool) {
    SourceProblem<T, S>& problem = convolution.problem;
    const int64_t rows = pool ? num_nodes : num_edges, table = num_nodes * problem.row_length;
    Tensors messages;
    for (const SourceDegree& output : convolution.outputs)
        messages.push_back(empty(like, {rows, output.channels, output.size()}));
    const auto packed = convolution.forward_weights();
    problem.forward_weights = packed->data();
    const Scratch<T> sums = zeroed<T>(pool ? std::max<int64_t>(shares.count(), 1) * table : 0);
    const auto into = write_all<S>(messages);
    convolution.for_each_block(shares, false, [&](int64_t share, const SourceSegment* segments, int64_t count, T* workspace) {
        SourceResults<T, S> results{};
        results.messages = into.data();
        results.sums = sums.data() + share * table;
        SE3_FAST_CALL(forward_block<T>, problem, segments, count, results, workspace);
    });
    if (pool)
        for_each_task(num_nodes, [&](int64_t node) {
            for (std::size_t index = 0; index < into.size(); ++index) {
                const SourceDegree& output = problem.outputs[index];
                SE3_FAST_CALL(write_sums<T>, output, sums.data() + node * problem.row_length + output.start,
                              std::max<int64_t>(shares.count(), 1), table, into[index] + node * output.channels * output.size());
            }
        });
    return messages;
}

// Adds the rows after those of all nodes to the rows of the nodes that they belong to, and cuts them off.
template <typename T>
void add_continued(const Integers& continued, int64_t num_nodes, Tensor& sums) {
    T* const rows = write<T>(sums);
    const int64_t row = sums.size(1) * sums.size(2);
    for (std::size_t index = 0; index < continued.size(); ++index)
        for (int64_t element = 0; element < row; ++element)
            rows[continued[index] * row + element] += rows[(num_nodes + int64_t(index)) * row + element];
    sums = torch::stable::narrow(sums, 0, 0, num_nodes);
}

// Gradients of the nodes' features, of h, of the weights; and the torque on the edges where it is wanted.
template <typename T, typename S>
Tensors backward(Convolution<T, S>& convolution, const Shares& shares, const Tensors& nodes, const Tensors& hidden,
                 const Tensors& weights, const Tensors& gradients, const Tensor& wigner, bool with_weights, bool with_positions) {
    SourceProblem<T, S>& problem = convolution.problem;
    const bool with_torque = with_positions && problem.wigner_stride > 1;
    const auto packed = convolution.backward_weights();
    const auto forward_packed = with_torque ? convolution.forward_weights() : nullptr;
    problem.blocks = packed->data();
    problem.transposed = packed->data() + convolution.blocks_size;
    problem.forward_weights = with_torque ? forward_packed->data() : nullptr;

    Tensors node_sums, hidden_gradients, weight_gradients, torque;
    for (const Tensor& features : nodes) {
        const int64_t rows = features.size(0) + int64_t(shares.continued.size());
        node_sums.push_back(empty(wigner, {rows, features.size(1), features.size(2)}));
        fill_zero(node_sums.back());
    }
    for (const Tensor& values : hidden) hidden_gradients.push_back(empty_like(values));
    if (with_weights)
        for (const Tensor& weight : weights) weight_gradients.push_back(empty_like(weight));
    if (with_positions) {
        torque.push_back(empty(wigner, {wigner.size(0), 3}));
        fill_zero(torque[0]);
    }
    const auto of_nodes = write_all<T>(node_sums), of_weights = write_all<T>(weight_gradients);
    const auto of_hidden = write_all<S>(hidden_gradients);
    const auto incoming = read_all<S>(gradients);
    const Scratch<T> block_gradients(with_weights ? shares.count() * convolution.blocks_size : 0);
    if (with_weights)
        for_each_task(shares.count(), [&](int64_t share) {
            std::memset(block_gradients.data() + share * convolution.blocks_size, 0, convolution.blocks_size * sizeof(T));
        });
    convolution.for_each_block(shares, true, [&](int64_t share, const SourceSegment* segments, int64_t count, T* workspace) {
        SourceResults<T, S> results{};
        results.gradients = incoming.data();
        results.node_gradients = of_nodes.data();
        results.hidden_gradients = of_hidden.data();
        results.block_gradients = with_weights ? block_gradients.data() + share * convolution.blocks_size : nullptr;
        results.torque = with_torque ? write<T>(torque[0]) : nullptr;
        SE3_FAST_CALL(backward_block<T>, problem, segments, count, results, workspace);
    });
    for (int64_t index = 0; index < int64_t(weight_gradients.size()); ++index) {
        const SourceGroup& group = problem.groups[index];
        const int64_t size = group.channels_in * group.paths * problem.width;
        for_each_task(group.channels_out, [&](int64_t channel) {
            SE3_FAST_CALL(unpack_gradient<T>, problem, index, channel, block_gradients.data(), shares.count(),
                          convolution.blocks_size, of_weights[index] + channel * size);
        });
    }
    if (!shares.continued.empty())
        for (Tensor& sums : node_sums) add_continued<T>(shares.continued, nodes[0].size(0), sums);
    Tensors results = stored_sums<T, S>(node_sums, nodes[0]);
    for (const Tensors* more : {&hidden_gradients, &weight_gradients, &torque})
        results.insert(results.end(), more->begin(), more->end());
    return results;
}

Tensors tfn_conv_by_source(Tensors nodes, Tensors hidden, Tensors weights, Tensor wigner, Tensor dst, Tensor out_order,
                           Tensor out_offsets, Integers description, Tensor coefficients, bool pool) {
    check_operands(nodes, hidden, weights, wigner, dst, out_order, out_offsets, SourcePlan(description), coefficients);
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        Convolution<T, S> convolution(nodes, hidden, weights, wigner, out_order, dst, description, coefficients, pool);
        const int64_t num_nodes = nodes[0].size(0);
        return forward(convolution, Shares(out_offsets, num_nodes), nodes[0], num_nodes, dst.size(0), pool);
    };
    return by_stored_type(nodes[0], run);
}

Tensors tfn_conv_by_source_backward(Tensors gradients, Tensors nodes, Tensors hidden, Tensors weights, Tensor wigner, Tensor dst,
                                    Tensor out_order, Tensor out_offsets, Integers description, Tensor coefficients, bool pool,
                                    bool with_weights, bool with_positions) {
    const SourcePlan plan(description);
    check_operands(nodes, hidden, weights, wigner, dst, out_order, out_offsets, plan, coefficients);
    check_count("gradients", gradients.size(), plan.outputs.size());
    for (std::size_t index = 0; index < gradients.size(); ++index) {
        const SourceDegree& output = plan.outputs[index];
        const int64_t rows = pool ? nodes[0].size(0) : dst.size(0);
        check_tensor({"gradients", index}, gradients[index], nodes[0].scalar_type(), {rows, output.channels, output.size()});
    }
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        Convolution<T, S> convolution(nodes, hidden, weights, wigner, out_order, dst, description, coefficients, pool);
        const Shares shares(out_offsets, nodes[0].size(0));
        return backward(convolution, shares, nodes, hidden, weights, gradients, wigner, with_weights, with_positions);
    };
    return by_stored_type(nodes[0], run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "tfn_conv_by_source(Tensor[] nodes, Tensor[] hidden, Tensor[] weights, Tensor wigner, Tensor dst, Tensor out_order, "
        "Tensor out_offsets, int[] description, Tensor coefficients, bool pool) -> Tensor[]");
    m.def(
        "tfn_conv_by_source_backward(Tensor[] gradients, Tensor[] nodes, Tensor[] hidden, Tensor[] weights, Tensor wigner, "
        "Tensor dst, Tensor out_order, Tensor out_offsets, int[] description, Tensor coefficients, bool pool, "
        "bool with_weights, bool with_positions) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("tfn_conv_by_source", TORCH_BOX(&tfn_conv_by_source));
    m.impl("tfn_conv_by_source_backward", TORCH_BOX(&tfn_conv_by_source_backward));
}
