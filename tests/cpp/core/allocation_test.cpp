// Once warm, decode, detect, NMS and letterbox allocate nothing. Every operator new of the program is counted.
#include <atomic>
#include <cstdlib>
#include <new>

#include "dhead/decode_cpu.h"
#include "dhead/letterbox.h"
#include "dhead/nms.h"
#include "random_head.h"

#if !defined(DHEAD_SANITIZED)  // a sanitizer has its own operators

namespace {
std::atomic<int64_t> g_allocations{0};

void* counted(std::size_t size) {
    g_allocations.fetch_add(1, std::memory_order_relaxed);
    void* p = std::malloc(size == 0 ? 1 : size);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

TEST(steady_state_allocates_nothing) {
    for (const bool multi_label : {false, true}) {
        for (const int32_t threads : {1, 3}) {
            HeadShape shape;
            shape.num_classes = 20;
            shape.batch = 3;
            shape.sizes = {{48, 48}, {24, 24}};
            const RandomHead first = make_head(shape, 1);
            const RandomHead second = make_head(shape, 2);  // other survivors, in other blocks
            std::vector<float> boxes(static_cast<size_t>(first.num_boxes()));
            std::vector<float> scores(static_cast<size_t>(first.num_scores()));
            std::vector<int32_t> num_dets(3), classes(900), dropped(3);
            std::vector<float> det_boxes(3600), det_scores(900);
            dhead::DetectOptions options;
            options.multi_label = multi_label;
            options.conf = 0.4;
            const dhead::DetectOutputs out = {num_dets.data(), det_boxes.data(), det_scores.data(), classes.data(),
                                              dropped.data()};
            const dhead::CpuOptions cpu = {threads, nullptr};
            const auto anchors = static_cast<int32_t>(first.anchors());
            const std::vector<uint8_t> image(60 * 80 * 3, 7);
            const dhead::LetterboxGeometry geometry = dhead::letterbox_geometry(60, 80, 128, 128, true, false, 32);
            std::vector<float> canvas(3 * 128 * 128);
            const auto run = [&](const RandomHead& head) {
                dhead::letterbox_cpu({image.data(), 240, 3, {0, 1, 2}}, geometry, 114, dhead::DType::kFloat32,
                                     canvas.data(), threads);
                dhead::decode_cpu(head.params, {boxes.data(), scores.data()}, cpu);
                dhead::detect_cpu(head.params, options, out, cpu);
                dhead::nms_cpu({boxes.data(), scores.data(), 3, anchors, 20}, options, out, cpu);
            };
            run(first);
            if (multi_label) run(second);  // its lists grow with what was found; otherwise one call is enough
            run(first);
            const int64_t before = g_allocations.load();
            for (int turn = 0; turn < 20; ++turn) {
                run(first);
                run(second);
            }
            EXPECT_EQUAL(g_allocations.load() - before, 0);
            EXPECT(num_dets[0] > 0);
        }
    }
}

#endif
