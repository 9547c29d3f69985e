// Stand-in for cuda_fp16.h: halves as bits, converted exactly (round to nearest even on the way down).
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    std::uint16_t bits;
};

inline __half __ushort_as_half(std::uint16_t bits) { return {bits}; }
inline std::uint16_t __half_as_ushort(__half h) { return h.bits; }

inline float __half2float(__half h) {
    _Float16 x;
    std::memcpy(&x, &h.bits, sizeof(x));
    return static_cast<float>(x);
}

inline __half __float2half_rn(float f) {
    const auto x = static_cast<_Float16>(f);
    __half h;
    std::memcpy(&h.bits, &x, sizeof(x));
    return h;
}
