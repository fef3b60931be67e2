// The energy of every atom by a force field's network, and the gradient of their sum by the relative positions, on the CPU: the
// operation force_network of torch.ops.se3_fast_cpp. Formula: se3_fast/forces.py, se3_fast/layers/interaction.py.
//
// It is for evaluation: one pass forward, one back, and nothing recorded. Layers are the operations depthwise_conv and
// depthwise_conv_backward with blocks of nodes between them. What edges have (edge_embedding.py) is made in double precision.

#include "force_network.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "edge_embedding.h"
#include "operations.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

constexpr int64_t EDGES = 64;  // that are treated together
constexpr int64_t MOST_LAYERS = 1024, MOST_POWER = 64;

// What couples with what in a layer, and its sizes.
struct Layer {
    InteractionShape shape{};
    std::vector<DegreeProduct> products;
    std::vector<ProductTerm> terms;
    Integers table;  // of the convolution
    std::vector<double> coefficients;

    // The tensors that the layer takes from the list of weights, by degree where there is one for each.
    std::size_t before, profile, after, out, gates;

    int64_t parts(int64_t degree) const {
        int64_t count = 1 + (degree <= shape.degree_in ? shape.num_elements : 0);
        for (const DegreeProduct& product : products) count += product.degree == degree;
        return count;
    }
};

// Numbers of the description (se3_fast/backends/cpp/force_network.py), with the coefficients beside it.
struct Network {
    int64_t num_elements, channels, inputs, width, max_harmonic, power, head_width;
    std::vector<HarmonicTerm> harmonics;
    std::vector<Layer> layers;
    double cutoff;
    std::size_t head;  // the first of its tensors

    Network(const Integers& description, const std::vector<double>& coefficients, double cutoff) : cutoff(cutoff) {
        if (!(cutoff > 0) || !std::isfinite(cutoff)) refuse("cutoff: expected a positive length, got ", cutoff);
        IntegerReader reader("description", description);
        std::size_t used = 0;
        const auto take_coefficient = [&] {
            if (used == coefficients.size()) refuse("coefficients: expected one for each term, got ", coefficients.size());
            return coefficients[used++];
        };
        num_elements = reader.take("elements", 1, 256);
        channels = reader.take("channels", 1, MOST_CHANNELS);
        inputs = reader.take("radial functions", 1, MOST_INVARIANTS);
        width = reader.take("units of the radial profile", 1, MOST_WIDTH);
        max_harmonic = reader.take("degree of the harmonics", 1, MOST_DEGREE);
        power = reader.take("power", 1, MOST_POWER);
        head_width = reader.take("units of the energy", 1, MOST_WIDTH);
        const int64_t num_harmonics = (max_harmonic + 1) * (max_harmonic + 1);
        for (int64_t term = reader.take_count("terms of harmonics"); term > 0; --term) {
            const int64_t before = reader.take("harmonic before", 1, num_harmonics - 1), axis = reader.take("axis", 0, 2);
            const int64_t out = reader.take("harmonic", std::max<int64_t>(4, before + 1), num_harmonics - 1);
            harmonics.push_back({before, axis, out, take_coefficient()});
        }
        std::size_t next = 2;  // behind the frequencies and the embedding
        int64_t degree_before = 0;
        for (int64_t count = reader.take("layers", 1, MOST_LAYERS); count > 0; --count) {
            layers.push_back(take_layer(reader, take_coefficient, degree_before, next));
            degree_before = layers.back().shape.degree_out;
        }
        for (Layer& layer : layers) {
            layer.shape.num_products = int64_t(layer.products.size());
            layer.shape.products = layer.products.data();
            layer.shape.terms = layer.terms.data();
        }
        head = next;
        reader.finish();
        check_count("coefficients", coefficients.size(), used);
    }
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    int64_t num_harmonics() const { return (max_harmonic + 1) * (max_harmonic + 1); }

private:
    template <typename Take>
    Layer take_layer(IntegerReader& reader, const Take& take_coefficient, int64_t degree_in, std::size_t& next) const {
        Layer layer;
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
        layer.before = take(degree_in + 1), layer.profile = take(3), layer.after = take(shape.degree_hidden + 1);
        layer.out = take(shape.degree_out + 1), layer.gates = take(shape.degree_out);
        return layer;
    }
};

// A size that fills cache lines.
void check_lines(const char* what, int64_t size, int64_t element_size) {
    const int64_t lanes = 64 / element_size;
    if (size % lanes != 0) refuse("description: expected a multiple of ", lanes, " ", what, ", got ", size);
}

void check_weights(const Network& network, const Tensors& weights, ScalarType type) {
    check_count("weights", weights.size(), network.head + 4);
    const int64_t channels = network.channels, width = network.width;
    const auto check = [&](std::size_t index, const Integers& sizes) { check_tensor({"weights", index}, weights[index], type, sizes); };
    check(0, {network.inputs});
    check(1, {network.num_elements, channels});
    for (const Layer& layer : network.layers) {
        const InteractionShape& shape = layer.shape;
        for (int64_t degree = 0; degree <= shape.degree_in; ++degree) check(layer.before + degree, {channels, channels});
        check(layer.profile, {network.inputs, width});
        check(layer.profile + 1, {width, width});
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

// Matrices of a layer by degree; transposed copies of their squares are kept here.
template <typename T>
class Matrices {
public:
    Matrices(const Tensors& weights, std::size_t first, int64_t count, int64_t channels, bool is_transposed) {
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
    Matrices<T> before, after, out, gates;

    LayerMatrices(const Layer& layer, const Tensors& weights, bool is_transposed)
        : before(weights, layer.before, layer.shape.degree_in + 1, layer.shape.channels, is_transposed),
          after(weights, layer.after, layer.shape.degree_hidden + 1, layer.shape.channels, is_transposed),
          out(weights, layer.out, layer.shape.degree_out + 1, layer.shape.channels, is_transposed),
          gates(weights, layer.gates, layer.shape.degree_out, layer.shape.channels, is_transposed) {}

    InteractionMatrices<T> interaction() const { return {after.data(), out.data(), gates.data()}; }
};

// The edges by destination, as depthwise_conv takes them.
struct Edges {
    const Tensor &src, &dst, &order, &offsets;
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

// What a layer keeps for the way back; a node has a row of each.
struct Kept {
    Tensors operands;  // of the convolution
    Tensor mixed, before;
};

template <typename T>
class Pass {
public:
    Pass(const Network& network, const Tensors& weights, const Edges& edges, const Tensor& kinds, const Tensor& rel_pos)
        : network_(network), weights_(weights), edges_(edges), rel_pos_(rel_pos), kinds_(read<int64_t>(kinds)),
          num_nodes_(kinds.size(0)), num_edges_(rel_pos.size(0)), nodes_(num_nodes_, INTERACTION_NODES),
          harmonics_(of_edges(network.num_harmonics())), radial_(of_edges(network.inputs)), slopes_(of_edges(network.inputs)) {}

    // Energies [N], and the gradient of their sum [E][3].
    Tensors run() {
        embed_edges();
        Tensor features = embedded_atoms();
        for (const Layer& layer : network_.layers) features = forward(layer, features);
        const Tensor energies = empty(rel_pos_, {num_nodes_});
        Tensor gradient = read_out(features, energies);
        Tensors of_edges;  // of harmonics and Bessel functions
        for (std::size_t number = network_.layers.size(); number-- > 0;) gradient = backward(number, gradient, of_edges);
        return {energies, of_rel_pos(of_edges)};
    }

private:
    const Network& network_;
    const Tensors& weights_;
    const Edges& edges_;
    const Tensor& rel_pos_;
    const int64_t* kinds_;
    int64_t num_nodes_, num_edges_;
    Chunks nodes_;
    Tensor harmonics_, radial_, slopes_;
    std::vector<Kept> kept_;

    Tensor of_edges(int64_t columns) const { return empty(rel_pos_, {num_edges_, columns}); }
    Tensor of_nodes(int64_t columns) const { return empty(rel_pos_, {num_nodes_, columns}); }

    // Calls run(first node, number of nodes, workspace) for blocks of nodes.
    template <typename Run>
    void for_nodes(int64_t workspace_size, const Run& run) const {
        for_each_task(nodes_.num_shares, [&](int64_t share) {
            const Scratch<T> workspace(workspace_size);
            nodes_.for_each(share, [&](int64_t first, int64_t count) { run(first, count, workspace.data()); });
        });
    }

    // Calls run(embedding, first edge, edge after the last) for blocks of edges.
    template <typename Run>
    void for_edges(const Run& run) const {
        const Chunks chunks(num_edges_, EDGES);
        for_each_task(chunks.num_shares, [&](int64_t share) {
            EdgeEmbedding embedding(network_.harmonics, network_.num_harmonics(), network_.cutoff, network_.power);
            chunks.for_each(share, [&](int64_t first, int64_t count) { run(embedding, first, first + count); });
        });
    }

    void embed_edges() const {
        const T *const rel_pos = read<T>(rel_pos_), *const frequencies = read<T>(weights_[0]);
        T *const harmonics = write<T>(harmonics_), *const radial = write<T>(radial_), *const slopes = write<T>(slopes_);
        const int64_t row = network_.num_harmonics(), inputs = network_.inputs;
        for_edges([&](EdgeEmbedding& embedding, int64_t first, int64_t stop) {
            for (int64_t edge = first; edge < stop; ++edge)
                embedding.embed(rel_pos + 3 * edge, frequencies, inputs, harmonics + edge * row, radial + edge * inputs,
                                slopes + edge * inputs);
        });
    }

    // From the gradients that the layers left of harmonics and Bessel functions, two of each.
    Tensor of_rel_pos(const Tensors& gradients) const {
        const Tensor result = of_edges(3);
        const int64_t row = network_.num_harmonics(), inputs = network_.inputs;
        for_edges([&](EdgeEmbedding& embedding, int64_t first, int64_t stop) {
            std::vector<T> of_harmonics(row), of_radial(inputs);
            for (int64_t edge = first; edge < stop; ++edge) {
                add_up(gradients, 0, edge, of_harmonics);
                add_up(gradients, 1, edge, of_radial);
                embedding.differentiate(read<T>(rel_pos_) + 3 * edge, read<T>(slopes_) + edge * inputs, inputs, of_harmonics.data(),
                                        of_radial.data(), write<T>(result) + 3 * edge);
            }
        });
        return result;
    }

    // A row of every second tensor from the one numbered `first` on.
    static void add_up(const Tensors& gradients, std::size_t first, int64_t edge, std::vector<T>& sum) {
        std::fill(sum.begin(), sum.end(), T(0));
        for (std::size_t index = first; index < gradients.size(); index += 2) {
            const T* const row = read<T>(gradients[index]) + edge * int64_t(sum.size());
            for (std::size_t column = 0; column < sum.size(); ++column) sum[column] += row[column];
        }
    }

    Tensor embedded_atoms() const {
        const int64_t channels = network_.channels;
        const Tensor features = of_nodes(channels);
        for (int64_t node = 0; node < num_nodes_; ++node)
            std::copy_n(read<T>(weights_[1]) + kinds_[node] * channels, channels, write<T>(features) + node * channels);
        return features;
    }

    Tensor forward(const Layer& layer, const Tensor& features) {
        const InteractionShape& shape = layer.shape;
        const LayerMatrices<T> matrices(layer, weights_, false);
        const int64_t row_in = shape.row_in(), row_hidden = shape.row_hidden();
        const Tensor sent = empty(rel_pos_, {num_nodes_, shape.components(shape.degree_in), shape.channels});
        for_nodes(0, [&](int64_t first, int64_t count, T*) {
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, matrices.before.data(), 1.0, false,
                          read<T>(features) + first * row_in, write<T>(sent) + first * row_in);
        });
        const auto profile = weights_.begin() + std::ptrdiff_t(layer.profile);
        Kept kept{{sent, harmonics_, radial_, profile[0], profile[1], profile[2]}, of_nodes(row_hidden), of_nodes(shape.row_before())};
        const Tensor arrived = described([&] {
            return depthwise_conv(kept.operands, edges_.src, edges_.dst, edges_.order, edges_.offsets, layer.table, layer.coefficients);
        });
        if (arrived.size(1) != shape.components(shape.degree_hidden))
            refuse("description: expected messages of ", shape.components(shape.degree_hidden), " components, got ", arrived.size(1));
        const Tensor next = of_nodes(shape.row_out());
        for_nodes(SE3_FAST_CALL(interaction_workspace_size<T>, shape), [&](int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(interact<T>, shape, matrices.interaction(), count, kinds_ + first, read<T>(features) + first * row_in,
                          read<T>(arrived) + first * row_hidden, write<T>(kept.mixed) + first * row_hidden,
                          write<T>(kept.before) + first * shape.row_before(), write<T>(next) + first * shape.row_out(), workspace);
        });
        kept_.push_back(std::move(kept));
        return next;
    }

    // Energies, and their gradients by the features of the last layer.
    Tensor read_out(const Tensor& features, const Tensor& energies) const {
        const int64_t channels = network_.channels, width = network_.head_width, row = features.size(1);
        const Tensor gradient = of_nodes(row);
        const T* const first_transposed = read<T>(weights_[network_.head]);
        const Scratch<T> first(width * channels);
        SE3_FAST_CALL(transpose_matrix<T>, first_transposed, width, channels, first.data());
        const HeadMatrices<T> head{channels, width, first.data(), first_transposed, read<T>(weights_[network_.head + 1]),
                                   read<T>(weights_[network_.head + 2]), *read<T>(weights_[network_.head + 3])};
        for_nodes(2 * INTERACTION_NODES * width, [&](int64_t node, int64_t count, T* workspace) {
            SE3_FAST_CALL(read_out<T>, head, count, row, read<T>(features) + node * row, write<T>(energies) + node,
                          write<T>(gradient) + node * row, workspace);
        });
        return gradient;
    }

    // The gradient by the features that a layer was given; that of the edges is added to the list. The first layer's features do not
    // depend on positions.
    Tensor backward(std::size_t number, const Tensor& of_next, Tensors& of_edges) {
        const Layer& layer = network_.layers[number];
        const InteractionShape& shape = layer.shape;
        const Kept kept = std::move(kept_[number]);
        const LayerMatrices<T> transposed(layer, weights_, true);
        const int64_t row_in = shape.row_in(), row_hidden = shape.row_hidden();
        const bool is_first = number == 0;
        const Tensor of_features = is_first ? of_nodes(0) : of_nodes(row_in);
        const Tensor of_arrived = empty(rel_pos_, {num_nodes_, shape.components(shape.degree_hidden), shape.channels});
        for_nodes(SE3_FAST_CALL(interaction_workspace_size<T>, shape), [&](int64_t first, int64_t count, T* workspace) {
            SE3_FAST_CALL(interact_backward<T>, shape, transposed.interaction(), count, kinds_ + first,
                          read<T>(of_next) + first * shape.row_out(), read<T>(kept.mixed) + first * row_hidden,
                          read<T>(kept.before) + first * shape.row_before(),
                          is_first ? nullptr : write<T>(of_features) + first * row_in, write<T>(of_arrived) + first * row_hidden,
                          workspace);
        });
        const Tensors found = depthwise_conv_backward(of_arrived, kept.operands, edges_.src, edges_.dst, edges_.order, edges_.offsets,
                                                      layer.table, layer.coefficients, false);
        of_edges.push_back(found[1]);
        of_edges.push_back(found[2]);
        if (is_first) return of_features;
        for_nodes(0, [&](int64_t first, int64_t count, T*) {
            SE3_FAST_CALL(map_components<T>, count, shape.degree_in, shape.channels, transposed.before.data(), 1.0, true,
                          read<T>(found[0]) + first * row_in, write<T>(of_features) + first * row_in);
        });
        return of_features;
    }
};

Tensors force_network(Tensor rel_pos, Tensor kinds, Tensors weights, Tensor src, Tensor dst, Tensor order, Tensor offsets,
                      Integers description, std::vector<double> coefficients, double cutoff) {
    const Network network(description, coefficients, cutoff);
    const ScalarType type = value_type("rel_pos", rel_pos);
    const int64_t element_size = rel_pos.element_size(), num_edges = rows_of("src", src, 1), num_nodes = rows_of("kinds", kinds, 1);
    check_lines("channels", network.channels, element_size);
    check_lines("units of the radial profile", network.width, element_size);
    check_lines("units of the energy", network.head_width, element_size);
    check_tensor("rel_pos", rel_pos, type, {num_edges, 3});
    if (rows_of("offsets", offsets, 1) != num_nodes + 1)
        refuse("offsets: expected ", num_nodes + 1, " numbers, got ", offsets.size(0));
    check_weights(network, weights, type);
    check_tensor("kinds", kinds, ScalarType::Long, {num_nodes});
    for (int64_t node = 0; node < num_nodes; ++node)
        check_number("kinds", read<int64_t>(kinds)[node], 0, network.num_elements - 1);
    check_ends("src", src, num_nodes, num_edges);
    check_ends("dst", dst, num_nodes, num_edges);
    check_order("order", order, "offsets", offsets, num_nodes, num_edges, read<int64_t>(dst));
    const Edges edges{src, dst, order, offsets};
    return by_type(rel_pos, [&](auto zero) { return Pass<decltype(zero)>(network, weights, edges, kinds, rel_pos).run(); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def(
        "force_network(Tensor rel_pos, Tensor kinds, Tensor[] weights, Tensor src, Tensor dst, Tensor order, Tensor offsets, "
        "int[] description, float[] coefficients, float cutoff) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) { m.impl("force_network", TORCH_BOX(&force_network)); }
