// Fingerprints of memory: the sums of its blocks (fingerprint.h).
//
// With words w and keys k of a block:     sum = sum_j (w[2j] + k[2j] mod 2^32) (w[2j + 1] + k[2j + 1] mod 2^32)  mod 2^64
// Two sums cost eight operations a vector, as long as its way from the third-level cache takes.

#include "fingerprint.h"
#include "vector.h"

namespace se3_fast {
namespace SE3_FAST_INSTRUCTIONS {
namespace {

// The product of the halves of each element. Compilers other than GCC see that the halves have 32 bits.
inline Vector<uint64_t> multiply_halves(Vector<uint64_t> values) {
    const Vector<uint64_t> high = values >> 32;
#if defined(__x86_64__) && !defined(__clang__)
#if defined(__AVX512F__)
    typedef int Halves __attribute__((vector_size(64)));
    typedef long long Wholes __attribute__((vector_size(64)));
    return Vector<uint64_t>(__builtin_ia32_pmuludq512_mask(Halves(values), Halves(high), Wholes{}, 0xff));
#elif defined(__AVX2__)
    typedef int Halves __attribute__((vector_size(32)));
    return Vector<uint64_t>(__builtin_ia32_pmuludq256(Halves(values), Halves(high)));
#else
    typedef int Halves __attribute__((vector_size(16)));
    return Vector<uint64_t>(__builtin_ia32_pmuludq128(Halves(values), Halves(high)));
#endif
#else
    return (values & 0xffffffff) * high;
#endif
}

inline void add_products(const uint32_t* words, const uint32_t* keys, Vector<uint64_t> (&sums)[2]) {
    const Vector<uint32_t> values = load(words);
    sums[0] += multiply_halves(Vector<uint64_t>(values + load(keys)));
    sums[1] += multiply_halves(Vector<uint64_t>(values + load(keys + SECOND_KEY)));
}

}  // namespace

void sum_blocks(const void* memory, int64_t bytes, const uint32_t* keys, uint64_t* sums) {
    constexpr int64_t STEP = LANES<uint32_t>;
    const uint32_t* words = static_cast<const uint32_t*>(memory);
    for (; bytes > 0; bytes -= HASHED_BYTES, words += HASHED_WORDS, sums += 2) {
        const int64_t size = bytes < HASHED_BYTES ? bytes : HASHED_BYTES;
        const int64_t num_words = size / SE3_FAST_VECTOR_BYTES * STEP, rest = size % SE3_FAST_VECTOR_BYTES;
        Vector<uint64_t> totals[2] = {};
        for (int64_t word = 0; word < num_words; word += STEP) add_products(words + word, keys + word, totals);
        if (rest > 0) {  // followed by zeros
            uint32_t last[STEP] = {};
            __builtin_memcpy(last, words + num_words, rest);
            add_products(last, keys + num_words, totals);
        }
        sums[0] = sum<uint64_t>(totals[0]);
        sums[1] = sum<uint64_t>(totals[1]);
    }
}

}  // namespace SE3_FAST_INSTRUCTIONS
}  // namespace se3_fast
