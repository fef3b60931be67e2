// Edge frames on the CPU: what the driver (edge_frames.cpp) and the loops over vectors (edge_frames_vector.cpp) share.

#pragma once

#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

constexpr int64_t FRAME_EDGES = 64;  // that are treated together

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // Elements of workspace.
    int64_t frame_workspace_size(int64_t max_degree);

    // Wigner blocks of up to FRAME_EDGES edges, [count][sum of (2d+1)^2], from their directions, [count][3]. axis_swaps: J_d of the
    // degrees 0, 1, ..., row-major.
    template <typename T> void wigner_blocks(
        const T* directions, int64_t count, int64_t max_degree, const double* axis_swaps, T* blocks, T* workspace);
)
