// The letterbox's rows, compiled for the level "avx512".
#define DHEAD_ISA avx512
#include "simd/letterbox_avx2.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

struct W {
    __m512i v;
};
constexpr int kWords = 32;

DHEAD_HD W load_words(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
DHEAD_HD W spread(int16_t n) { return {_mm512_set1_epi16(n)}; }
DHEAD_HD W blend_words(W a, W b, W wa, W wb) {
    const __m512i sum = _mm512_add_epi16(_mm512_mulhi_epi16(a.v, wa.v), _mm512_mulhi_epi16(b.v, wb.v));
    return {_mm512_srli_epi16(_mm512_add_epi16(sum, _mm512_set1_epi16(2)), 2)};
}
DHEAD_HD __m512 wide_units(__m256i scaled) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(scaled)), _mm512_set1_ps(kUnitScale));
}
DHEAD_HD void store_wide(float* out, __m512 x) { _mm512_storeu_ps(out, x); }
DHEAD_HD void store_wide(uint16_t* out, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
template <class T>
DHEAD_HD void store_units(T* out, W w) {
    const __m512i scaled = _mm512_mullo_epi16(w.v, _mm512_set1_epi16(kUnitFactor));
    store_wide(out, wide_units(_mm512_castsi512_si256(scaled)));
    store_wide(out + 16, wide_units(_mm512_extracti64x4_epi64(scaled, 1)));
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

const LetterboxKernels& letterbox_kernels_avx512() {
    static constexpr LetterboxKernels kTable = {"avx512", resize_packed, resize_plane, blend, copy_packed};
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
