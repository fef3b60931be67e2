#include "workspace.h"

#include <cstdlib>
#include <iterator>
#include <list>
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

struct Block {
    std::size_t size;
    void* memory;
};

using Blocks = std::list<Block>;

// The blocks that wait, those given back first in front, and where each size is among them.
struct Kept {
    std::mutex mutex;
    Blocks blocks;
    std::multimap<std::size_t, Blocks::iterator> of_size;
    std::size_t bytes = 0;

    // Takes one of a size out, the last that was given back; nullptr where there is none.
    void* take(std::size_t size) {
        const auto after = of_size.upper_bound(size);
        if (after == of_size.begin() || std::prev(after)->first != size) return nullptr;
        const auto found = std::prev(after);
        void* memory = found->second->memory;
        blocks.erase(found->second);
        of_size.erase(found);
        bytes -= size;
        return memory;
    }

    // Takes out the one that has waited longest: sizes that nobody asks for any more make room.
    void* take_oldest() {
        const Block oldest = blocks.front();
        of_size.erase(of_size.lower_bound(oldest.size));  // of equal sizes those given back first stand first
        blocks.pop_front();
        bytes -= oldest.size;
        return oldest.memory;
    }

    void put(std::size_t size, void* memory) {
        of_size.emplace(size, blocks.insert(blocks.end(), {size, memory}));
        bytes += size;
    }
};

Kept& kept() { return process_wide<Kept>(); }

}  // namespace

void* take_memory(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    Kept& pool = kept();
    {
        const std::lock_guard<std::mutex> lock(pool.mutex);
        if (void* memory = pool.take(size)) return memory;
    }
    void* memory = std::aligned_alloc(ALIGNMENT, size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void release_memory(void* memory, std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    if (size > KEPT_BYTES) return std::free(memory);
    Kept& pool = kept();
    const std::lock_guard<std::mutex> lock(pool.mutex);
    while (pool.bytes + size > KEPT_BYTES) std::free(pool.take_oldest());
    pool.put(size, memory);
}

}  // namespace se3_fast
