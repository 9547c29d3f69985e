// Detect: the anchors that pass the threshold, in order, through greedy NMS. Two launches for the whole batch.
//
// filter_kernel reads all class maps once: a block takes a tile of anchors, its warps share the classes. For the few
// anchors that pass it computes the box, and leaves the tile's candidates as 64-bit keys (decode.h: ascending key is
// the order of candidates, and no two are equal) in the tile's own part of the workspace, with their number.
// select_kernel takes one image per block: it gathers the keys, keeps the first max_candidates of them (radix
// selection where there are more), sorts them, and runs NMS over chunks of 64.
//
// Where threads claim places with an atomic, only the place depends on who came first; the set of keys does not, and it
// is sorted afterwards. So the result is the same on every run, and the same as the CPU code's.
#include "device.cuh"
#include "dhead/launch.h"

namespace dhead {
namespace {

// -- filter -----------------------------------------------------------------------------------------------------------

constexpr int kFilterWarps = 8;
constexpr int kStageFloats = 2048;  // box logits of passing anchors: 8 anchors at 64 bins, 30 at 17
constexpr int kLoadsInFlight = 10;

struct DetectArgs {
    TiledMaps maps;
    float logit_threshold;
    float score_threshold;
    float iou;
    const float* thresholds;    // (conf, iou) in place of the three above, or null
    const uint8_t* class_mask;  // or null
    bool multi_label;
    bool class_agnostic;
    int32_t keys_per_tile;   // the size of a tile's part of `keys`
    int32_t max_candidates;  // at most as many as there can be
    int32_t max_det;
    int32_t* counts;        // [B, tiles]: keys of each tile
    Pack<float, 4>* boxes;  // [B, A]: of passing anchors only
    uint64_t* keys;         // [B, tiles, keys_per_tile]
    uint64_t* sorted;       // [B, sorted_capacity]: used for images with more candidates than fit shared memory
    int32_t sorted_capacity;
    DetectOutputs out;
};

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

__device__ Thresholds confidence_thresholds(const DetectArgs& args) {
    if (args.thresholds == nullptr) return {args.logit_threshold, args.score_threshold};
    const double conf = args.thresholds[0];
    return {logit_threshold(conf), score_threshold(conf)};
}

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
    if (thread == 0) s.num_keys = 0;
    const Thresholds threshold = confidence_thresholds(args);
    __syncthreads();

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

// -- select -----------------------------------------------------------------------------------------------------------

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kSharedKeys = 4096;
constexpr int kRankedKeys = 256;  // up to here keys are sorted by counting the smaller ones
constexpr int kChunk = 64;        // candidates that NMS resolves at a time
constexpr int kKeptCache = 512;   // detections held in shared memory; any further ones are read from the outputs
constexpr int kGatherLoads = 4;
constexpr uint64_t kLastKey = ~uint64_t{0};

struct SelectStorage {
    uint64_t keys[kSharedKeys];
    Pack<float, 4> kept_box[kKeptCache];
    int32_t kept_class[kKeptCache];
    Pack<float, 4> box[kChunk];
    int32_t cls[kChunk];
    float value[kChunk];
    uint32_t suppressed_by[kChunk][2];  // bits: earlier candidates of the chunk
    uint32_t dead[2];                   // bits: candidates suppressed by earlier chunks
    int32_t histogram[256];
    int32_t total;
    int32_t filled;
    int32_t kept;
    int32_t digit;
    int32_t rest;
};
static_assert(sizeof(SelectStorage) <= 48 * 1024, "fits without an opt-in");

// Adds the numbers of all threads; the same result for every thread.
__device__ int block_sum(int32_t* total, int number) {
    for (int step = kWarpSize / 2; step > 0; step /= 2) number += __shfl_xor_sync(kAllLanes, number, step);
    if (threadIdx.x % kWarpSize == 0) atomicAdd(total, number);
    __syncthreads();
    return *total;
}

// Calls use(key) for every key of the image; all lanes of a warp call it together, with `valid` false where there is
// none.
template <class Use>
__device__ void for_each_key(const DetectArgs& args, int image, Use use) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int32_t* counts = args.counts + static_cast<int64_t>(image) * args.maps.tiles;
    const uint64_t* keys = args.keys + static_cast<int64_t>(image) * args.maps.tiles * args.keys_per_tile;
    for (int tile = warp; tile < args.maps.tiles; tile += kSelectWarps) {
        const int count = counts[tile];
        const uint64_t* from = keys + static_cast<int64_t>(tile) * args.keys_per_tile;
        for (int i = lane; i - lane < count; i += kWarpSize * kGatherLoads) {
            uint64_t key[kGatherLoads];
#pragma unroll
            for (int u = 0; u < kGatherLoads; ++u)
                key[u] = i + u * kWarpSize < count ? from[i + u * kWarpSize] : kLastKey;
#pragma unroll
            for (int u = 0; u < kGatherLoads; ++u)
                if (i - lane + u * kWarpSize < count) use(key[u], i + u * kWarpSize < count);
        }
    }
}

// Appends the warp's valid keys to `to`.
__device__ void append(uint64_t* to, int32_t* filled, uint64_t key, bool valid) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const uint32_t word = __ballot_sync(kAllLanes, valid);
    if (word == 0U) return;
    int place = lane == 0 ? atomicAdd(filled, __popc(word)) : 0;
    place = __shfl_sync(kAllLanes, place, 0) + __popc(word & ((1U << lane) - 1U));
    if (valid) to[place] = key;
}

// Copies all keys of the image to `to`, in any order. Where tiles hold few keys, as they mostly do, a lane takes a
// tile.
__device__ void gather_all(const DetectArgs& args, int image, uint64_t* to, int32_t* filled) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int32_t* counts = args.counts + static_cast<int64_t>(image) * args.maps.tiles;
    const uint64_t* keys = args.keys + static_cast<int64_t>(image) * args.maps.tiles * args.keys_per_tile;
    for (int start = 0; start < args.maps.tiles; start += kSelectThreads) {
        const int tile = start + lane * kSelectWarps + warp;
        const int count = tile < args.maps.tiles ? counts[tile] : 0;
        const uint64_t* from = keys + static_cast<int64_t>(tile) * args.keys_per_tile;
        int end = count;  // inclusive sum over the warp
        for (int step = 1; step < kWarpSize; step *= 2) {
            const int other = __shfl_up_sync(kAllLanes, end, static_cast<unsigned>(step));
            if (lane >= step) end += other;
        }
        int place = lane == kWarpSize - 1 && end > 0 ? atomicAdd(filled, end) : 0;
        place = __shfl_sync(kAllLanes, place, kWarpSize - 1) + end - count;
        if (__ballot_sync(kAllLanes, count > kGatherLoads) == 0U) {
            uint64_t key[kGatherLoads];
#pragma unroll
            for (int u = 0; u < kGatherLoads; ++u)
                if (u < count) key[u] = from[u];
#pragma unroll
            for (int u = 0; u < kGatherLoads; ++u)
                if (u < count) to[place + u] = key[u];
            continue;
        }
        for (uint32_t word = __ballot_sync(kAllLanes, count > 0); word != 0U; word &= word - 1U) {
            const int owner = __ffs(static_cast<int>(word)) - 1;
            const int n = __shfl_sync(kAllLanes, count, owner), base = __shfl_sync(kAllLanes, place, owner);
            const uint64_t* source =
                keys + static_cast<int64_t>(start + owner * kSelectWarps + warp) * args.keys_per_tile;
            for (int i = lane; i < n; i += kWarpSize * kGatherLoads) {
                uint64_t key[kGatherLoads];
#pragma unroll
                for (int u = 0; u < kGatherLoads; ++u)
                    if (i + u * kWarpSize < n) key[u] = source[i + u * kWarpSize];
#pragma unroll
                for (int u = 0; u < kGatherLoads; ++u)
                    if (i + u * kWarpSize < n) to[base + i + u * kWarpSize] = key[u];
            }
        }
    }
}

// The largest of the `wanted` smallest keys of the image, which has more than `wanted`. Radix selection, 8 bits a pass;
// as soon as all keys with the same leading bits are wanted, the rest of the bits is of no matter.
__device__ uint64_t last_wanted_key(const DetectArgs& args, int image, int wanted, SelectStorage& s) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
    uint64_t prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (thread < 256) s.histogram[thread] = 0;
        __syncthreads();
        const uint64_t high = shift == 56 ? 0 : kLastKey << (shift + 8);
        for_each_key(args, image, [&](uint64_t key, bool valid) {
            if (valid && (key & high) == prefix) atomicAdd(&s.histogram[static_cast<int>(key >> shift & 255U)], 1);
        });
        __syncthreads();
        if (thread < kWarpSize) {
            int mine[8], sum = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += mine[i] = s.histogram[lane * 8 + i];
            int end = sum;
            for (int step = 1; step < kWarpSize; step *= 2) {
                const int other = __shfl_up_sync(kAllLanes, end, static_cast<unsigned>(step));
                if (lane >= step) end += other;
            }
            int before = end - sum;
            if (before < wanted && wanted <= end) {  // in one lane only
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    if (before < wanted && wanted <= before + mine[i]) {
                        s.digit = lane * 8 + i;
                        s.rest = before + mine[i] == wanted ? 0 : wanted - before;
                    }
                    before += mine[i];
                }
            }
        }
        __syncthreads();
        prefix |= static_cast<uint64_t>(s.digit) << shift;
        wanted = s.rest;
        if (wanted == 0) return prefix | ~(kLastKey << shift);
    }
    return prefix;
}

// Sorts n keys in place, ascending; up to the next power of two above n, `keys` is written.
__device__ void sort_keys(uint64_t* keys, int n) {
    const int thread = static_cast<int>(threadIdx.x);
    if (n <= 1) return;
    if (n <= kRankedKeys) {
        int parts = kSelectThreads / kRankedKeys;  // threads per key, within one warp
        while (parts < kWarpSize && n * parts * 2 <= kSelectThreads) parts *= 2;
        const int i = thread / parts;
        const uint64_t mine = i < n ? keys[i] : kLastKey;
        int rank = 0;
        for (int j = thread % parts; j < n; j += parts) rank += keys[j] < mine ? 1 : 0;
        for (int step = 1; step < parts; step *= 2) rank += __shfl_xor_sync(kAllLanes, rank, step);
        __syncthreads();
        if (i < n && thread % parts == 0) keys[rank] = mine;
        __syncthreads();
        return;
    }
    int padded = 2 * kRankedKeys;
    while (padded < n) padded *= 2;
    for (int i = n + thread; i < padded; i += kSelectThreads) keys[i] = kLastKey;
    __syncthreads();
    for (int size = 2; size <= padded; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int idx = thread; idx < padded / 2; idx += kSelectThreads) {
                const int i = 2 * idx - (idx & (stride - 1)), j = i + stride;
                const uint64_t a = keys[i], b = keys[j];
                if (((i & size) == 0) == (b < a)) {
                    keys[i] = b;
                    keys[j] = a;
                }
            }
            __syncthreads();
        }
    }
}

__device__ Box unpack(const Pack<float, 4>& p) { return {p.v[0], p.v[1], p.v[2], p.v[3]}; }

// Greedy NMS over m sorted candidates; writes the detections and returns their number.
__device__ int run_nms(const DetectArgs& args, int image, const uint64_t* keys, int m, SelectStorage& s) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
    const float iou = args.thresholds != nullptr ? args.thresholds[1] : args.iou;
    const Pack<float, 4>* boxes = args.boxes + static_cast<int64_t>(image) * args.maps.anchors;
    auto* out_boxes = reinterpret_cast<Pack<float, 4>*>(args.out.boxes) + static_cast<int64_t>(image) * args.max_det;
    float* out_scores = args.out.scores + static_cast<int64_t>(image) * args.max_det;
    int32_t* out_classes = args.out.classes + static_cast<int64_t>(image) * args.max_det;

    // Thread i < 64 holds candidate i of the next chunk in registers, so that its loads overlap the chunk before.
    uint64_t next_key = 0;
    Pack<float, 4> next_box{};
    int next_class = 0;
    const auto fetch = [&](int start) {
        if (thread < kChunk && start + thread < m) {
            next_key = keys[start + thread];
            const auto position = static_cast<int>(candidate_position(next_key));
            const int anchor = position / args.maps.num_classes;
            next_box = boxes[anchor];
            next_class = position - anchor * args.maps.num_classes;
        }
    };
    fetch(0);
    int kept = 0;
    for (int start = 0; start < m && kept < args.max_det; start += kChunk) {
        const int size = m - start < kChunk ? m - start : kChunk;
        if (thread < size) {
            s.box[thread] = next_box;
            s.cls[thread] = next_class;
            s.value[thread] = candidate_value(next_key);
        }
        if (thread < 2) s.dead[thread] = 0;
        __syncthreads();
        fetch(start + kChunk);

        // Against all detections so far: a warp takes 32 candidates and every eighth detection.
        {
            const int i = thread % kChunk;
            bool dead = false;
            if (i < size) {
                const Box mine = unpack(s.box[i]);
                const float area = area_of(mine);
                for (int k = thread / kChunk; k < kept && !dead; k += kSelectThreads / kChunk) {
                    const bool cached = k < kKeptCache;
                    const int cls = cached ? s.kept_class[k] : out_classes[k];
                    if (args.class_agnostic || cls == s.cls[i]) {
                        const Box other = unpack(cached ? s.kept_box[k] : out_boxes[k]);
                        dead = suppresses(other, area_of(other), mine, area, iou);
                    }
                }
            }
            const uint32_t word = __ballot_sync(kAllLanes, dead);
            if (lane == 0 && word != 0U) atomicOr(&s.dead[warp % 2], word);
        }
        // Within the chunk: a warp takes a candidate, its lanes the earlier ones.
        for (int i = warp; i < size; i += kSelectWarps) {
            const Box mine = unpack(s.box[i]);
            const float area = area_of(mine);
            for (int half = 0; half < 2; ++half) {
                const int j = half * kWarpSize + lane;
                bool hit = false;
                if (j < i && (args.class_agnostic || s.cls[j] == s.cls[i])) {
                    const Box other = unpack(s.box[j]);
                    hit = suppresses(other, area_of(other), mine, area, iou);
                }
                const uint32_t word = __ballot_sync(kAllLanes, hit);
                if (lane == 0) s.suppressed_by[i][half] = word;
            }
        }
        __syncthreads();

        // Warp 0 decides: each round, every candidate whose suppressors are all decided. A lane has candidates lane and
        // lane + 32. Rounds: the longest chain of candidates that hinge on each other, mostly two or three.
        if (warp == 0) {
            const uint32_t bit = 1U << lane;
            const uint32_t low = lane < size ? s.suppressed_by[lane][0] : 0U;
            const uint32_t high0 = lane + kWarpSize < size ? s.suppressed_by[lane + kWarpSize][0] : 0U;
            const uint32_t high1 = lane + kWarpSize < size ? s.suppressed_by[lane + kWarpSize][1] : 0U;
            uint32_t open0 = __ballot_sync(kAllLanes, lane < size) & ~s.dead[0];
            uint32_t open1 = __ballot_sync(kAllLanes, lane + kWarpSize < size) & ~s.dead[1];
            uint32_t kept0 = 0, kept1 = 0;
            while ((open0 | open1) != 0U) {
                const bool gone0 = (low & kept0) != 0U;
                const bool gone1 = (high0 & kept0) != 0U || (high1 & kept1) != 0U;
                const bool sure0 = !gone0 && (low & open0) == 0U;
                const bool sure1 = !gone1 && (high0 & open0) == 0U && (high1 & open1) == 0U;
                const uint32_t drop0 = __ballot_sync(kAllLanes, gone0), keep0 = __ballot_sync(kAllLanes, sure0);
                const uint32_t drop1 = __ballot_sync(kAllLanes, gone1), keep1 = __ballot_sync(kAllLanes, sure1);
                kept0 |= keep0 & open0;
                kept1 |= keep1 & open1;
                open0 &= ~(drop0 | keep0);
                open1 &= ~(drop1 | keep1);
            }
            const auto emit = [&](int i, int place) {
                if (place >= args.max_det) return;
                out_boxes[place] = s.box[i];
                out_classes[place] = s.cls[i];
                out_scores[place] = args.maps.objectness ? s.value[i] : sigmoid(s.value[i]);
                if (place < kKeptCache) {
                    s.kept_box[place] = s.box[i];
                    s.kept_class[place] = s.cls[i];
                }
            };
            if ((kept0 & bit) != 0U) emit(lane, kept + __popc(kept0 & (bit - 1U)));
            if ((kept1 & bit) != 0U) emit(lane + kWarpSize, kept + __popc(kept0) + __popc(kept1 & (bit - 1U)));
            if (lane == 0) {
                const int now = kept + __popc(kept0) + __popc(kept1);
                s.kept = now < args.max_det ? now : args.max_det;
            }
        }
        __syncthreads();
        kept = s.kept;
    }
    for (int k = kept + thread; k < args.max_det; k += kSelectThreads) {
        out_boxes[k] = Pack<float, 4>{};
        out_scores[k] = 0.F;
        out_classes[k] = -1;
    }
    return kept;
}

__global__ void __launch_bounds__(kSelectThreads, 1) select_kernel(const __grid_constant__ DetectArgs args) {
    auto& s = block_storage<SelectStorage>();
    const int image = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
    if (thread == 0) s.total = s.filled = 0;
    __syncthreads();
    const int32_t* counts = args.counts + static_cast<int64_t>(image) * args.maps.tiles;
    int found = 0;
    for (int tile = thread; tile < args.maps.tiles; tile += kSelectThreads) found += counts[tile];
    const int total = block_sum(&s.total, found);
    const int m = total < args.max_candidates ? total : args.max_candidates;
    uint64_t* keys = m <= kSharedKeys ? s.keys : args.sorted + static_cast<int64_t>(image) * args.sorted_capacity;
    if (total == m) {
        gather_all(args, image, keys, &s.filled);
    } else {
        const uint64_t last = last_wanted_key(args, image, m, s);
        for_each_key(args, image,
                     [&](uint64_t key, bool valid) { append(keys, &s.filled, key, valid && key <= last); });
    }
    __syncthreads();
    sort_keys(keys, m);
    const int kept = run_nms(args, image, keys, m, s);
    if (thread == 0) {
        args.out.num_dets[image] = kept;
        if (args.out.dropped != nullptr) args.out.dropped[image] = total - m;
    }
}

// -- host -------------------------------------------------------------------------------------------------------------

// Enough small tiles to fill a GPU beat packs of twice the width: below this many anchors, packs of two.
constexpr int64_t kSmallBatch = 64 * 1024;

int pack_of(const HeadParams& p) { return int64_t{p.batch} * p.num_anchors() < kSmallBatch ? 2 : 4; }

struct Workspace {
    std::size_t counts, boxes, keys, sorted, bytes;
};

// Fills what of `args` follows from the sizes.
bool lay_out(const HeadParams& p, const DetectOptions& o, int pack, DetectArgs& args, Workspace& w) {
    if (!tile_maps(p, kWarpSize * pack, pack, args.maps) || o.max_candidates < 1 || o.max_det < 1) return false;
    const int64_t labels = o.multi_label ? p.num_classes : 1;
    args.keys_per_tile = static_cast<int32_t>(kWarpSize * pack * labels);
    const int64_t most = args.maps.anchors * labels;
    if (kWarpSize * pack * labels > INT32_MAX) return false;
    args.max_candidates = static_cast<int32_t>(o.max_candidates < most ? o.max_candidates : most);
    args.sorted_capacity = 0;
    if (args.max_candidates > kSharedKeys) {
        int64_t padded = kSharedKeys;
        while (padded < args.max_candidates) padded *= 2;
        if (padded > INT32_MAX) return false;
        args.sorted_capacity = static_cast<int32_t>(padded);
    }
    const auto batch = static_cast<std::size_t>(p.batch), tiles = static_cast<std::size_t>(args.maps.tiles);
    std::size_t at = 0;
    const auto take = [&](std::size_t count, std::size_t element) {
        const std::size_t start = at;
        at += (count * element + 255) / 256 * 256;
        return start;
    };
    w.counts = take(batch * tiles, sizeof(int32_t));
    w.boxes = take(batch * static_cast<std::size_t>(args.maps.anchors), sizeof(Pack<float, 4>));
    w.keys = take(batch * tiles * static_cast<std::size_t>(args.keys_per_tile), sizeof(uint64_t));
    w.sorted = take(batch * static_cast<std::size_t>(args.sorted_capacity), sizeof(uint64_t));
    w.bytes = at;
    return true;
}

template <class T>
cudaError_t launch_filter(const DetectArgs& args, int pack, cudaStream_t stream) {
    const unsigned blocks = static_cast<unsigned>(args.maps.tiles * args.maps.batch);
    const unsigned warps = args.maps.num_classes >= 32 ? kFilterWarps : args.maps.num_classes >= 8 ? 4 : 2;
    const dim3 block(kWarpSize, warps);
    return pack == 2 ? launch(filter_kernel<T, 2>, blocks, block, sizeof(FilterStorage<2>), stream, args)
                     : launch(filter_kernel<T, 4>, blocks, block, sizeof(FilterStorage<4>), stream, args);
}

}  // namespace

std::size_t detect_workspace_bytes(const HeadParams& p, const DetectOptions& o) noexcept {
    // Pointers are not known yet where this is asked; only sizes matter.
    HeadParams sizes = p;
    for (int i = 0; i < p.num_levels && i < kMaxLevels; ++i) {
        alignas(16) static const float somewhere[4] = {};
        sizes.levels[i].box = sizes.levels[i].cls = somewhere;
        sizes.levels[i].obj = nullptr;
    }
    std::size_t bytes = 0;
    for (int pack : {2, 4}) {  // either may be chosen for a smaller batch or level
        DetectArgs args{};
        Workspace w{};
        if (!lay_out(sizes, o, pack, args, w)) return 0;
        bytes = w.bytes > bytes ? w.bytes : bytes;
    }
    return bytes > 0 ? bytes : 256;
}

cudaError_t detect_cuda(const HeadParams& p, const DetectOptions& o, const float* thresholds, const DetectOutputs& out,
                        void* workspace, std::size_t workspace_bytes, cudaStream_t stream) noexcept {
    DetectArgs args{};
    Workspace w{};
    const int pack = pack_of(p);
    if (!lay_out(p, o, pack, args, w)) return cudaErrorInvalidValue;
    if (p.batch == 0) return cudaSuccess;
    const auto aligned = [](const void* x, std::size_t to) { return reinterpret_cast<std::uintptr_t>(x) % to == 0; };
    if (out.num_dets == nullptr || out.boxes == nullptr || out.scores == nullptr || out.classes == nullptr ||
        workspace == nullptr || workspace_bytes < w.bytes || !aligned(workspace, 256) || !aligned(out.boxes, 16) ||
        !aligned(out.num_dets, 4) || !aligned(out.scores, 4) || !aligned(out.classes, 4) || !aligned(out.dropped, 4) ||
        !aligned(thresholds, 4))
        return cudaErrorInvalidValue;
    auto* base = static_cast<unsigned char*>(workspace);
    args.counts = reinterpret_cast<int32_t*>(base + w.counts);
    args.boxes = reinterpret_cast<Pack<float, 4>*>(base + w.boxes);
    args.keys = reinterpret_cast<uint64_t*>(base + w.keys);
    args.sorted = reinterpret_cast<uint64_t*>(base + w.sorted);
    args.logit_threshold = logit_threshold(o.conf);
    args.score_threshold = score_threshold(o.conf);
    args.iou = o.iou;
    args.thresholds = thresholds;
    args.class_mask = o.class_mask;
    args.multi_label = o.multi_label;
    args.class_agnostic = o.class_agnostic;
    args.max_det = o.max_det;
    args.out = out;
    const cudaError_t error = p.dtype == DType::kFloat32 ? launch_filter<float>(args, pack, stream)
                                                         : launch_filter<uint16_t>(args, pack, stream);
    if (error != cudaSuccess) return error;
    return launch(select_kernel, static_cast<unsigned>(p.batch), kSelectThreads, sizeof(SelectStorage), stream, args);
}

}  // namespace dhead
