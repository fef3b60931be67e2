// The depthwise convolution on the CPU: the operations depthwise_conv, depthwise_conv_backward and depthwise_conv_along of
// torch.ops.se3_fast_cpp. Nodes are cut into shares with about the same number of incoming edges, one for each thread. Sums belong
// to one share; the gradients of the sources' features and of the weights are kept by share and added up in the shares' order.

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
struct Plan {
    std::vector<DepthwiseRun> runs;
    std::vector<DepthwisePair> pairs;
    std::vector<DepthwiseTerm> terms;
    DepthwiseShape shape{};

    Plan(const Integers& table, const std::vector<double>& coefficients) {
        IntegerReader reader("table", table);
        constexpr int64_t MOST_COMPONENTS = (MOST_DEGREE + 1) * (MOST_DEGREE + 1);
        shape.components_in = reader.take("components of the features", 1, MOST_COMPONENTS);
        shape.components_out = reader.take("components of the messages", 1, MOST_COMPONENTS);
        shape.harmonics = reader.take("harmonics", 1, MOST_COMPONENTS);
        shape.paths = reader.take("paths", 1, MOST_PATHS);
        for (int64_t run = reader.take_count("runs"); run > 0; --run) {
            const int64_t path = reader.take("path", 0, shape.paths - 1);
            const int64_t component_out = reader.take("component of the message", 0, shape.components_out - 1);
            const int64_t first_pair = int64_t(pairs.size());
            for (int64_t pair = reader.take_count("pairs"); pair > 0; --pair) {
                const int64_t component_in = reader.take("component of the features", 0, shape.components_in - 1);
                const int64_t first_term = int64_t(terms.size());
                for (int64_t term = reader.take_count("terms"); term > 0; --term) {
                    if (terms.size() == coefficients.size())
                        refuse("coefficients: expected one for each term, got ", coefficients.size());
                    terms.push_back({reader.take("harmonic", 0, shape.harmonics - 1), coefficients[terms.size()]});
                }
                pairs.push_back({component_in, first_term, int64_t(terms.size())});
            }
            runs.push_back({path, component_out, first_pair, int64_t(pairs.size())});
        }
        reader.finish();
        check_count("coefficients", coefficients.size(), terms.size());
        shape.num_runs = int64_t(runs.size());
        shape.num_pairs = int64_t(pairs.size());
        shape.runs = runs.data();
        shape.pairs = pairs.data();
        shape.terms = terms.data();
    }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
};

// features [N][components][C], harmonics [E][..], radial [E][B], first [B][K], second [K][K], last [K][P C].
constexpr std::size_t NUM_OPERANDS = 6;

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
    rows_of(operand_name(2), operands[2], 2);
    rows_of(operand_name(4), operands[4], 2);
    shape.channels = operands[0].size(2);
    shape.width = operands[4].size(0);
    shape.inputs = operands[2].size(1);
    const int64_t lanes = 64 / operands[0].element_size();  // of the widest vectors
    check_size(0, "channels", shape.channels, lanes, MOST_CHANNELS);
    check_size(4, "units", shape.width, lanes, MOST_WIDTH);
    check_size(2, "radial functions", shape.inputs, 1, MOST_INVARIANTS);
    const Integers sizes[NUM_OPERANDS] = {
        {edges.num_nodes, shape.components_in, shape.channels}, {edges.num_edges, shape.harmonics}, {edges.num_edges, shape.inputs},
        {shape.inputs, shape.width}, {shape.width, shape.width}, {shape.width, shape.rows()}};
    for (std::size_t index = 0; index < NUM_OPERANDS; ++index) check_tensor(operand_name(index), operands[index], type, sizes[index]);
}

template <typename T>
DepthwiseOperands<T> rows_of_operands(const Tensors& operands) {
    return {read<T>(operands[0]), read<T>(operands[1]), read<T>(operands[2])};
}

// [columns][stride] from [rows][columns].
template <typename T>
Scratch<T> transposed(const T* matrix, int64_t rows, int64_t columns, int64_t stride) {
    Scratch<T> result(columns * stride);
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t row = 0; row < stride; ++row) result.data()[column * stride + row] = row < rows ? matrix[row * columns + column] : 0;
    return result;
}

// The weights of the profile as they are, and for the backward pass transposed.
template <typename T>
struct Weights {
    Scratch<T> first, second, last;
    DepthwiseWeights<T> rows;

    Weights(const DepthwiseShape& shape, const Tensors& operands)
        : first(transposed(read<T>(operands[3]), shape.inputs, shape.width, SE3_FAST_CALL(depthwise_padded_inputs<T>, shape))),
          second(transposed(read<T>(operands[4]), shape.width, shape.width, shape.width)),
          last(transposed(read<T>(operands[5]), shape.width, shape.rows(), shape.width)),
          rows{read<T>(operands[3]), read<T>(operands[4]), read<T>(operands[5]), first.data(), second.data(), last.data()} {}
};

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

    void add_up(T* whole, int64_t count) const {
        std::fill_n(whole, count, T(0));
        for (const Part& part : parts_)
            for (int64_t index = part.first; index < part.stop; ++index) whole[index] += part.values[index - part.first];
    }

private:
    struct Part {
        int64_t first, stop;
        std::vector<T> values;
    };
    std::vector<Part> parts_;
};

// Tensors for the gradients of the operands; of size 0 where one is not wanted, and those of the weights are left out then.
Tensors empty_gradients(const Tensors& operands, const DepthwiseWanted& wanted) {
    Tensors results;
    for (std::size_t index = 0; index < (wanted.weights ? NUM_OPERANDS : 3); ++index) {
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
    const bool with_weights = wanted.weights;
    const int64_t num_shares = edges.num_shares, row = shape.components_in * shape.channels;
    const int64_t sizes[3] = {shape.inputs * shape.width, shape.width * shape.width, shape.width * shape.rows()};
    Parts<T> of_features(num_shares);
    std::vector<Parts<T>> of_weights(3, Parts<T>(num_shares));
    for_each_task(num_shares, [&](int64_t share) {
        const int64_t first = edges.first_node(share), stop = edges.first_node(share + 1);
        int64_t first_source = edges.num_nodes, stop_source = 0;
        for (int64_t place = edges.offsets[first]; place < edges.offsets[stop]; ++place) {
            const int64_t source = edges.sources[edges.order[place]];
            first_source = std::min(first_source, source);
            stop_source = std::max(stop_source, source + 1);
        }
        first_source = std::min(first_source, stop_source);
        DepthwiseGradients<T> into{of_features.make(share, first_source * row, stop_source * row), first_source,
                                   wanted.edges ? write<T>(results[1]) : nullptr, wanted.edges ? write<T>(results[2]) : nullptr, {}};
        if (with_weights)
            into.weights = {of_weights[0].make(share, 0, sizes[0]), of_weights[1].make(share, 0, sizes[1]),
                            of_weights[2].make(share, 0, sizes[2])};
        const Scratch<T> workspace(SE3_FAST_CALL(depthwise_workspace_size<T>, shape));
        run(first, stop, into, workspace.data());
    });
    of_features.add_up(write<T>(results[0]), edges.num_nodes * row);
    for (int index = 0; with_weights && index < 3; ++index) of_weights[index].add_up(write<T>(results[3 + index]), sizes[index]);
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
        const DepthwiseWeights<T> weights{read<T>(operands[3]), read<T>(operands[4]), read<T>(operands[5]), nullptr, nullptr, nullptr};
        for_each_task(edges.num_shares, [&](int64_t share) {
            const int64_t first = edges.first_node(share), stop = edges.first_node(share + 1);
            T* const into = clear_sums<T>(shape, sums, first, stop);
            const Scratch<T> workspace(SE3_FAST_CALL(depthwise_workspace_size<T>, shape));
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk<T>, shape, weights, rows_of_operands<T>(operands), chunk, into, workspace.data());
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
        const Weights<T> weights(shape, operands);
        gather_gradients<T>(shape, edges, results.data(), wanted,
                            [&](int64_t first, int64_t stop, const DepthwiseGradients<T>& into, T* workspace) {
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk_backward<T>, shape, weights.rows, rows_of_operands<T>(operands), chunk,
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
    check_count("direction", direction.size(), 3);
    for (std::size_t index = 0; index < 3; ++index) {
        const auto sizes = operands[index].sizes();
        check_tensor({"direction", index}, direction[index], type, Integers(sizes.begin(), sizes.end()));
    }
    Tensors results{empty(gradient, {edges.num_nodes, shape.components_out, shape.channels})};
    for (const Tensor& result : empty_gradients(operands, wanted)) results.push_back(result);
    by_type(gradient, [&](auto zero) {
        using T = decltype(zero);
        const Weights<T> weights(shape, operands);
        gather_gradients<T>(shape, edges, results.data() + 1, wanted,
                            [&](int64_t first, int64_t stop, const DepthwiseGradients<T>& into, T* workspace) {
            T* const sums = clear_sums<T>(shape, results[0], first, stop);
            edges.for_each_chunk(first, stop, [&](const DepthwiseEdges& chunk) {
                SE3_FAST_CALL(depthwise_chunk_along<T>, shape, weights.rows, rows_of_operands<T>(operands),
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
    std::vector<double> coefficients, bool with_weights) {
    return depthwise_gradients(gradient, operands, src, dst, order, offsets, table, coefficients, {true, with_weights});
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
        "int[] table, float[] coefficients, bool with_weights) -> Tensor[]");
    m.def(
        "depthwise_conv_along(Tensor[] direction, Tensor gradient, Tensor[] operands, Tensor src, Tensor dst, Tensor order, "
        "Tensor offsets, int[] table, float[] coefficients) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv));
    m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward));
    m.impl("depthwise_conv_along", TORCH_BOX(&depthwise_conv_along));
}
