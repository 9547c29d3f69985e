// Dense decode of one block, over lane type F (see cpu_kernels.inl.h).
#pragma once

#include "cpu_view.inl.h"

namespace dhead {
inline namespace DHEAD_ISA {
namespace {

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

}  // namespace
}  // namespace DHEAD_ISA
}  // namespace dhead
