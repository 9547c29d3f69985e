// Sixteen lanes, AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {

struct F {
    __m512 v;
    DHEAD_HD F() = default;
    DHEAD_HD F(__m512 x) : v(x) {}  // NOLINT: a register is a value
    DHEAD_HD explicit F(float x) : v(_mm512_set1_ps(x)) {}
};
constexpr int kLanes = 16;

DHEAD_HD F add(F a, F b) { return _mm512_add_ps(a.v, b.v); }
DHEAD_HD F sub(F a, F b) { return _mm512_sub_ps(a.v, b.v); }
DHEAD_HD F mul(F a, F b) { return _mm512_mul_ps(a.v, b.v); }
DHEAD_HD F div(F a, F b) { return _mm512_div_ps(a.v, b.v); }
DHEAD_HD F max_of(F a, F b) { return _mm512_max_ps(a.v, b.v); }
DHEAD_HD F min_of(F a, F b) { return _mm512_min_ps(a.v, b.v); }
// One bit per lane.
DHEAD_HD uint32_t greater(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
DHEAD_HD F exponent_from_low_bits(F x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 23)); }

DHEAD_HD F load(const float* p) { return _mm512_loadu_ps(p); }
DHEAD_HD F load(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
DHEAD_HD void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }

// Within each quarter: 4 rows of 4 become 4 columns.
DHEAD_HD void transpose4_quarters(__m512& a, __m512& b, __m512& c, __m512& d) {
    const __m512 ab0 = _mm512_unpacklo_ps(a, b);
    const __m512 ab1 = _mm512_unpackhi_ps(a, b);
    const __m512 cd0 = _mm512_unpacklo_ps(c, d);
    const __m512 cd1 = _mm512_unpackhi_ps(c, d);
    a = _mm512_shuffle_ps(ab0, cd0, 0x44);
    b = _mm512_shuffle_ps(ab0, cd0, 0xee);
    c = _mm512_shuffle_ps(ab1, cd1, 0x44);
    d = _mm512_shuffle_ps(ab1, cd1, 0xee);
}
// Quarters as elements: 4 rows of 4 quarters become 4 columns.
DHEAD_HD void transpose4_of_quarters(__m512& a, __m512& b, __m512& c, __m512& d) {
    const __m512 ab0 = _mm512_shuffle_f32x4(a, b, 0x44);
    const __m512 ab1 = _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd0 = _mm512_shuffle_f32x4(c, d, 0x44);
    const __m512 cd1 = _mm512_shuffle_f32x4(c, d, 0xee);
    a = _mm512_shuffle_f32x4(ab0, cd0, 0x88);
    b = _mm512_shuffle_f32x4(ab0, cd0, 0xdd);
    c = _mm512_shuffle_f32x4(ab1, cd1, 0x88);
    d = _mm512_shuffle_f32x4(ab1, cd1, 0xdd);
}
DHEAD_HD void store_interleaved4(float* out, F a, F b, F c, F d) {
    transpose4_quarters(a.v, b.v, c.v, d.v);
    transpose4_of_quarters(a.v, b.v, c.v, d.v);
    _mm512_storeu_ps(out, a.v);
    _mm512_storeu_ps(out + 16, b.v);
    _mm512_storeu_ps(out + 32, c.v);
    _mm512_storeu_ps(out + 48, d.v);
}
DHEAD_HD void store_tile16(const F* rows, float* out, size_t stride, bool stream) {
    __m512 r[16];
    for (int i = 0; i < 16; ++i) r[i] = rows[i].v;
    for (int i = 0; i < 16; i += 4) transpose4_quarters(r[i], r[i + 1], r[i + 2], r[i + 3]);
    for (int i = 0; i < 4; ++i) transpose4_of_quarters(r[i], r[i + 4], r[i + 8], r[i + 12]);
    for (int q = 0; q < 4; ++q) {
        for (int i = 0; i < 4; ++i) {
            float* p = out + (4 * q + i) * stride;
            if (stream) {
                _mm512_stream_ps(p, r[4 * q + i]);
            } else {
                _mm512_storeu_ps(p, r[4 * q + i]);
            }
        }
    }
}
DHEAD_HD void stream_fence() { _mm_sfence(); }

}  // namespace DHEAD_ISA
}  // namespace dhead
