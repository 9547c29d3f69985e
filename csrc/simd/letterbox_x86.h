// The letterbox's horizontal step on x86: sixteen-bit pairs of neighbouring samples, multiplied and added in pairs.
// Compiled for each level that includes it; DHEAD_ISA is defined before.
#pragma once

#include <immintrin.h>

#include "dhead/decode.h"
#include "letterbox_kernels.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

using cpu::kUnitFactor;
using cpu::kUnitScale;
using cpu::LetterboxColumns;

// Eight bytes of column x, and of column x + 1 after them.
template <bool kWhole>
DHEAD_HD __m128i two_pixels(const uint8_t* row, const LetterboxColumns& columns, int x) {
    uint64_t a, b;
    __builtin_memcpy(&a, row + columns.offset[x], 8);
    __builtin_memcpy(&b, row + columns.offset[x + 1], 8);
    if (kWhole) {
        return _mm_unpacklo_epi64(_mm_cvtsi64_si128(static_cast<long long>(a)),
                                  _mm_cvtsi64_si128(static_cast<long long>(b)));
    }
    return _mm_set_epi64x(static_cast<long long>(b >> columns.shift[x + 1]),
                          static_cast<long long>(a >> columns.shift[x]));
}

DHEAD_HD __m128i load_weights(const LetterboxColumns& columns, int x) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns.weight + 2 * x));
}

// Eight columns of samples that lie side by side.
DHEAD_HD void resize_plane8(const uint8_t* row, const LetterboxColumns& columns, int x, int16_t* out) {
    const auto pair = [&](int k) {
        uint16_t p;
        __builtin_memcpy(&p, row + columns.offset[x + k], 2);
        return static_cast<int>(p);
    };
    __m128i v = _mm_cvtsi32_si128(pair(0));
    v = _mm_insert_epi16(v, pair(1), 1);
    v = _mm_insert_epi16(v, pair(2), 2);
    v = _mm_insert_epi16(v, pair(3), 3);
    v = _mm_insert_epi16(v, pair(4), 4);
    v = _mm_insert_epi16(v, pair(5), 5);
    v = _mm_insert_epi16(v, pair(6), 6);
    v = _mm_insert_epi16(v, pair(7), 7);
    const __m128i zero = _mm_setzero_si128();
    const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(v, zero), load_weights(columns, x));
    const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(v, zero), load_weights(columns, x + 4));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + x),
                     _mm_packs_epi32(_mm_srli_epi32(low, 4), _mm_srli_epi32(high, 4)));
}

void resize_plane(const uint8_t* row, const LetterboxColumns& columns, int16_t* out) {
    for (int x = 0; x < columns.count; x += 8) resize_plane8(row, columns, x, out);
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
