// TFN convolution on the CPU, by edge: what couples with what, and where features, terms and weights stand (tfn_conv.h).

#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "check.h"
#include "tensor.h"
#include "tfn_conv.h"

namespace se3_fast {

// The plan as integers (se3_fast/backends/launch_tables.py writes them).
struct Description {
    int64_t width_hidden;
    std::vector<std::pair<int64_t, int64_t>> nodes, edges, outputs;  // degree, channels
    std::vector<DegreePair> pairs;
    int64_t num_groups;
    std::vector<std::array<int64_t, 4>> generators;  // degree, row, column, axis
    int64_t first_generator, num_coefficients;       // place among the coefficients, and their number

    explicit Description(const Integers& values) {
        IntegerReader reader("description", values);
        width_hidden = reader.take("the width of h", 1, MOST_WIDTH);
        nodes = reader.take_channels("a number of node degrees");
        edges = reader.take_channels("a number of edge degrees");
        outputs = reader.take_channels("a number of output degrees");
        num_groups = reader.take_count("a number of groups");
        read_pairs(reader);
        for (int64_t count = reader.take_count("a number of generator entries"); count > 0; --count) {
            const int64_t degree = reader.take("a degree", 1, MOST_DEGREE);
            const int64_t row = reader.take("a row", 0, 2 * degree), column = reader.take("a column", 0, 2 * degree);
            generators.push_back({degree, row, column, reader.take("an axis", 0, 1)});
        }
        reader.finish();
        num_coefficients = first_generator + int64_t(generators.size());
        if (nodes.empty() || num_groups == 0) refuse("description: expected a node degree and a group or more, got none");
        for (const auto& edge : edges)
            if (index_of(nodes, edge.first) == int64_t(nodes.size()))
                refuse("description: expected edge degrees among the node degrees, got ", edge.first);
    }

    // The pairs of a group share its path axis out among them, in order.
    void read_pairs(IntegerReader& reader) {
        Integers paths(num_groups, 0);
        first_generator = 0;
        for (int64_t count = reader.take_count("a number of pairs"); count > 0; --count) {
            DegreePair pair{};
            pair.group = reader.take("a group", 0, num_groups - 1);
            pair.degree_in = reader.take("an input degree", 0, MOST_DEGREE);
            pair.degree_out = reader.take("an output degree", 0, MOST_DEGREE);
            pair.index_in = index_of(nodes, pair.degree_in);
            pair.index_out = index_of(outputs, pair.degree_out);
            if (pair.index_in == int64_t(nodes.size()) || pair.index_out == int64_t(outputs.size()))
                refuse("description: expected pairs of node and output degrees, got ", pair.degree_in, " and ", pair.degree_out);
            const int64_t channels_in = input_channels()[pair.index_in].second, channels_out = outputs[pair.index_out].second;
            pair.channels_in = reader.take("the input channels of a pair", channels_in, channels_in);
            pair.channels_out = reader.take("the output channels of a pair", channels_out, channels_out);
            pair.first_path = reader.take("the next path of a group", paths[pair.group], paths[pair.group]);
            paths[pair.group] += pair.paths();
            pair.group_paths = reader.take("the paths of a group", paths[pair.group], MOST_PATHS);
            pair.alignment = first_generator;
            first_generator += pair.paths() * pair.paths();
            const DegreePair* first = first_of(pair.group);
            if (first != nullptr && (first->channels_in != pair.channels_in || first->channels_out != pair.channels_out ||
                                     first->group_paths != pair.group_paths))
                refuse("description: expected pairs of group ", pair.group, " with its ", first->channels_in, " and ", first->channels_out,
                       " channels and ", first->group_paths, " paths, got ", pair.channels_in, ", ", pair.channels_out, " and ",
                       pair.group_paths);
            pairs.push_back(pair);
        }
        for (int64_t group = 0; group < num_groups; ++group)
            if (first_of(group) == nullptr || first_of(group)->group_paths != paths[group])
                refuse("description: expected pairs for all paths of group ", group, ", got those of ", paths[group]);
    }

    const DegreePair* first_of(int64_t group) const {
        for (const DegreePair& pair : pairs)
            if (pair.group == group) return &pair;
        return nullptr;
    }

    // Those of the nodes, with those of the edges behind them.
    std::vector<std::pair<int64_t, int64_t>> input_channels() const {
        auto channels = nodes;
        for (const auto& [degree, count] : edges) {
            const int64_t index = index_of(nodes, degree);
            if (index < int64_t(nodes.size())) channels[index].second += count;
        }
        return channels;
    }

    int64_t max_degree() const { return std::max(nodes.back().first, outputs.empty() ? 0 : outputs.back().first); }

    static int64_t index_of(const std::vector<std::pair<int64_t, int64_t>>& degrees, int64_t degree) {
        return std::find_if(degrees.begin(), degrees.end(), [&](const auto& one) { return one.first == degree; }) - degrees.begin();
    }
};

// The aligned features of one side of the convolution.
struct Side {
    std::vector<DegreeLayout> degrees;
    std::vector<std::vector<Place>> places;
    std::vector<Tile> tiles;
    int64_t rows = 0, components = 0, tile_elements = 0;  // per block: rows * BLOCK_STRIDE; per edge; per block

    Side(const std::vector<std::pair<int64_t, int64_t>>& channels, int64_t lanes, int64_t largest_tile) {
        for (const auto& [degree, count] : channels) {
            const int64_t index = int64_t(degrees.size()), vectors = (count + lanes - 1) / lanes, size = 2 * degree + 1;
            places.emplace_back(size * vectors);
            for (int64_t m = 0; m <= degree; ++m)
                for (int64_t first = 0; first < vectors; first += largest_tile) {
                    const int64_t tile_vectors = std::min(largest_tile, vectors - first), width = tile_vectors * lanes;
                    const int64_t step = m > 0 ? 2 * width : width;
                    tiles.push_back({index, m, tile_vectors, first * lanes, tile_elements});
                    for (int64_t v = 0; v < tile_vectors; ++v) {
                        places.back()[(degree - m) * vectors + first + v] = {tile_elements + v * lanes, step};
                        places.back()[(degree + m) * vectors + first + v] = {tile_elements + step - width + v * lanes, step};
                    }
                    tile_elements += BLOCK_STRIDE * step;
                }
            degrees.push_back({degree, count, vectors, rows, degree * (4 * degree * degree - 1) / 3, components, nullptr});
            rows += size * count;
            components += size * vectors * lanes;
        }
        for (std::size_t index = 0; index < degrees.size(); ++index) degrees[index].places = places[index].data();
    }

    int64_t row(int64_t degree_index, int64_t order) const {
        const DegreeLayout& layout = degrees[degree_index];
        return layout.row + (layout.degree + order) * layout.channels;
    }
};

// The aligned weights of a pair for the channels of one tile: one term at each order m.
struct PairTile {
    const DegreePair& pair;
    int64_t first_channel, vectors;
    Integers weights;  // of the terms, by m

    // Where the slices of an aligned weight begin: R_even by m, then R_odd by m from 1 on (beside R_even).
    int64_t start(int64_t weight, int64_t lanes) const {
        const bool is_odd = weight > pair.smaller();
        return weights[is_odd ? weight - pair.smaller() : weight] + (is_odd ? vectors * lanes : 0);
    }
};

// The terms of a pair of degrees, and where its weights stand among those of all pairs.
struct PairTerms {
    int64_t first_term, last_term, first_weight, num_weights;

    int64_t count() const { return last_term - first_term; }
};

// What the tiles of one side are summed from: terms from the other side, pair by pair of degrees.
struct Contraction {
    const std::vector<Tile>& tiles;
    std::vector<Term> terms;
    std::vector<PairTerms> pairs;
    int64_t num_weights = 0;

    Contraction(const Description& plan, const Side& inputs, const Side& outputs, bool is_backward, int64_t lanes)
        : tiles((is_backward ? inputs : outputs).tiles) {
        const Side& other = is_backward ? outputs : inputs;
        for (const DegreePair& pair : plan.pairs) {
            const int64_t channels = is_backward ? pair.channels_out : pair.channels_in;
            const int64_t steps = is_backward ? channels : plan.width_hidden;
            const int64_t slices = is_backward ? plan.width_hidden : channels;
            const int64_t other_index = is_backward ? pair.index_out : pair.index_in;
            PairTerms of_pair{int64_t(terms.size()), 0, num_weights, 0};
            for (const Tile& tile : tiles) {
                if ((is_backward ? pair.index_in : pair.index_out) != tile.degree_index || pair.smaller() < tile.m) continue;
                terms.push_back({&tile - tiles.data(), pair.group, of_pair.num_weights, other.row(other_index, -tile.m),
                                 other.row(other_index, tile.m), channels, tile.m > 0 ? slices : (slices + 1) / 2, steps});
                of_pair.num_weights += terms.back().slices * steps * 2 * tile.vectors * lanes;
            }
            of_pair.last_term = int64_t(terms.size());
            num_weights += of_pair.num_weights;
            pairs.push_back(of_pair);
        }
    }

    int64_t num_pairs() const { return int64_t(pairs.size()); }

    // The pairs of each degree of the side whose tiles are summed, the most work first.
    std::vector<Integers> pairs_by_degree() const {
        std::vector<Integers> result;
        for (int64_t pair = 0; pair < num_pairs(); ++pair) {
            const std::size_t degree = std::size_t(tiles[terms_of(pair)->tile].degree_index);
            if (result.size() <= degree) result.resize(degree + 1);
            result[degree].push_back(pair);
        }
        std::reverse(result.begin(), result.end());
        return result;
    }

    const Term* terms_of(int64_t pair) const { return terms.data() + pairs[pair].first_term; }

    int64_t most_weights_of_a_pair() const {
        int64_t result = 0;
        for (const PairTerms& pair : pairs) result = std::max(result, pair.num_weights);
        return result;
    }

    std::vector<PairTile> pair_tiles(const Description& plan, int64_t pair) const {
        std::vector<PairTile> result;
        for (const Term* term = terms_of(pair); term < terms_of(pair) + pairs[pair].count(); ++term) {
            const Tile& tile = tiles[term->tile];
            const auto is_same = [&](const PairTile& one) { return one.first_channel == tile.first_channel; };
            const auto found = std::find_if(result.begin(), result.end(), is_same);
            if (found == result.end())
                result.push_back({plan.pairs[pair], tile.first_channel, tile.vectors, {term->weights}});
            else
                found->weights.push_back(term->weights);  // m ascends
        }
        return result;
    }
};

}  // namespace se3_fast
