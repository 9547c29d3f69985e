// Images in, detections out: a plan of form raw and the decode that follows it, on the same stream where the CUDA
// kernels were linked in, else on the CPU; or a plan whose own outputs are detections.
#pragma once

#include <cstdint>
#include <vector>

#include "dhead/params.h"
#include "engine.h"
#include "sidecar.h"

namespace dhead::trt {

struct Detections {
    int batch = 0, max_det = 0;
    std::vector<int32_t> num;      // [B]
    std::vector<float> boxes;      // [B, K, 4] xyxy, pixels of the network input
    std::vector<float> scores;     // [B, K]
    std::vector<int32_t> classes;  // [B, K]; -1 in unused rows
    std::vector<int32_t> dropped;  // [B] candidates beyond max_candidates; empty where the plan itself detects
};

// Runs once and waits. `options.class_mask` is host memory; options are the plan's own where it gives detections.
// Throws InputError (shapes; a plan of form native or decoded), DheadError.
Detections detect(const Engine& engine, const Sidecar& sidecar, const std::vector<Array>& inputs,
                  const DetectOptions& options = {});

}  // namespace dhead::trt
