#include "kept_weights.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "process_wide.h"

namespace se3_fast {
namespace {

constexpr int64_t MEBIBYTE = int64_t(1) << 20;
constexpr int64_t USUAL_BUDGET = 256 * MEBIBYTE;

using Weights = std::shared_ptr<const void>;

// Contents that were asked for lately.
struct Record {
    Fingerprint contents;
    int64_t last_use;  // the number of the look-up
    Weights weights;   // null: not kept
    int64_t bytes;
};

struct FingerprintHash {
    std::size_t operator()(const Fingerprint& contents) const { return std::size_t(contents.first); }
};

int64_t budget_of_environment() {
    const char* text = std::getenv("SE3_FAST_KEPT_WEIGHTS");
    if (text == nullptr) return USUAL_BUDGET;
    char* end = nullptr;
    const double mebibytes = std::strtod(text, &end);
    if (end != text && *end == 0 && mebibytes >= 0 && mebibytes < 1e9) return int64_t(mebibytes * MEBIBYTE);
    // Asked for while weights are looked up, which must not fail for it.
    std::fprintf(stderr, "warning: SE3_FAST_KEPT_WEIGHTS: expected a number of MiB from 0 on, got '%.50s'; at most %lld are kept\n", text,
                 static_cast<long long>(USUAL_BUDGET / MEBIBYTE));
    return USUAL_BUDGET;
}

struct Records {
    std::mutex mutex;
    std::atomic<int64_t> budget{budget_of_environment()};
    std::list<Record> by_use;  // the latest first
    std::unordered_map<Fingerprint, std::list<Record>::iterator, FingerprintHash> places;
    int64_t num_kept = 0, bytes = 0, hits = 0, misses = 0;

    // Weights are handed to `dropped` to be freed without the mutex: their memory has one of its own.
    void drop(Record& record, std::vector<Weights>& dropped) {
        if (record.weights == nullptr) return;
        dropped.push_back(std::move(record.weights));
        --num_kept;
        bytes -= record.bytes;
    }

    void drop_idle(std::vector<Weights>& dropped) {
        while (!by_use.empty() && hits + misses - by_use.back().last_use > MOST_IDLE) {
            drop(by_use.back(), dropped);
            places.erase(by_use.back().contents);
            by_use.pop_back();
        }
    }

    bool has_room(int64_t more) const { return bytes + more <= budget; }
};

Records& records() { return process_wide<Records>(); }

}  // namespace

int64_t kept_budget() { return records().budget; }

Found look_up(const Fingerprint& contents, int64_t bytes) {
    std::vector<Weights> dropped;
    Records& all = records();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto place = all.places.find(contents);
    const bool is_known = place != all.places.end();
    const bool is_kept = is_known && place->second->weights != nullptr;
    ++(is_kept ? all.hits : all.misses);
    if (is_known) {
        all.by_use.splice(all.by_use.begin(), all.by_use, place->second);
    } else {
        all.by_use.push_front({contents, 0, nullptr, 0});
        all.places.emplace(contents, all.by_use.begin());
    }
    all.by_use.front().last_use = all.hits + all.misses;
    all.drop_idle(dropped);
    return {all.by_use.front().weights, is_known && !is_kept && all.has_room(bytes)};
}

void keep(const Fingerprint& contents, const std::shared_ptr<const void>& weights, int64_t bytes) {
    Records& all = records();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto place = all.places.find(contents);
    if (place == all.places.end() || place->second->weights != nullptr || !all.has_room(bytes)) return;
    place->second->weights = weights;
    place->second->bytes = bytes;
    ++all.num_kept;
    all.bytes += bytes;
}

Fingerprint fingerprint(WeightLayout layout, const Integers& description, const Tensor& coefficients, const Tensors& weights) {
    FingerprintMaker maker;
    const auto add = [&](const Tensor& tensor) { maker.add(tensor.const_data_ptr(), tensor.numel() * tensor.element_size()); };
    Integers kind{int64_t(layout)};
    for (const Tensor& weight : weights) kind.insert(kind.end(), {int64_t(weight.element_size()), weight.size(0), weight.size(1)});
    for (const Integers* integers : {static_cast<const Integers*>(&kind), &description})
        maker.add(integers->data(), int64_t(integers->size() * sizeof(int64_t)));
    add(coefficients);
    for (const Tensor& weight : weights) add(weight);
    return maker.result();
}

namespace {

// How many weights are kept, in how many bytes, of how many at most; look-ups that found some and that did not.
Integers kept_weights() {
    Records& all = records();
    const std::lock_guard<std::mutex> lock(all.mutex);
    return {all.num_kept, all.bytes, all.budget, all.hits, all.misses};
}

// Changes the budget, in bytes; what has no room any more is dropped.
void keep_weights(int64_t budget) {
    if (budget < 0) refuse("budget: expected 0 or more bytes, got ", budget);
    std::vector<Weights> dropped;
    Records& all = records();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.budget = budget;
    for (auto record = all.by_use.rbegin(); record != all.by_use.rend() && !all.has_room(0); ++record) all.drop(*record, dropped);
}

}  // namespace
}  // namespace se3_fast

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) {
    m.def("kept_weights() -> int[]");
    m.def("keep_weights(int budget) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CompositeExplicitAutograd, m) {
    m.impl("kept_weights", TORCH_BOX(&se3_fast::kept_weights));
    m.impl("keep_weights", TORCH_BOX(&se3_fast::keep_weights));
}
