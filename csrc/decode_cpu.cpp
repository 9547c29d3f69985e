// Decode and detect on the CPU: cuts the maps into blocks and runs the kernels of the chosen SIMD level over them.
#include "dhead/decode_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "cpu_common.h"
#include "dhead/check.h"
#include "dhead/decode.h"
#include "dhead/parallel.h"

namespace dhead {
namespace cpu {
namespace {

std::vector<const Kernels*> find_levels() {
    std::vector<const Kernels*> levels = {&kernels_scalar()};
#if defined(__x86_64__)
    levels.push_back(&kernels_sse2());
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        levels.push_back(&kernels_avx2());
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            levels.push_back(&kernels_avx512());
        }
    }
#elif defined(__aarch64__)
    levels.push_back(&kernels_neon());
#endif
    return levels;
}

const std::vector<const Kernels*>& levels() {
    static const std::vector<const Kernels*> found = find_levels();
    return found;
}

int64_t element_size(const HeadParams& head) { return head.dtype == DType::kFloat16 ? 2 : 4; }

int64_t map_bytes(const HeadParams& head, bool boxes) {
    const int64_t rows = head.num_classes + (boxes ? 4 * int64_t{head.bins} : 0);
    return int64_t{head.batch} * head.num_anchors() * rows * element_size(head);
}

template <class T>
void grow(T*& data, int32_t& capacity, int32_t used, int64_t wanted, int64_t width) {
    if (wanted <= capacity) return;
    const int64_t larger = std::max(wanted, int64_t{capacity} * 2);
    if (larger > std::numeric_limits<int32_t>::max()) throw std::bad_alloc();
    T* moved = new T[static_cast<size_t>(larger * width)];
    if (used > 0) std::memcpy(moved, data, static_cast<size_t>(used * width) * sizeof(T));
    delete[] data;
    data = moved;
    capacity = static_cast<int32_t>(larger);
}

// Working memory of one caller; its next call finds it there.
struct DetectScratch {
    std::vector<Block> blocks;
    std::vector<OwnedList> lists;  // [batch, blocks]
    std::vector<ImageScratch> images;
    std::unique_ptr<std::atomic<int64_t>[]> remaining;  // blocks of each image still to come
    int32_t remaining_size = 0;
};

}  // namespace

void reserve(CandidateList& list, int64_t candidates, int64_t boxes) {
    grow(list.candidates, list.capacity, list.count, candidates, 1);
    grow(list.boxes, list.box_capacity, list.box_count, boxes, 4);
}

OwnedList::OwnedList(OwnedList&& other) noexcept : CandidateList(other) {
    static_cast<CandidateList&>(other) = CandidateList{};
}

OwnedList::~OwnedList() {
    delete[] candidates;
    delete[] boxes;
}

const Kernels& kernels_for(const char* simd) {
    if (simd == nullptr) return *levels().back();
    for (const Kernels* k : levels()) {
        if (std::string(simd) == k->name) return *k;
    }
    throw InvalidArgument("SIMD level \"" + std::string(simd) + "\" is not known, or this machine does not have it");
}

int32_t threads_for(const CpuOptions& options, int64_t bytes) {
    constexpr int64_t kBytesPerThread = 128 << 10;
    const int32_t wanted = options.threads > 0 ? options.threads : hardware_threads();
    return static_cast<int32_t>(std::min<int64_t>(wanted, std::max<int64_t>(1, bytes / kBytesPerThread)));
}

void check_head(const HeadParams& head) {
    DHEAD_CHECK(head.num_levels >= 1 && head.num_levels <= kMaxLevels, "num_levels is out of range");
    DHEAD_CHECK(head.batch >= 0, "batch is negative");
    DHEAD_CHECK(head.num_classes >= 1, "num_classes is out of range");
    DHEAD_CHECK(head.bins >= 1 && head.bins <= kMaxBins, "bins is out of range");
    DHEAD_CHECK(head.dtype == DType::kFloat32 || head.dtype == DType::kFloat16, "dtype is not known");
    int64_t anchors = 0;
    for (int32_t i = 0; i < head.num_levels; ++i) {
        const LevelMaps& level = head.levels[i];
        DHEAD_CHECK(level.height >= 0 && level.width >= 0, "a level has a negative size");
        anchors += int64_t{level.height} * level.width;
        DHEAD_CHECK(anchors <= std::numeric_limits<int32_t>::max(), "too many anchors");
        DHEAD_CHECK(
            (level.box != nullptr && level.cls != nullptr) || head.batch == 0 || level.height == 0 || level.width == 0,
            "a level has no maps");
        DHEAD_CHECK((level.obj != nullptr) == (head.levels[0].obj != nullptr), "some levels have objectness, some not");
    }
}

void check_detect(const DetectOptions& options, const DetectOutputs& out) {
    DHEAD_CHECK(options.conf == options.conf, "conf is NaN");
    DHEAD_CHECK(options.iou >= 0.F, "iou is negative or NaN");
    DHEAD_CHECK(options.max_candidates >= 1, "max_candidates is out of range");
    DHEAD_CHECK(options.max_det >= 1, "max_det is out of range");
    DHEAD_CHECK(out.num_dets != nullptr && out.boxes != nullptr && out.scores != nullptr && out.classes != nullptr,
                "an output is missing");
}

void blocks_of(const HeadParams& head, int32_t threads, std::vector<Block>& blocks) {
    constexpr int32_t kRound = 16;
    constexpr int32_t kLeast = 256;
    constexpr int64_t kTasksPerThread = 8;
    const int64_t share = int64_t{head.batch} * head.num_anchors() / (threads * kTasksPerThread);
    const auto most = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(share, kLeast), kMaxBlock));
    blocks.clear();
    int64_t first = 0;
    for (int32_t l = 0; l < head.num_levels; ++l) {
        const int32_t area = head.levels[l].height * head.levels[l].width;
        const int32_t parts = std::max(1, (area + most - 1) / most);
        const int32_t size = ((area + parts - 1) / parts + kRound - 1) / kRound * kRound;
        for (int32_t begin = 0; begin < area; begin += size) {
            blocks.push_back({0, l, begin, std::min(begin + size, area), first + begin});
        }
        first += area;
    }
}

}  // namespace cpu

const std::vector<std::string>& simd_levels() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> all;
        for (const cpu::Kernels* k : cpu::levels()) all.emplace_back(k->name);
        return all;
    }();
    return names;
}

void decode_cpu(const HeadParams& head, const DecodeOutputs& out, const CpuOptions& options) {
    // Scores that can not stay in a cache are better written past it.
    constexpr int64_t kStreamBytes = 16 << 20;
    cpu::check_head(head);
    const cpu::Kernels& kernels = cpu::kernels_for(options.simd);
    thread_local std::vector<cpu::Block> blocks;
    const int32_t threads = cpu::threads_for(options, cpu::map_bytes(head, true));
    cpu::blocks_of(head, threads, blocks);
    const auto per_image = static_cast<int64_t>(blocks.size());
    const int64_t score_bytes = int64_t{head.batch} * head.num_anchors() * head.num_classes * int64_t{sizeof(float)};
    const bool stream =
        score_bytes >= kStreamBytes && head.num_classes % 16 == 0 && reinterpret_cast<uintptr_t>(out.scores) % 64 == 0;
    const std::vector<cpu::Block>& shared = blocks;
    parallel_for(head.batch * per_image, threads, [&](int64_t task) {
        cpu::Block block = shared[static_cast<size_t>(task % per_image)];
        block.image = static_cast<int32_t>(task / per_image);
        kernels.decode_block(head, block, out, stream);
    });
}

void detect_cpu(const HeadParams& head, const DetectOptions& options, const DetectOutputs& out,
                const CpuOptions& cpu_options) {
    cpu::check_head(head);
    cpu::check_detect(options, out);
    const cpu::Kernels& kernels = cpu::kernels_for(cpu_options.simd);
    const bool objectness = head.levels[0].obj != nullptr;
    const double conf = std::min(std::max(options.conf, 0.0), 1.0);
    const cpu::DetectRule rule = {objectness ? score_threshold(conf) : logit_threshold(conf), objectness,
                                  options.multi_label, options.class_mask};

    thread_local cpu::DetectScratch own;
    cpu::DetectScratch& scratch = own;  // the threads that help must see the caller's, not their own
    const int32_t threads = cpu::threads_for(cpu_options, cpu::map_bytes(head, false));
    cpu::blocks_of(head, threads, scratch.blocks);
    const auto per_image = static_cast<int64_t>(scratch.blocks.size());
    const auto batch = static_cast<size_t>(head.batch);
    if (scratch.lists.size() < batch * scratch.blocks.size()) scratch.lists.resize(batch * scratch.blocks.size());
    if (scratch.images.size() < batch) scratch.images.resize(batch);
    if (scratch.remaining_size < head.batch) {
        scratch.remaining.reset(new std::atomic<int64_t>[batch]);
        scratch.remaining_size = head.batch;
    }
    for (int32_t b = 0; b < head.batch; ++b) {
        scratch.remaining[static_cast<size_t>(b)].store(per_image, std::memory_order_relaxed);
        // One candidate per anchor at most is provided for at once; with multi_label, lists grow as they must.
        scratch.images[static_cast<size_t>(b)].prepare(head.num_anchors(), head.num_classes, kernels.lanes, options);
        for (int64_t i = 0; i < per_image; ++i) {
            const cpu::Block& block = scratch.blocks[static_cast<size_t>(i)];
            cpu::reserve(scratch.lists[static_cast<size_t>(b * per_image + i)], block.end - block.begin,
                         block.end - block.begin);
        }
    }
    const auto finish = [&](int32_t image) {
        cpu::finish_image(kernels, scratch.lists.data() + image * per_image, per_image, head.num_classes, !objectness,
                          options, image, out, scratch.images[static_cast<size_t>(image)]);
    };
    if (per_image == 0) {
        for (int32_t b = 0; b < head.batch; ++b) finish(b);
        return;
    }
    parallel_for(head.batch * per_image, threads, [&](int64_t task) {
        cpu::Block block = scratch.blocks[static_cast<size_t>(task % per_image)];
        block.image = static_cast<int32_t>(task / per_image);
        kernels.detect_block(head, block, rule, scratch.lists[static_cast<size_t>(task)]);
        // Whoever ends the last block of an image sorts and suppresses it.
        if (scratch.remaining[static_cast<size_t>(block.image)].fetch_sub(1, std::memory_order_acq_rel) == 1) {
            finish(block.image);
        }
    });
}

float read_maps_cpu(const HeadParams& head, bool boxes, const CpuOptions& options) {
    cpu::check_head(head);
    const cpu::Kernels& kernels = cpu::kernels_for(options.simd);
    thread_local std::vector<cpu::Block> blocks;
    const int32_t threads = cpu::threads_for(options, cpu::map_bytes(head, boxes));
    cpu::blocks_of(head, threads, blocks);
    const std::vector<cpu::Block>& shared = blocks;
    const auto per_image = static_cast<int64_t>(blocks.size());
    std::atomic<float> top{-std::numeric_limits<float>::infinity()};
    parallel_for(head.batch * per_image, threads, [&](int64_t task) {
        cpu::Block block = shared[static_cast<size_t>(task % per_image)];
        block.image = static_cast<int32_t>(task / per_image);
        const float found = kernels.read_block(head, block, boxes);
        float seen = top.load(std::memory_order_relaxed);
        while (found > seen && !top.compare_exchange_weak(seen, found, std::memory_order_relaxed)) {
        }
    });
    return top.load();
}

}  // namespace dhead
