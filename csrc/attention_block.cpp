// An attention block on the CPU, without gradients: the operation attention_block of torch.ops.se3_fast_cpp. It is the operations
// radial, tfn_conv, linear, edge_attention and linear one after the other, for graphs so small that to call them takes as long as
// what they compute. Each checks what it is handed.

#include <cstring>

#include "check.h"
#include "operations.h"
#include "radial.h"
#include "tfn_conv_plan.h"

namespace {

using namespace se3_fast;

// The parameters of the hidden radial layers, in the order that `radial` takes them in, [groups][parameters of a group].
Tensor rows_of_profiles(const Tensors& profiles, int64_t num_groups, const Tensor& invariants, const RadialShape& shape) {
    const ScalarType type = value_type("invariants", invariants);
    const std::size_t of_layer = shape.has_norm ? 4 : 2;
    check_count("profiles", profiles.size(), std::size_t(num_groups) * 2 * of_layer);
    const Tensor rows = empty(invariants, {num_groups, shape.size()});
    char* into = static_cast<char*>(rows.mutable_data_ptr());
    for (std::size_t index = 0; index < profiles.size(); ++index) {
        const bool is_weight = index % of_layer == 0, is_first = index % (2 * of_layer) < of_layer;
        check_tensor({"profiles", index}, profiles[index], type,
                     is_weight ? Integers{shape.width, is_first ? shape.inputs : shape.width} : Integers{shape.width});
        const std::size_t bytes = profiles[index].numel() * profiles[index].element_size();
        if (bytes > 0) std::memcpy(into, profiles[index].const_data_ptr(), bytes);
        into += bytes;
    }
    return rows;
}

// Features of a list, by a number that was handed over; components: how many they must have, or 0.
const Tensor& chosen(const char* name, const Tensors& features, int64_t number, int64_t components) {
    check_number(name, number, 0, int64_t(features.size()) - 1);
    const int64_t given = features[number].size(2);
    if (components > 0 && given != components) refuse(name, ": expected features of ", components, " components, got ", given);
    return features[number];
}

// query_nodes: of each degree of the queries, the number of its node features.
Tensors queries_of(const Tensors& nodes, const Tensors& messages, const Integers& value_channels, const Integers& query_nodes,
                   const Tensors& query_weights) {
    check_count("value_channels", value_channels.size(), messages.size());
    check_count("query_nodes", query_nodes.size(), query_weights.size());
    Tensors features;
    for (std::size_t degree = 0; degree < messages.size(); ++degree) {
        check_number("value_channels", value_channels[degree], 0, messages[degree].size(1));
        const int64_t num_keys = messages[degree].size(1) - value_channels[degree];
        if (num_keys == 0) continue;
        const std::size_t number = features.size();
        if (number == query_nodes.size()) refuse("query_weights: expected one for each degree with keys, got ", number);
        features.push_back(chosen("query_nodes", nodes, query_nodes[number], messages[degree].size(2)));
        check_tensor({"query_weights", number}, query_weights[number], nodes[0].scalar_type(),
                     {num_keys, features.back().size(1)});
    }
    check_count("query_weights", query_weights.size(), features.size());
    return linear(features, Integers(features.size(), 1), query_weights);
}

// output_parts: of each degree of the result, the number of its values, or -1 where there are none, and that of its node features,
// or -1.
Tensors outputs_of(const Tensors& values, const Tensors& nodes, const Integers& output_parts, const Tensors& output_weights) {
    check_count("output_parts", output_parts.size(), 2 * output_weights.size());
    Tensors parts;
    Integers counts;
    for (std::size_t degree = 0; degree < output_weights.size(); ++degree) {
        int64_t channels = 0, components = 0, count = 0;
        for (const bool is_value : {true, false}) {
            const int64_t number = output_parts[2 * degree + (is_value ? 0 : 1)];
            if (number == -1) continue;
            parts.push_back(chosen("output_parts", is_value ? values : nodes, number, components));
            components = parts.back().size(2);
            channels += parts.back().size(1);
            ++count;
        }
        if (count == 0) refuse("output_parts: expected features for degree number ", degree, ", got none");
        counts.push_back(count);
        check_tensor({"output_weights", degree}, output_weights[degree], nodes[0].scalar_type(),
                     {rows_of({"output_weights", degree}, output_weights[degree], 2), channels});
    }
    return linear(parts, counts, output_weights);
}

Tensors attention_block(Tensors nodes, Tensors edges, Tensor invariants, Tensors profiles, Tensors weights, Tensors query_weights,
                        Tensors output_weights, Tensor wigner, Tensor src, Tensor dst, Tensor in_order, Tensor in_offsets,
                        Integers description, Tensor coefficients, Integers value_channels, Integers query_nodes,
                        Integers output_parts, int64_t heads, bool has_norm, double epsilon) {
    if (nodes.empty()) refuse("nodes: expected a tensor or more, got none");
    value_type({"nodes", 0}, nodes[0]);
    const int64_t num_edges = rows_of("src", src, 1);
    if (rows_of("invariants", invariants, 2) != num_edges)
        refuse("invariants: expected those of ", num_edges, " edges, got those of ", invariants.size(0));
    const Description plan(description);
    const int64_t num_groups = plan.num_groups, width = plan.width_hidden;
    check_number("invariants", invariants.size(1), 0, MOST_INVARIANTS);
    const RadialShape shape{invariants.size(1), width, has_norm, epsilon};
    const Tensor all_hidden = radial(invariants, rows_of_profiles(profiles, num_groups, invariants, shape), width, has_norm, epsilon);
    Tensors hidden;
    for (int64_t group = 0; group < num_groups; ++group) hidden.push_back(torch::stable::select(all_hidden, 0, group));
    const Tensors messages = tfn_conv(nodes, edges, hidden, weights, wigner, src, dst, in_order, in_offsets, description,
                                      coefficients, false);
    const Tensors queries = queries_of(nodes, messages, value_channels, query_nodes, query_weights);
    const Tensors values = edge_attention(messages, queries, in_order, in_offsets, value_channels, heads);
    return outputs_of(values, nodes, output_parts, output_weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "attention_block(Tensor[] nodes, Tensor[] edges, Tensor invariants, Tensor[] profiles, Tensor[] weights, "
        "Tensor[] query_weights, Tensor[] output_weights, Tensor wigner, Tensor src, Tensor dst, Tensor in_order, "
        "Tensor in_offsets, int[] description, Tensor coefficients, int[] value_channels, int[] query_nodes, int[] output_parts, "
        "int heads, bool has_norm, float epsilon) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) { m.impl("attention_block", TORCH_BOX(&attention_block)); }
