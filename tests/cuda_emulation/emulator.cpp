// Runs the kernels of csrc/tfn_conv.cu on the host: see cuda_emulation.h. Compile with -DSE3_FAST_EMULATED=700 or 750.
//
// Blocks run in any order. Every access of a kernel is watched: the compiler calls the functions of accesses.cpp for each, in place
// of those of the thread sanitizer (-fsanitize=thread), which is not linked.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tfn_conv.cu"

#include "accesses.h"

Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr std::size_t STACK_BYTES = 64 << 10;
constexpr std::size_t SHARED_BYTES = 48 << 10;  // what a block may have without asking
constexpr int MOST_THREADS = 1024;
constexpr unsigned char GUARD = 0xA5;

enum class State { RUNNING, AT_BLOCK_BARRIER, AT_WARP_EXCHANGE, FINISHED };

struct Thread {
    State state;
    bool is_started;
    jmp_buf place;
    ucontext_t start;
    int exchanges;  // so far; two in flight at most, so two sets of operands per warp
};

struct Warp {
    LaneOperands operands[2][32];
};

alignas(16) unsigned char shared[SHARED_BYTES + 4096];
std::size_t shared_in_use;
std::vector<Thread> threads;
Warp warps[MOST_THREADS / 32];
std::vector<unsigned char> stacks;
std::function<void()> body;
jmp_buf scheduler;
int current;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "emulated block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
    std::abort();
}

void yield(State state) {
    watch.is_on = false;
    threads[current].state = state;
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
    watch.is_on = true;
}

void run_thread() {
    body();
    watch.is_on = false;
    threads[current].state = State::FINISHED;
    _longjmp(scheduler, 1);
}

// Run one thread until it waits or ends.
void resume(int number) {
    Thread& thread = threads[number];
    current = number;
    watch.thread = number;
    threadIdx = {static_cast<unsigned>(number), 0, 0};
    thread.state = State::RUNNING;
    if (_setjmp(scheduler)) return;
    if (thread.is_started) _longjmp(thread.place, 1);
    thread.is_started = true;
    setcontext(&thread.start);
}

// Run a group of threads in turn until every one waits for the whole block or has ended. Lanes of a warp pass exchanges together.
void run_until_block_barrier(int first, int count) {
    for (bool is_exchanging = true; is_exchanging;) {
        int exchanging = 0, others = 0;
        for (int number = first; number < first + count; ++number) {
            if (threads[number].state == State::RUNNING || threads[number].state == State::AT_WARP_EXCHANGE) resume(number);
            (threads[number].state == State::AT_WARP_EXCHANGE ? exchanging : others) += 1;
        }
        if (exchanging > 0 && others > 0) fail("not all lanes of a warp take part in a matrix product");
        is_exchanging = exchanging > 0;
    }
}

// Undefined values up to there, and a guard beyond.
void take_shared_memory(std::size_t bytes) {
    if (bytes > SHARED_BYTES) fail("more shared memory than a block may have");
    shared_in_use = bytes;
    std::memset(shared, 0xFF, bytes);
    std::memset(shared + bytes, GUARD, sizeof shared - bytes);
}

void run_block(int num_threads, std::size_t shared_bytes, bool is_reversed) {
    take_shared_memory(shared_bytes);
    watch.epoch = 0;
    for (int number = 0; number < num_threads; ++number) {
        Thread& thread = threads[number];
        thread.state = State::RUNNING;
        thread.is_started = false;
        thread.exchanges = 0;
        getcontext(&thread.start);
        thread.start.uc_stack = {};
        thread.start.uc_stack.ss_sp = stacks.data() + number * STACK_BYTES;
        thread.start.uc_stack.ss_size = STACK_BYTES;
        makecontext(&thread.start, run_thread, 0);
    }
    const int num_warps = (num_threads + 31) / 32;
    for (bool is_waiting = true; is_waiting;) {
        for (int turn = 0; turn < num_warps; ++turn) {
            const int first = 32 * (is_reversed ? num_warps - 1 - turn : turn);
            run_until_block_barrier(first, num_threads - first < 32 ? num_threads - first : 32);
        }
        int waiting = 0;
        for (int number = 0; number < num_threads; ++number)
            if (threads[number].state == State::AT_BLOCK_BARRIER) {
                threads[number].state = State::RUNNING;
                ++waiting;
            }
        if (waiting > 0 && waiting < num_threads) fail("not all threads of a block reach __syncthreads");
        is_waiting = waiting > 0;
        ++watch.epoch;
    }
    for (std::size_t place = shared_in_use; place < sizeof shared; ++place)
        if (shared[place] != GUARD) fail("a write beyond the shared memory");
}

using Call = std::function<void(void**)>;

template <typename... Arguments, std::size_t... PLACES>
Call unpacked(void (*kernel)(Arguments...), std::index_sequence<PLACES...>) {
    return [kernel](void** arguments) {
        const std::tuple<std::remove_const_t<Arguments>...> values(*static_cast<std::remove_const_t<Arguments>*>(arguments[PLACES])...);
        const auto function = kernel;  // on the stack, as all that a thread may read
        watch.is_on = true;
        std::apply(function, values);
    };
}

template <typename... Arguments>
Call call_of(void (*kernel)(Arguments...)) {
    return unpacked(kernel, std::index_sequence_for<Arguments...>());
}

#define KERNEL(name) {#name, call_of(name)}
#define KERNELS_OF(name) KERNEL(contract_##name), KERNEL(hidden_gradient_##name), KERNEL(weight_gradient_##name)
#define ROTATIONS_OF(name) KERNEL(align_##name), KERNEL(rotate_##name), KERNEL(rotate_sum_##name)

const std::map<std::string, Call> kernels = {
    KERNELS_OF(half_m0),  KERNELS_OF(half_odd), KERNELS_OF(float_m0),
    KERNELS_OF(float_odd), ROTATIONS_OF(half),   ROTATIONS_OF(float),
};

}  // namespace

void* launch_memory() { return shared; }

void* block_memory_of(std::size_t bytes) {
    if (shared_in_use == 0) take_shared_memory(bytes);
    if (shared_in_use != bytes) fail("two sizes of shared memory");
    return shared;
}

void wait_for_block() { yield(State::AT_BLOCK_BARRIER); }

const LaneOperands* exchange_in_warp(const LaneOperands& operands) {
    watch.is_on = false;
    const int number = current;
    LaneOperands* all = warps[number / 32].operands[threads[number].exchanges++ % 2];
    all[number % 32] = operands;
    yield(State::AT_WARP_EXCHANGE);
    return all;
}

// 0, or 1 where there is no such kernel. starts, sizes: of the memory that it may touch, in bytes. order: seed of the order of the
// blocks; is_reversed: the last warp of a block runs first.
extern "C" int emulate(
    const char* name, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned num_threads, std::size_t shared_bytes,
    void** arguments, const std::uintptr_t* starts, const std::size_t* sizes, std::size_t num_tensors, unsigned order,
    int is_reversed) {
    const auto found = kernels.find(name);
    if (found == kernels.end()) return 1;
    blockDim = {num_threads, 1, 1};
    gridDim = {grid_x, grid_y, grid_z};
    threads.resize(num_threads);
    stacks.resize(num_threads * STACK_BYTES);
    body = [&] { found->second(arguments); };
    watch_launch(shared, sizeof shared, starts, sizes, num_tensors);
    std::vector<unsigned> blocks(std::size_t(grid_x) * grid_y * grid_z);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(order));
    for (const unsigned block : blocks) {
        blockIdx = {block % grid_x, block / grid_x % grid_y, block / grid_x / grid_y};
        watch.block = block + 1;
        run_block(num_threads, shared_bytes, is_reversed);
    }
    return 0;
}
