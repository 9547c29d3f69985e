// What the kernels share: how a tile of anchors is found and read.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "dhead/decode.h"
#include "dhead/params.h"

namespace dhead {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// The block's shared memory, laid out as T. All shared memory is dynamic, so that a launch states what it uses.
template <class T>
__device__ T& block_storage() {
    extern __shared__ __align__(16) unsigned char dhead_shared[];
    return *reinterpret_cast<T*>(dhead_shared);
}

// Raw maps are loaded as T and computed as float; halves are carried as their bits.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// N neighbouring elements, moved by one load or store.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

struct DeviceLevel {
    const void* box;
    const void* cls;
    const void* obj;
    int32_t width;
    int32_t cells;         // height * width
    int32_t first_anchor;  // of the level, among all
    int32_t first_tile;
    float stride;
    float unit;  // pixels per unit of distance
    bool wide;   // the maps may be read in packs
};

// The maps of a batch, cut into tiles of `tile` neighbouring anchors of one level.
struct TiledMaps {
    DeviceLevel levels[kMaxLevels];
    int32_t num_levels;
    int32_t batch;
    int32_t num_classes;
    int32_t bins;
    int32_t anchors;
    int32_t tiles;  // of one image
    bool objectness;
};

// Where a block of a grid of batch * tiles blocks works.
struct Tile {
    int32_t image;
    int32_t index;  // in its image
    int32_t level;
    int32_t first_cell;  // in its level
    int32_t size;        // cells from first_cell on; at most the tile size
};

__device__ inline Tile tile_of_block(const TiledMaps& maps, uint32_t block, int tile_size) {
    Tile t;
    t.image = static_cast<int32_t>(block / static_cast<uint32_t>(maps.tiles));
    t.index = static_cast<int32_t>(block - static_cast<uint32_t>(t.image) * static_cast<uint32_t>(maps.tiles));
    t.level = 0;
    for (int i = 1; i < maps.num_levels; ++i)
        if (t.index >= maps.levels[i].first_tile) t.level = i;
    t.first_cell = (t.index - maps.levels[t.level].first_tile) * tile_size;
    const int left = maps.levels[t.level].cells - t.first_cell;
    t.size = left < tile_size ? left : tile_size;
    return t;
}

// Start of one image's channel 0 in a map [B, channels, H, W].
template <class T>
__device__ const T* image_map(const void* map, int image, int channels, int cells) {
    return static_cast<const T*>(map) + static_cast<int64_t>(image) * channels * cells;
}

// Box of a cell from its four distances.
__device__ inline Box cell_box(const DeviceLevel& level, int cell, float left, float top, float right, float bottom) {
    const int y = cell / level.width, x = cell - y * level.width;
    return box_from_distances(anchor_centre(x, level.stride), anchor_centre(y, level.stride), left, top, right, bottom,
                              level.unit);
}

// Host: checks the maps and cuts them into tiles. `pack` is the number of elements read at once where alignment allows.
// False where a field is out of range, a pointer is null or not aligned to its element, or the sizes overflow.
inline bool tile_maps(const HeadParams& p, int tile_size, int pack, TiledMaps& out) {
    out = TiledMaps{};
    if (p.num_levels < 1 || p.num_levels > kMaxLevels || p.batch < 0 || p.num_classes < 1 || p.bins < 1 ||
        p.bins > kMaxBins || (p.dtype != DType::kFloat32 && p.dtype != DType::kFloat16))
        return false;
    const std::size_t element = p.dtype == DType::kFloat32 ? 4 : 2;
    const auto aligned = [](const void* x, std::size_t to) { return reinterpret_cast<std::uintptr_t>(x) % to == 0; };
    out.objectness = p.levels[0].obj != nullptr;
    int64_t anchors = 0, tiles = 0;
    for (int i = 0; i < p.num_levels; ++i) {
        const LevelMaps& in = p.levels[i];
        DeviceLevel& level = out.levels[i];
        if (in.height < 1 || in.width < 1 || !(in.stride > 0.F) || in.box == nullptr || in.cls == nullptr ||
            (in.obj != nullptr) != out.objectness)
            return false;
        if (!aligned(in.box, element) || !aligned(in.cls, element) || !aligned(in.obj, element)) return false;
        const int64_t cells = static_cast<int64_t>(in.height) * in.width;
        if (cells > INT32_MAX) return false;
        level.box = in.box;
        level.cls = in.cls;
        level.obj = in.obj;
        level.width = in.width;
        level.cells = static_cast<int32_t>(cells);
        level.first_anchor = static_cast<int32_t>(anchors);
        level.first_tile = static_cast<int32_t>(tiles);
        level.stride = in.stride;
        level.unit = p.pixel_distance ? 1.F : in.stride;
        const std::size_t width = element * static_cast<std::size_t>(pack);
        level.wide = cells % pack == 0 && aligned(in.box, width) && aligned(in.cls, width) && aligned(in.obj, width);
        anchors += cells;
        tiles += (cells + tile_size - 1) / tile_size;
        if (anchors * p.num_classes > INT32_MAX) return false;
    }
    if (tiles * p.batch > INT32_MAX) return false;
    out.num_levels = p.num_levels;
    out.batch = p.batch;
    out.num_classes = p.num_classes;
    out.bins = p.bins;
    out.anchors = static_cast<int32_t>(anchors);
    out.tiles = static_cast<int32_t>(tiles);
    return true;
}

// Host: one launch. (No <<<>>>, so that a host compiler reads these files too.) The error is this launch's own, never
// one that an earlier call left behind, and none is left for a later call to find.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   A&&... args) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<A&&>(args)...);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return error;
}

}  // namespace dhead
