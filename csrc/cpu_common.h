// What decode_cpu.cpp and nms_cpu.cpp share. Compiled for the baseline only.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu_kernels.h"
#include "dhead/decode_cpu.h"

namespace dhead {
namespace cpu {

// The table for a level's name (null: the best one). Throws InvalidArgument.
const Kernels& kernels_for(const char* simd);

// The number of threads meant by `options`, for work that reads `bytes`: small work is not worth waking others for.
int32_t threads_for(const CpuOptions& options, int64_t bytes);

void check_head(const HeadParams& head);
void check_detect(const DetectOptions& options, const DetectOutputs& out);

// The anchors of one image cut into blocks, each level into equal ones: as long as they may be, but short enough for
// `threads` threads to end at about the same time.
void blocks_of(const HeadParams& head, int32_t threads, std::vector<Block>& blocks);

// Owns a CandidateList's memory.
struct OwnedList : CandidateList {
    OwnedList() = default;
    OwnedList(const OwnedList&) = delete;
    OwnedList& operator=(const OwnedList&) = delete;
    OwnedList(OwnedList&& other) noexcept;
    ~OwnedList();
};

// Working memory of one image's sort and NMS.
struct ImageScratch {
    std::vector<uint64_t> keys;
    std::vector<uint64_t> swap;
    std::vector<int32_t> classes;       // of the merged candidates
    std::vector<const float*> sources;  // their boxes
    std::vector<float> boxes;           // [n, 4], in order
    std::vector<int32_t> segment;
    std::vector<int32_t> segment_count;
    std::vector<int32_t> segment_begin;
    std::vector<int32_t> segment_used;
    std::vector<float> kept;
    std::vector<int32_t> keep;

    // Room for `candidates`, so that finishing an image does not allocate.
    void prepare(int64_t candidates, int32_t num_classes, int32_t lanes, const DetectOptions& options);
};

// Merges the lists of one image (in order of anchor), orders, suppresses, and writes the image's rows of `out`.
// `value_is_logit`: the score is the sigmoid of the ordering value.
void finish_image(const Kernels& kernels, const OwnedList* lists, int64_t num_lists, int32_t num_classes,
                  bool value_is_logit, const DetectOptions& options, int32_t image, const DetectOutputs& out,
                  ImageScratch& scratch);

}  // namespace cpu
}  // namespace dhead
