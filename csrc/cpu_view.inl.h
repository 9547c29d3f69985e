// A block of anchors as the CPU kernels see it, over lane type F (see cpu_kernels.inl.h).
#pragma once

#include "cpu_kernels.h"
#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

using cpu::Block;
using cpu::Candidate;
using cpu::CandidateList;
using cpu::DetectRule;
using cpu::kMaxBlock;
using cpu::NmsInput;

constexpr int kTile = 16;                    // classes stored together: one cache line of scores
constexpr int kPadded = kMaxBlock + kLanes;  // room for a whole last vector
constexpr float kMinusInf = -__builtin_inff();

inline int smaller(int a, int b) { return a < b ? a : b; }

// `n` < kLanes elements, zeros after them.
template <class T>
DHEAD_HD F load_first(const T* p, int n) {
    T lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
template <bool kFull, class T>
DHEAD_HD F load_up_to(const T* p, int n) {
    return kFull ? load(p) : load_first(p, n);
}

// One block's maps, with the rows that belong to it.
template <class T>
struct BlockView {
    const T* box;  // row r at box + r * area
    const T* cls;
    const T* obj;
    size_t area;
    int count;
    int width;
    int begin;
    float stride;
    float unit;
};

template <class T>
BlockView<T> view_of(const HeadParams& head, const Block& block) {
    const LevelMaps& level = head.levels[block.level];
    const size_t area = static_cast<size_t>(level.height) * static_cast<size_t>(level.width);
    const size_t image = static_cast<size_t>(block.image);
    BlockView<T> v;
    v.box = static_cast<const T*>(level.box) + image * area * 4U * static_cast<size_t>(head.bins) + block.begin;
    v.cls = static_cast<const T*>(level.cls) + image * area * static_cast<size_t>(head.num_classes) + block.begin;
    v.obj = level.obj == nullptr ? nullptr : static_cast<const T*>(level.obj) + image * area + block.begin;
    v.area = area;
    v.count = block.end - block.begin;
    v.width = level.width;
    v.begin = block.begin;
    v.stride = level.stride;
    v.unit = head.pixel_distance ? 1.F : level.stride;
    return v;
}

// out[i] = sigmoid(in[i]); `out` has room for a whole last vector.
template <class T>
void sigmoid_row(const T* in, int count, float* out) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, sigmoid(load(in + i)));
    if (i < count) store(out + i, sigmoid(load_first(in + i, count - i)));
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
