// Eight lanes, AVX2 and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {

struct F {
    __m256 v;
    DHEAD_HD F() = default;
    DHEAD_HD F(__m256 x) : v(x) {}  // NOLINT: a register is a value
    DHEAD_HD explicit F(float x) : v(_mm256_set1_ps(x)) {}
};
constexpr int kLanes = 8;

DHEAD_HD F add(F a, F b) { return _mm256_add_ps(a.v, b.v); }
DHEAD_HD F sub(F a, F b) { return _mm256_sub_ps(a.v, b.v); }
DHEAD_HD F mul(F a, F b) { return _mm256_mul_ps(a.v, b.v); }
DHEAD_HD F div(F a, F b) { return _mm256_div_ps(a.v, b.v); }
DHEAD_HD F max_of(F a, F b) { return _mm256_max_ps(a.v, b.v); }
DHEAD_HD F min_of(F a, F b) { return _mm256_min_ps(a.v, b.v); }
// One bit per lane.
DHEAD_HD uint32_t greater(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
DHEAD_HD F exponent_from_low_bits(F x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 23)); }

DHEAD_HD F load(const float* p) { return _mm256_loadu_ps(p); }
DHEAD_HD F load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
DHEAD_HD void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }

// Within each half: 4 rows of 4 become 4 columns.
DHEAD_HD void transpose4_halves(__m256& a, __m256& b, __m256& c, __m256& d) {
    const __m256 ab0 = _mm256_unpacklo_ps(a, b);
    const __m256 ab1 = _mm256_unpackhi_ps(a, b);
    const __m256 cd0 = _mm256_unpacklo_ps(c, d);
    const __m256 cd1 = _mm256_unpackhi_ps(c, d);
    a = _mm256_shuffle_ps(ab0, cd0, 0x44);
    b = _mm256_shuffle_ps(ab0, cd0, 0xee);
    c = _mm256_shuffle_ps(ab1, cd1, 0x44);
    d = _mm256_shuffle_ps(ab1, cd1, 0xee);
}
DHEAD_HD void store_interleaved4(float* out, F a, F b, F c, F d) {
    transpose4_halves(a.v, b.v, c.v, d.v);
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(a.v, b.v, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(c.v, d.v, 0x20));
    _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(a.v, b.v, 0x31));
    _mm256_storeu_ps(out + 24, _mm256_permute2f128_ps(c.v, d.v, 0x31));
}
DHEAD_HD void store_tile16(const F* rows, float* out, size_t stride, bool stream) {
    for (int k = 0; k < 16; k += 8) {
        __m256 r[8];
        for (int i = 0; i < 8; ++i) r[i] = rows[k + i].v;
        transpose4_halves(r[0], r[1], r[2], r[3]);
        transpose4_halves(r[4], r[5], r[6], r[7]);
        for (int i = 0; i < 4; ++i) {
            const __m256 low = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
            const __m256 high = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
            if (stream) {
                _mm256_stream_ps(out + i * stride + k, low);
                _mm256_stream_ps(out + (i + 4) * stride + k, high);
            } else {
                _mm256_storeu_ps(out + i * stride + k, low);
                _mm256_storeu_ps(out + (i + 4) * stride + k, high);
            }
        }
    }
}
DHEAD_HD void stream_fence() { _mm_sfence(); }

}  // namespace DHEAD_ISA
}  // namespace dhead
