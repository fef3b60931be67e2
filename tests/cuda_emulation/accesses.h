// Who touches which memory while kernels run: what emulator.cpp tells accesses.cpp, which the compiler's calls tell of every access.

#pragma once

#include <cstddef>
#include <cstdint>

struct Watch {
    bool is_on = false;  // while a kernel runs, and not the emulator
    unsigned block = 0;  // from 1
    unsigned epoch = 0;  // barriers that the block has passed
    int thread = 0;
};
extern Watch watch;

// A launch that may touch this memory, in bytes, which may overlap, and the shared memory.
void watch_launch(
    const unsigned char* shared, std::size_t shared_bytes, const std::uintptr_t* starts, const std::size_t* sizes,
    std::size_t num_tensors);
