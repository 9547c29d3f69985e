// The letterbox's rows, compiled for the level "sse2".
#define DHEAD_ISA sse2
#include <emmintrin.h>

#include "simd/letterbox_x86.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

struct W {
    __m128i v;
};
constexpr int kWords = 8;

DHEAD_HD W load_words(const int16_t* p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))}; }
DHEAD_HD W spread(int16_t n) { return {_mm_set1_epi16(n)}; }
DHEAD_HD W blend_words(W a, W b, W wa, W wb) {
    const __m128i sum = _mm_add_epi16(_mm_mulhi_epi16(a.v, wa.v), _mm_mulhi_epi16(b.v, wb.v));
    return {_mm_srli_epi16(_mm_add_epi16(sum, _mm_set1_epi16(2)), 2)};
}

struct Units {
    __m128 low, high;
};
DHEAD_HD Units units(W w) {
    const __m128i scaled = _mm_mullo_epi16(w.v, _mm_set1_epi16(kUnitFactor));
    const __m128i zero = _mm_setzero_si128();
    return {_mm_mul_ps(_mm_cvtepi32_ps(_mm_unpacklo_epi16(scaled, zero)), _mm_set1_ps(kUnitScale)),
            _mm_mul_ps(_mm_cvtepi32_ps(_mm_unpackhi_epi16(scaled, zero)), _mm_set1_ps(kUnitScale))};
}
DHEAD_HD void store_units(float* out, W w) {
    const Units u = units(w);
    _mm_storeu_ps(out, u.low);
    _mm_storeu_ps(out + 4, u.high);
}
// To half, round to nearest even: zero or a normal number, never above 1.
DHEAD_HD __m128i half_bits(__m128 x) {
    const __m128i bits = _mm_castps_si128(x);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 13), _mm_set1_epi32(1));
    const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0xfff - (112 << 23))));
    return _mm_andnot_si128(_mm_cmpeq_epi32(bits, _mm_setzero_si128()), _mm_srli_epi32(rounded, 13));
}
DHEAD_HD void store_units(uint16_t* out, W w) {
    const Units u = units(w);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_packs_epi32(half_bits(u.low), half_bits(u.high)));
}

// One column's three samples, 32 bits each; `weights`: its two, four times.
template <int kStride, bool kWhole>
DHEAD_HD __m128i resize_one(const uint8_t* row, const LetterboxColumns& columns, int x, __m128i weights) {
    uint64_t eight;
    __builtin_memcpy(&eight, row + columns.offset[x], 8);
    if (!kWhole) eight >>= columns.shift[x];
    const __m128i samples = _mm_unpacklo_epi8(_mm_cvtsi64_si128(static_cast<long long>(eight)), _mm_setzero_si128());
    const __m128i pairs = _mm_unpacklo_epi16(samples, _mm_srli_si128(samples, 2 * kStride));
    return _mm_srli_epi32(_mm_madd_epi16(pairs, weights), 4);
}

template <int kStride, bool kWhole>
DHEAD_HD void resize_four(const uint8_t* row, const LetterboxColumns& columns, int x, __m128i& a, __m128i& b,
                          __m128i& c) {
    const __m128i weights = load_weights(columns, x);
    const __m128i p0 = resize_one<kStride, kWhole>(row, columns, x, _mm_shuffle_epi32(weights, 0x00));
    const __m128i p1 = resize_one<kStride, kWhole>(row, columns, x + 1, _mm_shuffle_epi32(weights, 0x55));
    const __m128i p2 = resize_one<kStride, kWhole>(row, columns, x + 2, _mm_shuffle_epi32(weights, 0xaa));
    const __m128i p3 = resize_one<kStride, kWhole>(row, columns, x + 3, _mm_shuffle_epi32(weights, 0xff));
    const __m128i ab01 = _mm_unpacklo_epi32(p0, p1), ab23 = _mm_unpacklo_epi32(p2, p3);
    a = _mm_unpacklo_epi64(ab01, ab23);
    b = _mm_unpackhi_epi64(ab01, ab23);
    c = _mm_unpacklo_epi64(_mm_unpackhi_epi32(p0, p1), _mm_unpackhi_epi32(p2, p3));
}

constexpr int kResized = 8;

template <int kStride, bool kWhole>
DHEAD_HD void resize_pixels(const uint8_t* row, const LetterboxColumns& columns, int x, int16_t* const* out) {
    __m128i low[3], high[3];
    resize_four<kStride, kWhole>(row, columns, x, low[0], low[1], low[2]);
    resize_four<kStride, kWhole>(row, columns, x + 4, high[0], high[1], high[2]);
    for (int k = 0; k < 3; ++k) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[k] + x), _mm_packs_epi32(low[k], high[k]));
    }
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead

// The lanes come first.
#define DHEAD_LETTERBOX_RESIZES
#include "letterbox_rows.inl.h"

namespace dhead {
namespace cpu {

const LetterboxKernels& letterbox_kernels_sse2() {
    static constexpr LetterboxKernels kTable = {"sse2", resize_packed, resize_plane, blend, nullptr};
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
