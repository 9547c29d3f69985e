// The CPU kernels over lane type F. Each decode_cpu_<level>.cpp defines DHEAD_ISA, includes its simd/<level>.h, then
// this. No templates of the standard library here: they would be compiled for this instruction set, and the linker may
// pick that copy for the whole program.
#pragma once

#include "cpu_decode.inl.h"
#include "cpu_detect.inl.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

// ------------------------------------------------------------------------------------------------------------ NMS

int32_t nms(const NmsInput& in, int32_t* keep) {
    constexpr size_t kGroup = 5U * kLanes;
    const F iou(in.iou);
    int32_t kept = 0;
    for (int32_t i = 0; i < in.count && kept < in.max_det; ++i) {
        const float* p = in.boxes + 4 * static_cast<size_t>(i);
        const Box box = {p[0], p[1], p[2], p[3]};
        const float area = area_of(box);
        const BoxOf<F> tested = {F(box.x1), F(box.y1), F(box.x2), F(box.y2)};
        const F tested_area(area);
        const int32_t segment = in.segment[i];
        const int32_t used = in.segment_used[segment];
        float* groups = in.kept + static_cast<size_t>(in.segment_begin[segment]) * kGroup;
        uint32_t hit = 0;
        for (int32_t g = 0; g * kLanes < used && hit == 0U; ++g) {
            const float* q = groups + static_cast<size_t>(g) * kGroup;
            const BoxOf<F> other = {load(q), load(q + kLanes), load(q + 2 * kLanes), load(q + 3 * kLanes)};
            hit = suppresses(other, load(q + 4 * kLanes), tested, tested_area, iou);
        }
        if (hit != 0U) continue;
        float* q = groups + static_cast<size_t>(used / kLanes) * kGroup;
        const int lane = used % kLanes;
        if (lane == 0) {  // a new group: its empty lanes overlap nothing
            for (int k = 0; k < 5; ++k) store(q + k * kLanes, F(0.F));
            store(q, F(__builtin_inff()));
            store(q + 2 * kLanes, F(kMinusInf));
        }
        q[lane] = box.x1;
        q[kLanes + lane] = box.y1;
        q[2 * kLanes + lane] = box.x2;
        q[3 * kLanes + lane] = box.y2;
        q[4 * kLanes + lane] = area;
        in.segment_used[segment] = used + 1;
        keep[kept++] = i;
    }
    return kept;
}

void sigmoid_array(const float* in, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, sigmoid(load(in + i)));
    for (; i < count; ++i) out[i] = sigmoid(in[i]);
}

// ------------------------------------------------------------------------------------------------------ benchmark

// Eight rows at a time, as the filter of detect reads them: faster than row after row.
template <class T>
F max_of_rows(const T* p, size_t area, int rows, int count, F m) {
    constexpr int kRows = 8;
    F other[kRows] = {m, m, m, m, m, m, m, m};
    int r = 0;
    for (; r + kRows <= rows; r += kRows, p += kRows * area) {
        for (int i = 0; i + kLanes <= count; i += kLanes) {
            DHEAD_UNROLL(8)
            for (int k = 0; k < kRows; ++k) {
                other[k] = max_of(load(p + static_cast<size_t>(k) * area + i), other[k]);
            }
        }
    }
    for (; r < rows; ++r, p += area) {
        for (int i = 0; i + kLanes <= count; i += kLanes) other[0] = max_of(load(p + i), other[0]);
    }
    for (int k = 1; k < kRows; ++k) other[0] = max_of(other[k], other[0]);
    return other[0];
}

template <class T>
float read_block(const HeadParams& head, const Block& block, bool boxes) {
    const BlockView<T> v = view_of<T>(head, block);
    F m = max_of_rows(v.cls, v.area, head.num_classes, v.count, F(kMinusInf));
    if (v.obj != nullptr) m = max_of_rows(v.obj, v.area, 1, v.count, m);
    if (boxes) m = max_of_rows(v.box, v.area, 4 * head.bins, v.count, m);
    float lanes[kLanes];
    store(lanes, m);
    float top = lanes[0];
    for (int i = 1; i < kLanes; ++i) top = max_of(lanes[i], top);
    return top;
}

float read_block_any(const HeadParams& head, const Block& block, bool boxes) {
    return head.dtype == DType::kFloat16 ? read_block<uint16_t>(head, block, boxes)
                                         : read_block<float>(head, block, boxes);
}

constexpr cpu::Kernels table(const char* name) {
    return {name, kLanes, decode_block_any, detect_block_any, nms, sigmoid_array, read_block_any};
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
