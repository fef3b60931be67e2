// Attention over incoming edges on the CPU: what the driver (edge_attention.cpp) and the loops (edge_attention_vector.cpp) share.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

// The features of one degree: of every edge a row of values and one of keys, of every node one of queries. A row is H runs, one for
// each head. Rows of values and keys may stand in one tensor, hence their strides; those of nodes are contiguous.
template <typename T>
struct AttentionPart {
    int64_t value_run, key_run;  // elements of a run; no keys and queries: 0
    int64_t value_stride, key_stride;
    const T *value_heads, *key_heads;  // which element of a row of values, or of keys, belongs to which head: set_heads
    const T *value, *key, *query;
    T* result;
    const T* gradient;                              // backward: of the result
    T *value_gradient, *key_gradient, *query_gradient;  // backward; strides as above
};

template <typename T>
struct Attention {
    const AttentionPart<T>* parts;
    int64_t num_parts, heads;
    T scale;  // of the scores
};

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of the table of a row of runs, and the table itself.
    template <typename T> int64_t heads_size(int64_t heads, int64_t run);
    template <typename T> void set_heads(int64_t heads, int64_t run, T* table);

    // Elements of workspace for nodes of up to `most_edges` incoming edges.
    template <typename T> int64_t attention_workspace_size(const Attention<T>& attention, int64_t most_edges);

    // The result of a node from its `count` incoming edges.
    template <typename T> void attend(
        const Attention<T>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace);

    // Its gradients.
    template <typename T> void attend_backward(
        const Attention<T>& attention, int64_t node, const int64_t* edges, int64_t count, int64_t most_edges, T* workspace);
)
