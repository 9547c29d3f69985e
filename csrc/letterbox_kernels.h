// What one instruction set may provide to letterbox_cpu.cpp: plain functions over one row. One table per level.
#pragma once

#include <cstdint>

#include "dhead/params.h"

namespace dhead {
namespace cpu {

constexpr int kColumnGroup = 16;  // columns that a kernel may do at once

// v / 255, correctly rounded, is float(v * kUnitFactor) * kUnitScale for every whole v from 0 to 255 (and not with most
// other factors: the tests try all 256).
constexpr int16_t kUnitFactor = 3;
constexpr float kUnitScale = 0x1.56ac02p-10F;

// The horizontal taps of a row, two neighbouring pixels for each column. `count` is a multiple of kColumnGroup: the
// columns after the last one repeat it.
struct LetterboxColumns {
    const int32_t* offset;  // [count] bytes from the row's first sample to the first sample of the left pixel
    const int16_t* weight;  // [count, 2] of the left pixel, of the right one
    // [count] Packed pixels are read eight bytes at a time. Where that would end beyond the row, `offset` is less by so
    // many bits as `shift` tells.
    const uint8_t* shift;
    int32_t count;
    int32_t whole;         // columns before this one, a multiple of kColumnGroup, have no shift
    int32_t pixel_stride;  // bytes
};

// Null: letterbox_cpu.cpp does it, one sample at a time.
struct LetterboxKernels {
    const char* name;
    // The horizontal step over pixels of three samples side by side, 3 or 4 bytes apart: out[k] gets samples k.
    void (*resize_packed)(const uint8_t* row, const LetterboxColumns& columns, int16_t* const* out);
    // The same over samples that lie side by side.
    void (*resize_plane)(const uint8_t* row, const LetterboxColumns& columns, int16_t* out);
    // The vertical step, to 0 … 1.
    void (*blend)(const int16_t* row0, const int16_t* row1, int16_t weight0, int16_t weight1, int32_t count,
                  DType dtype, void* out);
    // Packed pixels that keep their size, to 0 … 1: out[k] gets samples k.
    void (*copy_packed)(const uint8_t* row, int32_t pixel_stride, int32_t count, DType dtype, void* const* out);
};

const LetterboxKernels& letterbox_kernels_scalar();
#if defined(__x86_64__) || defined(_M_X64)
const LetterboxKernels& letterbox_kernels_sse2();
const LetterboxKernels& letterbox_kernels_avx2();
const LetterboxKernels& letterbox_kernels_avx512();
#elif defined(__aarch64__)
const LetterboxKernels& letterbox_kernels_neon();
#endif

}  // namespace cpu
}  // namespace dhead
