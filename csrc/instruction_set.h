// Which instruction set the vector code runs on: the best one of the processor, found out once.
//
// A *_vector.cpp file defines its functions in namespace se3_fast::SE3_FAST_INSTRUCTIONS, that is once in se3_fast::baseline and,
// on x86-64, once each in se3_fast::avx2 and se3_fast::avx512. SE3_FAST_DECLARE declares all of them, SE3_FAST_CALL calls the one
// to be used:
//
//     SE3_FAST_DECLARE(void scale(float* values, int64_t count);)
//     SE3_FAST_CALL(scale, values, count);

#pragma once

namespace se3_fast {

enum class InstructionSet { baseline, avx2, avx512 };

// The best one of this processor, or a lesser one named by the environment variable SE3_FAST_INSTRUCTIONS (for tests).
InstructionSet instruction_set();

}  // namespace se3_fast

#if defined(__x86_64__)
#define SE3_FAST_DECLARE(...)                    \
    namespace se3_fast {                         \
    namespace baseline { __VA_ARGS__ }           \
    namespace avx2 { __VA_ARGS__ }               \
    namespace avx512 { __VA_ARGS__ }             \
    }
#define SE3_FAST_CALL(function, ...)                                                              \
    (::se3_fast::instruction_set() == ::se3_fast::InstructionSet::avx512                          \
         ? ::se3_fast::avx512::function(__VA_ARGS__)                                              \
         : ::se3_fast::instruction_set() == ::se3_fast::InstructionSet::avx2                      \
               ? ::se3_fast::avx2::function(__VA_ARGS__)                                          \
               : ::se3_fast::baseline::function(__VA_ARGS__))
#else
#define SE3_FAST_DECLARE(...)                    \
    namespace se3_fast {                         \
    namespace baseline { __VA_ARGS__ }           \
    }
#define SE3_FAST_CALL(function, ...) ::se3_fast::baseline::function(__VA_ARGS__)
#endif
