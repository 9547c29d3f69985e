// The letterbox on every SIMD level against its definition in letterbox.h, sample by sample.
#include "dhead/letterbox.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "dhead/decode_cpu.h"
#include "random_head.h"

namespace {

using harness::Random;

constexpr uint8_t kPad = 114;

// An image in memory of exactly its size, so that a sanitizer sees the first byte beyond.
struct Picture {
    std::unique_ptr<uint8_t[]> bytes;
    dhead::LetterboxImage image;
};

enum Format { kRgb, kBgr, kRotated, kRgba, kArgb, kPlanar, kGrey, kFlipped, kUpsideDown, kWide, kMixed, kFormats };

Picture make_picture(Format format, int height, int width, Random& random) {
    const int64_t h = height, w = width;
    int64_t step = 3, first = 0;
    std::array<int64_t, 3> channel = {0, 1, 2};
    switch (format) {
        case kBgr:
            channel = {2, 1, 0};
            break;
        case kRotated:
            channel = {1, 2, 0};
            break;
        case kRgba:
            step = 4;
            break;
        case kArgb:
            step = 4, first = 1;
            break;
        case kPlanar:
            step = 1, channel = {0, h * w, 2 * h * w};
            break;
        case kGrey:
            step = 1, channel = {0, 0, 0};
            break;
        case kWide:
            step = 6, channel = {0, 3, 5};
            break;
        case kMixed:
            channel = {0, 2, 2};
            break;
        default:
            break;
    }
    int64_t row = step * w + random.below(3);  // a crop's rows do not touch
    if (format == kPlanar) row = w;
    // The first sample to the last, without a byte around.
    const int64_t reach = std::max({channel[0], channel[1], channel[2]});
    const auto size = static_cast<size_t>(row * (h - 1) + step * (w - 1) + reach + 1);
    Picture p;
    p.bytes.reset(new uint8_t[size]);
    for (size_t i = 0; i < size; ++i) p.bytes[i] = static_cast<uint8_t>(random.next() >> 32);
    p.image = {p.bytes.get() - first, row, step, {channel[0] + first, channel[1] + first, channel[2] + first}};
    if (format == kFlipped) {
        p.image.data += step * (w - 1);
        p.image.pixel_stride = -step;
    }
    if (format == kUpsideDown) {
        p.image.data += row * (h - 1);
        p.image.row_stride = -row;
    }
    return p;
}

uint16_t half_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits == 0 ? uint16_t{0}
                     : static_cast<uint16_t>((bits + 0xFFF + ((bits >> 13) & 1) - ((127U - 15U) << 23)) >> 13);
}

// 0 … 255, [3, height, width].
std::vector<uint8_t> by_definition(const dhead::LetterboxImage& image, const dhead::LetterboxGeometry& g) {
    std::vector<uint8_t> out(static_cast<size_t>(3 * g.height * g.width), kPad);
    for (int y = 0; y < g.resized_height; ++y) {
        const dhead::LetterboxTap ty = dhead::letterbox_tap(y, g.source_height, g.resized_height);
        for (int x = 0; x < g.resized_width; ++x) {
            const dhead::LetterboxTap tx = dhead::letterbox_tap(x, g.source_width, g.resized_width);
            for (int c = 0; c < 3; ++c) {
                const auto row = [&](int32_t index) {
                    const uint8_t* p = image.data + index * image.row_stride + image.channel_offset[c];
                    return dhead::letterbox_row(p[tx.index0 * image.pixel_stride], p[tx.index1 * image.pixel_stride],
                                                tx.weight0, tx.weight1);
                };
                out[static_cast<size_t>((c * g.height + g.top + y) * g.width + g.left + x)] = static_cast<uint8_t>(
                    dhead::letterbox_column(row(ty.index0), row(ty.index1), ty.weight0, ty.weight1));
            }
        }
    }
    return out;
}

// Elements that are not what they must be; the output has not a byte to spare, and comes poisoned.
template <class T>
int wrong(const Picture& picture, const dhead::LetterboxGeometry& g, const std::vector<uint8_t>& want, int threads,
          const char* level) {
    std::unique_ptr<T[]> out(new T[want.size()]);
    std::memset(out.get(), 0xFF, want.size() * sizeof(T));
    const auto dtype = sizeof(T) == 2 ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    dhead::letterbox_cpu(picture.image, g, kPad, dtype, out.get(), threads, level);
    int count = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        const float unit = dhead::letterbox_unit(want[i]);
        if constexpr (sizeof(T) == 2) {
            count += out[i] != half_of(unit);
        } else {
            count += std::memcmp(&out[i], &unit, sizeof unit) != 0;
        }
    }
    return count;
}

void check(Format format, int height, int width, int canvas_height, int canvas_width, Random& random) {
    const Picture picture = make_picture(format, height, width, random);
    const dhead::LetterboxGeometry g = dhead::letterbox_geometry(height, width, canvas_height, canvas_width,
                                                                 random.below(4) != 0, random.below(3) == 0, 32);
    const std::vector<uint8_t> want = by_definition(picture.image, g);
    for (const std::string& level : dhead::simd_levels()) {
        const int threads = 1 + random.below(3);
        const int single = wrong<float>(picture, g, want, threads, level.c_str());
        const int half = wrong<uint16_t>(picture, g, want, threads, level.c_str());
        if (single + half == 0) continue;
        std::cerr << level << ", format " << format << ", " << height << " x " << width << " on " << g.height << " x "
                  << g.width << ": " << single << " of float, " << half << " of half are wrong\n";
        EXPECT_EQUAL(single + half, 0);
    }
}

}  // namespace

TEST(letterbox_of_every_byte_on_every_level) {
    Random random(1);
    for (const int width : {256, 512}) {  // as it is, and resized
        Picture p = make_picture(kRgb, 1, 256, random);
        for (int i = 0; i < 768; ++i) p.bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(i / 3);
        const auto g = dhead::letterbox_geometry(1, 256, width, width, true, false, 32);
        const std::vector<uint8_t> want = by_definition(p.image, g);
        for (const std::string& level : dhead::simd_levels()) {
            EXPECT_EQUAL(wrong<float>(p, g, want, 1, level.c_str()), 0);
            EXPECT_EQUAL(wrong<uint16_t>(p, g, want, 1, level.c_str()), 0);
        }
    }
}

TEST(letterbox_is_its_definition_on_every_level) {
    Random random(2);
    for (int turn = 0; turn < 12; ++turn) {
        for (int format = 0; format < kFormats; ++format) {
            check(static_cast<Format>(format), 1 + random.below(90), 1 + random.below(90), 32 * (1 + random.below(4)),
                  32 * (1 + random.below(4)), random);
        }
    }
    for (int width = 1; width <= 40; ++width) {  // every end of a row, as it is and resized
        const auto format = static_cast<Format>(width % kFormats);
        check(kRgb, 3, width, 64, width, random);
        check(kRgba, 2, width, 64, width, random);
        check(format, 4, width, 64, 64, random);
        check(kRgb, 70, 3 * width, 96, width, random);
    }
}

TEST(letterbox_refuses_an_unknown_level) {
    Random random(3);
    const Picture p = make_picture(kRgb, 4, 4, random);
    const auto g = dhead::letterbox_geometry(4, 4, 8, 8, true, false, 32);
    std::vector<float> out(192);
    EXPECT_THROW(dhead::letterbox_cpu(p.image, g, kPad, dhead::DType::kFloat32, out.data(), 1, "mmx"),
                 std::invalid_argument);
}

// What a Detector does, without an engine: images in, their boxes out, by eight threads that share the pool.
TEST(eight_threads_letterbox_and_detect) {
    constexpr int kImages = 6;
    struct Frame {
        Picture picture;
        dhead::LetterboxGeometry geometry;
        RandomHead head;
        std::vector<float> canvas, boxes;
    };
    const auto run = [](const Frame& frame, int threads, std::vector<float>& canvas, std::vector<float>& boxes) {
        const auto& g = frame.geometry;
        canvas.resize(static_cast<size_t>(3 * g.height * g.width));
        dhead::letterbox_cpu(frame.picture.image, g, kPad, dhead::DType::kFloat32, canvas.data(), threads);
        std::vector<int32_t> n(1), classes(300), dropped(1);
        std::vector<float> scores(300);
        boxes.assign(1200, 0.F);
        dhead::DetectOptions options;
        options.conf = 0.9;
        dhead::detect_cpu(frame.head.params, options,
                          {n.data(), boxes.data(), scores.data(), classes.data(), dropped.data()}, {threads, nullptr});
    };
    Random random(4);
    std::vector<Frame> frames(kImages);
    for (int i = 0; i < kImages; ++i) {
        Frame& frame = frames[static_cast<size_t>(i)];
        const int height = 40 + random.below(200), width = 40 + random.below(200);
        frame.picture = make_picture(static_cast<Format>(i), height, width, random);
        frame.geometry = dhead::letterbox_geometry(height, width, 160, 160, true, i % 2 == 1, 32);
        HeadShape shape;
        shape.num_classes = 12;
        shape.sizes = {{20, 20 + i}, {10, 10}};
        frame.head = make_head(shape, static_cast<uint64_t>(i) + 1);
        run(frame, 1, frame.canvas, frame.boxes);
    }
    std::atomic<int> different{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 8; ++c) {
        callers.emplace_back([&, c] {
            std::vector<float> canvas, boxes;
            for (int turn = 0; turn < 30; ++turn) {
                const Frame& frame = frames[static_cast<size_t>((c + turn) % kImages)];
                run(frame, 1 + (c + turn) % 3, canvas, boxes);
                different += canvas != frame.canvas || boxes != frame.boxes;
            }
        });
    }
    for (std::thread& t : callers) t.join();
    EXPECT_EQUAL(different.load(), 0);
}
