// The letterbox's rows, compiled for the level "neon".
#define DHEAD_ISA neon
#include <arm_neon.h>

#include "dhead/decode.h"
#include "letterbox_kernels.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

using cpu::kUnitFactor;
using cpu::kUnitScale;
using cpu::LetterboxColumns;

struct W {
    int16x8_t v;
};
constexpr int kWords = 8;

DHEAD_HD W load_words(const int16_t* p) { return {vld1q_s16(p)}; }
DHEAD_HD W spread(int16_t n) { return {vdupq_n_s16(n)}; }
// vqdmulhq doubles the product; halving what is left rounds down once more, to the same.
DHEAD_HD int16x8_t high_product(int16x8_t a, int16x8_t b) { return vshrq_n_s16(vqdmulhq_s16(a, b), 1); }
DHEAD_HD W blend_words(W a, W b, W wa, W wb) {
    const int16x8_t sum = vaddq_s16(high_product(a.v, wa.v), high_product(b.v, wb.v));
    return {vshrq_n_s16(vaddq_s16(sum, vdupq_n_s16(2)), 2)};
}

DHEAD_HD float32x4_t units(uint16x4_t w) {
    return vmulq_f32(vcvtq_f32_u32(vmull_u16(w, vdup_n_u16(kUnitFactor))), vdupq_n_f32(kUnitScale));
}
DHEAD_HD void store_eight(float* out, uint16x8_t w) {
    vst1q_f32(out, units(vget_low_u16(w)));
    vst1q_f32(out + 4, units(vget_high_u16(w)));
}
DHEAD_HD void store_eight(uint16_t* out, uint16x8_t w) {
    vst1_u16(out, vreinterpret_u16_f16(vcvt_f16_f32(units(vget_low_u16(w)))));
    vst1_u16(out + 4, vreinterpret_u16_f16(vcvt_f16_f32(units(vget_high_u16(w)))));
}
template <class T>
DHEAD_HD void store_units(T* out, W w) {
    store_eight(out, vreinterpretq_u16_s16(w.v));
}

// Eight columns of one sample: its left ones, its right ones.
DHEAD_HD void store_resized(int16_t* out, uint8x8_t left, uint8x8_t right, uint16x8x2_t weights) {
    const uint16x8_t l = vmovl_u8(left), r = vmovl_u8(right);
    const uint32x4_t low = vmlal_u16(vmull_u16(vget_low_u16(l), vget_low_u16(weights.val[0])), vget_low_u16(r),
                                     vget_low_u16(weights.val[1]));
    const uint32x4_t high = vmlal_u16(vmull_u16(vget_high_u16(l), vget_high_u16(weights.val[0])), vget_high_u16(r),
                                      vget_high_u16(weights.val[1]));
    vst1q_s16(out, vreinterpretq_s16_u16(vcombine_u16(vshrn_n_u32(low, 4), vshrn_n_u32(high, 4))));
}

DHEAD_HD uint16x8x2_t load_weights(const LetterboxColumns& columns, int x) {
    return vld2q_u16(reinterpret_cast<const uint16_t*>(columns.weight) + 2 * x);
}

template <bool kWhole>
DHEAD_HD uint8x8_t one_pixel(const uint8_t* row, const LetterboxColumns& columns, int x) {
    if (kWhole) return vld1_u8(row + columns.offset[x]);
    uint64_t eight;
    __builtin_memcpy(&eight, row + columns.offset[x], 8);
    return vcreate_u8(eight >> columns.shift[x]);
}

template <bool kWhole>
DHEAD_HD uint8x16_t two_pixels(const uint8_t* row, const LetterboxColumns& columns, int x) {
    return vcombine_u8(one_pixel<kWhole>(row, columns, x), one_pixel<kWhole>(row, columns, x + 1));
}

constexpr int kResized = 8;

template <int kStride, bool kWhole>
DHEAD_HD void resize_pixels(const uint8_t* row, const LetterboxColumns& columns, int x, int16_t* const* out) {
    const uint8_t order[16] = {
        0,       8,           16,           24,           32,           40,           48,           56,
        kStride, kStride + 8, kStride + 16, kStride + 24, kStride + 32, kStride + 40, kStride + 48, kStride + 56};
    const uint8x16x4_t eight = {two_pixels<kWhole>(row, columns, x), two_pixels<kWhole>(row, columns, x + 2),
                                two_pixels<kWhole>(row, columns, x + 4), two_pixels<kWhole>(row, columns, x + 6)};
    const uint16x8x2_t weights = load_weights(columns, x);
    uint8x16_t places = vld1q_u8(order);
    for (int k = 0; k < 3; ++k) {
        const uint8x16_t sides = vqtbl4q_u8(eight, places);
        store_resized(out[k] + x, vget_low_u8(sides), vget_high_u8(sides), weights);
        places = vaddq_u8(places, vdupq_n_u8(1));
    }
}

void resize_plane(const uint8_t* row, const LetterboxColumns& columns, int16_t* out) {
    for (int x = 0; x < columns.count; x += 8) {
        uint16_t pairs[8];
        for (int k = 0; k < 8; ++k) __builtin_memcpy(pairs + k, row + columns.offset[x + k], 2);
        const uint16x8_t p = vld1q_u16(pairs);
        store_resized(out + x, vmovn_u16(p), vshrn_n_u16(p, 8), load_weights(columns, x));
    }
}

template <int kStride>
constexpr int kCopyReach = 8 * kStride;
constexpr int kCopied = 8;

template <int kStride, class T>
DHEAD_HD void copy_pixels(const uint8_t* row, T* const* out) {
    if constexpr (kStride == 3) {
        const uint8x8x3_t p = vld3_u8(row);
        for (int k = 0; k < 3; ++k) store_eight(out[k], vmovl_u8(p.val[k]));
    } else {
        const uint8x8x4_t p = vld4_u8(row);
        for (int k = 0; k < 3; ++k) store_eight(out[k], vmovl_u8(p.val[k]));
    }
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead

// The lanes come first.
#define DHEAD_LETTERBOX_RESIZES
#define DHEAD_LETTERBOX_COPIES
#include "letterbox_rows.inl.h"

namespace dhead {
namespace cpu {

const LetterboxKernels& letterbox_kernels_neon() {
    static constexpr LetterboxKernels kTable = {"neon", resize_packed, resize_plane, blend, copy_packed};
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
