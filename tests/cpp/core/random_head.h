// Heads with random maps, each in memory of exactly its size, so that a sanitizer sees the first byte beyond.
#pragma once

#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "dhead/decode.h"
#include "dhead/params.h"
#include "harness.h"

struct RandomHead {
    dhead::HeadParams params;
    std::vector<std::unique_ptr<uint8_t[]>> memory;
    std::vector<std::vector<float>> box, cls, obj;  // the same maps as floats

    int64_t anchors() const { return params.num_anchors(); }
    int64_t num_boxes() const { return params.batch * anchors() * 4; }
    int64_t num_scores() const { return params.batch * anchors() * params.num_classes; }
};

inline uint16_t small_half(harness::Random& random) {  // any half between -32 and 32, subnormals too
    return static_cast<uint16_t>((random.below(2) << 15) | random.below(0x5000));
}

struct HeadShape {
    int batch = 1;
    int num_classes = 1;
    int bins = 16;
    std::vector<std::pair<int, int>> sizes;
    bool half = false;
    bool objectness = false;
    bool pixel = false;
    float special = 0.F;  // share of NaN and infinities
    float cls_low = -6.F;
    float cls_high = 3.F;
};

inline RandomHead make_head(const HeadShape& shape, uint64_t seed) {
    harness::Random random(seed);
    RandomHead head;
    dhead::HeadParams& p = head.params;
    p.num_levels = static_cast<int32_t>(shape.sizes.size());
    p.batch = shape.batch;
    p.num_classes = shape.num_classes;
    p.bins = shape.bins;
    p.pixel_distance = shape.pixel;
    p.dtype = shape.half ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    const auto fill = [&](int64_t channels, int64_t area, float low, float high, std::vector<float>& floats) {
        const auto count = static_cast<size_t>(shape.batch * channels * area);
        floats.resize(count);
        std::unique_ptr<uint8_t[]> bytes(new uint8_t[count * (shape.half ? 2 : 4)]);
        for (size_t i = 0; i < count; ++i) {
            float x = random.uniform(low, high);
            if (shape.special > 0.F && random.uniform(0.F, 1.F) < shape.special) {
                constexpr float kInf = std::numeric_limits<float>::infinity();
                const float specials[] = {kInf, -kInf, std::numeric_limits<float>::quiet_NaN(), 0.F, -0.F, 1e4F};
                x = specials[random.below(6)];
            }
            if (shape.half) {
                uint16_t h = small_half(random);
                if (x != x) h = 0x7e00;
                if (x - x != 0.F && x == x) h = x > 0.F ? 0x7c00 : 0xfc00;
                std::memcpy(bytes.get() + 2 * i, &h, 2);
                floats[i] = dhead::half_to_float(h);
            } else {
                std::memcpy(bytes.get() + 4 * i, &x, 4);
                floats[i] = x;
            }
        }
        head.memory.push_back(std::move(bytes));
        return head.memory.back().get();
    };
    head.box.resize(shape.sizes.size());
    head.cls.resize(shape.sizes.size());
    head.obj.resize(shape.sizes.size());
    for (size_t i = 0; i < shape.sizes.size(); ++i) {
        dhead::LevelMaps& level = p.levels[i];
        level.height = shape.sizes[i].first;
        level.width = shape.sizes[i].second;
        level.stride = static_cast<float>(8 << i);
        const int64_t area = int64_t{level.height} * level.width;
        level.box = fill(4 * shape.bins, area, shape.bins == 1 ? 0.F : -4.F, 4.F, head.box[i]);
        level.cls = fill(shape.num_classes, area, shape.cls_low, shape.cls_high, head.cls[i]);
        if (shape.objectness) level.obj = fill(1, area, -2.F, 4.F, head.obj[i]);
    }
    return head;
}
