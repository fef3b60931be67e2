#include "force_network_description.h"

#include <algorithm>
#include <cmath>

namespace se3_fast {
namespace {

constexpr int64_t MOST_LAYERS = 1024;

template <typename Take>
ForceLayer take_layer(
    IntegerReader& reader, const Take& take_coefficient, int64_t num_elements, int64_t channels, int64_t degree_in, std::size_t& next) {
    ForceLayer layer;
    InteractionShape& shape = layer.shape;
    shape.channels = channels, shape.num_elements = num_elements, shape.degree_in = degree_in;
    shape.degree_hidden = reader.take("degree of the messages", 0, MOST_DEGREE);
    shape.degree_out = reader.take("degree of the features", 0, shape.degree_hidden);
    for (int64_t number = reader.take_count("numbers of the table"); number > 0; --number)
        layer.table.push_back(reader.take("number of the table", 0, MOST_PATHS));
    shape.scale = take_coefficient();
    for (int64_t number = reader.take_count("coefficients of the table"); number > 0; --number)
        layer.coefficients.push_back(take_coefficient());
    int64_t degree_before = 0;
    for (int64_t count = reader.take_count("products"); count > 0; --count) {
        const int64_t degree = reader.take("degree of the product", degree_before, shape.degree_out);
        const int64_t first = reader.take("degree of the first factor", 0, shape.degree_hidden);
        const int64_t second = reader.take("degree of the second factor", 0, shape.degree_hidden);
        const int64_t first_term = int64_t(layer.terms.size());
        for (int64_t term = reader.take_count("terms of the product"); term > 0; --term) {
            const int64_t left = reader.take("component of the first factor", 0, 2 * first);
            const int64_t right = reader.take("component of the second factor", 0, 2 * second);
            const int64_t out = reader.take("component of the product", 0, 2 * degree);
            layer.terms.push_back({left, right, out, take_coefficient()});
        }
        layer.products.push_back({degree, first, second, first_term, int64_t(layer.terms.size())});
        degree_before = degree;
    }
    const auto take = [&](int64_t count) {
        const std::size_t first = next;
        next += std::size_t(count);
        return first;
    };
    layer.before = take(degree_in + 1), layer.radial_table = take(1), layer.after = take(shape.degree_hidden + 1);
    layer.out = take(shape.degree_out + 1), layer.gates = take(shape.degree_out);
    return layer;
}

// A size that fills cache lines.
void check_lines(const char* what, int64_t size, int64_t element_size) {
    const int64_t lanes = 64 / element_size;
    if (size % lanes != 0) refuse("description: expected a multiple of ", lanes, " ", what, ", got ", size);
}

void check_weights(const ForceNetwork& network, const Tensors& weights, ScalarType type) {
    check_count("weights", weights.size(), network.head + 4);
    const int64_t channels = network.channels;
    const auto check = [&](std::size_t index, const Integers& sizes) { check_tensor({"weights", index}, weights[index], type, sizes); };
    check(0, {network.num_elements, channels});
    for (const ForceLayer& layer : network.layers) {
        const InteractionShape& shape = layer.shape;
        for (int64_t degree = 0; degree <= shape.degree_in; ++degree) check(layer.before + degree, {channels, channels});
        rows_of({"weights", layer.radial_table}, weights[layer.radial_table], 2);
        check(layer.radial_table, {network.knots, weights[layer.radial_table].size(1)});  // its convolution checks the rest
        for (int64_t degree = 0; degree <= shape.degree_hidden; ++degree) check(layer.after + degree, {channels, channels});
        for (int64_t degree = 0; degree <= shape.degree_out; ++degree)
            check(layer.out + degree, {layer.parts(degree) * channels, channels});
        for (int64_t gate = 0; gate < shape.degree_out; ++gate) check(layer.gates + gate, {layer.parts(0) * channels, channels});
    }
    check(network.head, {network.head_width, channels});
    check(network.head + 1, {network.head_width});
    check(network.head + 2, {1, network.head_width});
    check(network.head + 3, {1});
}

}  // namespace

// Numbers of the description (se3_fast/backends/cpp/force_network.py), with the coefficients beside it.
ForceNetwork::ForceNetwork(const Integers& description, const std::vector<double>& coefficients, double cutoff) : cutoff(cutoff) {
    if (!(cutoff > 0) || !std::isfinite(cutoff)) refuse("cutoff: expected a positive length, got ", cutoff);
    IntegerReader reader("description", description);
    std::size_t used = 0;
    const auto take_coefficient = [&] {
        if (used == coefficients.size()) refuse("coefficients: expected one for each term, got ", coefficients.size());
        return coefficients[used++];
    };
    num_elements = reader.take("elements", 1, 256);
    channels = reader.take("channels", 1, MOST_CHANNELS);
    knots = reader.take("knots", 1, MOST_WIDTH);
    max_harmonic = reader.take("degree of the harmonics", 1, MOST_DEGREE);
    head_width = reader.take("units of the energy", 1, MOST_WIDTH);
    const int64_t num_harmonics = (max_harmonic + 1) * (max_harmonic + 1);
    for (int64_t term = reader.take_count("terms of harmonics"); term > 0; --term) {
        const int64_t before = reader.take("harmonic before", 1, num_harmonics - 1), axis = reader.take("axis", 0, 2);
        const int64_t out = reader.take("harmonic", std::max<int64_t>(4, before + 1), num_harmonics - 1);
        harmonics.push_back({before, axis, out, take_coefficient()});
    }
    std::size_t next = 1;  // behind the embedding
    int64_t degree_before = 0;
    for (int64_t count = reader.take("layers", 1, MOST_LAYERS); count > 0; --count) {
        layers.push_back(take_layer(reader, take_coefficient, num_elements, channels, degree_before, next));
        degree_before = layers.back().shape.degree_out;
    }
    for (ForceLayer& layer : layers) {
        layer.shape.num_products = int64_t(layer.products.size());
        layer.shape.products = layer.products.data();
        layer.shape.terms = layer.terms.data();
    }
    head = next;
    reader.finish();
    check_count("coefficients", coefficients.size(), used);
}

void check_inputs(const ForceNetwork& network, const ForceInputs& inputs) {
    const auto& [src, dst, order, offsets] = inputs.edges;
    const Tensor &rel_pos = inputs.rel_pos, &kinds = inputs.kinds;
    const ScalarType type = value_type("rel_pos", rel_pos);
    const int64_t element_size = rel_pos.element_size(), num_edges = rows_of("src", src, 1), num_nodes = rows_of("kinds", kinds, 1);
    check_lines("channels", network.channels, element_size);
    check_lines("units of the energy", network.head_width, element_size);
    check_tensor("rel_pos", rel_pos, type, {num_edges, 3});
    if (rows_of("offsets", offsets, 1) != num_nodes + 1)
        refuse("offsets: expected ", num_nodes + 1, " numbers, got ", offsets.size(0));
    check_weights(network, inputs.weights, type);
    check_tensor("kinds", kinds, ScalarType::Long, {num_nodes});
    for (int64_t node = 0; node < num_nodes; ++node)
        check_number("kinds", read<int64_t>(kinds)[node], 0, network.num_elements - 1);
    check_ends("src", src, num_nodes, num_edges);
    check_ends("dst", dst, num_nodes, num_edges);
    check_order("order", order, "offsets", offsets, num_nodes, num_edges, read<int64_t>(dst));
}

}  // namespace se3_fast
