// The second launch of detect: one image per block. It gathers the candidates' keys, keeps the first max_candidates of
// them (radix selection where there are more), sorts them, and runs greedy NMS over chunks of 64.
//
// Where threads claim places with an atomic, only the place depends on who came first, and the keys are sorted
// afterwards. So the result is the same on every run, and the same as the CPU code's.
#include "detect.cuh"

namespace dhead {
namespace {

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
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

}  // namespace

cudaError_t launch_select(const DetectArgs& args, cudaStream_t stream) {
    return launch(select_kernel, static_cast<unsigned>(args.maps.batch), kSelectThreads, sizeof(SelectStorage), stream,
                  args);
}

}  // namespace dhead
