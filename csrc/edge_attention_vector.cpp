// Attention over incoming edges on the CPU, node by node (formula: se3_fast/backends/dense/edge_attention.py).
//
//     s[e, h] = <key[e, h], query[n, h]> / sqrt(F),   w = softmax over the node's edges,   out[n, h] = sum_e w[e, h] value[e, h]
// Backward, with g the gradient of out and the softmax made again:
//     dvalue[e, h] = w[e, h] g[n, h],   dw[e, h] = <g[n, h], value[e, h]>,   ds = w (dw - sum_e w dw)
//     dkey[e, h] = ds[e, h] query[n, h] / sqrt(F),   dquery[n, h] = sum_e ds[e, h] key[e, h] / sqrt(F)
// The runs of a head are a few elements, shorter than a vector. So rows are multiplied whole, and sums over runs, and the way back
// from heads to runs, are products with a matrix that says which element belongs to which head. Bound by reading keys and values.

#include "edge_attention.h"
#include "rows.h"
#include "small_product.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

constexpr int64_t CHUNK = 24;  // edges that are treated together, and summed up before they are added to the rest

inline float exponential(float value) { return __builtin_expf(value); }
inline double exponential(double value) { return __builtin_exp(value); }

template <typename T, typename S>
int64_t longest_row(const Attention<T, S>& attention) {
    int64_t run = 1;
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T, S>& part = attention.parts[index];
        if (part.value_run > run) run = part.value_run;
        if (part.key_run > run) run = part.key_run;
    }
    return padded<T>(attention.heads * run);
}

// Scratch of a thread.
template <typename T>
struct Buffers {
    int64_t heads;           // padded
    T *weights, *gradients;  // w and dw or ds, [edge][heads]
    T* rows;                 // of a chunk, [CHUNK][row]
    T* total;                // of a node, [row]

    template <typename S>
    Buffers(const Attention<T, S>& attention, int64_t most_edges, T* memory) : heads(padded<T>(attention.heads)) {
        weights = memory;
        gradients = weights + most_edges * heads;
        rows = gradients + most_edges * heads;
        total = rows + CHUNK * longest_row(attention);
    }

    template <typename S>
    static int64_t size(const Attention<T, S>& attention, int64_t most_edges) {
        return 2 * most_edges * padded<T>(attention.heads) + (CHUNK + 1) * longest_row(attention);
    }
};

// The runs of a row: which element belongs to which head.
template <typename T>
struct Runs {
    int64_t run, length, row;  // elements of a run, of a row, and of a padded row
    T* is_of_head;             // [element][padded heads], 1 where an element of a row belongs to a head, else 0
    T* has_element;            // its transpose, [head][padded row]

    Runs(int64_t heads, int64_t run, T* table) : run(run), length(heads * run), row(padded<T>(length)) {
        is_of_head = table;
        has_element = is_of_head + row * padded<T>(heads);
    }
};

template <typename T, typename S>
Runs<const T> runs_of_keys(const Attention<T, S>& attention, const AttentionPart<T, S>& part) {
    return {attention.heads, part.key_run, part.key_heads};
}

template <typename T, typename S>
Runs<const T> runs_of_values(const Attention<T, S>& attention, const AttentionPart<T, S>& part) {
    return {attention.heads, part.value_run, part.value_heads};
}

// Whether all values, whole vectors of them, are finite: 0 times a value that is not is no number.
template <typename T>
bool are_finite(const T* values, int64_t count) {
    Vector<T> total{};
    for (int64_t index = 0; index < count; index += LANES<T>) total += load(values + index) * 0;
    return sum<T>(total) == 0;
}

template <typename Visit>
inline void for_each_chunk(int64_t count, const Visit& visit) {
    for (int64_t first = 0; first < count; first += CHUNK) visit(first, count - first < CHUNK ? count - first : CHUNK);
}

// sums[edge][head] += <features of the edge, those of the node>; of_edges: rows of edges, `stride` apart.
template <typename T, typename S>
void add_inner_products(
    const Attention<T, S>&, const Buffers<T>& buffers, const Runs<const T>& runs, const S* of_edges, int64_t stride, const S* of_node,
    const int64_t* edges, int64_t count, T* sums) {
    for_each_chunk(count, [&](int64_t first, int64_t size) {
        for (int64_t place = 0; place < size; ++place) {
            const S* from = of_edges + edges[first + place] * stride;
            T* into = buffers.rows + place * runs.row;
            for (int64_t index = 0; index < runs.length; ++index) into[index] = from[index] * of_node[index];
        }
        multiply<false, true>(Product<T>{
            size, buffers.heads, runs.length, buffers.rows, runs.row, runs.is_of_head, buffers.heads, sums + first * buffers.heads,
            buffers.heads});
    });
}

// The same for values that are not all finite, which in a product with a matrix would go into the sums of all heads.
template <typename T, typename S>
void add_each_inner_product(
    const Attention<T, S>& attention, const Buffers<T>& buffers, const Runs<const T>& runs, const S* of_edges, int64_t stride,
    const S* of_node, const int64_t* edges, int64_t count, T* sums) {
    for (int64_t place = 0; place < count; ++place)
        for (int64_t head = 0; head < attention.heads; ++head) {
            const S *left = of_edges + edges[place] * stride + head * runs.run, *right = of_node + head * runs.run;
            for (int64_t index = 0; index < runs.run; ++index) sums[place * buffers.heads + head] += left[index] * right[index];
        }
}

// s of a node's edges, without its scale.
template <typename T, typename S>
void inner_products_of_keys(
    const Attention<T, S>& attention, const Buffers<T>& buffers, int64_t node, const int64_t* edges, int64_t count, bool is_each) {
    fill_zero(buffers.weights, count * buffers.heads);
    const auto add = is_each ? add_each_inner_product<T, S> : add_inner_products<T, S>;
    for (const AttentionPart<T, S>* part = attention.parts; part < attention.parts + attention.num_parts; ++part)
        if (part->key_run > 0)
            add(attention, buffers, runs_of_keys(attention, *part), part->key, part->key_stride,
                part->query + node * attention.heads * part->key_run, edges, count, buffers.weights);
}

// dw of a node's edges.
template <typename T, typename S>
void inner_products_of_values(
    const Attention<T, S>& attention, const Buffers<T>& buffers, int64_t node, const int64_t* edges, int64_t count, bool is_each) {
    fill_zero(buffers.gradients, count * buffers.heads);
    const auto add = is_each ? add_each_inner_product<T, S> : add_inner_products<T, S>;
    for (const AttentionPart<T, S>* part = attention.parts; part < attention.parts + attention.num_parts; ++part)
        add(attention, buffers, runs_of_values(attention, *part), part->value, part->value_stride,
            part->gradient + node * attention.heads * part->value_run, edges, count, buffers.gradients);
}

// Calls use(edge, a factor for each element of its row) for all edges, from factors[edge][head]; and for every chunk
// finish(number of its edges, elements from one row to the next).
template <typename T, typename S, typename Use, typename Finish>
void for_each_spread(
    const Attention<T, S>& attention, const Buffers<T>& buffers, const Runs<const T>& runs, const T* factors, const int64_t* edges,
    int64_t count, const Use& use, const Finish& finish) {
    const bool is_finite = are_finite(factors, count * buffers.heads);  // otherwise the product would mix the heads
    for_each_chunk(count, [&](int64_t first, int64_t size) {
        const T* of_chunk = factors + first * buffers.heads;
        if (is_finite)
            multiply<false, false>(Product<T>{
                size, runs.row, attention.heads, of_chunk, buffers.heads, runs.has_element, runs.row, buffers.rows, runs.row});
        else
            for (int64_t place = 0; place < size; ++place)
                for (int64_t index = 0; index < runs.length; ++index)
                    buffers.rows[place * runs.row + index] = of_chunk[place * buffers.heads + index / runs.run];
        for (int64_t place = 0; place < size; ++place) use(edges[first + place], buffers.rows + place * runs.row);
        finish(size, runs.row);
    });
}

// Adds the chunk's rows up.
template <typename T>
void add_rows(const T* rows, int64_t count, int64_t row, int64_t length, T* total) {
    for (int64_t index = 0; index < length; ++index) {
        T sum = 0;
        for (int64_t place = 0; place < count; ++place) sum += rows[place * row + index];
        total[index] += sum;
    }
}

template <typename T, typename S>
void write_total(const Buffers<T>& buffers, int64_t length, S* into) {
    for (int64_t index = 0; index < length; ++index) into[index] = buffers.total[index];
}

// w of a node's edges.
template <typename T, typename S>
void softmax_weights(
    const Attention<T, S>& attention, int64_t node, const int64_t* edges, int64_t count, const Buffers<T>& buffers) {
    const int64_t heads = attention.heads, stride = buffers.heads;
    inner_products_of_keys(attention, buffers, node, edges, count, false);
    if (!are_finite(buffers.weights, count * stride)) inner_products_of_keys(attention, buffers, node, edges, count, true);
    for (int64_t head = 0; head < heads && count > 0; ++head) {
        T* weights = buffers.weights + head;
        T largest = weights[0];
        double total = 0;
        for (int64_t place = 1; place < count; ++place)  // a NaN comes out as a NaN, wherever it stands: total is one then
            if (weights[place * stride] > largest) largest = weights[place * stride];
        for (int64_t place = 0; place < count; ++place) {
            weights[place * stride] = exponential(attention.scale * (weights[place * stride] - largest));
            total += weights[place * stride];
        }
        for (int64_t place = 0; place < count; ++place) weights[place * stride] /= T(total);
    }
}

// ds in place of dw.
template <typename T, typename S>
void differentiate_softmax(const Attention<T, S>& attention, int64_t count, const Buffers<T>& buffers) {
    for (int64_t head = 0; head < attention.heads; ++head) {
        double total = 0;
        for (int64_t place = 0; place < count; ++place) {
            const int64_t at = place * buffers.heads + head;
            total += double(buffers.weights[at]) * buffers.gradients[at];
        }
        for (int64_t place = 0; place < count; ++place) {
            const int64_t at = place * buffers.heads + head;
            buffers.gradients[at] = attention.scale * buffers.weights[at] * (buffers.gradients[at] - T(total));
        }
    }
}

}  // namespace

template <typename T>
int64_t heads_size(int64_t heads, int64_t run) {
    return padded<T>(heads * run) * (padded<T>(heads) + heads);
}

template <typename T>
void set_heads(int64_t heads, int64_t run, T* table) {
    const Runs<T> runs(heads, run, table);
    fill_zero(table, heads_size<T>(heads, run));
    for (int64_t index = 0; index < runs.length; ++index) {
        runs.is_of_head[index * padded<T>(heads) + index / run] = 1;
        runs.has_element[index / run * runs.row + index] = 1;
    }
}

template <typename T, typename S>
int64_t attention_workspace_size(const Attention<T, S>& attention, int64_t most_edges) {
    return Buffers<T>::size(attention, most_edges);
}

template <typename T, typename S>
void attend(
    const Attention<T, S>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace) {
    const Buffers<T> buffers(attention, most_edges, workspace);
    softmax_weights(attention, node, edges, count, buffers);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T, S>& part = attention.parts[index];
        const int64_t length = attention.heads * part.value_run;
        fill_zero(buffers.total, length);
        for_each_spread(
            attention, buffers, runs_of_values(attention, part), buffers.weights, edges, count,
            [&](int64_t edge, T* spread) {
                const S* value = part.value + edge * part.value_stride;
                for (int64_t element = 0; element < length; ++element) spread[element] *= value[element];
            },
            [&](int64_t size, int64_t row) { add_rows(buffers.rows, size, row, length, buffers.total); });
        write_total(buffers, length, part.result + node * length);
    }
}

template <typename T, typename S>
void attend_backward(
    const Attention<T, S>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace) {
    const Buffers<T> buffers(attention, most_edges, workspace);
    softmax_weights(attention, node, edges, count, buffers);
    inner_products_of_values(attention, buffers, node, edges, count, false);
    if (!are_finite(buffers.gradients, count * buffers.heads))
        inner_products_of_values(attention, buffers, node, edges, count, true);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T, S>& part = attention.parts[index];
        const int64_t length = attention.heads * part.value_run;
        const S* gradient = part.gradient + node * length;
        for_each_spread(
            attention, buffers, runs_of_values(attention, part), buffers.weights, edges, count,
            [&](int64_t edge, T* spread) {
                S* into = part.value_gradient + edge * part.value_stride;
                for (int64_t element = 0; element < length; ++element) into[element] = spread[element] * gradient[element];
            },
            [](int64_t, int64_t) {});
    }
    differentiate_softmax(attention, count, buffers);
    for (int64_t index = 0; index < attention.num_parts; ++index) {
        const AttentionPart<T, S>& part = attention.parts[index];
        if (part.key_run == 0) continue;
        const int64_t length = attention.heads * part.key_run;
        const S* query = part.query + node * length;
        fill_zero(buffers.total, length);
        for_each_spread(
            attention, buffers, runs_of_keys(attention, part), buffers.gradients, edges, count,
            [&](int64_t edge, T* spread) {
                const S* key = part.key + edge * part.key_stride;
                S* into = part.key_gradient + edge * part.key_stride;
                for (int64_t element = 0; element < length; ++element) into[element] = spread[element] * query[element];
                for (int64_t element = 0; element < length; ++element) spread[element] *= key[element];
            },
            [&](int64_t size, int64_t row) { add_rows(buffers.rows, size, row, length, buffers.total); });
        write_total(buffers, length, part.query_gradient + node * length);
    }
}

#define SE3_FAST_INSTANTIATE(T)                       \
    template int64_t heads_size<T>(int64_t, int64_t); \
    template void set_heads<T>(int64_t, int64_t, T*);

#define SE3_FAST_INSTANTIATE_STORED(T, S)                                                                      \
    template int64_t attention_workspace_size<T, S>(const Attention<T, S>&, int64_t);                          \
    template void attend<T, S>(const Attention<T, S>&, int64_t, const int64_t*, int64_t, int64_t, T*);         \
    template void attend_backward<T, S>(const Attention<T, S>&, int64_t, const int64_t*, int64_t, int64_t, T*);

SE3_FAST_INSTANTIATE(float)
SE3_FAST_INSTANTIATE(double)
SE3_FAST_INSTANTIATE_STORED(float, float)
SE3_FAST_INSTANTIATE_STORED(float, BFloat16)
SE3_FAST_INSTANTIATE_STORED(double, double)

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
