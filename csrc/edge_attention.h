// Attention over incoming edges on the CPU: what the driver (edge_attention.cpp) and the loops (edge_attention_vector.cpp) share.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

// The features of one degree: of every edge a row of values and one of keys, of every node one of queries. A row is H runs, one for
// each head. Rows of values and keys may stand in one tensor, hence their strides; those of nodes are contiguous. All of them stand
// in memory as type S, which is computed with as type T.
template <typename T, typename S>
struct AttentionPart {
    int64_t value_run, key_run;  // elements of a run; no keys and queries: 0
    int64_t value_stride, key_stride;
    const T *value_heads, *key_heads;  // which element of a row of values, or of keys, belongs to which head: set_heads
    const S *value, *key, *query;
    S* result;
    const S* gradient;                              // backward: of the result
    S *value_gradient, *key_gradient, *query_gradient;  // backward; strides as above
};

template <typename T, typename S>
struct Attention {
    const AttentionPart<T, S>* parts;
    int64_t num_parts, heads;
    T scale;  // of the scores
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of the table of a row of runs, and the table itself.
    template <typename T> int64_t heads_size(int64_t heads, int64_t run);
    template <typename T> void set_heads(int64_t heads, int64_t run, T* table);

    // Elements of workspace for nodes of up to `most_edges` incoming edges.
    template <typename T, typename S> int64_t attention_workspace_size(const Attention<T, S>& attention, int64_t most_edges);

    // The result of a node from its `count` incoming edges.
    template <typename T, typename S> void attend(
        const Attention<T, S>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace);

    // Its gradients.
    template <typename T, typename S> void attend_backward(
        const Attention<T, S>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace);
)
