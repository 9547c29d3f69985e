// Four lanes, AArch64 NEON.
#pragma once

#include <arm_neon.h>

#include <cstddef>

#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {

struct F {
    float32x4_t v;
    DHEAD_HD F() = default;
    DHEAD_HD F(float32x4_t x) : v(x) {}  // NOLINT: a register is a value
    DHEAD_HD explicit F(float x) : v(vdupq_n_f32(x)) {}
};
constexpr int kLanes = 4;

DHEAD_HD F add(F a, F b) { return vaddq_f32(a.v, b.v); }
DHEAD_HD F sub(F a, F b) { return vsubq_f32(a.v, b.v); }
DHEAD_HD F mul(F a, F b) { return vmulq_f32(a.v, b.v); }
DHEAD_HD F div(F a, F b) { return vdivq_f32(a.v, b.v); }
// Not vmaxq: that gives NaN where either is.
DHEAD_HD F max_of(F a, F b) { return vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v); }
DHEAD_HD F min_of(F a, F b) { return vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v); }
// One bit per lane.
DHEAD_HD uint32_t greater(F a, F b) {
    const uint32_t weights[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a.v, b.v), vld1q_u32(weights)));
}
DHEAD_HD F exponent_from_low_bits(F x) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.v), 23)); }

DHEAD_HD F load(const float* p) { return vld1q_f32(p); }
DHEAD_HD F load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
DHEAD_HD void store(float* p, F a) { vst1q_f32(p, a.v); }
DHEAD_HD void store_interleaved4(float* out, F a, F b, F c, F d) {
    vst4q_f32(out, float32x4x4_t{{a.v, b.v, c.v, d.v}});
}
DHEAD_HD void store_tile16(const F* rows, float* out, size_t stride, bool /*stream*/) {
    for (int k = 0; k < 16; k += 4) {
        const float32x4x2_t ab = vtrnq_f32(rows[k].v, rows[k + 1].v);
        const float32x4x2_t cd = vtrnq_f32(rows[k + 2].v, rows[k + 3].v);
        vst1q_f32(out + k, vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0])));
        vst1q_f32(out + stride + k, vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1])));
        vst1q_f32(out + 2 * stride + k, vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0])));
        vst1q_f32(out + 3 * stride + k, vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1])));
    }
}
DHEAD_HD void stream_fence() {}

}  // namespace DHEAD_ISA
}  // namespace dhead
