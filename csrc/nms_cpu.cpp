// From candidates to detections: order, limit, greedy NMS.
#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu_common.h"
#include "dhead/check.h"
#include "dhead/decode.h"
#include "dhead/nms.h"
#include "dhead/parallel.h"

namespace dhead {
namespace cpu {
namespace {

template <class T>
void room(std::vector<T>& v, int64_t size) {
    if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
}

// Groups of kept boxes that `count` candidates in up to `segments` segments can need.
int64_t most_groups(int64_t count, int64_t segments, int32_t lanes) {
    return (count + std::min(count, segments) * (lanes - 1)) / lanes + 1;
}

// Sorts keys whose low halves ascend: by the high half alone, stably. Returns where the result lies.
uint64_t* radix_sort(uint64_t* keys, uint64_t* swap, int64_t count) {
    constexpr int kBits = 11;
    constexpr uint32_t kMask = (1U << kBits) - 1U;
    for (int shift = 32; shift < 64; shift += kBits) {
        uint32_t places[kMask + 1U] = {};
        for (int64_t i = 0; i < count; ++i) ++places[(keys[i] >> shift) & kMask];
        uint32_t sum = 0;
        bool trivial = false;
        for (uint32_t& p : places) {
            const uint32_t here = p;
            trivial = trivial || here == count;
            p = sum;
            sum += here;
        }
        if (trivial) continue;
        for (int64_t i = 0; i < count; ++i) swap[places[(keys[i] >> shift) & kMask]++] = keys[i];
        std::swap(keys, swap);
    }
    return keys;
}

// Candidates of one image of decoded boxes.
void collect(const DecodedBoxes& in, const DetectOptions& options, float threshold, int32_t image, OwnedList& list) {
    list.count = 0;
    list.box_count = 0;
    for (int32_t a = 0; a < in.num_anchors; ++a) {
        const size_t anchor = static_cast<size_t>(image) * static_cast<size_t>(in.num_anchors) + static_cast<size_t>(a);
        const float* scores = in.scores + anchor * static_cast<size_t>(in.num_classes);
        const float* p = in.boxes + anchor * 4U;
        BestClass best = no_class();
        for (int32_t c = 0; c < in.num_classes; ++c) best = better_class(best, scores[c], c);
        if (!(best.logit > threshold) || !is_finite(Box{p[0], p[1], p[2], p[3]})) continue;
        const auto wanted = [&](int32_t c) { return options.class_mask == nullptr || options.class_mask[c] != 0U; };
        const int32_t before = list.count;
        reserve(list, int64_t{list.count} + (options.multi_label ? in.num_classes : 1), int64_t{list.box_count} + 1);
        if (options.multi_label) {
            for (int32_t c = 0; c < in.num_classes; ++c) {
                if (scores[c] > threshold && wanted(c)) {
                    list.candidates[list.count++] = {ordered_bits(scores[c]), c, list.box_count};
                }
            }
        } else if (wanted(best.index)) {
            list.candidates[list.count++] = {ordered_bits(best.logit), best.index, list.box_count};
        }
        if (list.count == before) continue;
        std::memcpy(list.boxes + 4 * static_cast<size_t>(list.box_count++), p, 4 * sizeof(float));
    }
}

}  // namespace

void ImageScratch::prepare(int64_t candidates, int32_t num_classes, int32_t lanes, const DetectOptions& options) {
    const int64_t ordered = std::min<int64_t>(candidates, options.max_candidates);
    room(keys, candidates);
    room(swap, candidates);
    room(classes, candidates);
    room(sources, candidates);
    room(boxes, 4 * ordered);
    room(segment, ordered);
    room(segment_count, num_classes);
    room(segment_begin, num_classes);
    room(segment_used, num_classes);
    room(kept, most_groups(ordered, num_classes, lanes) * 5 * lanes);
    room(keep, ordered);
}

void finish_image(const Kernels& kernels, const OwnedList* lists, int64_t num_lists, int32_t num_classes,
                  bool value_is_logit, const DetectOptions& options, int32_t image, const DetectOutputs& out,
                  ImageScratch& s) {
    constexpr int64_t kSortByComparison = 1024;
    int64_t total = 0;
    for (int64_t l = 0; l < num_lists; ++l) total += lists[l].count;
    if (total > std::numeric_limits<int32_t>::max()) throw InvalidArgument("too many candidates in one image");
    s.prepare(total, num_classes, kernels.lanes, options);

    uint32_t position = 0;
    for (int64_t l = 0; l < num_lists; ++l) {
        const CandidateList& list = lists[l];
        for (int32_t i = 0; i < list.count; ++i, ++position) {
            const Candidate& c = list.candidates[i];
            s.keys[position] = static_cast<uint64_t>(~c.ordered) << 32 | position;
            s.classes[position] = c.cls;
            s.sources[position] = list.boxes + 4 * static_cast<size_t>(c.box);
        }
    }
    uint64_t* keys = s.keys.data();
    if (total <= kSortByComparison) {
        std::sort(keys, keys + total);
    } else {
        keys = radix_sort(keys, s.swap.data(), total);
    }
    const auto count = static_cast<int32_t>(std::min<int64_t>(total, options.max_candidates));
    const auto row = static_cast<size_t>(image);
    if (out.dropped != nullptr) out.dropped[row] = static_cast<int32_t>(total) - count;

    const int32_t segments = options.class_agnostic ? 1 : num_classes;
    std::fill_n(s.segment_count.begin(), segments, 0);
    std::fill_n(s.segment_used.begin(), segments, 0);
    for (int32_t i = 0; i < count; ++i) {
        const uint32_t from = candidate_position(keys[i]);
        std::memcpy(&s.boxes[4 * static_cast<size_t>(i)], s.sources[from], 4 * sizeof(float));
        const int32_t segment = options.class_agnostic ? 0 : s.classes[from];
        s.segment[static_cast<size_t>(i)] = segment;
        ++s.segment_count[static_cast<size_t>(segment)];
    }
    int32_t group = 0;
    for (int32_t c = 0; c < segments; ++c) {
        s.segment_begin[static_cast<size_t>(c)] = group;
        group += (s.segment_count[static_cast<size_t>(c)] + kernels.lanes - 1) / kernels.lanes;
    }
    const int32_t kept = kernels.nms({s.boxes.data(), s.segment.data(), s.segment_begin.data(), s.segment_used.data(),
                                      s.kept.data(), count, options.max_det, options.iou},
                                     s.keep.data());

    const auto k = static_cast<size_t>(options.max_det);
    float* boxes = out.boxes + row * k * 4U;
    float* scores = out.scores + row * k;
    int32_t* classes = out.classes + row * k;
    for (int32_t i = 0; i < kept; ++i) {
        const int32_t from = s.keep[static_cast<size_t>(i)];
        std::memcpy(boxes + 4 * static_cast<size_t>(i), &s.boxes[4 * static_cast<size_t>(from)], 4 * sizeof(float));
        scores[i] = candidate_value(keys[from]);
        classes[i] = s.classes[candidate_position(keys[from])];
    }
    if (value_is_logit) kernels.sigmoid(scores, scores, kept);
    std::fill(boxes + 4 * static_cast<size_t>(kept), boxes + 4 * k, 0.F);
    std::fill(scores + kept, scores + k, 0.F);
    std::fill(classes + kept, classes + k, -1);
    out.num_dets[row] = kept;
}

}  // namespace cpu

void nms_cpu(const DecodedBoxes& in, const DetectOptions& options, const DetectOutputs& out,
             const CpuOptions& cpu_options) {
    cpu::check_detect(options, out);
    DHEAD_CHECK(in.batch >= 0 && in.num_anchors >= 0 && in.num_classes >= 1, "a size is out of range");
    DHEAD_CHECK((in.boxes != nullptr && in.scores != nullptr) || in.batch == 0 || in.num_anchors == 0,
                "the boxes or scores are missing");
    const cpu::Kernels& kernels = cpu::kernels_for(cpu_options.simd);
    const float threshold = score_threshold(options.conf);
    struct Scratch {
        cpu::OwnedList list;
        cpu::ImageScratch image;
    };
    thread_local std::vector<Scratch> own;
    std::vector<Scratch>& scratch = own;  // the caller's, also for the threads that help
    if (scratch.size() < static_cast<size_t>(in.batch)) scratch.resize(static_cast<size_t>(in.batch));
    const int64_t bytes = int64_t{in.batch} * in.num_anchors * (in.num_classes + 4) * int64_t{sizeof(float)};
    parallel_for(in.batch, cpu::threads_for(cpu_options, bytes), [&](int64_t b) {
        Scratch& mine = scratch[static_cast<size_t>(b)];
        cpu::collect(in, options, threshold, static_cast<int32_t>(b), mine.list);
        cpu::finish_image(kernels, &mine.list, 1, in.num_classes, false, options, static_cast<int32_t>(b), out,
                          mine.image);
    });
}

}  // namespace dhead
