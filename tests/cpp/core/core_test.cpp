// decode, detect and NMS against plain code written from the contract, on every SIMD level.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "dhead/check.h"
#include "dhead/decode_cpu.h"
#include "dhead/nms.h"
#include "random_head.h"

namespace {

// Outputs in memory of exactly their size.
struct Decoded {
    std::unique_ptr<float[]> boxes;
    std::unique_ptr<float[]> scores;
};

Decoded decode(const RandomHead& head, const dhead::CpuOptions& cpu) {
    Decoded d{std::unique_ptr<float[]>(new float[static_cast<size_t>(head.num_boxes())]),
              std::unique_ptr<float[]>(new float[static_cast<size_t>(head.num_scores())])};
    std::fill_n(d.boxes.get(), head.num_boxes(), -12345.F);
    std::fill_n(d.scores.get(), head.num_scores(), -12345.F);
    dhead::decode_cpu(head.params, {d.boxes.get(), d.scores.get()}, cpu);
    return d;
}

struct Detected {
    std::vector<int32_t> num_dets, classes, dropped;
    std::vector<float> boxes, scores;
    dhead::DetectOutputs outputs;

    Detected(int32_t batch, int32_t max_det)
        : num_dets(static_cast<size_t>(batch), -7),
          classes(static_cast<size_t>(batch * max_det), -7),
          dropped(static_cast<size_t>(batch), -7),
          boxes(static_cast<size_t>(batch * max_det) * 4, -7.F),
          scores(static_cast<size_t>(batch * max_det), -7.F) {
        outputs = {num_dets.data(), boxes.data(), scores.data(), classes.data(), dropped.data()};
    }
    bool operator==(const Detected& o) const {
        return num_dets == o.num_dets && classes == o.classes && dropped == o.dropped && boxes == o.boxes &&
               scores == o.scores;
    }
};

bool same_bits(const float* a, const float* b, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (dhead::float_bits(a[i]) != dhead::float_bits(b[i]) && (a[i] == a[i] || b[i] == b[i])) return false;
    }
    return true;
}

double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

double expectation(const std::vector<float>& map, int64_t first, int64_t step, int bins) {
    const auto at = [&](int j) { return static_cast<double>(map[static_cast<size_t>(first + j * step)]); };
    if (bins == 1) return at(0);
    double top = at(0);
    for (int j = 1; j < bins; ++j) top = std::max(top, at(j));
    double total = 0.0;
    double weighted = 0.0;
    for (int j = 0; j < bins; ++j) {
        total += std::exp(at(j) - top);
        weighted += j * std::exp(at(j) - top);
    }
    return weighted / total;
}

// Where the decode is off by more than it may be; the maps are finite.
int64_t wrong_elements(const RandomHead& head, const Decoded& d) {
    const dhead::HeadParams& p = head.params;
    int64_t wrong = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
        int64_t anchor = b * head.anchors();
        for (size_t l = 0; l < head.box.size(); ++l) {
            const dhead::LevelMaps& level = p.levels[l];
            const int64_t area = int64_t{level.height} * level.width;
            const double unit = p.pixel_distance ? 1.0 : static_cast<double>(level.stride);
            for (int64_t a = 0; a < area; ++a, ++anchor) {
                for (int side = 0; side < 4; ++side) {
                    const int64_t first = ((b * 4 + side) * p.bins) * area + a;
                    const double distance = expectation(head.box[l], first, area, p.bins) * unit;
                    const double cell = static_cast<double>(side % 2 == 0 ? a % level.width : a / level.width);
                    const double centre = (cell + 0.5) * static_cast<double>(level.stride);
                    // A float32 expectation is good to about 6e-7 of the distance, whatever adds it up.
                    const double limit = 2e-4 * std::max(1.0, std::fabs(distance) / 256.0);
                    const double want = side < 2 ? centre - distance : centre + distance;
                    wrong += std::fabs(d.boxes[static_cast<size_t>(anchor * 4 + side)] - want) > limit;
                }
                const double weight =
                    level.obj == nullptr ? 1.0
                                         : sigmoid(static_cast<double>(head.obj[l][static_cast<size_t>(b * area + a)]));
                for (int64_t c = 0; c < p.num_classes; ++c) {
                    const auto z =
                        static_cast<double>(head.cls[l][static_cast<size_t>((b * p.num_classes + c) * area + a)]);
                    const double want = sigmoid(z) * weight;
                    wrong += std::fabs(d.scores[static_cast<size_t>(anchor * p.num_classes + c)] - want) > 1e-6;
                }
            }
        }
    }
    return wrong;
}

struct Found {
    float key;
    int64_t anchor;
    int32_t cls;
};

// Detections by the rules, out of the dense decode's bits.
Detected detect_plainly(const RandomHead& head, const Decoded& d, const dhead::DetectOptions& o) {
    const dhead::HeadParams& p = head.params;
    Detected out(p.batch, o.max_det);
    const bool objectness = p.levels[0].obj != nullptr;
    const double limit = o.conf <= 0.0 ? -INFINITY : o.conf >= 1.0 ? INFINITY : std::log(o.conf / (1.0 - o.conf));
    for (int64_t b = 0; b < p.batch; ++b) {
        std::vector<Found> found;
        int64_t base = 0;
        for (size_t l = 0; l < head.cls.size(); ++l) {
            const int64_t area = int64_t{p.levels[l].height} * p.levels[l].width;
            for (int64_t a = 0; a < area; ++a) {
                const int64_t anchor = base + a;
                const float* box = &d.boxes[static_cast<size_t>((b * head.anchors() + anchor) * 4)];
                if (!std::isfinite(box[0] + box[1] + box[2] + box[3])) continue;
                const auto logit = [&](int64_t c) {
                    const float z = head.cls[l][static_cast<size_t>((b * p.num_classes + c) * area + a)];
                    return z == z ? z : -INFINITY;
                };
                const auto score = [&](int64_t c) {
                    return d.scores[static_cast<size_t>((b * head.anchors() + anchor) * p.num_classes + c)];
                };
                int32_t best = 0;
                for (int32_t c = 1; c < p.num_classes; ++c) best = logit(c) > logit(best) ? c : best;
                for (int32_t c = 0; c < p.num_classes; ++c) {
                    if (!o.multi_label && c != best) continue;
                    if (o.class_mask != nullptr && o.class_mask[c] == 0) continue;
                    const float key = objectness ? score(c) : logit(c);
                    if (static_cast<double>(key) > (objectness ? o.conf : limit)) found.push_back({key, anchor, c});
                }
            }
            base += area;
        }
        std::stable_sort(found.begin(), found.end(), [](const Found& x, const Found& y) { return x.key > y.key; });
        const auto most = static_cast<size_t>(o.max_candidates);
        const auto row = static_cast<size_t>(b);
        out.dropped[row] = found.size() > most ? static_cast<int32_t>(found.size() - most) : 0;
        if (found.size() > most) found.resize(most);
        std::vector<const float*> kept;
        std::vector<int32_t> kept_classes;
        const size_t k = static_cast<size_t>(o.max_det);
        for (const Found& f : found) {
            if (kept.size() == k) break;
            const float* x = &d.boxes[static_cast<size_t>((b * head.anchors() + f.anchor) * 4)];
            const auto area = [](const float* y) { return std::max(y[2] - y[0], 0.F) * std::max(y[3] - y[1], 0.F); };
            bool free = true;
            for (size_t i = 0; i < kept.size() && free; ++i) {
                if (!o.class_agnostic && kept_classes[i] != f.cls) continue;
                const float* y = kept[i];
                const float w = std::max(std::min(x[2], y[2]) - std::max(x[0], y[0]), 0.F);
                const float h = std::max(std::min(x[3], y[3]) - std::max(x[1], y[1]), 0.F);
                const float inter = w * h;
                free = !(inter > o.iou * ((area(x) + area(y)) - inter));
            }
            if (!free) continue;
            const size_t at = row * k + kept.size();
            std::copy(x, x + 4, &out.boxes[at * 4]);
            out.scores[at] = d.scores[static_cast<size_t>((b * head.anchors() + f.anchor) * p.num_classes + f.cls)];
            out.classes[at] = f.cls;
            kept.push_back(x);
            kept_classes.push_back(f.cls);
        }
        out.num_dets[row] = static_cast<int32_t>(kept.size());
        for (size_t i = kept.size(); i < k; ++i) {
            std::fill_n(&out.boxes[(row * k + i) * 4], 4, 0.F);
            out.scores[row * k + i] = 0.F;
            out.classes[row * k + i] = -1;
        }
    }
    return out;
}

std::vector<HeadShape> shapes() {
    std::vector<HeadShape> all;
    for (const int classes : {1, 3, 15, 16, 17, 33, 80}) {
        for (const int bins : {1, 2, 16, 17, 32}) {
            HeadShape s;
            s.num_classes = classes;
            s.bins = bins;
            const size_t n = all.size();
            s.batch = 1 + static_cast<int>(n % 2);
            s.half = n % 3 == 1;
            s.objectness = n % 4 == 2;
            s.pixel = n % 5 == 3;
            s.sizes = n % 2 == 0 ? std::vector<std::pair<int, int>>{{9, 13}, {5, 7}, {1, 3}}
                                 : std::vector<std::pair<int, int>>{{1, 1}, {33, 1}, {16, 16}};
            all.push_back(s);
        }
    }
    HeadShape big;  // several blocks per level
    big.num_classes = 5;
    big.bins = 4;
    big.sizes = {{47, 49}, {32, 32}};
    all.push_back(big);
    return all;
}

}  // namespace

TEST(decode_is_right_and_every_level_gives_the_same_bits) {
    uint64_t seed = 1;
    for (const HeadShape& shape : shapes()) {
        const RandomHead head = make_head(shape, seed++);
        const Decoded scalar = decode(head, {1, "scalar"});
        EXPECT_EQUAL(wrong_elements(head, scalar), 0);
        for (const std::string& simd : dhead::simd_levels()) {
            const Decoded other = decode(head, {3, simd.c_str()});
            EXPECT(same_bits(other.boxes.get(), scalar.boxes.get(), head.num_boxes()));
            EXPECT(same_bits(other.scores.get(), scalar.scores.get(), head.num_scores()));
        }
    }
}

TEST(detect_is_the_dense_decode_filtered) {
    uint64_t seed = 100;
    int64_t detections = 0;
    for (HeadShape shape : shapes()) {
        shape.special = seed % 3 == 0 ? 0.01F : 0.F;
        const RandomHead head = make_head(shape, seed++);
        std::vector<uint8_t> mask(static_cast<size_t>(shape.num_classes), 1);
        mask[seed % mask.size()] = 0;
        dhead::DetectOptions o;
        o.conf = seed % 5 == 0 ? 0.0 : 0.3;
        o.iou = 0.4F;
        o.max_candidates = seed % 4 == 0 ? 20 : 4096;
        o.max_det = seed % 3 == 0 ? 10 : 300;
        o.class_agnostic = seed % 2 == 0;
        o.multi_label = seed % 7 == 0;
        o.class_mask = seed % 6 == 0 ? mask.data() : nullptr;
        const Decoded dense = decode(head, {1, "scalar"});
        const Detected want = detect_plainly(head, dense, o);
        detections += std::accumulate(want.num_dets.begin(), want.num_dets.end(), int64_t{0});
        for (const std::string& simd : dhead::simd_levels()) {
            Detected got(shape.batch, o.max_det);
            dhead::detect_cpu(head.params, o, got.outputs, {3, simd.c_str()});
            EXPECT(got == want);
        }
    }
    EXPECT(detections > 1000);
}

TEST(nms_of_decoded_boxes_is_detect_with_objectness) {
    // With objectness candidates are ordered by score, as decoded boxes are.
    HeadShape shape;
    shape.batch = 3;
    shape.num_classes = 6;
    shape.objectness = true;
    shape.sizes = {{20, 20}, {10, 10}};
    const RandomHead head = make_head(shape, 77);
    const Decoded dense = decode(head, {});
    dhead::DetectOptions o;
    o.multi_label = true;
    o.max_candidates = 500;
    Detected want(shape.batch, o.max_det);
    Detected got(shape.batch, o.max_det);
    dhead::detect_cpu(head.params, o, want.outputs);
    dhead::nms_cpu({dense.boxes.get(), dense.scores.get(), shape.batch, static_cast<int32_t>(head.anchors()), 6}, o,
                   got.outputs);
    EXPECT(got == want);
    EXPECT(want.num_dets[0] > 0);
}

TEST(sort_of_many_candidates) {
    HeadShape shape;
    shape.bins = 1;
    shape.num_classes = 2;
    shape.sizes = {{90, 90}};
    shape.cls_low = 0.F;
    const RandomHead head = make_head(shape, 5);
    const Decoded dense = decode(head, {});
    for (const int most : {1, 1024, 1025, 8099, 8100, 30000}) {
        dhead::DetectOptions o;
        o.max_candidates = most;
        o.max_det = 100;
        Detected got(1, o.max_det);
        dhead::detect_cpu(head.params, o, got.outputs);
        EXPECT(got == detect_plainly(head, dense, o));
        EXPECT_EQUAL(got.dropped[0], std::max(0, 8100 - most));
    }
}

TEST(one_output_alone) {
    HeadShape shape;
    shape.num_classes = 17;
    shape.sizes = {{9, 9}};
    const RandomHead head = make_head(shape, 3);
    const Decoded both = decode(head, {});
    std::vector<float> boxes(static_cast<size_t>(head.num_boxes()));
    std::vector<float> scores(static_cast<size_t>(head.num_scores()));
    dhead::decode_cpu(head.params, {boxes.data(), nullptr});
    dhead::decode_cpu(head.params, {nullptr, scores.data()});
    EXPECT(same_bits(boxes.data(), both.boxes.get(), head.num_boxes()));
    EXPECT(same_bits(scores.data(), both.scores.get(), head.num_scores()));
}

TEST(nothing_to_do) {
    HeadShape shape;
    shape.sizes = {{4, 4}};
    RandomHead head = make_head(shape, 3);
    dhead::DetectOptions o;
    head.params.batch = 0;
    Detected none(0, 1);
    std::vector<float> x(1);
    std::vector<int32_t> i(1);
    none.outputs = {i.data(), x.data(), x.data(), i.data(), i.data()};
    dhead::detect_cpu(head.params, o, none.outputs);
    dhead::decode_cpu(head.params, {x.data(), x.data()});
    head.params.batch = 1;
    head.params.levels[0].height = 0;
    o.max_det = 1;
    Detected empty(1, 1);
    dhead::detect_cpu(head.params, o, empty.outputs);
    EXPECT_EQUAL(empty.num_dets[0], 0);
    EXPECT_EQUAL(empty.classes[0], -1);
    EXPECT_EQUAL(empty.dropped[0], 0);
}

TEST(bad_arguments_throw) {
    HeadShape shape;
    shape.num_classes = 3;
    shape.sizes = {{4, 4}, {2, 2}};
    const RandomHead good = make_head(shape, 3);
    const auto refused = [&](const std::function<void(dhead::HeadParams&)>& change) {
        dhead::HeadParams p = good.params;
        change(p);
        std::vector<float> x(1000);
        EXPECT_THROW(dhead::decode_cpu(p, {x.data(), x.data()}), dhead::InvalidArgument);
    };
    refused([](dhead::HeadParams& p) { p.num_levels = 0; });
    refused([](dhead::HeadParams& p) { p.num_levels = 7; });
    refused([](dhead::HeadParams& p) { p.batch = -1; });
    refused([](dhead::HeadParams& p) { p.num_classes = 0; });
    refused([](dhead::HeadParams& p) { p.bins = 65; });
    refused([](dhead::HeadParams& p) { p.levels[1].cls = nullptr; });
    refused([](dhead::HeadParams& p) { p.levels[1].obj = p.levels[1].cls; });
    refused([](dhead::HeadParams& p) { p.levels[0].height = -1; });
    refused([](dhead::HeadParams& p) { p.levels[0].height = p.levels[0].width = 1 << 20; });
    refused([](dhead::HeadParams& p) { p.dtype = static_cast<dhead::DType>(9); });
    Detected out(1, 300);
    const auto option = [&](const std::function<void(dhead::DetectOptions&)>& change) {
        dhead::DetectOptions o;
        change(o);
        EXPECT_THROW(dhead::detect_cpu(good.params, o, out.outputs), dhead::InvalidArgument);
    };
    option([](dhead::DetectOptions& o) { o.conf = NAN; });
    option([](dhead::DetectOptions& o) { o.iou = NAN; });
    option([](dhead::DetectOptions& o) { o.iou = -0.5F; });
    option([](dhead::DetectOptions& o) { o.max_det = 0; });
    option([](dhead::DetectOptions& o) { o.max_candidates = 0; });
    dhead::DetectOutputs missing = out.outputs;
    missing.scores = nullptr;
    EXPECT_THROW(dhead::detect_cpu(good.params, {}, missing), dhead::InvalidArgument);
    EXPECT_THROW(dhead::detect_cpu(good.params, {}, out.outputs, {1, "no such level"}), dhead::InvalidArgument);
}

TEST(reading_the_maps_finds_the_largest_element) {
    HeadShape shape;
    shape.num_classes = 7;
    shape.bins = 3;
    shape.sizes = {{16, 16}};
    const RandomHead head = make_head(shape, 11);
    const float cls = *std::max_element(head.cls[0].begin(), head.cls[0].end());
    const float box = *std::max_element(head.box[0].begin(), head.box[0].end());
    for (const std::string& simd : dhead::simd_levels()) {
        EXPECT_EQUAL(dhead::read_maps_cpu(head.params, false, {2, simd.c_str()}), cls);
        EXPECT_EQUAL(dhead::read_maps_cpu(head.params, true, {2, simd.c_str()}), std::max(cls, box));
    }
}
