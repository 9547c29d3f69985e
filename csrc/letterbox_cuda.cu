// Letterbox: images of any sizes to one batch of planar floats, resized, padded and normalised in one pass.
//
// A block takes 128 x 8 pixels of one canvas. Which source pixels a column and a row of them mix is worked out once per
// block (in double precision, as on the CPU); everything after that is integers. The same bits as letterbox_cpu.
#include "device.cuh"
#include "dhead/launch.h"
#include "dhead/nv12.h"

namespace dhead {
namespace {

constexpr int kTileWidth = 128;
constexpr int kTileHeight = 8;
constexpr int kPixels = 4;  // of a thread, side by side
constexpr int kThreads = kTileWidth / kPixels * kTileHeight;

template <int N>
struct LetterboxArgs {
    LetterboxSource sources[N];
    int32_t height;
    int32_t width;
    int32_t tiles_across;
    uint8_t pad_value;
    bool wide;  // rows of the output may be written in packs
};

struct LetterboxStorage {
    LetterboxTap columns[kTileWidth];
    LetterboxTap rows[kTileHeight];
};

__device__ float to_output(float x, float) { return x; }
__device__ uint16_t to_output(float x, uint16_t) { return __half_as_ushort(__float2half_rn(x)); }

struct Pixel {
    int32_t v[3];
};

__device__ Pixel read_pixel(const LetterboxSource& source, int y, int x) {
    const LetterboxImage& image = source.image;
    const uint8_t* at = image.data + y * image.row_stride + x * image.pixel_stride;
    if (source.chroma == nullptr)
        return {{at[image.channel_offset[0]], at[image.channel_offset[1]], at[image.channel_offset[2]]}};
    const uint8_t* uv = source.chroma + static_cast<int64_t>(y / 2) * source.chroma_stride + x / 2 * 2;
    const Rgb rgb = nv12_to_rgb(*at, uv[0], uv[1]);
    return {{rgb.r, rgb.g, rgb.b}};
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) letterbox_kernel(const __grid_constant__ LetterboxArgs<N> args, T* output) {
    auto& s = block_storage<LetterboxStorage>();
    const int image = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
    const LetterboxSource& source = args.sources[image];
    const LetterboxGeometry& g = source.geometry;
    const int tile_y = static_cast<int>(blockIdx.x) / args.tiles_across;
    const int x0 = (static_cast<int>(blockIdx.x) - tile_y * args.tiles_across) * kTileWidth, y0 = tile_y * kTileHeight;
    for (int i = thread; i < kTileWidth + kTileHeight; i += kThreads) {
        const bool column = i < kTileWidth;
        const int position = column ? x0 + i - g.left : y0 + (i - kTileWidth) - g.top;
        const int size = column ? g.resized_width : g.resized_height;
        LetterboxTap tap;
        tap.index0 = -1;  // padding
        if (position >= 0 && position < size)
            tap = letterbox_tap(position, column ? g.source_width : g.source_height, size);
        (column ? s.columns[i] : s.rows[i - kTileWidth]) = tap;
    }
    __syncthreads();

    const int row = thread / (kTileWidth / kPixels), first = thread % (kTileWidth / kPixels) * kPixels;
    const int y = y0 + row, x = x0 + first;
    if (y >= args.height || x >= args.width) return;
    const LetterboxTap ty = s.rows[row];
    Pack<T, kPixels> out[3];
#pragma unroll
    for (int k = 0; k < kPixels; ++k) {
        const LetterboxTap tx = s.columns[first + k];
        Pixel p{{args.pad_value, args.pad_value, args.pad_value}};
        if (ty.index0 >= 0 && tx.index0 >= 0) {
            const Pixel p00 = read_pixel(source, ty.index0, tx.index0), p01 = read_pixel(source, ty.index0, tx.index1);
            const Pixel p10 = read_pixel(source, ty.index1, tx.index0), p11 = read_pixel(source, ty.index1, tx.index1);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const auto mix = [&](const Pixel& a, const Pixel& b) {
                    return letterbox_row(static_cast<uint8_t>(a.v[c]), static_cast<uint8_t>(b.v[c]), tx.weight0,
                                         tx.weight1);
                };
                p.v[c] = letterbox_column(mix(p00, p01), mix(p10, p11), ty.weight0, ty.weight1);
            }
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) out[c].v[k] = to_output(letterbox_unit(p.v[c]), T{});
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        T* to = output + ((static_cast<int64_t>(image) * 3 + c) * args.height + y) * args.width + x;
        if (args.wide) {
            *reinterpret_cast<Pack<T, kPixels>*>(to) = out[c];
        } else {
#pragma unroll
            for (int k = 0; k < kPixels; ++k)
                if (x + k < args.width) to[k] = out[c].v[k];
        }
    }
}

template <class T, int N>
cudaError_t run(const LetterboxSource* sources, int count, uint8_t pad_value, T* output, cudaStream_t stream) {
    LetterboxArgs<N> args{};
    for (int i = 0; i < count; ++i) args.sources[i] = sources[i];
    args.height = sources[0].geometry.height;
    args.width = sources[0].geometry.width;
    args.tiles_across = (args.width + kTileWidth - 1) / kTileWidth;
    args.pad_value = pad_value;
    args.wide = args.width % kPixels == 0 && reinterpret_cast<std::uintptr_t>(output) % (kPixels * sizeof(T)) == 0;
    const int tiles_down = (args.height + kTileHeight - 1) / kTileHeight;
    return launch(letterbox_kernel<T, N>,
                  dim3(static_cast<unsigned>(args.tiles_across * tiles_down), static_cast<unsigned>(count)), kThreads,
                  sizeof(LetterboxStorage), stream, args, output);
}

template <class T>
cudaError_t run_all(const LetterboxSource* sources, int count, uint8_t pad_value, void* output, cudaStream_t stream) {
    if (reinterpret_cast<std::uintptr_t>(output) % sizeof(T) != 0) return cudaErrorInvalidValue;
    const std::size_t image = std::size_t{3} * static_cast<std::size_t>(sources[0].geometry.height) *
                              static_cast<std::size_t>(sources[0].geometry.width);
    for (int done = 0; done < count; done += kLetterboxBatch) {
        const int now = count - done < kLetterboxBatch ? count - done : kLetterboxBatch;
        T* to = static_cast<T*>(output) + static_cast<std::size_t>(done) * image;
        const cudaError_t error = now == 1 ? run<T, 1>(sources + done, now, pad_value, to, stream)
                                           : run<T, kLetterboxBatch>(sources + done, now, pad_value, to, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

bool valid(const LetterboxSource& s, const LetterboxGeometry& first) {
    const LetterboxGeometry& g = s.geometry;
    return s.image.data != nullptr && g.source_height > 0 && g.source_width > 0 &&
           g.source_height <= kLetterboxMaxSide && g.source_width <= kLetterboxMaxSide && g.height == first.height &&
           g.width == first.width && g.resized_height > 0 && g.resized_width > 0 && g.top >= 0 && g.left >= 0 &&
           g.top + g.resized_height <= g.height && g.left + g.resized_width <= g.width;
}

}  // namespace

cudaError_t letterbox_cuda(const LetterboxSource* sources, int count, uint8_t pad_value, DType dtype, void* output,
                           cudaStream_t stream) noexcept {
    if (count == 0) return cudaSuccess;
    if (sources == nullptr || count < 0 || output == nullptr) return cudaErrorInvalidValue;
    for (int i = 0; i < count; ++i)
        if (!valid(sources[i], sources[0].geometry)) return cudaErrorInvalidValue;
    if (static_cast<int64_t>(sources[0].geometry.height) * sources[0].geometry.width > INT32_MAX)
        return cudaErrorInvalidValue;
    return dtype == DType::kFloat32 ? run_all<float>(sources, count, pad_value, output, stream)
                                    : run_all<uint16_t>(sources, count, pad_value, output, stream);
}

}  // namespace dhead
