// Edge frames on the CPU: the operation wigner_blocks of torch.ops.se3_fast_cpp. Edges are shared among threads, some at a time.

#include "edge_frames.h"

#include <algorithm>

#include "check.h"
#include "parallel.h"
#include "tensor.h"
#include "workspace.h"

namespace {

using namespace se3_fast;

template <typename T>
void write_blocks(const Tensor& direction, int64_t max_degree, const Tensor& axis_swaps, const Tensor& blocks) {
    const int64_t num_edges = direction.size(0), length = blocks.size(1);
    const T* from = read<T>(direction);
    T* into = write<T>(blocks);
    share_tasks((num_edges + FRAME_EDGES - 1) / FRAME_EDGES, [&](const auto& next) {
        const Scratch<T> workspace(SE3_FAST_CALL(frame_workspace_size, max_degree));
        for (int64_t task = next(); task >= 0; task = next()) {
            const int64_t edge = task * FRAME_EDGES;
            SE3_FAST_CALL(wigner_blocks<T>, from + 3 * edge, std::min(FRAME_EDGES, num_edges - edge), max_degree,
                          read<double>(axis_swaps), into + edge * length, workspace.data());
        }
    });
}

// direction: [E, 3]; axis_swaps: J_d of the degrees 0..max_degree in a row, float64.
Tensor wigner_blocks(Tensor direction, int64_t max_degree, Tensor axis_swaps) {
    check_number("max_degree", max_degree, 0, MOST_DEGREE);
    check_tensor("direction", direction, value_type("direction", direction), {rows_of("direction", direction, 2), 3});
    check_tensor("axis_swaps", axis_swaps, ScalarType::Double, {wigner_elements(max_degree)});
    const Tensor blocks = empty(direction, {direction.size(0), axis_swaps.numel()});
    by_type(direction, [&](auto zero) { write_blocks<decltype(zero)>(direction, max_degree, axis_swaps, blocks); });
    return blocks;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def("wigner_blocks(Tensor direction, int max_degree, Tensor axis_swaps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CPU, m) { m.impl("wigner_blocks", TORCH_BOX(&wigner_blocks)); }
