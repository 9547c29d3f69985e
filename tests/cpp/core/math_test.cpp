// decode.h as a machine without SIMD sees it.
#include <cmath>
#include <limits>

#include "dhead/decode.h"
#include "harness.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST(exp2_is_accurate_and_ends_well) {
    double worst = 0.0;
    for (float y = -126.F; y <= 127.F; y += 1.F / 4096.F) {
        const double want = std::exp2(static_cast<double>(y));
        worst = std::fmax(worst, std::fabs(dhead::exp2_bounded(y) - want) / want);
    }
    EXPECT(worst < 2.0 * 1.2e-7);
    EXPECT_EQUAL(dhead::exp2_bounded(0.F), 1.F);
    EXPECT_EQUAL(dhead::exp2_bounded(-127.F), 0.F);
    EXPECT_EQUAL(dhead::exp2_bounded(-kInf), 0.F);
    EXPECT_EQUAL(dhead::exp2_bounded(128.F), kInf);
    EXPECT(std::isnan(dhead::exp2_bounded(kNaN)));
    float several[3] = {-1.F, 0.F, 3.F};
    dhead::exp2_each<3>(several);
    EXPECT_EQUAL(several[0], 0.5F);
    EXPECT_EQUAL(several[1], 1.F);
    EXPECT_EQUAL(several[2], 8.F);
}

TEST(sigmoid_is_accurate_and_rises) {
    float before = 0.F;
    double worst = 0.0;
    for (float z = -100.F; z <= 100.F; z += 1.F / 1024.F) {
        const float s = dhead::sigmoid(z);
        worst = std::fmax(worst, std::fabs(s - 1.0 / (1.0 + std::exp(-static_cast<double>(z)))));
        EXPECT(s >= before && s <= 1.F);
        before = s;
    }
    EXPECT(worst < 1.2e-7);
    EXPECT_EQUAL(dhead::sigmoid(0.F), 0.5F);
    EXPECT_EQUAL(dhead::sigmoid(-0.F), 0.5F);
    EXPECT_EQUAL(dhead::sigmoid(-kInf), 0.F);
    EXPECT_EQUAL(dhead::sigmoid(kInf), 1.F);
    EXPECT(std::isnan(dhead::sigmoid(kNaN)));
}

TEST(expectation_of_distributions) {
    const auto of = [](std::vector<float> z) {
        const auto at = [&](int j) { return z[static_cast<size_t>(j)]; };
        const float d = dhead::dfl_expectation<float>(static_cast<int>(z.size()), at);
        if (z.size() == 5) EXPECT(dhead::float_bits(d) == dhead::float_bits(dhead::dfl_expectation<float, 5>(5, at)));
        return d;
    };
    EXPECT_EQUAL(of({3.25F}), 3.25F);
    EXPECT_EQUAL(of({-kInf}), -kInf);  // one bin: the value itself
    EXPECT_EQUAL(of({1, 1, 1, 1, 1}), 2.F);
    EXPECT_EQUAL(of({0, 0, 1000, 0, 0}), 2.F);
    EXPECT_EQUAL(of({-kInf, -kInf, -kInf, 0, -kInf}), 3.F);
    EXPECT(std::isnan(of({kNaN, 0, 0, 0, 0})));
    EXPECT(std::isnan(of({0, 0, 0, 0, kNaN})));
    EXPECT(std::isnan(of({0, kInf, 0, 0, 0})));
    EXPECT(std::isnan(of({-kInf, -kInf, -kInf, -kInf, -kInf})));
}

TEST(the_threshold_is_the_last_float_that_fails) {
    EXPECT_EQUAL(dhead::logit_threshold(0.0), -kInf);
    EXPECT_EQUAL(dhead::logit_threshold(-1.0), -kInf);
    EXPECT_EQUAL(dhead::logit_threshold(1.0), kInf);
    EXPECT_EQUAL(dhead::logit_threshold(static_cast<double>(kNaN)), kInf);
    EXPECT_EQUAL(dhead::logit_threshold(0.5), 0.F);
    harness::Random random(1);
    for (int i = 0; i < 20000; ++i) {
        const double value = static_cast<double>(random.uniform(-4.F, 4.F)) * std::pow(10.0, random.below(60) - 50) +
                             1e-17 * random.below(9);
        const float t = dhead::floor_to_float(value);
        EXPECT(static_cast<double>(t) <= value);
        EXPECT(static_cast<double>(std::nextafter(t, kInf)) > value);
    }
    EXPECT_EQUAL(dhead::floor_to_float(0.0), 0.F);
    EXPECT(dhead::floor_to_float(-1e-300) < 0.F);
    EXPECT_EQUAL(dhead::floor_to_float(1e300), std::numeric_limits<float>::max());
}

TEST(keys_sort_by_value_then_position) {
    const float rising[] = {-kInf, -3e38F, -1.F, -1e-40F, 0.F, 1e-40F, 1.F, 3e38F, kInf};
    for (size_t i = 0; i + 1 < sizeof(rising) / sizeof(float); ++i) {
        EXPECT(dhead::ordered_bits(rising[i]) < dhead::ordered_bits(rising[i + 1]));
        EXPECT(dhead::candidate_key(rising[i + 1], 9) < dhead::candidate_key(rising[i], 1));  // the higher value first
        EXPECT_EQUAL(dhead::ordered_value(dhead::ordered_bits(rising[i])), rising[i]);
        EXPECT_EQUAL(dhead::candidate_value(dhead::candidate_key(rising[i], 7)), rising[i]);
        EXPECT_EQUAL(dhead::candidate_position(dhead::candidate_key(rising[i], 7)), 7U);
    }
    EXPECT_EQUAL(dhead::ordered_bits(-0.F), dhead::ordered_bits(0.F));
    EXPECT(dhead::candidate_key(1.F, 3) < dhead::candidate_key(1.F, 4));
    EXPECT(dhead::candidate_key(-0.F, 3) < dhead::candidate_key(0.F, 4));
}

TEST(best_class_rule) {
    const auto best = [](std::initializer_list<float> logits) {
        dhead::BestClass b = dhead::no_class();
        int32_t i = 0;
        for (const float z : logits) b = dhead::better_class(b, z, i++);
        return b.index;
    };
    EXPECT_EQUAL(best({1, 2, 2, 0}), 1);
    EXPECT_EQUAL(best({kNaN, -5, kNaN}), 1);
    EXPECT_EQUAL(best({-0.F, 0.F}), 0);
    EXPECT_EQUAL(best({kNaN, kNaN}), 0);
    EXPECT_EQUAL(best({1, kInf, kInf}), 1);
}

TEST(suppression) {
    const dhead::Box a = {0, 0, 2, 1};
    const dhead::Box b = {1, 0, 3, 1};  // IoU 1/3
    const auto hit = [](const dhead::Box& p, const dhead::Box& q, float iou) {
        return dhead::suppresses(p, dhead::area_of(p), q, dhead::area_of(q), iou);
    };
    EXPECT(hit(a, b, 0.33F));
    EXPECT(!hit(a, b, 0.34F));
    EXPECT(!hit(a, a, 1.F));
    EXPECT(hit(a, a, 0.999F));
    EXPECT(!hit(a, {5, 5, 6, 6}, 0.F));
    EXPECT(!hit({1, 1, 1, 1}, {1, 1, 1, 1}, 0.F));  // nothing overlaps without area
    EXPECT(!hit({2, 2, 1, 1}, {0, 0, 3, 3}, 0.F));  // nor inside out
    EXPECT_EQUAL(dhead::area_of(dhead::Box{2, 2, 1, 1}), 0.F);
    EXPECT(!dhead::is_finite(dhead::Box{0, 0, kInf, 0}));
    EXPECT(!dhead::is_finite(dhead::Box{kNaN, 0, 0, 0}));
    EXPECT(dhead::is_finite(a));
}

TEST(half_to_float_of_known_values) {
    EXPECT_EQUAL(dhead::half_to_float(0x3c00), 1.F);
    EXPECT_EQUAL(dhead::half_to_float(0xc000), -2.F);
    EXPECT_EQUAL(dhead::half_to_float(0x7bff), 65504.F);
    EXPECT_EQUAL(dhead::half_to_float(0x0001), 5.9604644775390625e-8F);
    EXPECT_EQUAL(dhead::half_to_float(0x03ff), 6.0975551605224609375e-5F);
    EXPECT_EQUAL(dhead::half_to_float(0x0400), 6.103515625e-5F);
    EXPECT_EQUAL(dhead::half_to_float(0x7c00), kInf);
    EXPECT_EQUAL(dhead::half_to_float(0xfc00), -kInf);
    EXPECT(std::isnan(dhead::half_to_float(0x7e01)));
    EXPECT_EQUAL(dhead::float_bits(dhead::half_to_float(0x8000)), 0x80000000U);
}
