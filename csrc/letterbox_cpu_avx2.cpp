// The letterbox's rows, compiled for the level "avx2".
#define DHEAD_ISA avx2
#include "simd/letterbox_avx2.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

struct W {
    __m256i v;
};
constexpr int kWords = 16;

DHEAD_HD W load_words(const int16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
DHEAD_HD W spread(int16_t n) { return {_mm256_set1_epi16(n)}; }
DHEAD_HD W blend_words(W a, W b, W wa, W wb) {
    const __m256i sum = _mm256_add_epi16(_mm256_mulhi_epi16(a.v, wa.v), _mm256_mulhi_epi16(b.v, wb.v));
    return {_mm256_srli_epi16(_mm256_add_epi16(sum, _mm256_set1_epi16(2)), 2)};
}
template <class T>
DHEAD_HD void store_units(T* out, W w) {
    const __m256i scaled = _mm256_mullo_epi16(w.v, _mm256_set1_epi16(kUnitFactor));
    store_eight(out, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(scaled)));
    store_eight(out + 8, _mm256_cvtepu16_epi32(_mm256_extracti128_si256(scaled, 1)));
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

const LetterboxKernels& letterbox_kernels_avx2() {
    static constexpr LetterboxKernels kTable = {"avx2", resize_packed, resize_plane, blend, copy_packed};
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
