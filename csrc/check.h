// What an operation is handed, checked before anything of it is read: an error names the argument, what was expected and what came.
// Whoever calls an operation of torch.ops.se3_fast_cpp directly gets an error, never a crash.

#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>

#include "tensor.h"

namespace se3_fast {

// The largest sizes that are taken: the sizes of all that an operation allocates then fit 64 bits.
constexpr int64_t MOST_DEGREE = 31;
constexpr int64_t MOST_CHANNELS = int64_t(1) << 16;
constexpr int64_t MOST_PATHS = int64_t(1) << 20;  // of a group
constexpr int64_t MOST_WIDTH = int64_t(1) << 14;  // of h
constexpr int64_t MOST_INVARIANTS = int64_t(1) << 20;
constexpr int64_t MOST_HEADS = int64_t(1) << 12;
constexpr int64_t MOST_HEAD_VALUES = int64_t(1) << 26;  // heads times the length of a row

// The name of an argument, or of an element of a list.
struct Name {
    const char* list;
    int64_t element;

    Name(const char* argument) : list(argument), element(-1) {}
    Name(const char* list, std::size_t element) : list(list), element(int64_t(element)) {}
};

std::ostream& operator<<(std::ostream& stream, const Name& name);

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

// float32 or float64: the type of all values of a call, which is that of this tensor.
ScalarType value_type(const Name& name, const Tensor& tensor);

// Or bfloat16: the type of all values of a call that are computed with in another one.
ScalarType stored_type(const Name& name, const Tensor& tensor);

// The type that values are computed with in: float64 for float64, else float32.
ScalarType computed_type(ScalarType stored);

// A contiguous tensor on the CPU, of the type and the sizes given.
void check_tensor(const Name& name, const Tensor& tensor, ScalarType type, const Integers& sizes);

// The first size of a tensor with so many axes.
int64_t rows_of(const Name& name, const Tensor& tensor, int64_t axes);

// As many tensors, or numbers, as expected.
void check_count(const char* name, std::size_t given, std::size_t expected);

// One number from `least` to `most`.
void check_number(const char* name, int64_t number, int64_t least, int64_t most);

// The node of every edge, [E] int64: each from 0 to num_nodes - 1.
void check_ends(const char* name, const Tensor& ends, int64_t num_nodes, int64_t num_edges);

// Edges by node, as se3_fast/graph.py has them: order [E] has every edge once, the edges of node n are order[offsets[n]] ...
// order[offsets[n + 1] - 1]. node_of_edge: checked already, or null where it is not known.
void check_order(const char* order_name, const Tensor& order, const char* offsets_name, const Tensor& offsets, int64_t num_nodes,
                 int64_t num_edges, const int64_t* node_of_edge);

// A list of integers, read one after the other.
class IntegerReader {
public:
    IntegerReader(const char* name, const Integers& values) : name_(name), values_(values) {}

    // The next integer, from `least` to `most`; `what` it is, for the error.
    int64_t take(const char* what, int64_t least, int64_t most);

    // How many rows of a table follow.
    int64_t take_count(const char* what) { return take(what, 0, int64_t(values_.size())); }

    // (degree, channels) of a table, degrees ascending.
    std::vector<std::pair<int64_t, int64_t>> take_channels(const char* what);

    // Nothing may be left.
    void finish() const;

private:
    const char* name_;
    const Integers& values_;
    std::size_t at_ = 0;
};

// Elements of the Wigner blocks of the degrees 0 .. max_degree.
constexpr int64_t wigner_elements(int64_t max_degree) {
    return (max_degree + 1) * (2 * max_degree + 1) * (2 * max_degree + 3) / 3;
}

// Wigner blocks of E edges, of the degrees 0, 1, ... up to max_degree at least.
void check_wigner(const Tensor& wigner, ScalarType type, int64_t max_degree, int64_t num_edges);

}  // namespace se3_fast
