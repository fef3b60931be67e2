// 128 bits that tell the contents of memory apart.
//
// They are hashed with random keys of the process: whatever two different contents are, and however one was made from the other (a
// sign, two elements exchanged, all of them), they have the same fingerprint with a probability below 2^-63. For that nothing is
// assumed of contents but that they do not depend on the keys. Of every block of HASHED_BYTES two sums are made of products of its
// 32-bit words plus keys, NH of Black, Halevi, Krawczyk, Krovetz and Rogaway (UMAC, 1999): they agree for two blocks with a
// probability of 2^-64. The second one takes its keys SECOND_KEY further on, which serves as well as keys of its own. Of the sums of
// all blocks two polynomials modulo 2^61 - 1 are evaluated at random places.

#pragma once

#include <cstddef>
#include <cstdint>

#include "instruction_set.h"

namespace se3_fast {

struct Fingerprint {
    uint64_t first, second;

    bool operator==(const Fingerprint& other) const { return first == other.first && second == other.second; }
};

// Takes in one piece of memory after the other; large ones are shared among threads.
class FingerprintMaker {
public:
    FingerprintMaker& add(const void* memory, int64_t bytes);
    Fingerprint result() const { return state_; }

private:
    Fingerprint state_{1, 1};
};

constexpr int64_t HASHED_BYTES = 4096;
constexpr int64_t HASHED_WORDS = HASHED_BYTES / int64_t(sizeof(uint32_t));
constexpr int64_t SECOND_KEY = 16;

}  // namespace se3_fast

SE3_FAST_DECLARE(
    // The two sums of each block of the memory. keys: HASHED_WORDS + SECOND_KEY.
    void sum_blocks(const void* memory, int64_t bytes, const uint32_t* keys, uint64_t* sums);
)
