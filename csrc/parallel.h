// Tasks shared among PyTorch's threads.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace se3_fast {

// Calls worker(next) once on each thread that takes part; next() hands out the tasks 0 .. count - 1, each once, and then -1. Which
// thread gets which task is left to chance, so a task must own what it writes.
template <typename Worker>
void share_tasks(int64_t count, const Worker& worker) {
    std::atomic<int64_t> first_free{0};
    const auto next = [&]() {
        const int64_t task = first_free.fetch_add(1, std::memory_order_relaxed);
        return task < count ? task : int64_t(-1);
    };
    const int64_t num_threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
    if (num_threads <= 1) {
        worker(next);
        return;
    }
    std::mutex mutex;
    std::exception_ptr error;
    torch::stable::parallel_for(0, num_threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) {
            try {
                worker(next);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex);
                error = std::current_exception();
            }
        }
    });
    if (error) std::rethrow_exception(error);
}

// Calls task(0) .. task(count - 1), each once, on any thread.
template <typename Task>
void for_each_task(int64_t count, const Task& task) {
    share_tasks(count, [&](const auto& next) {
        for (int64_t index = next(); index >= 0; index = next()) task(index);
    });
}

// Items cut into chunks, and the chunks shared out in order: share s has the chunks first(s) .. first(s + 1) - 1. Sums that go over
// items are kept for each share and added up in the shares' order.
struct Chunks {
    int64_t num_items, chunk_size, num_chunks;
    int64_t num_shares;  // counted once: a thread that works on a share may be told another number of threads

    Chunks(int64_t num_items, int64_t chunk_size)
        : num_items(num_items),
          chunk_size(chunk_size),
          num_chunks((num_items + chunk_size - 1) / chunk_size),
          num_shares(std::clamp<int64_t>(num_chunks, 1, torch::stable::get_num_threads())) {}

    int64_t first(int64_t share) const { return share * num_chunks / num_shares; }

    // Calls run(its first item, number of its items) for every chunk of a share.
    template <typename Run>
    void for_each(int64_t share, const Run& run) const {
        for (int64_t chunk = first(share); chunk < first(share + 1); ++chunk)
            run(chunk * chunk_size, std::min(chunk_size, num_items - chunk * chunk_size));
    }
};

}  // namespace se3_fast
