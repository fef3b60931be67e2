#include "fingerprint.h"

#include <algorithm>
#include <random>
#include <vector>

#include "parallel.h"

namespace se3_fast {
namespace {

constexpr uint64_t PRIME = (uint64_t(1) << 61) - 1;
constexpr int64_t TASK_BYTES = 64 * HASHED_BYTES;

struct Keys {
    alignas(64) uint32_t of_blocks[HASHED_WORDS + SECOND_KEY];  // loads of whole cache lines
    uint64_t places[2];  // where the polynomials are evaluated

    Keys() {
        std::random_device device;
        std::seed_seq seed{device(), device(), device(), device(), device(), device(), device(), device()};
        std::mt19937_64 random(seed);
        for (uint32_t& key : of_blocks) key = uint32_t(random() >> 32);
        for (uint64_t& place : places) place = random() % PRIME;
    }
};

const Keys& keys() {
    static const Keys result;
    return result;
}

// value * place + coefficient, modulo the prime.
uint64_t next_value(uint64_t value, uint64_t place, uint32_t coefficient) {
    const unsigned __int128 product = static_cast<unsigned __int128>(value) * place;
    const uint64_t sum = uint64_t(product & PRIME) + uint64_t(product >> 61) + coefficient;
    const uint64_t folded = (sum & PRIME) + (sum >> 61);
    return folded >= PRIME ? folded - PRIME : folded;
}

// A polynomial with one more value, whose halves are two coefficients.
void append(uint64_t value, uint64_t place, uint64_t& polynomial) {
    polynomial = next_value(polynomial, place, uint32_t(value));
    polynomial = next_value(polynomial, place, uint32_t(value >> 32));
}

}  // namespace

FingerprintMaker& FingerprintMaker::add(const void* memory, int64_t bytes) {
    const Keys& random = keys();
    const int64_t num_blocks = (bytes + HASHED_BYTES - 1) / HASHED_BYTES;
    std::vector<uint64_t> sums(2 * num_blocks);
    for_each_task((bytes + TASK_BYTES - 1) / TASK_BYTES, [&](int64_t task) {
        const int64_t first = task * TASK_BYTES;
        SE3_FAST_CALL(sum_blocks, static_cast<const char*>(memory) + first, std::min(bytes - first, TASK_BYTES), random.of_blocks,
                      sums.data() + first / HASHED_BYTES * 2);
    });
    for (int64_t block = 0; block < num_blocks; ++block) {
        append(sums[2 * block], random.places[0], state_.first);
        append(sums[2 * block + 1], random.places[1], state_.second);
    }
    append(uint64_t(bytes), random.places[0], state_.first);  // pieces that end elsewhere are others
    append(uint64_t(bytes), random.places[1], state_.second);
    return *this;
}

}  // namespace se3_fast
