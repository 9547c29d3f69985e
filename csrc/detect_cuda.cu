// Detect: the anchors that pass the threshold, in order, through greedy NMS. Two launches for the whole batch.
#include "detect.cuh"
#include "dhead/launch.h"

namespace dhead {
namespace {

// Enough small tiles to fill a GPU beat packs of twice the width: below this many anchors, packs of two.
constexpr int64_t kSmallBatch = 64 * 1024;

int pack_of(const HeadParams& p) {
    int64_t anchors = 0;
    for (int i = 0; i < p.num_levels && i < kMaxLevels; ++i)
        anchors += static_cast<int64_t>(p.levels[i].height) * p.levels[i].width;
    return anchors < kSmallBatch && p.batch * anchors < kSmallBatch ? 2 : 4;
}

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
    const cudaError_t error = launch_filter(args, p.dtype, pack, stream);
    return error != cudaSuccess ? error : launch_select(args, stream);
}

}  // namespace dhead
