// Plain parameters of the decode and detect steps: what the caller knows, and nothing else.
// Shared by the CPU code, the CUDA kernels, the TensorRT plugins and the bindings. No dependency but <cstdint>.
#pragma once

#include <cstdint>

namespace dhead {

constexpr int kMaxLevels = 6;
constexpr int kMaxBins = 64;

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1 };

// One pyramid level's raw maps, NCHW and contiguous. Anchor (x, y) has its centre at ((x + 1/2) s, (y + 1/2) s).
struct LevelMaps {
    const void* box = nullptr;  // [B, 4 * bins, H, W]: side-major (l, t, r, b), bins-minor
    const void* cls = nullptr;  // [B, C, H, W]: logits
    const void* obj = nullptr;  // [B, 1, H, W]: logits, or null where the head has no objectness
    int32_t height = 0;
    int32_t width = 0;
    float stride = 0.F;  // pixels of the network input per cell
};

// The raw maps of one batch. Anchors run level by level, row-major.
struct HeadParams {
    LevelMaps levels[kMaxLevels];
    int32_t num_levels = 0;
    int32_t batch = 0;
    int32_t num_classes = 0;
    int32_t bins = 0;             // 1: the value is the distance itself, no softmax
    bool pixel_distance = false;  // true: distances are pixels; false: they are in units of the level's stride
    DType dtype = DType::kFloat32;

    constexpr int32_t num_anchors() const {
        int32_t n = 0;
        for (int32_t i = 0; i < num_levels; ++i) n += levels[i].height * levels[i].width;
        return n;
    }
};

struct DecodeOutputs {
    float* boxes = nullptr;   // [B, A, 4] xyxy, pixels of the network input
    float* scores = nullptr;  // [B, A, C]
};

struct DetectOptions {
    double conf = 0.25;                   // keep where score > conf, tested on the logit
    float iou = 0.7F;                     // suppress where IoU > iou
    int32_t max_candidates = 4096;        // per image, before NMS, by (score, then lowest anchor, then lowest class)
    int32_t max_det = 300;                // K, per image, after NMS
    bool class_agnostic = false;          // one NMS over all classes
    bool multi_label = false;             // every class above conf is a candidate, not only the best
    const uint8_t* class_mask = nullptr;  // [C], non-zero = wanted; null = all. Applied after the best class is chosen:
                                          // an anchor whose best class is unwanted gives nothing.
};

struct DetectOutputs {
    int32_t* num_dets = nullptr;  // [B]
    float* boxes = nullptr;       // [B, K, 4]; unused rows are 0
    float* scores = nullptr;      // [B, K]; unused rows are 0
    int32_t* classes = nullptr;   // [B, K]; unused rows are -1
    int32_t* dropped = nullptr;   // [B] candidates beyond max_candidates, or null
};

}  // namespace dhead
