// A force field's network as its operations (force_network.cpp, force_network_along.cpp) are told of it: sizes, what couples with
// what, weights and edges.

#pragma once

#include <stdexcept>
#include <vector>

#include "check.h"
#include "edge_embedding.h"
#include "force_network.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace se3_fast {

// What couples with what in a layer, and its sizes.
struct ForceLayer {
    InteractionShape shape{};
    std::vector<DegreeProduct> products;
    std::vector<ProductTerm> terms;
    Integers table;  // of the convolution's couplings
    std::vector<double> coefficients;

    // The tensors that the layer takes from the list of weights, by degree where there is one for each.
    std::size_t before, radial_table, after, out, gates;

    int64_t parts(int64_t degree) const {
        int64_t count = 1 + (degree <= shape.degree_in ? shape.num_elements : 0);
        for (const DegreeProduct& product : products) count += product.degree == degree;
        return count;
    }
};

// Numbers of the description (se3_fast/backends/cpp/force_network.py), with the coefficients beside it.
struct ForceNetwork {
    int64_t num_elements, channels, knots, max_harmonic, head_width;
    std::vector<HarmonicTerm> harmonics;
    std::vector<ForceLayer> layers;
    double cutoff;
    std::size_t head;  // the first of its tensors

    ForceNetwork(const Integers& description, const std::vector<double>& coefficients, double cutoff);
    ForceNetwork(const ForceNetwork&) = delete;
    ForceNetwork& operator=(const ForceNetwork&) = delete;

    int64_t num_harmonics() const { return (max_harmonic + 1) * (max_harmonic + 1); }

    // As in se3_fast/layers/edge_embedding.py: an edge at the cutoff has the place knots + 1.
    double knots_per_length() const { return double(knots + 2) / cutoff; }
};

// The edges by destination, as depthwise_conv takes them.
struct EdgesByDestination {
    const Tensor &src, &dst, &order, &offsets;
};

// What the network is evaluated for. rel_pos [E][3]; kinds [N], the row of each atom's element in the embedding; weights as
// ForceNetwork counts them.
struct ForceInputs {
    const Tensor &rel_pos, &kinds;
    const Tensors& weights;
    EdgesByDestination edges;

    int64_t num_nodes() const { return kinds.size(0); }
    int64_t num_edges() const { return rel_pos.size(0); }
};

// All tensors fit the network and each other.
void check_inputs(const ForceNetwork& network, const ForceInputs& inputs);

// MatricesByDegree of a layer by degree; transposed copies of their squares are kept here.
template <typename T>
class MatricesByDegree {
public:
    MatricesByDegree(const Tensors& weights, std::size_t first, int64_t count, int64_t channels, bool is_transposed) {
        for (int64_t index = 0; index < count; ++index) {
            const Tensor& weight = weights[first + index];
            if (!is_transposed) {
                pointers_.push_back(read<T>(weight));
                continue;
            }
            copies_.emplace_back(weight.numel());
            for (int64_t row = 0; row < weight.size(0); row += channels)
                SE3_FAST_CALL(transpose_matrix<T>, read<T>(weight) + row * channels, channels, channels,
                              copies_.back().data() + row * channels);
            pointers_.push_back(copies_.back().data());
        }
    }
    const T* const* data() const { return pointers_.data(); }

private:
    std::vector<Scratch<T>> copies_;
    std::vector<const T*> pointers_;
};

template <typename T>
struct LayerMatrices {
    MatricesByDegree<T> before, after, out, gates;

    LayerMatrices(const ForceLayer& layer, const Tensors& weights, bool is_transposed)
        : before(weights, layer.before, layer.shape.degree_in + 1, layer.shape.channels, is_transposed),
          after(weights, layer.after, layer.shape.degree_hidden + 1, layer.shape.channels, is_transposed),
          out(weights, layer.out, layer.shape.degree_out + 1, layer.shape.channels, is_transposed),
          gates(weights, layer.gates, layer.shape.degree_out, layer.shape.channels, is_transposed) {}

    InteractionMatrices<T> interaction() const { return {after.data(), out.data(), gates.data()}; }
};

// The perceptron that makes an atom's energy.
template <typename T>
struct Head {
    Scratch<T> first;  // [C][width]
    HeadMatrices<T> matrices;

    Head(const ForceNetwork& network, const Tensors& weights) : first(network.head_width * network.channels) {
        const T* const given = read<T>(weights[network.head]);
        SE3_FAST_CALL(transpose_matrix<T>, given, network.head_width, network.channels, first.data());
        matrices = {network.channels, network.head_width, first.data(), given, read<T>(weights[network.head + 1]),
                    read<T>(weights[network.head + 2]), *read<T>(weights[network.head + 3])};
    }
};

// A convolution whose operands and edges have been checked: what it may refuse is what the description says of it.
template <typename Convolve>
auto described(const Convolve& convolve) {
    try {
        return convolve();
    } catch (const std::runtime_error& error) {
        refuse("description: expected convolutions that fit, got one of which the operation says ", error.what());
    }
}

constexpr int64_t EMBEDDED_EDGES = 64;  // that are treated together

// Calls run(share, first node, number of nodes, workspace) for blocks of nodes.
template <typename T, typename Run>
void for_nodes(const Chunks& nodes, int64_t workspace_size, const Run& run) {
    for_each_task(nodes.num_shares, [&](int64_t share) {
        const Scratch<T> workspace(workspace_size);
        nodes.for_each(share, [&](int64_t first, int64_t count) { run(share, first, count, workspace.data()); });
    });
}

// Calls run(embedding, edge) for all edges.
template <typename Run>
void for_embedded_edges(const ForceNetwork& network, int64_t num_edges, const Run& run) {
    const Chunks chunks(num_edges, EMBEDDED_EDGES);
    for_each_task(chunks.num_shares, [&](int64_t share) {
        EdgeEmbedding embedding(network.harmonics, network.num_harmonics(), network.knots_per_length());
        chunks.for_each(share, [&](int64_t first, int64_t count) {
            for (int64_t edge = first; edge < first + count; ++edge) run(embedding, edge);
        });
    });
}

}  // namespace se3_fast
