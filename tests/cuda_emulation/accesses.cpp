// Who has written and who has read each two bytes that the kernels of a launch touch, in global and in shared memory.
//
// An access is known by its block, its thread, and the barriers that the block has passed. Wrong is an access outside of the tensors
// of the launch, of shared memory and of the thread's own; two blocks at one address of which one writes; and two threads of a block
// with no barrier between. The functions at the end are those that the compiler calls with -fsanitize=thread.

#include "accesses.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <vector>

Watch watch;

namespace {

constexpr int SEVERAL = -1;  // threads
constexpr std::size_t STACK_BYTES = 64 << 10;

struct Unit {
    unsigned writer, writer_epoch, reader, reader_epoch;  // blocks, from 1
    int writer_thread, reader_thread;
    bool has_other_reader;  // of another block
};

// Pages of what is known come into being when they are touched.
struct Span {
    std::uintptr_t start;
    std::size_t size;
    std::unique_ptr<Unit, void (*)(void*)> units;

    Span(std::uintptr_t start, std::size_t size)
        : start(start), size(size), units(static_cast<Unit*>(std::calloc(size / 2 + 8, sizeof(Unit))), std::free) {}

    bool holds(std::uintptr_t address, std::size_t bytes) const { return address >= start && address + bytes <= start + size; }
};

std::vector<Span> spans;  // the first one is shared memory
std::set<std::string> found;
std::string text;

// Where the library lies that this is a part of.
struct Library {
    std::uintptr_t start = 0, end = 0;

    Library() { dl_iterate_phdr(find, this); }

    static int find(dl_phdr_info* info, std::size_t, void* data) {
        std::uintptr_t start = UINTPTR_MAX, end = 0;
        for (int number = 0; number < info->dlpi_phnum; ++number) {
            const auto& segment = info->dlpi_phdr[number];
            if (segment.p_type != PT_LOAD) continue;
            start = std::min<std::uintptr_t>(start, info->dlpi_addr + segment.p_vaddr);
            end = std::max<std::uintptr_t>(end, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
        }
        const auto here = reinterpret_cast<std::uintptr_t>(&watch);
        if (here < start || here >= end) return 0;
        static_cast<Library*>(data)->start = start;
        static_cast<Library*>(data)->end = end;
        return 1;
    }
};

// Of the running stack, or of the library, which has the registers that lanes exchange.
bool is_own(std::uintptr_t address) {
    static const Library library;
    const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    return (address + STACK_BYTES > here && address < here + STACK_BYTES) || (library.start <= address && address < library.end);
}

bool is_same_time(unsigned block, unsigned epoch) { return block == watch.block && epoch == watch.epoch; }

void read(Unit& unit, bool is_shared) {
    if (!is_shared && unit.writer && unit.writer != watch.block) found.insert("a block reads what another one writes");
    if (is_same_time(unit.writer, unit.writer_epoch) && unit.writer_thread != watch.thread)
        found.insert("a thread reads what another one has written, without a barrier");
    const bool has_readers = is_same_time(unit.reader, unit.reader_epoch) && unit.reader_thread != watch.thread;
    unit.has_other_reader |= unit.reader && unit.reader != watch.block;
    unit.reader = watch.block;
    unit.reader_epoch = watch.epoch;
    unit.reader_thread = has_readers ? SEVERAL : watch.thread;
}

void write(Unit& unit, bool is_shared) {
    if (!is_shared) {
        if (unit.writer && unit.writer != watch.block) found.insert("two blocks write one address");
        if (unit.has_other_reader || (unit.reader && unit.reader != watch.block))
            found.insert("a block writes what another one reads");
    }
    if (is_same_time(unit.writer, unit.writer_epoch) && unit.writer_thread != watch.thread)
        found.insert("two threads write one address, without a barrier");
    if (is_same_time(unit.reader, unit.reader_epoch) && unit.reader_thread != watch.thread)
        found.insert("a thread writes what another one has read, without a barrier");
    unit.writer = watch.block;
    unit.writer_epoch = watch.epoch;
    unit.writer_thread = watch.thread;
}

void check(std::uintptr_t address, std::size_t size, bool is_write) {
    for (const Span& span : spans) {
        if (!span.holds(address, size)) continue;
        const bool is_shared = &span == &spans[0];
        Unit* units = span.units.get() + (address - span.start) / 2;
        for (std::size_t unit = 0; unit < (size + 1) / 2; ++unit)
            is_write ? write(units[unit], is_shared) : read(units[unit], is_shared);
        return;
    }
    if (!is_own(address)) found.insert(is_write ? "a write outside of all tensors" : "a read outside of all tensors");
}

void touch(const void* place, std::size_t size, bool is_write) {
    if (!watch.is_on) return;
    watch.is_on = false;  // templates that both files have may be those that are watched
    check(reinterpret_cast<std::uintptr_t>(place), size, is_write);
    watch.is_on = true;
}

}  // namespace

void watch_launch(
    const unsigned char* shared, std::size_t shared_bytes, const std::uintptr_t* starts, const std::size_t* sizes,
    std::size_t num_tensors) {
    spans.clear();
    spans.emplace_back(reinterpret_cast<std::uintptr_t>(shared), shared_bytes);
    for (std::size_t number = 0; number < num_tensors; ++number) spans.emplace_back(starts[number], sizes[number]);
}

// What is wrong with the accesses since the last call; "" where nothing is.
extern "C" const char* findings() {
    text.clear();
    for (const std::string& finding : found) text += (text.empty() ? "" : "; ") + finding;
    found.clear();
    return text.c_str();
}

#define ACCESSES(SIZE)                                                              \
    extern "C" void __tsan_read##SIZE(void* place) { touch(place, SIZE, false); }   \
    extern "C" void __tsan_write##SIZE(void* place) { touch(place, SIZE, true); }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" void __tsan_read_range(void* place, std::size_t size) { touch(place, size, false); }
extern "C" void __tsan_write_range(void* place, std::size_t size) { touch(place, size, true); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
