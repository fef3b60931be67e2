#include "check.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <string>

namespace se3_fast {
namespace {

const char* text(ScalarType type) {
    switch (type) {
        case ScalarType::Double: return "float64";
        case ScalarType::Float: return "float32";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Long: return "int64";
        case ScalarType::Int: return "int32";
        case ScalarType::Bool: return "bool";
        default: return "another dtype";
    }
}

template <typename Sizes>
std::string text(const Sizes& sizes) {
    std::ostringstream stream;
    const char* separator = "[";
    for (const int64_t size : sizes) {
        stream << separator << size;
        separator = ", ";
    }
    return sizes.size() == 0 ? "[]" : stream.str() + "]";
}

// Whether the memory of a tensor holds all of its elements: a storage may have been shrunk since (FSDP frees parameters so).
bool has_memory(const Tensor& tensor) {
    int64_t bytes = 0;
    if (aoti_torch_get_storage_size(tensor.get(), &bytes) != AOTI_TORCH_SUCCESS) return false;
    return (tensor.storage_offset() + tensor.numel()) * int64_t(tensor.element_size()) <= bytes;
}

// Whether all numbers are from 0 to limit - 1: the sign bit of a number, or of what it lacks to the largest one, tells.
bool are_below(const int64_t* numbers, int64_t count, int64_t limit) {
    uint64_t signs = 0;
    for (int64_t index = 0; index < count; ++index)
        signs |= uint64_t(numbers[index]) | (uint64_t(limit - 1) - uint64_t(numbers[index]));
    return signs >> 63 == 0;
}

int64_t first_outside(const int64_t* numbers, int64_t limit) {
    while (*numbers >= 0 && *numbers < limit) ++numbers;
    return *numbers;
}

void check_offsets(const char* name, const int64_t* offsets, int64_t num_nodes, int64_t num_edges) {
    if (offsets[0] != 0 || offsets[num_nodes] != num_edges)
        refuse(name, ": expected numbers from 0 to the ", num_edges, " edges, got ", offsets[0], " to ", offsets[num_nodes]);
    for (int64_t node = 0; node < num_nodes; ++node)
        if (offsets[node] > offsets[node + 1])
            refuse(name, ": expected ascending numbers, got ", offsets[node], " and then ", offsets[node + 1]);
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const Name& name) {
    stream << name.list;
    if (name.element >= 0) stream << '[' << name.element << ']';
    return stream;
}

ScalarType value_type(const Name& name, const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double)
        refuse(name, ": expected float32 or float64, got ", text(type));
    return type;
}

ScalarType stored_type(const Name& name, const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::BFloat16)
        refuse(name, ": expected float32, float64 or bfloat16, got ", text(type));
    return type;
}

ScalarType computed_type(ScalarType stored) {
    return stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_tensor(const Name& name, const Tensor& tensor, ScalarType type, const Integers& sizes) {
    if (!tensor.defined() || !tensor.is_cpu()) refuse(name, ": expected a tensor on the CPU, got one on another device");
    if (tensor.scalar_type() != type) refuse(name, ": expected ", text(type), ", got ", text(tensor.scalar_type()));
    const auto given = tensor.sizes();
    if (given.size() != sizes.size() || !std::equal(sizes.begin(), sizes.end(), given.begin()))
        refuse(name, ": expected shape ", text(sizes), ", got ", text(given));
    if (!tensor.is_contiguous()) refuse(name, ": expected a contiguous tensor, got strides ", text(tensor.strides()));
    if (tensor.numel() > 0 && !has_memory(tensor)) refuse(name, ": expected a tensor with its memory, got one whose storage is too small");
}

int64_t rows_of(const Name& name, const Tensor& tensor, int64_t axes) {
    if (tensor.dim() != axes) refuse(name, ": expected ", axes, " axes, got shape ", text(tensor.sizes()));
    return tensor.size(0);
}

void check_count(const char* name, std::size_t given, std::size_t expected) {
    if (given != expected) refuse(name, ": expected ", expected, ", got ", given);
}

void check_number(const char* name, int64_t number, int64_t least, int64_t most) {
    if (number < least || number > most) refuse(name, ": expected a number from ", least, " to ", most, ", got ", number);
}

void check_ends(const char* name, const Tensor& ends, int64_t num_nodes, int64_t num_edges) {
    check_tensor(name, ends, ScalarType::Long, {num_edges});
    const int64_t* nodes = read<int64_t>(ends);
    if (!are_below(nodes, num_edges, num_nodes))
        refuse(name, ": expected node numbers from 0 to ", num_nodes - 1, ", got ", first_outside(nodes, num_nodes));
}

void check_order(const char* order_name, const Tensor& order, const char* offsets_name, const Tensor& offsets, int64_t num_nodes,
                 int64_t num_edges, const int64_t* node_of_edge) {
    check_tensor(order_name, order, ScalarType::Long, {num_edges});
    check_tensor(offsets_name, offsets, ScalarType::Long, {num_nodes + 1});
    const int64_t *edges = read<int64_t>(order), *starts = read<int64_t>(offsets);
    check_offsets(offsets_name, starts, num_nodes, num_edges);
    if (!are_below(edges, num_edges, num_edges))
        refuse(order_name, ": expected edge numbers from 0 to ", num_edges - 1, ", got ", first_outside(edges, num_edges));
    std::vector<uint8_t> is_there(num_edges);
    uint8_t is_repeated = 0;
    for (int64_t place = 0; place < num_edges; ++place) {
        is_repeated |= is_there[edges[place]];
        is_there[edges[place]] = 1;
    }
    if (is_repeated) refuse(order_name, ": expected every edge once, got one twice or more");
    if (node_of_edge == nullptr) return;
    for (int64_t node = 0; node < num_nodes; ++node)
        for (int64_t place = starts[node]; place < starts[node + 1]; ++place)
            if (node_of_edge[edges[place]] != node)
                refuse(order_name, ": expected edges of node ", node, " from place ", starts[node], " on, got edge ", edges[place],
                       " of node ", node_of_edge[edges[place]]);
}

int64_t IntegerReader::take(const char* what, int64_t least, int64_t most) {
    if (at_ == values_.size()) refuse(name_, ": expected ", what, " at place ", at_, ", got no more integers");
    const int64_t value = values_[at_];
    if (value < least || value > most)
        refuse(name_, ": expected ", what, " from ", least, " to ", most, " at place ", at_, ", got ", value);
    ++at_;
    return value;
}

std::vector<std::pair<int64_t, int64_t>> IntegerReader::take_channels(const char* what) {
    std::vector<std::pair<int64_t, int64_t>> result;
    for (int64_t count = take_count(what), least = 0; count > 0; --count) {
        const int64_t degree = take("an ascending degree", least, MOST_DEGREE);
        result.emplace_back(degree, take("channels", 0, MOST_CHANNELS));
        least = degree + 1;
    }
    return result;
}

void IntegerReader::finish() const {
    if (at_ != values_.size()) refuse(name_, ": expected ", at_, " integers, got ", values_.size());
}

void check_wigner(const Tensor& wigner, ScalarType type, int64_t max_degree, int64_t num_edges) {
    rows_of("wigner", wigner, 2);
    int64_t degree = max_degree;
    while (degree < MOST_DEGREE && wigner_elements(degree) < wigner.size(1)) ++degree;
    check_tensor("wigner", wigner, type, {num_edges, wigner_elements(degree)});
}

}  // namespace se3_fast
