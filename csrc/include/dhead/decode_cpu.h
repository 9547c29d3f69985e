// Decode and detect on the CPU. Thread-safe; deterministic: the same bits for every number of threads and SIMD level.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dhead/params.h"

namespace dhead {

struct CpuOptions {
    int32_t threads = 0;         // 0: one per processor this process may use
    const char* simd = nullptr;  // one of simd_levels(); null: the best of them
};

// Names of the SIMD levels this machine can run, best last: "scalar", then "sse2", "avx2", "avx512" or "neon".
const std::vector<std::string>& simd_levels();

// Every anchor's box and scores. Either output may be null. Throws InvalidArgument, std::bad_alloc.
void decode_cpu(const HeadParams& head, const DecodeOutputs& out, const CpuOptions& cpu = {});

// The detections of every image: logit test, DFL of the survivors, deterministic order, greedy NMS. Working memory
// belongs to the calling thread and is kept for its next call. Throws InvalidArgument, std::bad_alloc.
void detect_cpu(const HeadParams& head, const DetectOptions& options, const DetectOutputs& out,
                const CpuOptions& cpu = {});

// Reads the maps once with the same blocks, threads and SIMD, and does nothing else: the floor of any decode. Returns
// the largest element. For benchmarks.
float read_maps_cpu(const HeadParams& head, bool boxes, const CpuOptions& cpu = {});

}  // namespace dhead
