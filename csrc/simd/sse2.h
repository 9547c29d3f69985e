// Four lanes, SSE2: the x86-64 baseline.
#pragma once

#include <emmintrin.h>

#include <cstddef>

#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {

struct F {
    __m128 v;
    DHEAD_HD F() = default;
    DHEAD_HD F(__m128 x) : v(x) {}  // NOLINT: a register is a value
    DHEAD_HD explicit F(float x) : v(_mm_set1_ps(x)) {}
};
constexpr int kLanes = 4;

DHEAD_HD F add(F a, F b) { return _mm_add_ps(a.v, b.v); }
DHEAD_HD F sub(F a, F b) { return _mm_sub_ps(a.v, b.v); }
DHEAD_HD F mul(F a, F b) { return _mm_mul_ps(a.v, b.v); }
DHEAD_HD F div(F a, F b) { return _mm_div_ps(a.v, b.v); }
DHEAD_HD F max_of(F a, F b) { return _mm_max_ps(a.v, b.v); }
DHEAD_HD F min_of(F a, F b) { return _mm_min_ps(a.v, b.v); }
// One bit per lane.
DHEAD_HD uint32_t greater(F a, F b) { return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(a.v, b.v))); }
DHEAD_HD F exponent_from_low_bits(F x) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(x.v), 23)); }

DHEAD_HD F load(const float* p) { return _mm_loadu_ps(p); }
// half_to_float of decode.h, four at once.
DHEAD_HD F load(const uint16_t* p) {
    const __m128i h = _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
    const __m128i sign = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x8000)), 16);
    const __m128i bias = _mm_set1_epi32(112 << 23);
    __m128i u = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x7fff)), 13);
    const __m128i exponent = _mm_and_si128(u, _mm_set1_epi32(0x0f800000));
    const __m128i special = _mm_cmpeq_epi32(exponent, _mm_set1_epi32(0x0f800000));
    const __m128i small = _mm_cmpeq_epi32(exponent, _mm_setzero_si128());
    u = _mm_add_epi32(u, _mm_add_epi32(bias, _mm_and_si128(special, bias)));
    const __m128 renormal = _mm_sub_ps(_mm_castsi128_ps(_mm_add_epi32(u, _mm_set1_epi32(1 << 23))),
                                       _mm_castsi128_ps(_mm_set1_epi32(113 << 23)));
    u = _mm_or_si128(_mm_andnot_si128(small, u), _mm_and_si128(small, _mm_castps_si128(renormal)));
    return _mm_castsi128_ps(_mm_or_si128(u, sign));
}
DHEAD_HD void store(float* p, F a) { _mm_storeu_ps(p, a.v); }

DHEAD_HD void store_interleaved4(float* out, F a, F b, F c, F d) {
    _MM_TRANSPOSE4_PS(a.v, b.v, c.v, d.v);
    _mm_storeu_ps(out, a.v);
    _mm_storeu_ps(out + 4, b.v);
    _mm_storeu_ps(out + 8, c.v);
    _mm_storeu_ps(out + 12, d.v);
}
DHEAD_HD void store_tile16(const F* rows, float* out, size_t stride, bool stream) {
    for (int k = 0; k < 16; k += 4) {
        __m128 r[4] = {rows[k].v, rows[k + 1].v, rows[k + 2].v, rows[k + 3].v};
        _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
        for (int i = 0; i < 4; ++i) {
            if (stream) {
                _mm_stream_ps(out + i * stride + k, r[i]);
            } else {
                _mm_storeu_ps(out + i * stride + k, r[i]);
            }
        }
    }
}
DHEAD_HD void stream_fence() { _mm_sfence(); }

}  // namespace DHEAD_ISA
}  // namespace dhead
