// NV12 (a plane of luma, and one of interleaved U V at half the size) to RGB, in integers, for host and device.
//
// BT.601, limited range, chroma of the nearest sample: the same bits as OpenCV's COLOR_YUV2RGB_NV12.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DHEAD_NV12_FN __host__ __device__ inline
#else
#define DHEAD_NV12_FN inline
#endif

namespace dhead {

struct Rgb {
    uint8_t r, g, b;
};

DHEAD_NV12_FN Rgb nv12_to_rgb(uint8_t luma, uint8_t u, uint8_t v) {
    constexpr int32_t kShift = 20, kHalf = 1 << (kShift - 1);
    const int32_t y = (luma < 16 ? 0 : luma - 16) * 1220542;  // 255 / 219
    const int32_t cb = u - 128, cr = v - 128;
    const int32_t r = (y + 1673527 * cr + kHalf) >> kShift;
    const int32_t g = (y - 409993 * cb - 852492 * cr + kHalf) >> kShift;
    const int32_t b = (y + 2116026 * cb + kHalf) >> kShift;
    const auto clamp = [](int32_t x) { return static_cast<uint8_t>(x < 0 ? 0 : (x > 255 ? 255 : x)); };
    return {clamp(r), clamp(g), clamp(b)};
}

}  // namespace dhead
