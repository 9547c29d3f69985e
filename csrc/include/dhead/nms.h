// NMS over boxes that are already decoded, with the options and the order of detect_cpu.
#pragma once

#include "dhead/decode_cpu.h"
#include "dhead/params.h"

namespace dhead {

struct DecodedBoxes {
    const float* boxes = nullptr;   // [B, A, 4] xyxy
    const float* scores = nullptr;  // [B, A, C]
    int32_t batch = 0;
    int32_t num_anchors = 0;
    int32_t num_classes = 0;
};

// Candidates are anchors (or, with multi_label, anchors' classes) with score > conf and a finite box, by falling score.
// Throws InvalidArgument, std::bad_alloc.
void nms_cpu(const DecodedBoxes& in, const DetectOptions& options, const DetectOutputs& out,
             const CpuOptions& cpu = {});

}  // namespace dhead
