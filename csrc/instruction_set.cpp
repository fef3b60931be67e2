#include "instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace se3_fast {
namespace {

InstructionSet best() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return InstructionSet::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
    return InstructionSet::baseline;
}

InstructionSet chosen() {
    const InstructionSet most = best();
    const char* name = std::getenv("SE3_FAST_INSTRUCTIONS");
    if (name == nullptr) return most;
    if (std::strcmp(name, "baseline") == 0) return InstructionSet::baseline;
    if (std::strcmp(name, "avx2") == 0 && most == InstructionSet::avx512) return InstructionSet::avx2;
    return most;
}

}  // namespace

InstructionSet instruction_set() {
    static const InstructionSet result = chosen();
    return result;
}

}  // namespace se3_fast
