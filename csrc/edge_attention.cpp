// Attention over incoming edges on the CPU: the operations edge_attention and edge_attention_backward of torch.ops.se3_fast_cpp.
//
// Values and keys come degree by degree, side by side in one tensor as a convolution leaves them, [E][channels][components], those
// of the value first; so nothing is copied or put together. Nodes are shared among threads; what is written belongs to one node.

#include "edge_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

constexpr int64_t NODES_PER_TASK = 4;

void check_operands(const Tensors& messages, const Tensors& queries, const Tensor& order, const Tensor& offsets,
                    const Integers& value_channels, int64_t heads) {
    if (messages.empty()) refuse("messages: expected a tensor or more, got none");
    const ScalarType type = stored_type({"messages", 0}, messages[0]);
    const int64_t num_edges = rows_of("order", order, 1), num_nodes = rows_of("offsets", offsets, 1) - 1;
    if (num_nodes < 0) refuse("offsets: expected a number or more, got none");
    check_number("heads", heads, 1, MOST_HEADS);
    check_count("value_channels", value_channels.size(), messages.size());
    std::size_t num_queries = 0;
    for (std::size_t index = 0; index < messages.size(); ++index) {
        rows_of({"messages", index}, messages[index], 3);
        const int64_t channels = messages[index].size(1), components = messages[index].size(2);
        const int64_t of_values = value_channels[index], of_keys = channels - of_values;
        check_number("value_channels", of_values, 0, channels);
        check_number("messages", components, 1, MOST_HEAD_VALUES);
        check_number("messages", channels, 0, MOST_HEAD_VALUES / heads / components);
        if (of_values % heads != 0 || of_keys % heads != 0)
            refuse("heads: expected a divisor of the ", of_values, " channels of values and ", of_keys, " of keys, got ", heads);
        check_tensor({"messages", index}, messages[index], type, {num_edges, channels, components});
        if (of_keys == 0) continue;
        if (num_queries == queries.size()) refuse("queries: expected one for each message with keys, got ", queries.size());
        check_tensor({"queries", num_queries}, queries[num_queries], type, {num_nodes, of_keys, components});
        ++num_queries;
    }
    check_count("queries", queries.size(), num_queries);
    check_order("order", order, "offsets", offsets, num_nodes, num_edges, nullptr);
}

// messages: [E][channels][components] by degree; queries: [N][channels of the keys][components] of the degrees that have keys.
template <typename T, typename S>
std::vector<AttentionPart<T, S>> parts_of(
    const Tensors& messages, const Tensors& queries, const Integers& value_channels, int64_t heads) {
    std::vector<AttentionPart<T, S>> parts;
    std::size_t next_query = 0;
    for (std::size_t index = 0; index < messages.size(); ++index) {
        AttentionPart<T, S> part{};
        const int64_t components = messages[index].size(2), row = messages[index].size(1) * components;
        const int64_t of_values = value_channels[index] * components;
        part.value_run = of_values / heads;
        part.key_run = (row - of_values) / heads;
        part.value_stride = part.key_stride = row;
        part.value = read<S>(messages[index]);
        part.key = part.value + of_values;
        if (part.key_run > 0) part.query = read<S>(queries[next_query++]);
        parts.push_back(part);
    }
    return parts;
}

// Makes the tables of heads of all parts.
template <typename T, typename S>
Scratch<T> set_tables(std::vector<AttentionPart<T, S>>& parts, int64_t heads) {
    const auto size_of = [&](int64_t run) { return SE3_FAST_CALL(heads_size<T>, heads, run); };
    int64_t size = 0;
    for (const AttentionPart<T, S>& part : parts) size += size_of(part.value_run) + size_of(part.key_run);
    Scratch<T> tables(size);
    T* next = tables.data();
    const auto set = [&](int64_t run) {
        T* const table = next;
        SE3_FAST_CALL(set_heads<T>, heads, run, table);
        next += size_of(run);
        return table;
    };
    for (AttentionPart<T, S>& part : parts) {
        part.value_heads = set(part.value_run);
        part.key_heads = set(part.key_run);
    }
    return tables;
}

// Calls run(node, its edges, their number, most of any node, workspace) for all nodes.
template <typename T, typename S, typename Run>
void for_each_node(const Tensor& order, const Tensor& offsets, const Attention<T, S>& attention, const Run& run) {
    const int64_t num_nodes = offsets.size(0) - 1;
    const int64_t *edges = read<int64_t>(order), *starts = read<int64_t>(offsets);
    int64_t most = 0;
    for (int64_t node = 0; node < num_nodes; ++node) most = std::max(most, starts[node + 1] - starts[node]);
    share_tasks((num_nodes + NODES_PER_TASK - 1) / NODES_PER_TASK, [&](const auto& next) {
        const Scratch<T> workspace(SE3_FAST_CALL(attention_workspace_size<T>, attention, most));
        for (int64_t task = next(); task >= 0; task = next()) {
            const int64_t stop = std::min(num_nodes, (task + 1) * NODES_PER_TASK);
            for (int64_t node = task * NODES_PER_TASK; node < stop; ++node)
                run(node, edges + starts[node], starts[node + 1] - starts[node], most, workspace.data());
        }
    });
}

template <typename T, typename S>
Attention<T, S> attention_of(const std::vector<AttentionPart<T, S>>& parts, int64_t heads) {
    int64_t width = 0;
    for (const AttentionPart<T, S>& part : parts) width += part.key_run * heads;
    return {parts.data(), int64_t(parts.size()), heads, T(1 / std::sqrt(double(std::max<int64_t>(width, 1))))};
}

}  // namespace

namespace se3_fast {

Tensors edge_attention(Tensors messages, Tensors queries, Tensor order, Tensor offsets, Integers value_channels, int64_t heads) {
    check_operands(messages, queries, order, offsets, value_channels, heads);
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        auto parts = parts_of<T, S>(messages, queries, value_channels, heads);
        const Scratch<T> tables = set_tables(parts, heads);
        Tensors results;
        for (std::size_t index = 0; index < parts.size(); ++index) {
            results.push_back(empty(messages[index], {offsets.size(0) - 1, value_channels[index], messages[index].size(2)}));
            parts[index].result = write<S>(results.back());
        }
        const Attention<T, S> attention = attention_of(parts, heads);
        for_each_node(order, offsets, attention, [&](int64_t node, const int64_t* edges, int64_t count, int64_t most, T* memory) {
            SE3_FAST_CALL(attend<T>, attention, node, edges, count, most, memory);
        });
        return results;
    };
    return by_stored_type(messages[0], run);
}

}  // namespace se3_fast

namespace {

// Gradients of the messages, then of the queries.
Tensors edge_attention_backward(Tensors gradients, Tensors messages, Tensors queries, Tensor order, Tensor offsets,
                                Integers value_channels, int64_t heads) {
    check_operands(messages, queries, order, offsets, value_channels, heads);
    check_count("gradients", gradients.size(), messages.size());
    for (std::size_t index = 0; index < gradients.size(); ++index)
        check_tensor({"gradients", index}, gradients[index], messages[0].scalar_type(),
                     {offsets.size(0) - 1, value_channels[index], messages[index].size(2)});
    const auto run = [&](auto computed, auto stored) {
        using T = decltype(computed);
        using S = decltype(stored);
        auto parts = parts_of<T, S>(messages, queries, value_channels, heads);
        const Scratch<T> tables = set_tables(parts, heads);
        Tensors results;
        for (std::size_t index = 0; index < parts.size(); ++index) {
            results.push_back(torch::stable::empty_like(messages[index]));
            parts[index].gradient = read<S>(gradients[index]);
            parts[index].value_gradient = write<S>(results.back());
            parts[index].key_gradient = parts[index].value_gradient + (parts[index].key - parts[index].value);
        }
        std::size_t next_query = 0;
        for (AttentionPart<T, S>& part : parts)
            if (part.key_run > 0) {
                results.push_back(torch::stable::empty_like(queries[next_query++]));
                part.query_gradient = write<S>(results.back());
            }
        const Attention<T, S> attention = attention_of(parts, heads);
        for_each_node(order, offsets, attention, [&](int64_t node, const int64_t* edges, int64_t count, int64_t most, T* memory) {
            SE3_FAST_CALL(attend_backward<T>, attention, node, edges, count, most, memory);
        });
        return results;
    };
    return by_stored_type(messages[0], run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "edge_attention(Tensor[] messages, Tensor[] queries, Tensor order, Tensor offsets, int[] value_channels, int heads) "
        "-> Tensor[]");
    m.def(
        "edge_attention_backward(Tensor[] gradients, Tensor[] messages, Tensor[] queries, Tensor order, Tensor offsets, "
        "int[] value_channels, int heads) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) {
    m.impl("edge_attention", TORCH_BOX(&edge_attention));
    m.impl("edge_attention_backward", TORCH_BOX(&edge_attention_backward));
}
