// The letterbox's vertical step, and its loops over packed pixels. Each letterbox_cpu_<level>.cpp defines DHEAD_ISA
// and, before it includes this, of 16-bit lanes W:
//   W, kWords               kWords 16-bit numbers
//   load_words(p), spread(n)
//   blend_words(a, b, wa, wb)   letterbox_column of letterbox.h
//   store_units(out, w)     w / 255 of numbers 0 … 255, to float or to half
// With DHEAD_LETTERBOX_RESIZES, the horizontal step:
//   resize_pixels<kStride, kWhole>(row, columns, x, out)    columns x to x + kResized - 1 of packed pixels
// With DHEAD_LETTERBOX_COPIES, the plain copy:
//   copy_pixels<kStride>(row, out)                          kCopied packed pixels; kCopyReach bytes are read
// No templates of the standard library here, see cpu_kernels.inl.h.
#pragma once

#include "dhead/decode.h"
#include "letterbox_kernels.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

template <class T>
void blend_to(const int16_t* row0, const int16_t* row1, int16_t weight0, int16_t weight1, int32_t count, T* out) {
    const W w0 = spread(weight0), w1 = spread(weight1);
    int32_t i = 0;
    for (; i + kWords <= count; i += kWords) {
        store_units(out + i, blend_words(load_words(row0 + i), load_words(row1 + i), w0, w1));
    }
    const size_t rest = static_cast<size_t>(count - i) % kWords;  // what it is, and what the compiler then knows
    if (rest == 0) return;
    if (count >= kWords) {  // the last ones, some of them once more
        i = count - kWords;
        store_units(out + i, blend_words(load_words(row0 + i), load_words(row1 + i), w0, w1));
        return;
    }
    T some[kWords];
    int16_t a[kWords] = {}, b[kWords] = {};
    __builtin_memcpy(a, row0, rest * sizeof(int16_t));
    __builtin_memcpy(b, row1, rest * sizeof(int16_t));
    store_units(some, blend_words(load_words(a), load_words(b), w0, w1));
    __builtin_memcpy(out, some, rest * sizeof(T));
}

void blend(const int16_t* row0, const int16_t* row1, int16_t weight0, int16_t weight1, int32_t count, DType dtype,
           void* out) {
    if (dtype == DType::kFloat16) {
        blend_to(row0, row1, weight0, weight1, count, static_cast<uint16_t*>(out));
    } else {
        blend_to(row0, row1, weight0, weight1, count, static_cast<float*>(out));
    }
}

#ifdef DHEAD_LETTERBOX_RESIZES
template <int kStride>
void resize_packed_of(const uint8_t* row, const LetterboxColumns& columns, int16_t* const* out) {
    int16_t* const to[3] = {out[0], out[1], out[2]};
    int x = 0;
    for (; x < columns.whole; x += kResized) resize_pixels<kStride, true>(row, columns, x, to);
    for (; x < columns.count; x += kResized) resize_pixels<kStride, false>(row, columns, x, to);
}

void resize_packed(const uint8_t* row, const LetterboxColumns& columns, int16_t* const* out) {
    if (columns.pixel_stride == 3) {
        resize_packed_of<3>(row, columns, out);
    } else {
        resize_packed_of<4>(row, columns, out);
    }
}
#endif

#ifdef DHEAD_LETTERBOX_COPIES
template <int kStride, class T>
void copy_to(const uint8_t* row, int32_t count, T* const* out) {
    const int64_t bytes = int64_t{count - 1} * kStride + 3;
    T* to[3] = {out[0], out[1], out[2]};
    int32_t i = 0;
    for (; int64_t{i} * kStride + kCopyReach<kStride> <= bytes; i += kCopied) {
        copy_pixels<kStride>(row + static_cast<size_t>(i) * kStride, to);
        for (T*& t : to) t += kCopied;
    }
    while (i < count) {
        const int32_t n = count - i < kCopied ? count - i : kCopied;
        uint8_t rest[kCopyReach<kStride>] = {};
        T some[3][kCopied];
        T* const there[3] = {some[0], some[1], some[2]};
        __builtin_memcpy(rest, row + static_cast<size_t>(i) * kStride, static_cast<size_t>((n - 1) * kStride + 3));
        copy_pixels<kStride>(rest, there);
        for (int k = 0; k < 3; ++k) {
            __builtin_memcpy(to[k], some[k], static_cast<size_t>(n) * sizeof(T));
            to[k] += n;
        }
        i += n;
    }
}

void copy_packed(const uint8_t* row, int32_t pixel_stride, int32_t count, DType dtype, void* const* out) {
    if (dtype == DType::kFloat16) {
        uint16_t* const to[3] = {static_cast<uint16_t*>(out[0]), static_cast<uint16_t*>(out[1]),
                                 static_cast<uint16_t*>(out[2])};
        pixel_stride == 3 ? copy_to<3>(row, count, to) : copy_to<4>(row, count, to);
    } else {
        float* const to[3] = {static_cast<float*>(out[0]), static_cast<float*>(out[1]), static_cast<float*>(out[2])};
        pixel_stride == 3 ? copy_to<3>(row, count, to) : copy_to<4>(row, count, to);
    }
}
#endif

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
