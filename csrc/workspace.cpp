#include "workspace.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#include "process_wide.h"

namespace se3_fast {
namespace {

constexpr std::size_t ALIGNMENT = 64;

// Sizes are rounded up, so that calls of nearly the same size share blocks.
std::size_t rounded(std::size_t bytes) {
    const std::size_t step = bytes < (std::size_t(1) << 20) ? std::size_t(1) << 12 : std::size_t(1) << 18;
    return (bytes + step) / step * step;
}

struct Kept {
    std::mutex mutex;
    std::multimap<std::size_t, void*> blocks;
    std::size_t bytes = 0;
};

Kept& kept() { return process_wide<Kept>(); }

}  // namespace

void* take_memory(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    Kept& pool = kept();
    {
        const std::lock_guard<std::mutex> lock(pool.mutex);
        const auto found = pool.blocks.find(size);
        if (found != pool.blocks.end()) {
            void* memory = found->second;
            pool.blocks.erase(found);
            pool.bytes -= size;
            return memory;
        }
    }
    void* memory = std::aligned_alloc(ALIGNMENT, size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void release_memory(void* memory, std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    Kept& pool = kept();
    {
        const std::lock_guard<std::mutex> lock(pool.mutex);
        if (pool.bytes + size <= KEPT_BYTES) {
            pool.blocks.emplace(size, memory);
            pool.bytes += size;
            return;
        }
    }
    std::free(memory);
}

}  // namespace se3_fast
