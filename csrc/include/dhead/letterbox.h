// Letterbox: an 8-bit image, resized without changing its aspect ratio, centred on a padded canvas, as planar floats.
//
// Geometry as Ultralytics' LetterBox (r = min(H/h, W/w), round-half-even sizes, round(pad/2 - 0.1) paddings), sampling
// as OpenCV's INTER_LINEAR for 8-bit images: half-pixel centres, weights in 1/2048, integer arithmetic. All that is
// rounded is here, as host and device inline functions, and nothing in it depends on fused multiply-add: every
// implementation (scalar, SIMD, CUDA) gives the same bits.
#pragma once

#include <cstdint>

#include "dhead/params.h"

#ifdef __CUDACC__
#define DHEAD_LETTERBOX_FN __host__ __device__ inline
#else
#define DHEAD_LETTERBOX_FN inline
#endif

namespace dhead {

constexpr float kLetterboxOne = 2048.F;     // fixed-point 1 of the bilinear weights
constexpr int kLetterboxMaxSide = 1 << 20;  // of a source image or a canvas

// Where the image lies on the canvas. Source coordinate x (pixel edges, not centres) maps to
// x * resized_width / source_width + left, and the same way vertically.
struct LetterboxGeometry {
    int32_t source_height = 0, source_width = 0;
    int32_t height = 0, width = 0;  // canvas
    int32_t resized_height = 0, resized_width = 0;
    int32_t top = 0, left = 0;
    double gain = 0.0;  // min(H/h, W/w), before the resized size was rounded to whole pixels
};

// One source interval of one axis: out = (v[index0] * weight0 + v[index1] * weight1) / 2048.
struct LetterboxTap {
    int32_t index0 = 0, index1 = 0;
    int16_t weight0 = 0, weight1 = 0;
};

namespace letterbox_detail {

DHEAD_LETTERBOX_FN double mul(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);  // never contracted with the addition that follows
#else
    return a * b;
#endif
}

// Round half to even, as Python's round() and OpenCV's cvRound; for |v| < 2^31 and the default rounding mode.
DHEAD_LETTERBOX_FN int32_t round_even(double v) {
    const int32_t down = static_cast<int32_t>(v) - (v < static_cast<double>(static_cast<int32_t>(v)) ? 1 : 0);
    const double rest = v - static_cast<double>(down);
    return down + ((rest > 0.5 || (rest == 0.5 && (down & 1) != 0)) ? 1 : 0);
}

}  // namespace letterbox_detail

// The geometry for a source image and a canvas of at most height x width.
// rect: the padding is reduced to the least that leaves whole multiples of `stride`; scaleup: small images may grow.
DHEAD_LETTERBOX_FN LetterboxGeometry letterbox_geometry(int32_t source_height, int32_t source_width, int32_t height,
                                                        int32_t width, bool scaleup, bool rect, int32_t stride) {
    using letterbox_detail::mul;
    using letterbox_detail::round_even;
    LetterboxGeometry g;
    g.source_height = source_height;
    g.source_width = source_width;
    const double by_height = static_cast<double>(height) / source_height;
    const double by_width = static_cast<double>(width) / source_width;
    double gain = by_height < by_width ? by_height : by_width;
    if (!scaleup && gain > 1.0) gain = 1.0;
    g.gain = gain;
    const int32_t h = round_even(mul(source_height, gain)), w = round_even(mul(source_width, gain));
    g.resized_height = h < 1 ? 1 : (h > height ? height : h);  // a sliver keeps one row of pixels
    g.resized_width = w < 1 ? 1 : (w > width ? width : w);
    int32_t pad_h = height - g.resized_height, pad_w = width - g.resized_width;
    if (rect) {
        pad_h %= stride;
        pad_w %= stride;
    }
    g.top = round_even(pad_h / 2.0 - 0.1);
    g.left = round_even(pad_w / 2.0 - 0.1);
    g.height = g.resized_height + pad_h;
    g.width = g.resized_width + pad_w;
    return g;
}

// The two source pixels of one axis, and their weights, for resized pixel `position`.
DHEAD_LETTERBOX_FN LetterboxTap letterbox_tap(int32_t position, int32_t source_size, int32_t resized_size) {
    const double scale = static_cast<double>(source_size) / resized_size;
    const auto centre = static_cast<float>(letterbox_detail::mul(position + 0.5, scale) - 0.5);
    auto index = static_cast<int32_t>(centre);
    if (static_cast<float>(index) > centre) --index;
    const float fraction = centre - static_cast<float>(index);
    const int32_t last = source_size - 1;  // beyond the border both taps read the border pixel
    LetterboxTap tap;
    tap.index0 = index < 0 ? 0 : (index > last ? last : index);
    tap.index1 = index + 1 > last ? last : index + 1;
    tap.weight0 = static_cast<int16_t>(letterbox_detail::round_even((1.F - fraction) * kLetterboxOne));
    tap.weight1 = static_cast<int16_t>(letterbox_detail::round_even(fraction * kLetterboxOne));
    return tap;
}

// Horizontal step: 0 … 32640, which fits 16 bits, so that the vertical step is a 16-bit high multiplication.
DHEAD_LETTERBOX_FN int16_t letterbox_row(uint8_t v0, uint8_t v1, int32_t weight0, int32_t weight1) {
    return static_cast<int16_t>((v0 * weight0 + v1 * weight1) >> 4);
}

// Vertical step: the resized pixel, 0 … 255.
DHEAD_LETTERBOX_FN int32_t letterbox_column(int16_t row0, int16_t row1, int16_t weight0, int16_t weight1) {
    return (((row0 * weight0) >> 16) + ((row1 * weight1) >> 16) + 2) >> 2;
}

// 0 … 255 to 0 … 1, correctly rounded.
DHEAD_LETTERBOX_FN float letterbox_unit(int32_t value) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(static_cast<float>(value), 255.F);
#else
    return static_cast<float>(value) / 255.F;
#endif
}

// A source image of 8-bit samples with any strides (in bytes): crops, flips, BGR views and broadcast grey are free.
struct LetterboxImage {
    const uint8_t* data = nullptr;
    int64_t row_stride = 0, pixel_stride = 0;
    int64_t channel_offset[3] = {0, 1, 2};  // of output channel 0, 1, 2
};

// Writes [3, height, width], contiguous, of float32 or float16. On up to `threads` threads; `simd`: one of
// simd_levels() (decode_cpu.h), null for the best: all give the same bits. Reads the source's samples and nothing
// beyond them. The geometry must come from letterbox_geometry. Working memory belongs to the threads and is kept for
// their next call. Throws InvalidArgument (an unknown level), std::bad_alloc.
void letterbox_cpu(const LetterboxImage& image, const LetterboxGeometry& geometry, uint8_t pad_value, DType dtype,
                   void* output, int threads, const char* simd = nullptr);

}  // namespace dhead
