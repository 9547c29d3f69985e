// The letterbox's rows for every machine: letterbox_cpu.cpp's own, and the vertical step one number at a time.
#define DHEAD_ISA scalar
#include <cstring>

#include "dhead/decode.h"
#include "dhead/letterbox.h"
#include "letterbox_kernels.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

using W = int32_t;
constexpr int kWords = 1;

W load_words(const int16_t* p) { return *p; }
W spread(int16_t n) { return n; }
W blend_words(W a, W b, W wa, W wb) {
    return letterbox_column(static_cast<int16_t>(a), static_cast<int16_t>(b), static_cast<int16_t>(wa),
                            static_cast<int16_t>(wb));
}
void store_units(float* out, W w) { *out = letterbox_unit(w); }
// Round to nearest even. Zero and normal numbers only: 1/255 is well above the subnormals.
void store_units(uint16_t* out, W w) {
    const uint32_t bits = float_bits(letterbox_unit(w));
    const uint32_t rounded = bits + 0xFFF + ((bits >> 13) & 1);
    *out = bits == 0 ? uint16_t{0} : static_cast<uint16_t>((rounded - ((127U - 15U) << 23)) >> 13);
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead

// The lanes come first.
#include "letterbox_rows.inl.h"

namespace dhead {
namespace cpu {

const LetterboxKernels& letterbox_kernels_scalar() {
    static constexpr LetterboxKernels kTable = {"scalar", nullptr, nullptr, blend, nullptr};
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
