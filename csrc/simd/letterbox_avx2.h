// The letterbox's horizontal step with AVX2: sixteen columns at once. Also the AVX-512 level's: eight bytes per column
// are loaded one column at a time, and that, not the arithmetic, is what it waits for.
#pragma once

#include "simd/letterbox_x86.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

DHEAD_HD __m256i both(__m128i low, __m128i high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Of two pixel pairs in each half: samples A0, the left and the right one as 16-bit numbers, of each; then samples B0.
template <int kStride>
DHEAD_HD __m256i pairs_ab(__m256i v) {
    constexpr char s = kStride;
    const __m128i order = _mm_setr_epi8(0, -1, s, -1, 8, -1, 8 + s, -1, 1, -1, 1 + s, -1, 9, -1, 9 + s, -1);
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
}
// Samples C of `low`, then of `high`.
template <int kStride>
DHEAD_HD __m256i pairs_c(__m256i low, __m256i high) {
    constexpr char s = kStride;
    const __m128i first = _mm_setr_epi8(2, -1, 2 + s, -1, 10, -1, 10 + s, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i second = _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 2, -1, 2 + s, -1, 10, -1, 10 + s, -1);
    return _mm256_or_si256(_mm256_shuffle_epi8(low, _mm256_broadcastsi128_si256(first)),
                           _mm256_shuffle_epi8(high, _mm256_broadcastsi128_si256(second)));
}

DHEAD_HD void store_sixteen(int16_t* out, __m256i a, __m256i wa, __m256i b, __m256i wb) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_packs_epi32(_mm256_srli_epi32(_mm256_madd_epi16(a, wa), 4),
                                           _mm256_srli_epi32(_mm256_madd_epi16(b, wb), 4)));
}

// Numbers 0 … 255, times kUnitFactor.
DHEAD_HD __m256 units(__m256i scaled) { return _mm256_mul_ps(_mm256_cvtepi32_ps(scaled), _mm256_set1_ps(kUnitScale)); }
DHEAD_HD void store_eight(float* out, __m256i scaled) { _mm256_storeu_ps(out, units(scaled)); }
DHEAD_HD void store_eight(uint16_t* out, __m256i scaled) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(units(scaled), _MM_FROUND_TO_NEAREST_INT));
}

template <int kStride>
constexpr int kCopyReach = 4 * kStride + 16;
constexpr int kCopied = 8;

// Eight packed pixels as they are.
template <int kStride, class T>
DHEAD_HD void copy_pixels(const uint8_t* row, T* const* out) {
    constexpr char s = kStride;
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 4 * kStride));
    const __m256i pixels = both(low, high);
    const __m128i first = _mm_setr_epi8(0, -1, -1, -1, s, -1, -1, -1, 2 * s, -1, -1, -1, 3 * s, -1, -1, -1);
    __m256i order = _mm256_broadcastsi128_si256(first);
    const __m256i step = _mm256_set1_epi32(1);
    const __m256i factor = _mm256_set1_epi32(kUnitFactor);
    for (int k = 0; k < 3; ++k) {
        store_eight(out[k], _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, order), factor));
        order = _mm256_add_epi32(order, step);
    }
}

constexpr int kResized = 16;

template <int kStride, bool kWhole>
DHEAD_HD void resize_pixels(const uint8_t* row, const LetterboxColumns& columns, int x, int16_t* const* out) {
    // Columns 0-3 and 8-11 are the halves of `u`, 4-7 and 12-15 those of `v`: packing them to 16 bits orders them.
    const __m256i u0 = both(two_pixels<kWhole>(row, columns, x), two_pixels<kWhole>(row, columns, x + 8));
    const __m256i u1 = both(two_pixels<kWhole>(row, columns, x + 2), two_pixels<kWhole>(row, columns, x + 10));
    const __m256i v0 = both(two_pixels<kWhole>(row, columns, x + 4), two_pixels<kWhole>(row, columns, x + 12));
    const __m256i v1 = both(two_pixels<kWhole>(row, columns, x + 6), two_pixels<kWhole>(row, columns, x + 14));
    const __m256i wu = both(load_weights(columns, x), load_weights(columns, x + 8));
    const __m256i wv = both(load_weights(columns, x + 4), load_weights(columns, x + 12));
    const __m256i uab0 = pairs_ab<kStride>(u0), uab1 = pairs_ab<kStride>(u1);
    const __m256i vab0 = pairs_ab<kStride>(v0), vab1 = pairs_ab<kStride>(v1);
    store_sixteen(out[0] + x, _mm256_unpacklo_epi64(uab0, uab1), wu, _mm256_unpacklo_epi64(vab0, vab1), wv);
    store_sixteen(out[1] + x, _mm256_unpackhi_epi64(uab0, uab1), wu, _mm256_unpackhi_epi64(vab0, vab1), wv);
    store_sixteen(out[2] + x, pairs_c<kStride>(u0, u1), wu, pairs_c<kStride>(v0, v1), wv);
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
