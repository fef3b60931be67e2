// The energy of every atom by a force field's network, and the gradient of their sum by the relative positions, on the CPU: the
// operation force_network of torch.ops.se3_fast_cpp. Formula: se3_fast/forces.py, se3_fast/layers/interaction.py.
//
// One pass forward, one back. Layers are depthwise convolutions with blocks of nodes between them. What edges have
// (edge_embedding.py) is made in double precision. For training the values of the passes are kept: what force_network_along.cpp makes
// the gradients of the weights of.

#include <algorithm>
#include <optional>
#include <vector>

#include "force_network_description.h"
#include "operations.h"

namespace {

using namespace se3_fast;

// What a layer leaves for the way back; a node has a row of each.
struct LayerValues {
    Tensor sent, mixed, before;
    std::optional<Tensor> features, arrived;  // where they are kept
};

template <typename T>
class Pass {
public:
    Pass(const ForceNetwork& network, const ForceInputs& inputs, bool is_kept)
        : network_(network), inputs_(inputs), weights_(inputs.weights), is_kept_(is_kept), kinds_(read<int64_t>(inputs.kinds)),
          num_nodes_(inputs.num_nodes()), num_edges_(inputs.num_edges()), nodes_(num_nodes_, INTERACTION_NODES),
          harmonics_(of_edges({num_edges_, network.num_harmonics()})), places_(of_edges({num_edges_})) {}

    // Energies [N], the gradient of their sum [E][3], and what is kept.
    Tensors run() {
        embed_edges();
        Tensor features = embedded_atoms();
        for (const ForceLayer& layer : network_.layers) features = forward(layer, features);
        const Tensor energies = empty(inputs_.rel_pos, {num_nodes_});
        Tensor gradient = read_out(features, energies);
        Tensors of_edges;  // of harmonics and places
        std::vector<Tensors> kept(network_.layers.size());
        for (std::size_t number = network_.layers.size(); number-- > 0;) gradient = backward(number, gradient, of_edges, kept[number]);
        Tensors results{energies, of_rel_pos(of_edges)};
        if (!is_kept_) return results;
        results.insert(results.end(), {harmonics_, places_, features});
        for (const Tensors& of_layer : kept) results.insert(results.end(), of_layer.begin(), of_layer.end());
        return results;
    }

private:
    const ForceNetwork& network_;
    const ForceInputs& inputs_;
    const Tensors& weights_;
    bool is_kept_;
    const int64_t* kinds_;
    int64_t num_nodes_, num_edges_;
    Chunks nodes_;
    Tensor harmonics_, places_;
    std::vector<LayerValues> values_;

    Tensor of_edges(const Integers& sizes) const { return empty(inputs_.rel_pos, sizes); }
    Tensor of_nodes(int64_t columns) const { return empty(inputs_.rel_pos, {num_nodes_, columns}); }

    void embed_edges() const {
        const T* const rel_pos = read<T>(inputs_.rel_pos);
        T *const harmonics = write<T>(harmonics_), *const places = write<T>(places_);
        const int64_t row = network_.num_harmonics();
        for_embedded_edges(network_, num_edges_, [&](EdgeEmbedding& embedding, int64_t edge) {
            embedding.embed(rel_pos + 3 * edge, harmonics + edge * row, places + edge);
        });
    }

    // From the gradients that the layers left of harmonics and places, two of each.
    Tensor of_rel_pos(const Tensors& gradients) const {
        const Tensor result = of_edges({num_edges_, 3});
        const int64_t row = network_.num_harmonics();
        for_embedded_edges(network_, num_edges_, [&](EdgeEmbedding& embedding, int64_t edge) {
            std::vector<T> of_harmonics(row), of_place(1);
            add_up(gradients, 0, edge, of_harmonics);
            add_up(gradients, 1, edge, of_place);
            embedding.differentiate(read<T>(inputs_.rel_pos) + 3 * edge, of_harmonics.data(), of_place[0], write<T>(result) + 3 * edge);
        });
        return result;
    }

    // A row of every second tensor from the one numbered `first` on.
    static void add_up(const Tensors& gradients, std::size_t first, int64_t edge, std::vector<T>& sum) {
        for (std::size_t index = first; index < gradients.size(); index += 2) {
            const T* const row = read<T>(gradients[index]) + edge * int64_t(sum.size());
            for (std::size_t column = 0; column < sum.size(); ++column) sum[column] += row[column];
        }
    }

    Tensor embedded_atoms() const {
        const int64_t channels = network_.channels;
        const Tensor features = of_nodes(channels);
        for (int64_t node = 0; node < num_nodes_; ++node)
            std::copy_n(read<T>(weights_[0]) + kinds_[node] * channels, channels, write<T>(features) + node * channels);
        return features;
    }

    Tensors operands(const ForceLayer& layer, const Tensor& sent) const {
        return {sent, harmonics_, places_, weights_[layer.radial_table]};
    }

    Tensor forward(const ForceLayer& layer, const Tensor& features) {
        const InteractionShape& shape = layer.shape;
        const LayerMatrices<T> matrices(layer, weights_, false);
        const int64_t row_in = shape.row_in(), row_hidden = shape.row_hidden(), row_before = shape.row_before();
        const Tensor sent = empty(inputs_.rel_pos, {num_nodes_, shape.components(shape.degree_in), shape.channels});
        for_nodes<T>(nodes_, 0, [&](int64_t, int64_t first, int64_t count, T*) {
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, matrices.before.data(), 1.0, false,
                          read<T>(features) + first * row_in, write<T>(sent) + first * row_in);
        });
        const EdgesByDestination& edges = inputs_.edges;
        const Tensor arrived = described([&] {
            return depthwise_conv(
                operands(layer, sent), edges.src, edges.dst, edges.order, edges.offsets, layer.table, layer.coefficients);
        });
        if (arrived.size(1) != shape.components(shape.degree_hidden))
            refuse("description: expected messages of ", shape.components(shape.degree_hidden), " components, got ", arrived.size(1));
        LayerValues values{sent, of_nodes(row_hidden), of_nodes(row_before), {}, {}};
        const Tensor next = of_nodes(shape.row_out());
        const int64_t workspace_size = SE3_FAST_CALL(interaction_workspace_size<T>, shape);
        for_nodes<T>(nodes_, workspace_size, [&](int64_t, int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(interact<T>, shape, matrices.interaction(), count, kinds_ + first, read<T>(features) + first * row_in,
                          read<T>(arrived) + first * row_hidden, write<T>(values.mixed) + first * row_hidden,
                          write<T>(values.before) + first * row_before, write<T>(next) + first * shape.row_out(), workspace);
        });
        if (is_kept_) values.features = features, values.arrived = arrived;
        values_.push_back(std::move(values));
        return next;
    }

    // Energies, and their gradients by the features of the last layer.
    Tensor read_out(const Tensor& features, const Tensor& energies) const {
        const int64_t row = features.size(1);
        const Tensor gradient = of_nodes(row);
        const Head<T> head(network_, weights_);
        for_nodes<T>(nodes_, 2 * INTERACTION_NODES * network_.head_width,
                     [&](int64_t, int64_t node, int64_t count, T* workspace) {
            SE3_FAST_CALL(read_out<T>, head.matrices, count, row, read<T>(features) + node * row, write<T>(energies) + node,
                          write<T>(gradient) + node * row, workspace);
        });
        return gradient;
    }

    // The gradient by the features that a layer was given; that of the edges is added to the list. The first layer's features do not
    // depend on positions.
    Tensor backward(std::size_t number, const Tensor& of_next, Tensors& of_edges, Tensors& kept) {
        const ForceLayer& layer = network_.layers[number];
        const InteractionShape& shape = layer.shape;
        const LayerValues values = std::move(values_[number]);
        const LayerMatrices<T> transposed(layer, weights_, true);
        const int64_t row_in = shape.row_in(), row_hidden = shape.row_hidden();
        const bool is_first = number == 0;
        const Tensor of_features = is_first ? of_nodes(0) : of_nodes(row_in);
        const Tensor of_mixed = is_kept_ ? of_nodes(row_hidden) : of_nodes(0);
        const Tensor of_arrived = empty(inputs_.rel_pos, {num_nodes_, shape.components(shape.degree_hidden), shape.channels});
        const int64_t workspace_size = SE3_FAST_CALL(interaction_workspace_size<T>, shape);
        for_nodes<T>(nodes_, workspace_size + INTERACTION_NODES * row_hidden,
                     [&](int64_t, int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(interact_backward<T>, shape, transposed.interaction(), count, kinds_ + first,
                          read<T>(of_next) + first * shape.row_out(), read<T>(values.mixed) + first * row_hidden,
                          read<T>(values.before) + first * shape.row_before(),
                          is_first ? nullptr : write<T>(of_features) + first * row_in,
                          is_kept_ ? write<T>(of_mixed) + first * row_hidden : workspace + workspace_size,
                          write<T>(of_arrived) + first * row_hidden, workspace);
        });
        const EdgesByDestination& edges = inputs_.edges;
        const Tensors found = depthwise_gradients(of_arrived, operands(layer, values.sent), edges.src, edges.dst, edges.order,
                                                  edges.offsets, layer.table, layer.coefficients, {true, false});
        of_edges.push_back(found[1]);
        of_edges.push_back(found[2]);
        if (is_kept_)
            kept = {*values.features, values.sent, *values.arrived, values.mixed, values.before, of_next, of_mixed, of_arrived,
                    found[0]};
        if (is_first) return of_features;
        for_nodes<T>(nodes_, 0, [&](int64_t, int64_t first, int64_t count, T*) {
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, transposed.before.data(), 1.0, true,
                          read<T>(found[0]) + first * row_in, write<T>(of_features) + first * row_in);
        });
        return of_features;
    }
};

Tensors force_network(Tensor rel_pos, Tensor kinds, Tensors weights, Tensor src, Tensor dst, Tensor order, Tensor offsets,
                      Integers description, std::vector<double> coefficients, double cutoff, bool keep) {
    const ForceNetwork network(description, coefficients, cutoff);
    const ForceInputs inputs{rel_pos, kinds, weights, {src, dst, order, offsets}};
    check_inputs(network, inputs);
    return by_type(rel_pos, [&](auto zero) { return Pass<decltype(zero)>(network, inputs, keep).run(); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "force_network(Tensor rel_pos, Tensor kinds, Tensor[] weights, Tensor src, Tensor dst, Tensor order, Tensor offsets, "
        "int[] description, float[] coefficients, float cutoff, bool keep) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) { m.impl("force_network", TORCH_BOX(&force_network)); }
