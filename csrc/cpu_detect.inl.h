// Candidates of one block, over lane type F (see cpu_kernels.inl.h).
#pragma once

#include "cpu_view.inl.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

DHEAD_HD float one(const float* p) { return *p; }
DHEAD_HD float one(const uint16_t* p) { return half_to_float(*p); }

// top[i] = the highest class logit of anchor i, NaN counting as -inf. Reads eight rows at a time.
template <class T>
void max_over_classes(const BlockView<T>& v, int num_classes, float* top) {
    constexpr int kRows = 8;
    for (int i = 0; i < v.count; i += kLanes) store(top + i, F(kMinusInf));
    int c = 0;
    for (; c + kRows <= num_classes; c += kRows) {
        const T* p = v.cls + static_cast<size_t>(c) * v.area;
        int i = 0;
        for (; i + kLanes <= v.count; i += kLanes) {
            F m = load(top + i);
            DHEAD_UNROLL(8)
            for (int k = 0; k < kRows; ++k) m = max_of(load(p + static_cast<size_t>(k) * v.area + i), m);
            store(top + i, m);
        }
        if (i < v.count) {
            F m = load(top + i);
            for (int k = 0; k < kRows; ++k) {
                m = max_of(load_first(p + static_cast<size_t>(k) * v.area + i, v.count - i), m);
            }
            store(top + i, m);
        }
    }
    for (; c < num_classes; ++c) {
        const T* p = v.cls + static_cast<size_t>(c) * v.area;
        int i = 0;
        for (; i + kLanes <= v.count; i += kLanes) store(top + i, max_of(load(p + i), load(top + i)));
        if (i < v.count) store(top + i, max_of(load_first(p + i, v.count - i), load(top + i)));
    }
}

// Anchors of the block whose value is above the threshold, ascending.
int above(const float* value, int count, float threshold, int32_t* out) {
    int n = 0;
    const F limit(threshold);
    for (int i = 0; i < count; i += kLanes) {
        uint32_t bits = greater(load(value + i), limit);
        if (count - i < kLanes) bits &= (1U << (count - i)) - 1U;
        for (; bits != 0U; bits &= bits - 1U) out[n++] = i + __builtin_ctz(bits);
    }
    return n;
}

// Boxes of up to kLanes anchors of the block, anywhere in it.
template <class T>
void boxes_of(const BlockView<T>& v, int bins, const int32_t* anchors, int n, Box* out) {
    alignas(64) float z[kMaxBins * kLanes];
    alignas(64) float d[4][kLanes];
    for (int side = 0; side < 4; ++side) {
        for (int j = 0; j < bins; ++j) {
            const T* row = v.box + static_cast<size_t>(side * bins + j) * v.area;
            for (int i = 0; i < kLanes; ++i) z[j * kLanes + i] = one(row + anchors[i < n ? i : 0]);
        }
        store(d[side], dfl_expectation<F>(bins, [&](int j) { return load(z + j * kLanes); }));
    }
    for (int i = 0; i < n; ++i) {
        const int cell = v.begin + anchors[i];
        out[i] = box_from_distances(anchor_centre(cell % v.width, v.stride), anchor_centre(cell / v.width, v.stride),
                                    d[0][i], d[1][i], d[2][i], d[3][i], v.unit);
    }
}

// The first class whose logit is the highest one.
template <class T>
int first_class_with(const T* cls, size_t area, int num_classes, float logit) {
    for (int c = 0; c < num_classes; ++c) {
        if (one(cls + static_cast<size_t>(c) * area) == logit) return c;
    }
    return 0;
}

template <class T>
void detect_block(const HeadParams& head, const Block& block, const DetectRule& rule, CandidateList& list) {
    const BlockView<T> v = view_of<T>(head, block);
    const int num_classes = head.num_classes;
    alignas(64) float top[kPadded];
    alignas(64) float obj[kPadded];
    alignas(64) float score[kPadded];
    int32_t anchors[kMaxBlock];
    list.count = 0;
    list.box_count = 0;

    if (rule.objectness) {  // a product of two numbers up to 1 is not above either
        sigmoid_row(v.obj, v.count, obj);
        if (above(obj, v.count, rule.threshold, anchors) == 0) return;
    }
    const float* value = top;
    if (rule.objectness && rule.multi_label) {
        value = obj;  // sigmoid is not quite monotone: another class may pass where the best one does not
    } else {
        max_over_classes(v, num_classes, top);
    }
    if (rule.objectness && !rule.multi_label) {
        for (int i = 0; i < v.count; i += kLanes) store(score + i, mul(sigmoid(load(top + i)), load(obj + i)));
        value = score;
    }
    const int found = above(value, v.count, rule.threshold, anchors);

    for (int first = 0; first < found; first += kLanes) {
        const int n = smaller(kLanes, found - first);
        Box boxes[kLanes];
        boxes_of(v, head.bins, anchors + first, n, boxes);
        for (int i = 0; i < n; ++i) {
            if (!is_finite(boxes[i])) continue;
            const int a = anchors[first + i];
            const T* cls = v.cls + a;
            const int before = list.count;
            if (rule.multi_label) {
                cpu::reserve(list, int64_t{list.count} + num_classes, int64_t{list.box_count} + 1);
                for (int c = 0; c < num_classes; ++c) {
                    if (rule.class_mask != nullptr && rule.class_mask[c] == 0U) continue;
                    float key = one(cls + static_cast<size_t>(c) * v.area);
                    if (rule.objectness) key = key == key ? mul(sigmoid(key), obj[a]) : kMinusInf;
                    if (!(key > rule.threshold)) continue;
                    list.candidates[list.count++] = {ordered_bits(key), c, list.box_count};
                }
            } else {
                const int c = first_class_with(cls, v.area, num_classes, top[a]);
                if (rule.class_mask != nullptr && rule.class_mask[c] == 0U) continue;
                cpu::reserve(list, int64_t{list.count} + 1, int64_t{list.box_count} + 1);
                list.candidates[list.count++] = {ordered_bits(value[a]), c, list.box_count};
            }
            if (list.count == before) continue;
            float* out = list.boxes + 4 * static_cast<size_t>(list.box_count++);
            out[0] = boxes[i].x1;
            out[1] = boxes[i].y1;
            out[2] = boxes[i].x2;
            out[3] = boxes[i].y2;
        }
    }
}

void detect_block_any(const HeadParams& head, const Block& block, const DetectRule& rule, CandidateList& list) {
    if (head.dtype == DType::kFloat16) {
        detect_block<uint16_t>(head, block, rule, list);
    } else {
        detect_block<float>(head, block, rule, list);
    }
}

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
