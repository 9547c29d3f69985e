// Dense decode: every anchor's box and every class's score, in one launch for all levels and images.
//
// A block takes 128 neighbouring anchors of one level of one image and one task: all their boxes (blockIdx.y = 0), or
// a chunk of their classes. The NCHW maps are read along the anchors, in packs of four where alignment allows, turned
// in shared memory, and the [A, 4] and [A, C] results are written along their rows. HBM traffic is each map once, each
// result once.
#include "device.cuh"
#include "dhead/launch.h"

namespace dhead {
namespace {

constexpr int kTile = 128;
constexpr int kPack = 4;
constexpr int kPackShift = 2;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMaxChunk = 40;  // classes of one block
constexpr int kChunkLoads = kMaxChunk / kWarps;
static_assert(kMaxChunk % kWarps == 0 && kPack == 1 << kPackShift, "");
constexpr int kDivideShift = 19;        // see divide_by_chunk
constexpr int kStageBytes = 36 * 1024;  // of box logits

struct DecodeArgs {
    TiledMaps maps;
    float* boxes;
    float* scores;
    int32_t chunk;         // classes per block, at most kMaxChunk
    uint32_t chunk_magic;  // ceil(2^19 / chunk)
    int32_t sub_shift;     // log2 of the number of anchors whose box logits fit the stage: 128, 64 or 32
};

// idx / chunk for idx < kTile * kMaxChunk: idx * magic < 2^32, and its error idx * (magic * chunk - 2^19) < 2^19.
static_assert(kTile * kMaxChunk * kMaxChunk < (1 << kDivideShift), "the quotient is exact");
static_assert(static_cast<uint64_t>(kTile) * kMaxChunk << kDivideShift < (uint64_t{1} << 32), "the product fits");
__device__ int divide_by_chunk(int idx, uint32_t magic) {
    return static_cast<int>(static_cast<uint32_t>(idx) * magic >> kDivideShift);
}

// The row of an anchor's scores in shared memory, an odd number of floats each: the 32 anchors that a warp writes at a
// time, every fourth where it has read packs of four (`wide`), lie in 32 banks.
constexpr int kRowGroup = kTile / kPack + 1;
__device__ int score_row(int a, bool wide) { return wide ? (a & (kPack - 1)) * kRowGroup + (a >> kPackShift) : a; }

struct ScoreStorage {
    float objectness[kTile];
    float tile[kPack * kRowGroup * (kMaxChunk + 1)];
};

template <class T>
__device__ void decode_scores(const DecodeArgs& args, const Tile& tile, int first_class) {
    auto& s = block_storage<ScoreStorage>();
    const DeviceLevel& level = args.maps.levels[tile.level];
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int left = args.maps.num_classes - first_class;
    const int chunk = left < args.chunk ? left : args.chunk;
    const int pitch = args.chunk | 1;
    const bool wide = level.wide;
    if (args.maps.objectness) {
        const T* obj = image_map<T>(level.obj, tile.image, 1, level.cells) + tile.first_cell;
        for (int a = static_cast<int>(threadIdx.x); a < tile.size; a += kThreads)
            s.objectness[a] = sigmoid(to_float(obj[a]));
        __syncthreads();
    }
    const T* cls = image_map<T>(level.cls, tile.image, args.maps.num_classes, level.cells) +
                   static_cast<int64_t>(first_class) * level.cells + tile.first_cell;
    const auto put = [&](int a, int c, float logit) {
        const float score = sigmoid(logit);
        s.tile[score_row(a, wide) * pitch + c] = args.maps.objectness ? mul(score, s.objectness[a]) : score;
    };
    if (wide) {
        const int a = lane * kPack;
        if (a < tile.size) {
            Pack<T, kPack> in[kChunkLoads];  // all at once, before the first is waited for
#pragma unroll
            for (int u = 0; u < kChunkLoads; ++u) {
                const int c = warp + u * kWarps;
                if (c < chunk)
                    in[u] = *reinterpret_cast<const Pack<T, kPack>*>(cls + static_cast<int64_t>(c) * level.cells + a);
            }
#pragma unroll
            for (int u = 0; u < kChunkLoads; ++u) {
                const int c = warp + u * kWarps;
                if (c < chunk) {
#pragma unroll
                    for (int k = 0; k < kPack; ++k) put(a + k, c, to_float(in[u].v[k]));
                }
            }
        }
    } else {
        for (int c = warp; c < chunk; c += kWarps) {
            for (int a = lane; a < tile.size; a += kWarpSize)
                put(a, c, to_float(cls[static_cast<int64_t>(c) * level.cells + a]));
        }
    }
    __syncthreads();
    float* out = args.scores +
                 (static_cast<int64_t>(tile.image) * args.maps.anchors + level.first_anchor + tile.first_cell) *
                     args.maps.num_classes +
                 first_class;
    for (int idx = static_cast<int>(threadIdx.x); idx < tile.size * args.chunk; idx += kThreads) {
        const int a = divide_by_chunk(idx, args.chunk_magic), c = idx - a * args.chunk;
        if (c < chunk)
            out[static_cast<int64_t>(a) * args.maps.num_classes + c] = s.tile[score_row(a, wide) * pitch + c];
    }
}

template <class T>
struct BoxStorage {
    float distance[4 * kTile];
    alignas(16) T stage[kStageBytes / sizeof(T)];  // [4 * bins][sub_tile]
};

template <class T>
__device__ void decode_boxes(const DecodeArgs& args, const Tile& tile) {
    auto& s = block_storage<BoxStorage<T>>();
    const DeviceLevel& level = args.maps.levels[tile.level];
    const int thread = static_cast<int>(threadIdx.x);
    const int bins = args.maps.bins, channels = 4 * bins, shift = args.sub_shift, sub = 1 << shift;
    float* out =
        args.boxes + 4 * (static_cast<int64_t>(tile.image) * args.maps.anchors + level.first_anchor + tile.first_cell);
    for (int start = 0; start < tile.size; start += sub) {
        const int size = tile.size - start < sub ? tile.size - start : sub;
        const T* box = image_map<T>(level.box, tile.image, channels, level.cells) + tile.first_cell + start;
        if (level.wide) {
            constexpr int kLoads = 16 / sizeof(T);
            const int a = thread * kPack & (sub - 1), step = kThreads * kPack >> shift;
            if (a < size) {
                for (int first = thread * kPack >> shift; first < channels; first += kLoads * step) {
                    Pack<T, kPack> in[kLoads];
#pragma unroll
                    for (int u = 0; u < kLoads; ++u) {
                        const int channel = first + u * step;
                        if (channel < channels)
                            in[u] = *reinterpret_cast<const Pack<T, kPack>*>(
                                box + static_cast<int64_t>(channel) * level.cells + a);
                    }
#pragma unroll
                    for (int u = 0; u < kLoads; ++u) {
                        const int channel = first + u * step;
                        if (channel < channels)
                            *reinterpret_cast<Pack<T, kPack>*>(&s.stage[(channel << shift) + a]) = in[u];
                    }
                }
            }
        } else {
            for (int idx = thread; idx < channels << shift; idx += kThreads) {
                const int channel = idx >> shift, a = idx & (sub - 1);
                if (a < size) s.stage[idx] = box[static_cast<int64_t>(channel) * level.cells + a];
            }
        }
        __syncthreads();
        for (int idx = thread; idx < 4 * sub; idx += kThreads) {
            const int side = idx >> shift, a = idx & (sub - 1);
            if (a < size) {
                const T* logits = &s.stage[(side * bins << shift) + a];
                s.distance[idx] = dfl_expectation<float>(bins, [&](int j) { return to_float(logits[j << shift]); });
            }
        }
        __syncthreads();
        if (thread < size) {
            const float* d = &s.distance[thread];
            const Box b = cell_box(level, tile.first_cell + start + thread, d[0], d[sub], d[2 * sub], d[3 * sub]);
            *reinterpret_cast<Pack<float, 4>*>(out + 4 * (start + thread)) = {{b.x1, b.y1, b.x2, b.y2}};
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ DecodeArgs args) {
    const Tile tile = tile_of_block(args.maps, blockIdx.x, kTile);
    if (blockIdx.y == 0)
        decode_boxes<T>(args, tile);
    else
        decode_scores<T>(args, tile, static_cast<int>(blockIdx.y - 1) * args.chunk);
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace

cudaError_t decode_cuda(const HeadParams& p, const DecodeOutputs& out, cudaStream_t stream) noexcept {
    DecodeArgs args{};
    if (!tile_maps(p, kTile, kPack, args.maps)) return cudaErrorInvalidValue;
    if (p.batch == 0) return cudaSuccess;
    if (out.boxes == nullptr || out.scores == nullptr || reinterpret_cast<std::uintptr_t>(out.boxes) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(out.scores) % sizeof(float) != 0)
        return cudaErrorInvalidValue;
    args.boxes = out.boxes;
    args.scores = out.scores;
    // Chunks of equal size, a multiple of 8 classes where there are several: 32 bytes, a sector of a row.
    const int chunks = ceil_div(p.num_classes, kMaxChunk);
    args.chunk = chunks == 1 ? p.num_classes : ceil_div(ceil_div(p.num_classes, chunks), 8) * 8;
    args.chunk_magic = (1U << kDivideShift) / static_cast<uint32_t>(args.chunk) +
                       ((1U << kDivideShift) % static_cast<uint32_t>(args.chunk) != 0U ? 1U : 0U);
    const int element = p.dtype == DType::kFloat32 ? 4 : 2;
    args.sub_shift = 7;
    static_assert(kTile == 1 << 7 && 4 * kMaxBins * 32 * 4 <= kStageBytes, "32 anchors fit, whatever the bins");
    while ((4 * p.bins * element) << args.sub_shift > kStageBytes) --args.sub_shift;
    const int stage = (4 * p.bins * element) << args.sub_shift;
    const std::size_t box_bytes = 4 * kTile * sizeof(float) + static_cast<std::size_t>(stage);
    const std::size_t score_bytes =
        (kTile + static_cast<std::size_t>(kPack * kRowGroup) * static_cast<std::size_t>(args.chunk | 1)) *
        sizeof(float);
    const dim3 grid(static_cast<unsigned>(args.maps.tiles * p.batch),
                    static_cast<unsigned>(1 + ceil_div(p.num_classes, args.chunk)));
    const std::size_t shared = box_bytes > score_bytes ? box_bytes : score_bytes;
    return p.dtype == DType::kFloat32 ? launch(decode_kernel<float>, grid, kThreads, shared, stream, args)
                                      : launch(decode_kernel<uint16_t>, grid, kThreads, shared, stream, args);
}

}  // namespace dhead
