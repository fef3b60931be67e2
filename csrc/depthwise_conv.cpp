// The depthwise convolution on the CPU: the operations depthwise_conv, depthwise_conv_backward and depthwise_conv_along of
// torch.ops.se3_fast_cpp. Nodes are cut into shares with about the same number of incoming edges, one for each thread. Sums belong
// to one share; the gradients of the sources' features and of the table are kept by share and added up in the shares' order.

#include "depthwise_conv.h"

#include <algorithm>
#include <vector>

#include "check.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

// What couples with what, from the integers of the plan (se3_fast/backends/cpp/depthwise_conv.py), and the sizes.
class Plan {
public:
    DepthwiseShape shape{};

    Plan(const Integers& table, const std::vector<double>& coefficients) {
        IntegerReader reader("table", table);
        constexpr int64_t MOST_COMPONENTS = (MOST_DEGREE + 1) * (MOST_DEGREE + 1);
        shape.components_in = reader.take("components of the features", 1, MOST_COMPONENTS);
        shape.components_out = reader.take("components of the messages", 1, MOST_COMPONENTS);
        shape.harmonics = reader.take("harmonics", 1, MOST_COMPONENTS);
        shape.paths = reader.take("paths", 1, MOST_PATHS);
        int64_t path = 0;
        for (int64_t run = reader.take_count("runs"); run > 0; --run) {
            path = reader.take("path", path, shape.paths - 1);
            const int64_t component_out = reader.take("component of the message", 0, shape.components_out - 1);
            const int64_t first_pair = int64_t(pairs_.size());
            for (int64_t pair = reader.take_count("pairs"); pair > 0; --pair) take_pair(reader, coefficients);
            runs_.push_back({path, component_out, {first_pair, int64_t(pairs_.size())}});
        }
        reader.finish();
        check_count("coefficients", coefficients.size(), terms_.size());
        shape.num_runs = int64_t(runs_.size()), shape.num_pairs = int64_t(pairs_.size());
        shape.runs = runs_.data(), shape.pairs = pairs_.data(), shape.terms = terms_.data();
        sort();
    }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

private:
    std::vector<DepthwiseRun> runs_;
    std::vector<DepthwisePair> pairs_;
    std::vector<DepthwiseTerm> terms_;
    std::vector<IndexRange> runs_of_path_, runs_to_component_, members_of_component_, shares_of_harmonic_;
    std::vector<int64_t> runs_by_component_;
    std::vector<DepthwiseMember> members_;
    std::vector<DepthwiseShare> shares_;

    void take_pair(IntegerReader& reader, const std::vector<double>& coefficients) {
        const int64_t component_in = reader.take("component of the features", 0, shape.components_in - 1);
        const int64_t first_term = int64_t(terms_.size());
        for (int64_t term = reader.take_count("terms"); term > 0; --term) {
            if (terms_.size() == coefficients.size())
                refuse("coefficients: expected one for each term, got ", coefficients.size());
            terms_.push_back({reader.take("harmonic", 0, shape.harmonics - 1), coefficients[terms_.size()]});
        }
        pairs_.push_back({component_in, {first_term, int64_t(terms_.size())}});
    }

    // Fills `found` with what select(group, add) adds for each group, and returns where each group's begin and end.
    template <typename Found, typename Select>
    static std::vector<IndexRange> grouped(int64_t num_groups, std::vector<Found>& found, const Select& select) {
        std::vector<IndexRange> ranges;
        for (int64_t group = 0; group < num_groups; ++group) {
            const int64_t first = int64_t(found.size());
            select(group, [&](const Found& one) { found.push_back(one); });
            ranges.push_back({first, int64_t(found.size())});
        }
        return ranges;
    }

    void sort() {
        std::vector<int64_t> numbers;  // of runs by path: in their order
        runs_of_path_ = grouped(shape.paths, numbers, [&](int64_t path, const auto& add) {
            for (int64_t run = 0; run < shape.num_runs; ++run)
                if (runs_[run].path == path) add(run);
        });
        runs_to_component_ = grouped(shape.components_out, runs_by_component_, [&](int64_t component, const auto& add) {
            for (int64_t run = 0; run < shape.num_runs; ++run)
                if (runs_[run].component_out == component) add(run);
        });
        members_of_component_ = grouped(shape.components_in, members_, [&](int64_t component, const auto& add) {
            for (int64_t run = 0; run < shape.num_runs; ++run)
                for (int64_t pair = runs_[run].pairs.first; pair < runs_[run].pairs.stop; ++pair)
                    if (pairs_[pair].component_in == component) add({pair, run});
        });
        shares_of_harmonic_ = grouped(shape.harmonics, shares_, [&](int64_t harmonic, const auto& add) {
            for (int64_t pair = 0; pair < shape.num_pairs; ++pair)
                for (int64_t term = pairs_[pair].terms.first; term < pairs_[pair].terms.stop; ++term)
                    if (terms_[term].harmonic == harmonic) add({pair, terms_[term].coefficient});
        });
        shape.runs_of_path = runs_of_path_.data(), shape.runs_to_component = runs_to_component_.data();
        shape.members_of_component = members_of_component_.data(), shape.shares_of_harmonic = shares_of_harmonic_.data();
        shape.runs_by_component = runs_by_component_.data();
        shape.members = members_.data(), shape.shares = shares_.data();
    }
};

// features [N][components][C], harmonics [E][..], places [E], table [K][P C].
constexpr std::size_t NUM_OPERANDS = 4, NUM_OF_ROWS = 3;

// The edges by destination, and their ends.
struct Edges {
    const int64_t *sources, *destinations, *order, *offsets;
    int64_t num_nodes, num_edges;
    int64_t num_shares;  // counted once: a thread that works on a share may be told another number of threads

    Edges(const Tensor& src, const Tensor& dst, const Tensor& order_of_edges, const Tensor& offsets_of_nodes) {
        num_edges = rows_of("src", src, 1);
        num_nodes = rows_of("offsets", offsets_of_nodes, 1) - 1;
        if (num_nodes < 0) refuse("offsets: expected a number or more, got none");
        check_ends("src", src, num_nodes, num_edges);
        check_ends("dst", dst, num_nodes, num_edges);
        check_order("order", order_of_edges, "offsets", offsets_of_nodes, num_nodes, num_edges, read<int64_t>(dst));
        sources = read<int64_t>(src), destinations = read<int64_t>(dst);
        order = read<int64_t>(order_of_edges), offsets = read<int64_t>(offsets_of_nodes);
        num_shares = std::clamp<int64_t>(num_edges / DEPTHWISE_CHUNK, 1, torch::stable::get_num_threads());
    }

    // The first node of a share; that of the share after the last is N.
    int64_t first_node(int64_t share) const {
        if (share == num_shares) return num_nodes;
        return std::lower_bound(offsets, offsets + num_nodes, share * num_edges / num_shares) - offsets;
    }

    // Calls run(edges) for the incoming edges of the nodes first .. stop - 1, a chunk at a time.
    template <typename Run>
    void for_each_chunk(int64_t first, int64_t stop, const Run& run) const {
        int64_t source[DEPTHWISE_CHUNK], destination[DEPTHWISE_CHUNK];
        for (int64_t begin = offsets[first]; begin < offsets[stop]; begin += DEPTHWISE_CHUNK) {
            const int64_t count = std::min(DEPTHWISE_CHUNK, offsets[stop] - begin);
            for (int64_t edge = 0; edge < count; ++edge) {
                source[edge] = sources[order[begin + edge]];
                destination[edge] = destinations[order[begin + edge]];
            }
            run(DepthwiseEdges{count, order + begin, source, destination});
        }
    }
};

Name operand_name(std::size_t index) { return {"operands", index}; }

// A size of one of the operands; `what` it is, for the error.
void check_size(std::size_t index, const char* what, int64_t size, int64_t factor, int64_t most) {
    if (size < factor || size > most || size % factor != 0)
        refuse(operand_name(index), ": expected ", factor, " to ", most, " ", what, ", a multiple of ", factor, ", got ", size);
}

// The sizes of the operands, checked.
void take_sizes(Plan& plan, const Tensors& operands, const Edges& edges) {
    check_count("operands", operands.size(), NUM_OPERANDS);
    DepthwiseShape& shape = plan.shape;
    const ScalarType type = value_type(operand_name(0), operands[0]);
    rows_of(operand_name(0), operands[0], 3);
    rows_of(operand_name(3), operands[3], 2);
    shape.channels = operands[0].size(2);
    shape.knots = operands[3].size(0);
    const int64_t lanes = 64 / operands[0].element_size();  // of the widest vectors
    check_size(0, "channels", shape.channels, lanes, MOST_CHANNELS);
    check_size(3, "knots", shape.knots, 1, MOST_WIDTH);
    const Integers sizes[NUM_OPERANDS] = {
        {edges.num_nodes, shape.components_in, shape.channels}, {edges.num_edges, shape.harmonics}, {edges.num_edges},
        {shape.knots, shape.rows()}};
    for (std::size_t index = 0; index < NUM_OPERANDS; ++index) check_tensor(operand_name(index), operands[index], type, sizes[index]);
}

template <typename T>
DepthwiseOperands<T> rows_of_operands(const Tensors& operands) {
    return {read<T>(operands[0]), read<T>(operands[1]), read<T>(operands[2])};
}

// The table with its rows of zero.
template <typename T>
Scratch<T> padded_table(const DepthwiseShape& shape, const Tensor& table) {
    Scratch<T> result(shape.padded_table());
    T* const first = result.data() + KNOTS_BEFORE * shape.rows();
    std::fill(result.data(), first, T(0));
    T* const stop = std::copy_n(read<T>(table), shape.knots * shape.rows(), first);
    std::fill_n(stop, KNOTS_BEHIND * shape.rows(), T(0));
    return result;
}

// What the shares leave of a gradient, each its own block of elements, and where they belong in the whole.
template <typename T>
class Parts {
public:
    explicit Parts(int64_t num_shares) : parts_(num_shares) {}

    // The block of a share, for the elements first .. stop - 1 of the whole, zero.
    T* make(int64_t share, int64_t first, int64_t stop) {
        parts_[share] = Part{first, stop, std::vector<T>(stop - first)};
        return parts_[share].values.data();
    }

    // The sums of the elements first .. first + count - 1, in the shares' order.
    void add_up(T* sums, int64_t first, int64_t count) const {
        std::fill_n(sums, count, T(0));
        for (const Part& part : parts_)
            for (int64_t index = std::max(first, part.first); index < std::min(first + count, part.stop); ++index)
                sums[index - first] += part.values[index - part.first];
    }

private:
    struct Part {
        int64_t first, stop;
        std::vector<T> values;
    };
    std::vector<Part> parts_;
};

// Tensors for the gradients of the operands; of size 0 where one is not wanted, and that of the table is left out then.
Tensors empty_gradients(const Tensors& operands, const DepthwiseWanted& wanted) {
    Tensors results;
    for (std::size_t index = 0; index < (wanted.table ? NUM_OPERANDS : NUM_OF_ROWS); ++index) {
        const bool is_of_edges = index == 1 || index == 2;
        results.push_back(is_of_edges && !wanted.edges ? empty(operands[index], {0}) : torch::stable::empty_like(operands[index]));
    }
    return results;
}

// Calls run(first node, last node + 1, gradients, workspace) for every share, and adds up what they leave. results: as of
// empty_gradients.
template <typename T, typename Run>
void gather_gradients(
    const DepthwiseShape& shape, const Edges& edges, const Tensor* results, const DepthwiseWanted& wanted, const Run& run) {
    const int64_t num_shares = edges.num_shares, row = shape.components_in * shape.channels;
    Parts<T> of_features(num_shares), of_table(num_shares);
    for_each_task(num_shares, [&](int64_t share) {
        const int64_t first = edges.first_node(share), stop = edges.first_node(share + 1);
        int64_t first_source = edges.num_nodes, stop_source = 0;
        for (int64_t place = edges.offsets[first]; place < edges.offsets[stop]; ++place) {
            const int64_t source = edges.sources[edges.order[place]];
            first_source = std::min(first_source, source);
            stop_source = std::max(stop_source, source + 1);
        }
        first_source = std::min(first_source, stop_source);
        const DepthwiseGradients<T> into{
            of_features.make(share, first_source * row, stop_source * row), first_source,
            wanted.edges ? write<T>(results[1]) : nullptr, wanted.edges ? write<T>(results[2]) : nullptr,
            wanted.table ? of_table.make(share, 0, shape.padded_table()) : nullptr};
        const Scratch<T> workspace(SE3_FAST_CALL(depthwise_workspace_size<T>, shape));
        run(first, stop, into, workspace.data());
    });
    of_features.add_up(write<T>(results[0]), 0, edges.num_nodes * row);
    if (wanted.table) of_table.add_up(write<T>(results[3]), KNOTS_BEFORE * shape.rows(), shape.knots * shape.rows());
}

// The sums of a share's nodes, zero.
template <typename T>
T* clear_sums(const DepthwiseShape& shape, const Tensor& sums, int64_t first, int64_t stop) {
    const int64_t row = shape.components_out * shape.channels;
    std::fill_n(write<T>(sums) + first * row, (stop - first) * row, T(0));
    return write<T>(sums);
}

}  // namespace

namespace se3_fast {

Tensor depthwise_conv(
    Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers table, std::vector<double> coefficients) {
    Plan plan(table, coefficients);
    const Edges edges(src, dst, order, offsets);
    take_sizes(plan, operands, edges);
    const DepthwiseShape& shape = plan.shape;
    const Tensor sums = empty(operands[0], {edges.num_nodes, shape.components_out, shape.channels});
    by_type(sums, [&](auto zero) {
        using T = decltype(zero);
        const Scratch<T> knots = padded_table<T>(shape, operands[3]);
        for_each_task(edges.num_shares, [&](int64_t share) {
            const int64_t first = edges.first_node(share), stop = edges.first_node(share + 1);
            T* const into = clear_sums<T>(shape, sums, first, stop);
            const Scratch<T> workspace(SE3_FAST_CALL(depthwise_workspace_size<T>, shape));
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk<T>, shape, knots.data(), rows_of_operands<T>(operands), chunk, into, workspace.data());
            });
        });
    });
    return sums;
}

Tensors depthwise_gradients(
    const Tensor& gradient, const Tensors& operands, const Tensor& src, const Tensor& dst, const Tensor& order, const Tensor& offsets,
    const Integers& table, const std::vector<double>& coefficients, const DepthwiseWanted& wanted) {
    Plan plan(table, coefficients);
    const Edges edges(src, dst, order, offsets);
    take_sizes(plan, operands, edges);
    const DepthwiseShape& shape = plan.shape;
    check_tensor("gradient", gradient, operands[0].scalar_type(), {edges.num_nodes, shape.components_out, shape.channels});
    const Tensors results = empty_gradients(operands, wanted);
    by_type(gradient, [&](auto zero) {
        using T = decltype(zero);
        const Scratch<T> knots = padded_table<T>(shape, operands[3]);
        gather_gradients<T>(shape, edges, results.data(), wanted,
                            [&](int64_t first, int64_t stop, const DepthwiseGradients<T>& into, T* workspace) {
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk_backward<T>, shape, knots.data(), rows_of_operands<T>(operands), chunk,
                              read<T>(gradient), into, workspace);
            });
        });
    });
    return results;
}

Tensors depthwise_gradients_along(
    const Tensors& direction, const Tensor& gradient, const Tensors& operands, const Tensor& src, const Tensor& dst,
    const Tensor& order, const Tensor& offsets, const Integers& table, const std::vector<double>& coefficients,
    const DepthwiseWanted& wanted) {
    Plan plan(table, coefficients);
    const Edges edges(src, dst, order, offsets);
    take_sizes(plan, operands, edges);
    const DepthwiseShape& shape = plan.shape;
    const ScalarType type = operands[0].scalar_type();
    check_tensor("gradient", gradient, type, {edges.num_nodes, shape.components_out, shape.channels});
    check_count("direction", direction.size(), NUM_OF_ROWS);
    for (std::size_t index = 0; index < NUM_OF_ROWS; ++index) {
        const auto sizes = operands[index].sizes();
        check_tensor({"direction", index}, direction[index], type, Integers(sizes.begin(), sizes.end()));
    }
    Tensors results{empty(gradient, {edges.num_nodes, shape.components_out, shape.channels})};
    for (const Tensor& result : empty_gradients(operands, wanted)) results.push_back(result);
    by_type(gradient, [&](auto zero) {
        using T = decltype(zero);
        const Scratch<T> knots = padded_table<T>(shape, operands[3]);
        gather_gradients<T>(shape, edges, results.data() + 1, wanted,
                            [&](int64_t first, int64_t stop, const DepthwiseGradients<T>& into, T* workspace) {
            T* const sums = clear_sums<T>(shape, results[0], first, stop);
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk_along<T>, shape, knots.data(), rows_of_operands<T>(operands),
                              rows_of_operands<T>(direction), chunk, read<T>(gradient), sums, into, workspace);
            });
        });
    });
    return results;
}

}  // namespace se3_fast

namespace {

Tensors depthwise_conv_backward(
    Tensor gradient, Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers table,
    std::vector<double> coefficients, bool with_table) {
    return depthwise_gradients(gradient, operands, src, dst, order, offsets, table, coefficients, {true, with_table});
}

Tensors depthwise_conv_along(
    Tensors direction, Tensor gradient, Tensors operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers table,
    std::vector<double> coefficients) {
    return depthwise_gradients_along(
        direction, gradient, operands, src, dst, order, offsets, table, coefficients, {true, true});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "depthwise_conv(Tensor[] operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, int[] table, float[] coefficients) "
        "-> Tensor");
    m.def(
        "depthwise_conv_backward(Tensor gradient, Tensor[] operands, Tensor src, Tensor dst, Tensor order, Tensor offsets, "
        "int[] table, float[] coefficients, bool with_table) -> Tensor[]");
    m.def(
        "depthwise_conv_along(Tensor[] direction, Tensor gradient, Tensor[] operands, Tensor src, Tensor dst, Tensor order, "
        "Tensor offsets, int[] table, float[] coefficients) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv));
    m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward));
    m.impl("depthwise_conv_along", TORCH_BOX(&depthwise_conv_along));
}
