// What one instruction set must provide to decode_cpu.cpp and nms_cpu.cpp: plain functions over one block of anchors.
// One table per level; cpu_kernels.inl.h is compiled once for each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dhead/params.h"

namespace dhead {
namespace cpu {

// Most anchors per block: its class maps (80 classes: 320 KiB) stay in the second-level cache while they are looked at
// again, and its distances in the first.
constexpr int kMaxBlock = 1024;

// Anchors [begin, end) of one level of one image, end - begin <= kMaxBlock.
struct Block {
    int32_t image;
    int32_t level;
    int32_t begin;
    int32_t end;
    int64_t first_anchor;  // of `begin`, counted over all levels
};

// When an anchor (or an anchor's class, with multi_label) becomes a candidate.
struct DetectRule {
    float threshold;  // on the best class's logit; with objectness on the score
    bool objectness;
    bool multi_label;
    const uint8_t* class_mask;  // [C] or null
};

struct Candidate {
    uint32_t ordered;  // ordered_bits of the logit, or of the score with objectness
    int32_t cls;
    int32_t box;  // its box in `boxes`
};

// Candidates of one block (or image), in order of anchor, then class.
struct CandidateList {
    Candidate* candidates = nullptr;
    float* boxes = nullptr;  // [box_count, 4]
    int32_t count = 0;
    int32_t box_count = 0;
    int32_t capacity = 0;
    int32_t box_capacity = 0;
};

// Makes room for `candidates` and `boxes` in all, keeping what is there. Throws std::bad_alloc.
void reserve(CandidateList& list, int64_t candidates, int64_t boxes);

// Greedy NMS over candidates in order. The kept boxes of segment s lie in groups of `lanes`, from group
// segment_begin[s].
struct NmsInput {
    const float* boxes;            // [count, 4], in order
    const int32_t* segment;        // [count]: only candidates of the same segment suppress each other
    const int32_t* segment_begin;  // [segments]
    int32_t* segment_used;         // [segments], zeros
    float* kept;                   // [groups, 5, lanes]
    int32_t count;
    int32_t max_det;
    float iou;
};

struct Kernels {
    const char* name;
    int32_t lanes;
    void (*decode_block)(const HeadParams& head, const Block& block, const DecodeOutputs& out, bool stream);
    void (*detect_block)(const HeadParams& head, const Block& block, const DetectRule& rule, CandidateList& list);
    // Writes the places of the kept candidates, returns how many.
    int32_t (*nms)(const NmsInput& in, int32_t* keep);
    void (*sigmoid)(const float* in, float* out, int64_t count);
    // Largest element of the block's maps: what reading them costs (benchmarks only).
    float (*read_block)(const HeadParams& head, const Block& block, bool boxes);
};

const Kernels& kernels_scalar();
#if defined(__x86_64__) || defined(_M_X64)
const Kernels& kernels_sse2();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#elif defined(__aarch64__)
const Kernels& kernels_neon();
#endif

}  // namespace cpu
}  // namespace dhead
