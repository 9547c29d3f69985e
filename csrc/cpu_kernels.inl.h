// The CPU kernels over lane type F. Each decode_cpu_<level>.cpp defines DHEAD_ISA, includes its simd/<level>.h, then
// this. No templates of the standard library here: they would be compiled for this instruction set, and the linker may
// pick that copy for the whole program.
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

// ---------------------------------------------------------------------------------------------------------- boxes

template <int kBins, class T>
void distances_row(const T* in, size_t area, int bins, int count, float* out) {
    const int n = kBins != 0 ? kBins : bins;
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        store(out + i,
              dfl_expectation<F, kBins>(n, [&](int j) { return load(in + static_cast<size_t>(j) * area + i); }));
    }
    if (i < count) {
        store(out + i, dfl_expectation<F>(
                           n, [&](int j) { return load_first(in + static_cast<size_t>(j) * area + i, count - i); }));
    }
}

template <class T>
void distances_row(const T* in, size_t area, int bins, int count, float* out) {
    switch (bins) {  // the usual lengths unrolled; the same operations in the same order
        case 16:
            return distances_row<16>(in, area, bins, count, out);
        case 17:
            return distances_row<17>(in, area, bins, count, out);
        default:
            return distances_row<0>(in, area, bins, count, out);
    }
}

void centres(int begin, int count, int width, float stride, float* cx, float* cy) {
    int x = begin % width;
    int y = begin / width;
    for (int i = 0; i < count;) {
        const float row = anchor_centre(y, stride);
        const int run = smaller(width - x, count - i);
        for (int k = 0; k < run; ++k) {
            cx[i + k] = anchor_centre(x + k, stride);
            cy[i + k] = row;
        }
        i += run;
        x = 0;
        ++y;
    }
}

DHEAD_HD BoxOf<F> boxes_at(const float* cx, const float* cy, const float (*d)[kPadded], int i, F unit) {
    return box_from_distances(load(cx + i), load(cy + i), load(d[0] + i), load(d[1] + i), load(d[2] + i),
                              load(d[3] + i), unit);
}

template <class T>
void decode_boxes(const BlockView<T>& v, int bins, float* out) {
    alignas(64) float d[4][kPadded];
    alignas(64) float cx[kPadded];
    alignas(64) float cy[kPadded];
    for (int side = 0; side < 4; ++side) {
        distances_row(v.box + static_cast<size_t>(side) * static_cast<size_t>(bins) * v.area, v.area, bins, v.count,
                      d[side]);
    }
    centres(v.begin, v.count, v.width, v.stride, cx, cy);
    int i = 0;
    for (; i + kLanes <= v.count; i += kLanes) {
        const BoxOf<F> b = boxes_at(cx, cy, d, i, F(v.unit));
        store_interleaved4(out + 4 * i, b.x1, b.y1, b.x2, b.y2);
    }
    for (; i < v.count; ++i) {
        const Box b = box_from_distances(cx[i], cy[i], d[0][i], d[1][i], d[2][i], d[3][i], v.unit);
        out[4 * i] = b.x1;
        out[4 * i + 1] = b.y1;
        out[4 * i + 2] = b.x2;
        out[4 * i + 3] = b.y2;
    }
}

// --------------------------------------------------------------------------------------------------------- scores

// Scores of up to 16 classes of up to kLanes anchors, in ascending order of anchor. An incomplete tile spoils what
// comes after it, up to `end`: the caller writes that later.
template <bool kFull, bool kObj, class T>
DHEAD_HD void score_tile(const T* cls, size_t area, int classes, int n, const float* obj, float* out, size_t stride,
                         const float* end, bool stream) {
    F rows[kTile];
    const F weight = kObj ? load(obj) : F(1.F);
    if (kFull && classes == kTile) {
        DHEAD_UNROLL(16) for (int k = 0; k < kTile; ++k) rows[k] = load(cls + static_cast<size_t>(k) * area);
        DHEAD_UNROLL(2) for (int k = 0; k < kTile; k += 8) sigmoid_each<8>(rows + k);
        if (kObj) {
            DHEAD_UNROLL(16) for (int k = 0; k < kTile; ++k) rows[k] = mul(rows[k], weight);
        }
        return store_tile16(rows, out, stride, stream);
    }
    for (int k = 0; k < classes; ++k) {
        rows[k] = sigmoid(load_up_to<kFull>(cls + static_cast<size_t>(k) * area, n));
        if (kObj) rows[k] = mul(rows[k], weight);
    }
    for (int k = classes; k < kTile; ++k) rows[k] = F(0.F);
    alignas(64) float tile[kLanes * kTile];
    store_tile16(rows, tile, kTile, false);
    for (int i = 0; i < n; ++i, out += stride) {
        if (end - out >= kTile) {  // the copy of fixed length is much faster
            __builtin_memcpy(out, tile + i * kTile, kTile * sizeof(float));
        } else {
            for (int k = 0; k < classes; ++k) out[k] = tile[i * kTile + k];
        }
    }
}

template <bool kObj, class T>
void score_columns(const BlockView<T>& v, int first, int classes, int num_classes, const float* obj, float* out,
                   bool stream) {
    const size_t stride = static_cast<size_t>(num_classes);
    const T* cls = v.cls + static_cast<size_t>(first) * v.area;
    float* const end = out + static_cast<size_t>(v.count) * stride;
    int i = 0;
    for (; i + kLanes <= v.count; i += kLanes) {
        float* p = out + static_cast<size_t>(i) * stride + first;
        score_tile<true, kObj>(cls + i, v.area, classes, kLanes, kObj ? obj + i : nullptr, p, stride, end, stream);
    }
    if (i < v.count) {
        float* p = out + static_cast<size_t>(i) * stride + first;
        score_tile<false, kObj>(cls + i, v.area, classes, v.count - i, kObj ? obj + i : nullptr, p, stride, end, false);
    }
}

template <bool kObj, class T>
void decode_scores(const BlockView<T>& v, int num_classes, float* out, bool stream) {
    alignas(64) float weights[kObj ? kPadded : 1] = {};
    if (kObj) sigmoid_row(v.obj, v.count, weights);
    const float* obj = kObj ? weights : nullptr;
    // The incomplete tile first: it may spoil the classes after it, which are still to be written.
    const int whole = num_classes / kTile * kTile;
    if (whole < num_classes) score_columns<kObj>(v, whole, num_classes - whole, num_classes, obj, out, false);
    for (int c = 0; c < whole; c += kTile) score_columns<kObj>(v, c, kTile, num_classes, obj, out, stream);
}

template <class T>
void decode_block(const HeadParams& head, const Block& block, const DecodeOutputs& out, bool stream) {
    const BlockView<T> v = view_of<T>(head, block);
    const size_t anchor = static_cast<size_t>(block.image) * static_cast<size_t>(head.num_anchors()) +
                          static_cast<size_t>(block.first_anchor);
    if (out.boxes != nullptr) decode_boxes(v, head.bins, out.boxes + anchor * 4U);
    if (out.scores != nullptr) {
        float* scores = out.scores + anchor * static_cast<size_t>(head.num_classes);
        if (v.obj != nullptr) {
            decode_scores<true>(v, head.num_classes, scores, stream);
        } else {
            decode_scores<false>(v, head.num_classes, scores, stream);
        }
        if (stream) stream_fence();
    }
}

void decode_block_any(const HeadParams& head, const Block& block, const DecodeOutputs& out, bool stream) {
    if (head.dtype == DType::kFloat16) {
        decode_block<uint16_t>(head, block, out, stream);
    } else {
        decode_block<float>(head, block, out, stream);
    }
}

// ------------------------------------------------------------------------------------------------------ detection

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

template <class T>
F max_of_rows(const T* p, size_t area, int rows, int count, F m) {
    F other[4] = {m, m, m, m};
    for (int r = 0; r < rows; ++r, p += area) {
        int i = 0;
        for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
            for (int k = 0; k < 4; ++k) other[k] = max_of(load(p + i + k * kLanes), other[k]);
        }
        for (; i + kLanes <= count; i += kLanes) other[0] = max_of(load(p + i), other[0]);
    }
    return max_of(max_of(other[0], other[1]), max_of(other[2], other[3]));
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
