// What the parts of detect share: filter_cuda.cu finds the candidates, nms_cuda.cu orders them and runs NMS,
// detect_cuda.cu launches both.
#pragma once

#include "device.cuh"
#include "dhead/params.h"

namespace dhead {

// Up to so many candidates of an image are sorted in shared memory, more of them in the workspace.
constexpr int kSharedKeys = 4096;

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

// The tiles are 32 * pack anchors; pack is 2 or 4.
cudaError_t launch_filter(const DetectArgs& args, DType dtype, int pack, cudaStream_t stream);
cudaError_t launch_select(const DetectArgs& args, cudaStream_t stream);

}  // namespace dhead
