// bfloat16 as it stands in memory: what operations read and write of it, and compute with in float32.
//
// A value converts to float32 exactly and back to the nearest one, halves to even; infinities stay, and a NaN stays one. Always
// inlined, because the linker might else take a copy that was compiled for another instruction set (vector.h).

#pragma once

#include <cstdint>

namespace se3_fast {

class BFloat16 {
public:
    BFloat16() = default;
    __attribute__((always_inline)) BFloat16(float value) : bits_(rounded(value)) {}
    __attribute__((always_inline)) operator float() const {
        const uint32_t wide = uint32_t(bits_) << 16;
        float value;
        __builtin_memcpy(&value, &wide, sizeof(value));
        return value;
    }

private:
    __attribute__((always_inline)) static uint16_t rounded(float value) {
        uint32_t wide;
        __builtin_memcpy(&wide, &value, sizeof(wide));
        return value != value ? 0x7fc0 : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }

    uint16_t bits_;
};

}  // namespace se3_fast
