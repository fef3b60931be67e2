// Scratch memory that is kept from call to call.
//
// What an operation writes and reads within one call can be several megabytes; fresh from the system every page of it would fault,
// which costs as much as filling it twice. Freed blocks wait here for the next call, up to KEPT_BYTES in all; those that have waited
// longest make room for others.

#pragma once

#include <cstddef>
#include <utility>

namespace se3_fast {

constexpr std::size_t KEPT_BYTES = std::size_t(64) << 20;

// At least `bytes` of memory, aligned to a cache line, with any content. Throws std::bad_alloc.
void* take_memory(std::size_t bytes);

// Gives it back; any thread may.
void release_memory(void* memory, std::size_t bytes);

// An array of `size` elements of T with any content; elements are plain numbers.
template <typename T>
class Scratch {
public:
    explicit Scratch(std::size_t size) : bytes_(size * sizeof(T)), memory_(static_cast<T*>(take_memory(bytes_))) {}
    Scratch(Scratch&& other) noexcept : bytes_(other.bytes_), memory_(std::exchange(other.memory_, nullptr)) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    Scratch& operator=(Scratch&&) = delete;
    ~Scratch() {
        if (memory_ != nullptr) release_memory(memory_, bytes_);
    }

    T* data() const { return memory_; }
    operator T*() const { return memory_; }

private:
    std::size_t bytes_;
    T* memory_;
};

}  // namespace se3_fast
