// The first launch of detect: reads all class maps once, and finds the candidates.
//
// A block takes a tile of anchors, its warps share the classes. For the few anchors that pass it computes the box, and
// leaves the tile's candidates as 64-bit keys (decode.h: ascending key is the order of candidates, and no two are
// equal) in the tile's own part of the workspace, with their number.
//
// Where threads claim places with an atomic, only the place depends on who came first; the set of keys does not, and it
// is sorted afterwards.
#include "detect.cuh"

namespace dhead {
namespace {

constexpr int kFilterWarps = 8;
constexpr int kStageFloats = 2048;  // box logits of passing anchors: 8 anchors at 64 bins, 30 at 17
constexpr int kLoadsInFlight = 10;

template <int kPack>
struct FilterStorage {
    static constexpr int kTile = kWarpSize * kPack;
    struct Best {
        float logit[kFilterWarps][kTile];
        int32_t index[kFilterWarps][kTile];
    };
    union {
        Best best;                  // steps 1 and 2
        float stage[kStageFloats];  // step 3
    };
    float distance[4 * kTile];
    float value[kTile];       // of each anchor's best class: its logit, or its score where there is objectness
    int32_t cls[kTile];       // each anchor's best class
    int32_t list[kTile];      // passing anchors, ascending; -1 once the box is found not to be finite
    uint32_t passing[kPack];  // a bit per anchor
    int32_t num_keys;
    float logit_threshold;
    float score_threshold;
};

// The best class of each of this lane's kPack anchors over classes [begin, end). Where the tile is read in packs
// (kWide) they are neighbours; otherwise they are 32 apart.
template <class T, int kPack, bool kWide>
__device__ void best_classes(const T* cls, int cells, int size, int begin, int end, BestClass (&best)[kPack]) {
    const int lane = static_cast<int>(threadIdx.x);
    const int first = kWide ? lane * kPack : lane;
    if (first >= size) return;
    for (int c = begin; c < end; c += kLoadsInFlight) {
        Pack<T, kPack> in[kLoadsInFlight];
#pragma unroll
        for (int u = 0; u < kLoadsInFlight; ++u) {
            if (c + u < end) {
                const T* row = cls + static_cast<int64_t>(c + u) * cells + first;
                if (kWide) {
                    in[u] = *reinterpret_cast<const Pack<T, kPack>*>(row);
                } else {
#pragma unroll
                    for (int k = 0; k < kPack; ++k) in[u].v[k] = row[first + k * kWarpSize < size ? k * kWarpSize : 0];
                }
            }
        }
#pragma unroll
        for (int u = 0; u < kLoadsInFlight; ++u) {
            if (c + u < end) {
#pragma unroll
                for (int k = 0; k < kPack; ++k) best[k] = better_class(best[k], to_float(in[u].v[k]), c + u);
            }
        }
    }
}

struct Thresholds {
    float logit;
    float score;
};

template <class T, int kPack>
__global__ void __launch_bounds__(kFilterWarps* kWarpSize) filter_kernel(const __grid_constant__ DetectArgs args) {
    using Storage = FilterStorage<kPack>;
    constexpr int kTile = Storage::kTile;
    auto& s = block_storage<Storage>();
    const TiledMaps& maps = args.maps;
    const Tile tile = tile_of_block(maps, blockIdx.x, kTile);
    const DeviceLevel& level = maps.levels[tile.level];
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int warps = static_cast<int>(blockDim.y), threads = warps * kWarpSize, thread = warp * kWarpSize + lane;
    const T* cls = image_map<T>(level.cls, tile.image, maps.num_classes, level.cells) + tile.first_cell;
    const T* obj = maps.objectness ? image_map<T>(level.obj, tile.image, 1, level.cells) + tile.first_cell : nullptr;

    // One thread works a dynamic threshold out: it is a logarithm in double precision, which most GPUs are slow at.
    const bool dynamic = args.thresholds != nullptr && thread == 0;
    const float conf = dynamic ? args.thresholds[0] : 0.F;

    // 1. The best class of each anchor: first over each warp's share of the classes, then over the warps.
    BestClass best[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) best[k] = no_class();
    const int share = (maps.num_classes + warps - 1) / warps;
    const int begin = warp * share, limit = begin + share;
    const int end = limit < maps.num_classes ? limit : maps.num_classes;
    if (level.wide)
        best_classes<T, kPack, true>(cls, level.cells, tile.size, begin, end, best);
    else
        best_classes<T, kPack, false>(cls, level.cells, tile.size, begin, end, best);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        const int a = level.wide ? lane * kPack + k : lane + k * kWarpSize;
        s.best.logit[warp][a] = best[k].logit;
        s.best.index[warp][a] = best[k].index;
    }
    if (thread == 0) {
        s.num_keys = 0;
        s.logit_threshold = dynamic ? logit_threshold(conf) : args.logit_threshold;
        s.score_threshold = dynamic ? score_threshold(conf) : args.score_threshold;
    }
    __syncthreads();
    const Thresholds threshold = {s.logit_threshold, s.score_threshold};

    // 2. Which anchors pass. With several labels and objectness a class of lower logit may round to the higher score,
    // so there every anchor with a score goes on and each of its classes is tested.
    for (int group = warp; group < kPack; group += warps) {
        const int a = group * kWarpSize + lane;
        bool pass = false;
        if (a < tile.size) {
            BestClass top = no_class();
            for (int w = 0; w < warps; ++w) top = better_class(top, s.best.logit[w][a], s.best.index[w][a]);
            float value = top.logit;
            if (obj != nullptr) {
                value = mul(sigmoid(top.logit), sigmoid(to_float(obj[a])));
                pass = args.multi_label ? value == value : value > threshold.score;
            } else {
                pass = value > threshold.logit;
            }
            if (!args.multi_label && args.class_mask != nullptr && args.class_mask[top.index] == 0) pass = false;
            s.value[a] = value;
            s.cls[a] = top.index;
        }
        const uint32_t word = __ballot_sync(kAllLanes, pass);
        if (lane == 0) s.passing[group] = word;
    }
    __syncthreads();
    int passing = 0;
#pragma unroll
    for (int group = 0; group < kPack; ++group) {
        const uint32_t word = s.passing[group];
        if (group % warps == warp && (word >> lane & 1U) != 0U)
            s.list[passing + __popc(word & ((1U << lane) - 1U))] = group * kWarpSize + lane;
        passing += __popc(word);
    }
    int32_t* count = &args.counts[static_cast<int64_t>(tile.image) * maps.tiles + tile.index];
    if (passing == 0) {
        if (thread == 0) *count = 0;
        return;
    }

    // 3. Their boxes, as many at a time as the stage holds, and their keys.
    const int channels = 4 * maps.bins, at_once = kStageFloats / channels;
    const T* box = image_map<T>(level.box, tile.image, channels, level.cells) + tile.first_cell;
    Pack<float, 4>* boxes = args.boxes + static_cast<int64_t>(tile.image) * maps.anchors;
    uint64_t* keys = args.keys + (static_cast<int64_t>(tile.image) * maps.tiles + tile.index) * args.keys_per_tile;
    for (int start = 0; start < passing; start += at_once) {
        const int n = passing - start < at_once ? passing - start : at_once;
        __syncthreads();
        for (int idx = thread; idx < n * channels; idx += threads) {
            const int channel = idx / n, i = idx - channel * n;
            s.stage[idx] = to_float(box[static_cast<int64_t>(channel) * level.cells + s.list[start + i]]);
        }
        __syncthreads();
        for (int idx = thread; idx < 4 * n; idx += threads) {
            const int side = idx / n, i = idx - side * n;
            const float* logits = &s.stage[side * maps.bins * n + i];
            s.distance[idx] = dfl_expectation<float>(maps.bins, [&](int j) { return logits[j * n]; });
        }
        __syncthreads();
        for (int i = thread; i < n; i += threads) {
            const int a = s.list[start + i];
            const float* d = &s.distance[i];
            const Box b = cell_box(level, tile.first_cell + a, d[0], d[n], d[2 * n], d[3 * n]);
            const int anchor = level.first_anchor + tile.first_cell + a;
            if (is_finite(b)) {
                boxes[anchor] = {{b.x1, b.y1, b.x2, b.y2}};
                if (!args.multi_label)
                    keys[atomicAdd(&s.num_keys, 1)] =
                        candidate_key(s.value[a], static_cast<uint32_t>(anchor * maps.num_classes + s.cls[a]));
            } else {
                s.list[start + i] = -1;
            }
        }
    }
    __syncthreads();
    if (args.multi_label) {
        for (int i = warp; i < passing; i += warps) {
            const int a = s.list[i];
            if (a < 0) continue;
            const float objectness = obj != nullptr ? sigmoid(to_float(obj[a])) : 0.F;
            const int anchor = level.first_anchor + tile.first_cell + a;
            for (int c = lane; c < maps.num_classes; c += kWarpSize) {
                if (args.class_mask != nullptr && args.class_mask[c] == 0) continue;
                const float logit = to_float(cls[static_cast<int64_t>(c) * level.cells + a]);
                const float value = obj != nullptr ? mul(sigmoid(logit), objectness) : logit;
                if (value > (obj != nullptr ? threshold.score : threshold.logit))
                    keys[atomicAdd(&s.num_keys, 1)] =
                        candidate_key(value, static_cast<uint32_t>(anchor * maps.num_classes + c));
            }
        }
        __syncthreads();
    }
    if (thread == 0) *count = s.num_keys;
}

template <class T>
cudaError_t launch_as(const DetectArgs& args, int pack, cudaStream_t stream) {
    const unsigned blocks = static_cast<unsigned>(args.maps.tiles * args.maps.batch);
    const unsigned warps = args.maps.num_classes >= 32 ? kFilterWarps : args.maps.num_classes >= 8 ? 4 : 2;
    const dim3 block(kWarpSize, warps);
    return pack == 2 ? launch(filter_kernel<T, 2>, blocks, block, sizeof(FilterStorage<2>), stream, args)
                     : launch(filter_kernel<T, 4>, blocks, block, sizeof(FilterStorage<4>), stream, args);
}

}  // namespace

cudaError_t launch_filter(const DetectArgs& args, DType dtype, int pack, cudaStream_t stream) {
    return dtype == DType::kFloat32 ? launch_as<float>(args, pack, stream) : launch_as<uint16_t>(args, pack, stream);
}

}  // namespace dhead
