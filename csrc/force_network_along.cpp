// What training needs of a force field's network on the CPU: the gradients of its weights, from those of the energies and of the
// gradient that force_network.cpp finds. The operation force_network_along of torch.ops.se3_fast_cpp.
//
// With the energies e(r, W) of atoms at relative positions r, S their sum, and a loss whose gradients by e and dS/dr are a and u,
//
//     d loss / dW  =  sum over atoms of a de/dW  +  d/dW (u dS/dr)
//
// and the second term is the derivative of dS/dW when r moves along u. So one pass forward carries derivatives of values along u, one
// back those of gradients, which are 1 at each energy and have the derivative a there. The values themselves are kept from before.

#include <algorithm>
#include <vector>

#include "force_network_description.h"
#include "operations.h"

namespace {

using namespace se3_fast;

// Sums into tensors of which every share of the nodes has its own copy.
template <typename T>
class SharedSums {
public:
    SharedSums(const Tensors& results, int64_t num_shares) : results_(results), copies_(num_shares - 1) {
        int64_t size = 0;
        for (const Tensor& result : results) {
            fill_zero(result);
            starts_.push_back(size);
            size += result.numel();
        }
        for (std::vector<T>& copy : copies_) copy.resize(size);
    }

    // Where a share adds to the tensor numbered `index`.
    T* of(int64_t share, std::size_t index) {
        return share == 0 ? write<T>(results_[index]) : copies_[share - 1].data() + starts_[index];
    }

    std::vector<T*> of(int64_t share, std::size_t first, int64_t count) {
        std::vector<T*> found;
        for (int64_t index = 0; index < count; ++index) found.push_back(of(share, first + index));
        return found;
    }

    // The shares' sums in their order.
    void add_up() {
        for (const std::vector<T>& copy : copies_)
            for (std::size_t index = 0; index < results_.size(); ++index) {
                T* const result = write<T>(results_[index]);
                for (int64_t place = 0; place < results_[index].numel(); ++place) result[place] += copy[starts_[index] + place];
            }
    }

private:
    const Tensors& results_;
    std::vector<std::vector<T>> copies_;
    std::vector<int64_t> starts_;
};

template <typename T>
void add_to(const Tensor& sum, const Tensor& other) {
    T* const into = write<T>(sum);
    const T* const from = read<T>(other);
    for (int64_t index = 0; index < sum.numel(); ++index) into[index] += from[index];
}

// What force_network kept, in its order.
struct KeptEdges {
    static constexpr std::size_t COUNT = 3;
    const Tensor &harmonics, &places, &last_features;

    explicit KeptEdges(const Tensors& kept) : harmonics(kept[0]), places(kept[1]), last_features(kept[2]) {}
};

struct KeptLayer {
    static constexpr std::size_t COUNT = 9;
    const Tensor &features, &sent, &arrived, &mixed, &before, &of_next, &of_mixed, &of_arrived, &of_sent;

    KeptLayer(const Tensors& kept, std::size_t number) : KeptLayer(&kept[KeptEdges::COUNT + number * COUNT]) {}

private:
    explicit KeptLayer(const Tensor* first)
        : features(first[0]), sent(first[1]), arrived(first[2]), mixed(first[3]), before(first[4]), of_next(first[5]),
          of_mixed(first[6]), of_arrived(first[7]), of_sent(first[8]) {}
};

void check_kept(const ForceNetwork& network, const ForceInputs& inputs, const Tensors& kept) {
    check_count("kept", kept.size(), KeptEdges::COUNT + network.layers.size() * KeptLayer::COUNT);
    const ScalarType type = inputs.rel_pos.scalar_type();
    const int64_t num_nodes = inputs.num_nodes(), num_edges = inputs.num_edges();
    std::size_t next = 0;
    const auto check = [&](const Integers& sizes) {
        check_tensor({"kept", next}, kept[next], type, sizes);
        ++next;
    };
    check({num_edges, network.num_harmonics()});
    check({num_edges});
    check({num_nodes, network.layers.back().shape.row_out()});
    for (const ForceLayer& layer : network.layers) {
        const InteractionShape& shape = layer.shape;
        const Integers sent{num_nodes, shape.components(shape.degree_in), shape.channels};
        const Integers arrived{num_nodes, shape.components(shape.degree_hidden), shape.channels};
        check({num_nodes, shape.row_in()});
        check(sent);
        check(arrived);
        check({num_nodes, shape.row_hidden()});
        check({num_nodes, shape.row_before()});
        check({num_nodes, shape.row_out()});
        check({num_nodes, shape.row_hidden()});
        check(arrived);
        check(sent);
    }
}

// Derivatives that the pass forward leaves of a layer; a node has a row of each.
struct LayerDots {
    Tensor features, arrived, mixed, before;
    Tensor of_sent;  // the part that the gradients of what arrived do not change
};

template <typename T>
class PassAlong {
public:
    PassAlong(const ForceNetwork& network, const ForceInputs& inputs, const Tensors& kept)
        : network_(network), inputs_(inputs), weights_(inputs.weights), kept_(kept), kinds_(read<int64_t>(inputs.kinds)),
          num_nodes_(inputs.num_nodes()), nodes_(num_nodes_, INTERACTION_NODES), results_(empty_results()),
          sums_(results_, nodes_.num_shares) {}

    // The gradients of all weights.
    Tensors run(const Tensor& of_energies, const Tensor& direction) {
        const Tensors of_edges = embed_along(direction);
        Tensor features_dot = of_nodes(0);
        for (std::size_t number = 0; number < network_.layers.size(); ++number)
            features_dot = forward(number, features_dot, of_edges);
        Tensor gradient_dot = read_out(features_dot, of_energies);
        for (std::size_t number = network_.layers.size(); number-- > 0;) gradient_dot = backward(number, gradient_dot);
        sums_.add_up();
        for (std::size_t index = 0; index < of_tables_.size(); ++index)
            add_to<T>(results_[network_.layers[network_.layers.size() - 1 - index].radial_table], of_tables_[index]);
        add_embedding_gradient(gradient_dot);
        return results_;
    }

private:
    const ForceNetwork& network_;
    const ForceInputs& inputs_;
    const Tensors &weights_, &kept_;
    const int64_t* kinds_;
    int64_t num_nodes_;
    Chunks nodes_;
    Tensors results_;
    SharedSums<T> sums_;
    std::vector<LayerDots> dots_;
    Tensors of_tables_;  // of the radial tables, the last layer's first

    Tensor of_nodes(int64_t columns) const { return empty(inputs_.rel_pos, {num_nodes_, columns}); }
    Tensor of_components(int64_t degree) const {
        return empty(inputs_.rel_pos, {num_nodes_, InteractionShape::components(degree), network_.channels});
    }

    Tensors empty_results() const {
        Tensors results;
        for (const Tensor& weight : weights_) results.push_back(torch::stable::empty_like(weight));
        return results;
    }

    // Of harmonics and places.
    Tensors embed_along(const Tensor& direction) const {
        const KeptEdges edges(kept_);
        const int64_t row = network_.num_harmonics();
        const Tensors dots{torch::stable::empty_like(edges.harmonics), torch::stable::empty_like(edges.places)};
        T *const harmonics = write<T>(dots[0]), *const places = write<T>(dots[1]);
        for_embedded_edges(network_, inputs_.num_edges(), [&](EdgeEmbedding& embedding, int64_t edge) {
            embedding.embed_along(
                read<T>(inputs_.rel_pos) + 3 * edge, read<T>(direction) + 3 * edge, harmonics + edge * row, places + edge);
        });
        return dots;
    }

    Tensors operands(const ForceLayer& layer, const Tensor& sent) const {
        const KeptEdges edges(kept_);
        return {sent, edges.harmonics, edges.places, weights_[layer.radial_table]};
    }

    InteractionValues<T> values_of(const InteractionShape& shape, const KeptLayer& kept, int64_t first) const {
        return {read<T>(kept.features) + first * shape.row_in(), read<T>(kept.arrived) + first * shape.row_hidden(),
                read<T>(kept.mixed) + first * shape.row_hidden(), read<T>(kept.before) + first * shape.row_before(),
                read<T>(kept.of_next) + first * shape.row_out(), read<T>(kept.of_mixed) + first * shape.row_hidden()};
    }

    // The features of the first layer do not depend on positions.
    Tensor sent_along(const ForceLayer& layer, const LayerMatrices<T>& matrices, const Tensor& features_dot) const {
        const InteractionShape& shape = layer.shape;
        const Tensor sent = of_components(shape.degree_in);
        if (dots_.empty()) {
            fill_zero(sent);
            return sent;
        }
        const int64_t row = shape.row_in();
        for_nodes<T>(nodes_, 0, [&](int64_t, int64_t first, int64_t count, T*) {
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, matrices.before.data(), 1.0, false,
                          read<T>(features_dot) + first * row, write<T>(sent) + first * row);
        });
        return sent;
    }

    Tensor forward(std::size_t number, const Tensor& features_dot, const Tensors& of_edges) {
        const ForceLayer& layer = network_.layers[number];
        const InteractionShape& shape = layer.shape;
        const KeptLayer kept(kept_, number);
        const LayerMatrices<T> matrices(layer, weights_, false);
        const bool is_first = number == 0;
        const EdgesByDestination& edges = inputs_.edges;
        const Tensors found = described([&] {
            return depthwise_gradients_along({sent_along(layer, matrices, features_dot), of_edges[0], of_edges[1]}, kept.of_arrived,
                                             operands(layer, kept.sent), edges.src, edges.dst, edges.order, edges.offsets,
                                             layer.table, layer.coefficients, {false, true});
        });
        LayerDots dots{features_dot, found[0], of_nodes(shape.row_hidden()), of_nodes(shape.row_before()), found[1]};
        const Tensor next = of_nodes(shape.row_out());
        const int64_t workspace_size = SE3_FAST_CALL(interaction_workspace_size<T>, shape);
        for_nodes<T>(nodes_, workspace_size, [&](int64_t, int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(interact_along<T>, shape, matrices.interaction(), count, kinds_ + first, values_of(shape, kept, first),
                          is_first ? nullptr : read<T>(features_dot) + first * shape.row_in(),
                          read<T>(dots.arrived) + first * shape.row_hidden(), write<T>(dots.mixed) + first * shape.row_hidden(),
                          write<T>(dots.before) + first * shape.row_before(), write<T>(next) + first * shape.row_out(), workspace);
        });
        dots_.push_back(std::move(dots));
        const Tensor& of_table = results_[layer.radial_table];
        std::copy_n(read<T>(found[4]), of_table.numel(), write<T>(of_table));
        return next;
    }

    Tensor read_out(const Tensor& features_dot, const Tensor& of_energies) {
        const int64_t row = features_dot.size(1);
        const std::size_t place = network_.head;
        const Tensor gradient_dot = of_nodes(row);
        const Head<T> head(network_, weights_);
        for_nodes<T>(nodes_, 4 * INTERACTION_NODES * network_.head_width,
                     [&](int64_t share, int64_t node, int64_t count, T* workspace) {
            const HeadGradients<T> gradients{
                sums_.of(share, place), sums_.of(share, place + 1), sums_.of(share, place + 2), sums_.of(share, place + 3)};
            SE3_FAST_CALL(read_out_along<T>, head.matrices, count, row, read<T>(KeptEdges(kept_).last_features) + node * row,
                          read<T>(features_dot) + node * row, read<T>(of_energies) + node, write<T>(gradient_dot) + node * row,
                          gradients, workspace);
        });
        return gradient_dot;
    }

    // The derivative of the gradient by the features that a layer was given.
    Tensor backward(std::size_t number, const Tensor& of_next_dot) {
        const ForceLayer& layer = network_.layers[number];
        const InteractionShape& shape = layer.shape;
        const KeptLayer kept(kept_, number);
        const LayerDots& dots = dots_[number];
        const LayerMatrices<T> transposed(layer, weights_, true);
        const bool is_first = number == 0;
        const int64_t row_in = shape.row_in(), row_hidden = shape.row_hidden();
        const Tensor of_features = of_nodes(row_in), of_arrived = of_components(shape.degree_hidden);
        const int64_t workspace_size = SE3_FAST_CALL(interaction_along_workspace_size<T>, shape);
        for_nodes<T>(nodes_, workspace_size, [&](int64_t share, int64_t first, int64_t count, T* workspace) {
            const std::vector<T*> after = sums_.of(share, layer.after, shape.degree_hidden + 1);
            const std::vector<T*> out = sums_.of(share, layer.out, shape.degree_out + 1);
            const std::vector<T*> gates = sums_.of(share, layer.gates, shape.degree_out);
            const InteractionDots<T> rows{
                is_first ? nullptr : read<T>(dots.features) + first * row_in, read<T>(dots.arrived) + first * row_hidden,
                read<T>(dots.mixed) + first * row_hidden, read<T>(dots.before) + first * shape.row_before(),
                read<T>(of_next_dot) + first * shape.row_out()};
            const InteractionGradients<T> gradients{after.data(), out.data(), gates.data()};
            SE3_FAST_CALL(interact_backward_along<T>, shape, transposed.interaction(), count, kinds_ + first,
                          values_of(shape, kept, first), rows, write<T>(of_features) + first * row_in,
                          write<T>(of_arrived) + first * row_hidden, gradients, workspace);
        });
        const EdgesByDestination& edges = inputs_.edges;
        const Tensors found = depthwise_gradients(of_arrived, operands(layer, kept.sent), edges.src, edges.dst, edges.order,
                                                  edges.offsets, layer.table, layer.coefficients, {false, true});
        of_tables_.push_back(found[3]);
        const Tensor& of_sent = found[0];
        add_to<T>(of_sent, dots.of_sent);
        for_nodes<T>(nodes_, 0, [&](int64_t share, int64_t first, int64_t count, T*) {
            const std::vector<T*> before = sums_.of(share, layer.before, shape.degree_in + 1);
            SE3_FAST_CALL(add_map_gradients<T>, count, shape.degree_in, shape.channels, read<T>(kept.features) + first * row_in,
                          read<T>(of_sent) + first * row_in, before.data());
            if (!is_first)
                SE3_FAST_CALL(add_map_gradients<T>, count, shape.degree_in, shape.channels,
                              read<T>(dots.features) + first * row_in, read<T>(kept.of_sent) + first * row_in, before.data());
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, transposed.before.data(), 1.0, true,
                          read<T>(of_sent) + first * row_in, write<T>(of_features) + first * row_in);
        });
        return of_features;
    }

    void add_embedding_gradient(const Tensor& of_features) const {
        const int64_t channels = network_.channels;
        T* const result = write<T>(results_[0]);
        for (int64_t node = 0; node < num_nodes_; ++node)
            for (int64_t channel = 0; channel < channels; ++channel)
                result[kinds_[node] * channels + channel] += read<T>(of_features)[node * channels + channel];
    }
};

Tensors force_network_along(Tensor of_energies, Tensor direction, Tensor rel_pos, Tensor kinds, Tensors weights, Tensors kept,
                            Tensor src, Tensor dst, Tensor order, Tensor offsets, Integers description,
                            std::vector<double> coefficients, double cutoff) {
    const ForceNetwork network(description, coefficients, cutoff);
    const ForceInputs inputs{rel_pos, kinds, weights, {src, dst, order, offsets}};
    check_inputs(network, inputs);
    check_kept(network, inputs, kept);
    check_tensor("of_energies", of_energies, rel_pos.scalar_type(), {inputs.num_nodes()});
    check_tensor("direction", direction, rel_pos.scalar_type(), {inputs.num_edges(), 3});
    return by_type(rel_pos, [&](auto zero) {
        return PassAlong<decltype(zero)>(network, inputs, kept).run(of_energies, direction);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "force_network_along(Tensor of_energies, Tensor direction, Tensor rel_pos, Tensor kinds, Tensor[] weights, Tensor[] kept, "
        "Tensor src, Tensor dst, Tensor order, Tensor offsets, int[] description, float[] coefficients, float cutoff) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) { m.impl("force_network_along", TORCH_BOX(&force_network_along)); }
