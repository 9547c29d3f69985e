#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "dhead/letterbox.h"
#include "dhead/parallel.h"

namespace dhead {
namespace {

// binary16 of value / 255, round to nearest even. Zero and normal numbers only: 1/255 is well above the subnormals.
uint16_t half_of_unit(int value) {
    const float unit = letterbox_unit(value);
    uint32_t bits;
    std::memcpy(&bits, &unit, sizeof bits);
    if (bits == 0) return 0;
    const uint32_t rounded = bits + 0xFFF + ((bits >> 13) & 1);
    return static_cast<uint16_t>((rounded - ((127U - 15U) << 23)) >> 13);
}

std::array<uint16_t, 256> make_half_table() {
    std::array<uint16_t, 256> table{};
    for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = half_of_unit(i);
    return table;
}

struct ToFloat {
    using Type = float;
    float operator()(int32_t value) const { return letterbox_unit(value); }
};

struct ToHalf {
    using Type = uint16_t;
    const std::array<uint16_t, 256>& table;
    uint16_t operator()(int32_t value) const { return table[static_cast<size_t>(value)]; }
};

struct Columns {  // the horizontal taps, as arrays: byte offsets and weights
    std::vector<int64_t> offset0, offset1;
    std::vector<int32_t> weight0, weight1;

    Columns(const LetterboxImage& image, const LetterboxGeometry& g) {
        const auto n = static_cast<size_t>(g.resized_width);
        offset0.resize(n), offset1.resize(n), weight0.resize(n), weight1.resize(n);
        for (size_t x = 0; x < n; ++x) {
            const LetterboxTap tap = letterbox_tap(static_cast<int32_t>(x), g.source_width, g.resized_width);
            offset0[x] = tap.index0 * image.pixel_stride, offset1[x] = tap.index1 * image.pixel_stride;
            weight0[x] = tap.weight0, weight1[x] = tap.weight1;
        }
    }
};

void resize_row(const LetterboxImage& image, const Columns& columns, int32_t source_row, int16_t* out) {
    const size_t n = columns.offset0.size();
    const int64_t *offset0 = columns.offset0.data(), *offset1 = columns.offset1.data();
    const int32_t *weight0 = columns.weight0.data(), *weight1 = columns.weight1.data();
    const uint8_t* row = image.data + source_row * image.row_stride;
    const uint8_t *row_a = row + image.channel_offset[0], *row_b = row + image.channel_offset[1],
                  *row_c = row + image.channel_offset[2];
    int16_t *out_a = out, *out_b = out + n, *out_c = out + 2 * n;
    for (size_t x = 0; x < n; ++x) {
        const int64_t i = offset0[x], j = offset1[x];
        const int32_t v = weight0[x], w = weight1[x];
        out_a[x] = letterbox_row(row_a[i], row_a[j], v, w);
        out_b[x] = letterbox_row(row_b[i], row_b[j], v, w);
        out_c[x] = letterbox_row(row_c[i], row_c[j], v, w);
    }
}

// Canvas rows [begin, end). The two source rows in use are kept resized, so each is resized once per band.
template <class Convert>
void letterbox_band(const LetterboxImage& image, const LetterboxGeometry& g, const Columns& columns, uint8_t pad_value,
                    const Convert& convert, typename Convert::Type* output, int32_t begin, int32_t end) {
    using T = typename Convert::Type;
    const auto n = static_cast<size_t>(g.resized_width), width = static_cast<size_t>(g.width);
    const auto left = static_cast<size_t>(g.left);
    const size_t plane = static_cast<size_t>(g.height) * width;
    const T pad = convert(pad_value);
    std::vector<int16_t> first(3 * n), second(3 * n);
    int32_t first_row = -1, second_row = -1;
    for (int32_t y = begin; y < end; ++y) {
        T* row = output + static_cast<size_t>(y) * width;
        const int32_t resized_row = y - g.top;
        if (resized_row < 0 || resized_row >= g.resized_height) {
            for (size_t c = 0; c < 3; ++c) std::fill_n(row + c * plane, width, pad);
            continue;
        }
        const LetterboxTap tap = letterbox_tap(resized_row, g.source_height, g.resized_height);
        if (first_row != tap.index0 && second_row == tap.index0) {
            std::swap(first, second);
            std::swap(first_row, second_row);
        }
        if (first_row != tap.index0) resize_row(image, columns, first_row = tap.index0, first.data());
        if (second_row != tap.index1) resize_row(image, columns, second_row = tap.index1, second.data());
        for (size_t c = 0; c < 3; ++c) {
            T* out = row + c * plane;
            std::fill_n(out, left, pad);
            const int16_t *row0 = first.data() + c * n, *row1 = second.data() + c * n;
            for (size_t x = 0; x < n; ++x)
                out[left + x] = convert(letterbox_column(row0[x], row1[x], tap.weight0, tap.weight1));
            std::fill_n(out + left + n, width - left - n, pad);
        }
    }
}

template <class Convert>
void letterbox_all(const LetterboxImage& image, const LetterboxGeometry& g, uint8_t pad_value, const Convert& convert,
                   typename Convert::Type* output, int threads) {
    const Columns columns(image, g);
    const int32_t bands = threads <= 1 ? 1 : std::clamp(4 * threads, 1, std::max(1, g.height / 16));
    parallel_for(bands, threads, [&](int64_t band) {
        const auto edge = [&](int64_t i) { return static_cast<int32_t>(g.height * i / bands); };
        letterbox_band(image, g, columns, pad_value, convert, output, edge(band), edge(band + 1));
    });
}

}  // namespace

void letterbox_cpu(const LetterboxImage& image, const LetterboxGeometry& geometry, uint8_t pad_value, DType dtype,
                   void* output, int threads) {
    if (dtype == DType::kFloat16) {
        static const std::array<uint16_t, 256> table = make_half_table();
        letterbox_all(image, geometry, pad_value, ToHalf{table}, static_cast<uint16_t*>(output), threads);
    } else {
        letterbox_all(image, geometry, pad_value, ToFloat{}, static_cast<float*>(output), threads);
    }
}

}  // namespace dhead
