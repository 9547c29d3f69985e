// The letterbox on the CPU: cuts the canvas into bands of rows and runs the row kernels of the chosen SIMD level over
// them. What they leave out (other layouts of the source, images too narrow) is here, one sample at a time.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu_common.h"
#include "dhead/decode_cpu.h"
#include "dhead/letterbox.h"
#include "dhead/parallel.h"
#include "letterbox_kernels.h"

namespace dhead {
namespace {

using cpu::kColumnGroup;
using cpu::LetterboxKernels;

const LetterboxKernels& letterbox_kernels_for(const char* simd) {
    const LetterboxKernels* const all[] = {
        &cpu::letterbox_kernels_scalar(),
#if defined(__x86_64__) || defined(_M_X64)
        &cpu::letterbox_kernels_sse2(),
        &cpu::letterbox_kernels_avx2(),
        &cpu::letterbox_kernels_avx512(),
#elif defined(__aarch64__)
        &cpu::letterbox_kernels_neon(),
#endif
    };
    const char* name = cpu::kernels_for(simd).name;
    for (const LetterboxKernels* k : all) {
        if (std::strcmp(k->name, name) == 0) return *k;
    }
    return *all[0];
}

// How the three samples of a pixel lie.
enum class Layout { kPacked, kPlanes, kGrey, kOther };

// A source as the kernels read it. Plane k of the resized rows holds output channel `channel[k]` (kPacked: the planes
// come in the order of the bytes).
struct Source {
    const uint8_t* data = nullptr;
    int64_t row_stride = 0;
    int64_t offset[3] = {0, 0, 0};  // of plane k
    int channel[3] = {0, 1, 2};
    int32_t pixel_stride = 0;
    Layout layout = Layout::kOther;

    Source(const LetterboxImage& image, const LetterboxGeometry& g, const LetterboxKernels& kernels)
        : data(image.data), row_stride(image.row_stride) {
        const int64_t* c = image.channel_offset;
        std::copy_n(c, 3, offset);
        if (kernels.resize_packed == nullptr || g.source_width < 3) return;  // eight bytes at least
        const int64_t first = std::min({c[0], c[1], c[2]});
        if (image.pixel_stride == 1) {
            layout = c[0] == c[1] && c[1] == c[2] ? Layout::kGrey : Layout::kPlanes;
        } else if ((image.pixel_stride == 3 || image.pixel_stride == 4) && c[0] + c[1] + c[2] == 3 * (first + 1) &&
                   c[0] != c[1] && c[1] != c[2] && c[2] != c[0]) {
            layout = Layout::kPacked;
            data += first;
            for (int i = 0; i < 3; ++i) {
                channel[c[i] - first] = i;
                offset[i] = i;
            }
        }
        pixel_stride = static_cast<int32_t>(image.pixel_stride);
    }
};

// The horizontal taps. Kept by the calling thread: the next image often has the same width.
struct Columns {
    int32_t source_width = 0, resized_width = 0;
    int64_t pixel_stride = 0;
    Layout layout = Layout::kOther;
    std::vector<LetterboxTap> taps;
    std::vector<int32_t> offset;
    std::vector<int16_t> weight;
    std::vector<uint8_t> shift;
    cpu::LetterboxColumns view = {};

    void prepare(const LetterboxGeometry& g, const Source& source) {
        if (source_width == g.source_width && resized_width == g.resized_width && layout == source.layout &&
            pixel_stride == source.pixel_stride)
            return;
        source_width = 0;  // until all is there
        const auto n = static_cast<size_t>(g.resized_width);
        taps.resize(n);
        for (size_t x = 0; x < n; ++x) {
            taps[x] = letterbox_tap(static_cast<int32_t>(x), g.source_width, g.resized_width);
        }
        if (source.layout != Layout::kOther) describe(g, source);
        layout = source.layout;
        pixel_stride = source.pixel_stride;
        resized_width = g.resized_width;
        source_width = g.source_width;
    }

  private:
    void describe(const LetterboxGeometry& g, const Source& source) {
        constexpr auto kGroup = static_cast<size_t>(kColumnGroup);
        const size_t n = taps.size(), padded = (n + kGroup - 1) / kGroup * kGroup;
        offset.resize(padded), weight.resize(2 * padded), shift.assign(padded, 0);
        // Of a packed row these bytes may be read: no more, the image may end there.
        const int64_t bytes = int64_t{g.source_width - 1} * source.pixel_stride + 3;
        int32_t whole = 0;
        for (size_t x = 0; x < padded; ++x) {
            const LetterboxTap& tap = taps[std::min(x, n - 1)];
            int32_t left = tap.index0;
            int16_t weight0 = tap.weight0, weight1 = tap.weight1;
            if (tap.index0 == tap.index1) {  // beyond the border: all the weight on the border pixel
                const auto sum = static_cast<int16_t>(weight0 + weight1);
                const bool last = left == g.source_width - 1;
                left -= last ? 1 : 0;
                weight0 = last ? int16_t{0} : sum;
                weight1 = last ? sum : int16_t{0};
            }
            int64_t at = int64_t{left} * source.pixel_stride;
            if (source.layout == Layout::kPacked && at + 8 > bytes) {
                shift[x] = static_cast<uint8_t>(8 * (at + 8 - bytes));
                at = bytes - 8;
            } else if (whole == static_cast<int32_t>(x)) {
                ++whole;
            }
            offset[x] = static_cast<int32_t>(at);
            weight[2 * x] = weight0;
            weight[2 * x + 1] = weight1;
        }
        view = {offset.data(),
                weight.data(),
                shift.data(),
                static_cast<int32_t>(padded),
                whole / kColumnGroup * kColumnGroup,
                source.pixel_stride};
    }
};

// Everything that is the same for all bands.
struct Work {
    const LetterboxImage& image;
    const LetterboxGeometry& g;
    const LetterboxKernels& kernels;
    const Source& source;
    const Columns& columns;
    uint8_t pad_value;
    DType dtype;

    size_t row_capacity() const {
        return (columns.taps.size() + kColumnGroup - 1) / kColumnGroup * kColumnGroup;  // a kernel writes whole groups
    }
};

// A source row, resized: three planes of 16 bits.
struct ResizedRow {
    int16_t* samples;
    int32_t row = -1;

    void make(const Work& work, int32_t source_row) {
        row = source_row;
        const size_t n = work.row_capacity();
        int16_t* const out[3] = {samples, samples + n, samples + 2 * n};
        const uint8_t* in = work.source.data + source_row * work.source.row_stride;
        switch (work.source.layout) {
            case Layout::kPacked:
                return work.kernels.resize_packed(in, work.columns.view, out);
            case Layout::kPlanes:
                for (int k = 0; k < 3; ++k) {
                    work.kernels.resize_plane(in + work.source.offset[k], work.columns.view, out[k]);
                }
                return;
            case Layout::kGrey:
                return work.kernels.resize_plane(in + work.source.offset[0], work.columns.view, out[0]);
            case Layout::kOther:
                break;
        }
        const int64_t stride = work.image.pixel_stride;
        for (int k = 0; k < 3; ++k) {
            const uint8_t* plane = in + work.source.offset[k];
            int16_t* to = out[k];
            for (const LetterboxTap& tap : work.columns.taps) {
                *to++ = letterbox_row(plane[tap.index0 * stride], plane[tap.index1 * stride], tap.weight0, tap.weight1);
            }
        }
    }
};

// Canvas rows [begin, end). The two source rows in use are kept resized, in `rows`: each is resized once per band.
template <class T>
void letterbox_band(const Work& work, T* output, int16_t* rows, int32_t begin, int32_t end) {
    const LetterboxGeometry& g = work.g;
    const size_t width = static_cast<size_t>(g.width), left = static_cast<size_t>(g.left);
    const size_t resized = static_cast<size_t>(g.resized_width), right = left + resized;
    const size_t plane = static_cast<size_t>(g.height) * width;
    const bool same_size = g.resized_width == g.source_width && g.resized_height == g.source_height;
    const bool copy = same_size && work.source.layout == Layout::kPacked && work.kernels.copy_packed != nullptr;
    T pad;
    const auto pad_sample = static_cast<int16_t>(work.pad_value << 7);  // what the horizontal step makes of it
    cpu::letterbox_kernels_scalar().blend(&pad_sample, &pad_sample, 2048, 0, 1, work.dtype, &pad);

    const size_t samples = 3 * work.row_capacity();
    ResizedRow first = {rows}, second = {rows + samples};
    for (int32_t y = begin; y < end; ++y) {
        T* row = output + static_cast<size_t>(y) * width;
        const int32_t resized_row = y - g.top;
        if (resized_row < 0 || resized_row >= g.resized_height) {
            for (size_t c = 0; c < 3; ++c) std::fill_n(row + c * plane, width, pad);
            continue;
        }
        T* planes[3];
        for (int k = 0; k < 3; ++k) planes[k] = row + static_cast<size_t>(work.source.channel[k]) * plane;
        if (copy) {
            void* const out[3] = {planes[0] + left, planes[1] + left, planes[2] + left};
            const uint8_t* in = work.source.data + resized_row * work.source.row_stride;
            work.kernels.copy_packed(in, work.source.pixel_stride, g.resized_width, work.dtype, out);
        } else {
            const LetterboxTap tap = letterbox_tap(resized_row, g.source_height, g.resized_height);
            if (first.row != tap.index0 && second.row == tap.index0) std::swap(first, second);
            if (first.row != tap.index0) first.make(work, tap.index0);
            if (second.row != tap.index1) second.make(work, tap.index1);
            for (int k = 0; k < 3; ++k) {
                const size_t from = work.source.layout == Layout::kGrey ? 0 : static_cast<size_t>(k) * samples / 3;
                work.kernels.blend(first.samples + from, second.samples + from, tap.weight0, tap.weight1,
                                   g.resized_width, work.dtype, planes[k] + left);
            }
        }
        for (T* p : planes) {
            std::fill(p, p + left, pad);
            std::fill(p + right, p + width, pad);
        }
    }
}

// Working memory of one caller, for the threads that help it too.
struct Scratch {
    Columns columns;
    std::vector<int16_t> rows;
};

template <class T>
void letterbox_all(const Work& work, T* output, int threads, std::vector<int16_t>& rows) {
    const int32_t height = work.g.height;
    const int32_t bands = threads <= 1 ? 1 : std::clamp(4 * threads, 1, std::max(1, height / 16));
    const size_t per_band = 6 * work.row_capacity();
    if (rows.size() < per_band * static_cast<size_t>(bands)) rows.resize(per_band * static_cast<size_t>(bands));
    int16_t* const memory = rows.data();
    parallel_for(bands, threads, [&](int64_t band) {
        const auto edge = [&](int64_t i) { return static_cast<int32_t>(height * i / bands); };
        letterbox_band(work, output, memory + per_band * static_cast<size_t>(band), edge(band), edge(band + 1));
    });
}

}  // namespace

void letterbox_cpu(const LetterboxImage& image, const LetterboxGeometry& geometry, uint8_t pad_value, DType dtype,
                   void* output, int threads, const char* simd) {
    const LetterboxKernels& kernels = letterbox_kernels_for(simd);
    const Source source(image, geometry, kernels);
    thread_local Scratch scratch;
    scratch.columns.prepare(geometry, source);
    const Work work = {image, geometry, kernels, source, scratch.columns, pad_value, dtype};
    if (dtype == DType::kFloat16) {
        letterbox_all(work, static_cast<uint16_t*>(output), threads, scratch.rows);
    } else {
        letterbox_all(work, static_cast<float*>(output), threads, scratch.rows);
    }
}

}  // namespace dhead
