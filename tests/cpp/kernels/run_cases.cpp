// Runs the kernels' own source over the case table, on the host (shim/grid.h), and writes what they found.
//
//   dhead_kernels_on_host CASES OUT [most_anchors]
//
// CASES is what `tests/cases.py --dump` wrote; OUT gets a folder per case, for the comparison with the oracle
// (tests/test_cuda_kernels.py). The comparison with the CPU code is here: the same bits. Every run is made several
// times, with the blocks and threads in another order, memory and workspaces filled with other bytes, and the maps
// aligned to packs or only to their elements: all must write the same bytes, every one of them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "cases.h"
#include "dhead/decode_cpu.h"
#include "dhead/launch.h"
#include "grid.h"

namespace {

using dhead_test::Case;

#define EXPECT(condition)                                                                             \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, current.c_str(), #condition); \
            ++failures;                                                                               \
        }                                                                                             \
    } while (false)

std::string current;
int failures = 0;

// Device memory: exactly as large as asked for, so that a sanitizer sees the first byte beyond; filled with `poison`.
class Memory {
  public:
    Memory(std::size_t bytes, unsigned char poison)
        : bytes_(bytes), data_(new (std::align_val_t{256}) unsigned char[bytes]) {
        std::memset(data_.get(), poison, bytes);
    }
    unsigned char* get() const { return data_.get(); }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(get());
    }
    std::size_t size() const { return bytes_; }

  private:
    struct Free {
        void operator()(unsigned char* p) const { operator delete[](p, std::align_val_t{256}); }
    };
    std::size_t bytes_;
    std::unique_ptr<unsigned char, Free> data_;
};

struct Setting {
    std::uint64_t seed;
    unsigned char poison;
    bool misaligned;
};
constexpr Setting kSettings[] = {{1, 0xFF, false}, {2, 0x00, false}, {3, 0x7B, true}};

struct Inputs {
    dhead::HeadParams params;
    std::vector<std::unique_ptr<unsigned char[]>> exact;  // maps without a byte to spare

    Inputs(const Case& c, bool misaligned) : params(c.params) {
        for (int i = 0; i < params.num_levels; ++i) {
            const void** to[] = {&params.levels[i].box, &params.levels[i].cls, &params.levels[i].obj};
            for (int k = 0; k < (c.objectness ? 3 : 2); ++k) {
                const auto& bytes = c.maps[i][k];
                const std::size_t shift = misaligned ? (params.dtype == dhead::DType::kFloat32 ? 4 : 2) : 0;
                exact.emplace_back(new unsigned char[bytes.size() + shift]);
                std::memcpy(exact.back().get() + shift, bytes.data(), bytes.size());
                *to[k] = exact.back().get() + shift;
            }
        }
    }
};

using Results = std::vector<std::pair<std::string, dhead_test::Bytes>>;

void keep(Results& results, const char* name, const Memory& memory) {
    results.emplace_back(name, dhead_test::Bytes(memory.get(), memory.get() + memory.size()));
}

struct Detections {
    Detections(std::size_t batch, int32_t max_det, unsigned char poison)
        : num(batch * 4, poison),
          boxes(batch * static_cast<std::size_t>(max_det) * 16, poison),
          scores(boxes.size() / 4, poison),
          classes(boxes.size() / 4, poison),
          dropped(batch * 4, poison) {}
    dhead::DetectOutputs outputs() const {
        return {num.as<int32_t>(), boxes.as<float>(), scores.as<float>(), classes.as<int32_t>(), dropped.as<int32_t>()};
    }
    Results results() const {
        Results results;
        keep(results, "num_dets", num);
        keep(results, "det_boxes", boxes);
        keep(results, "det_scores", scores);
        keep(results, "det_classes", classes);
        keep(results, "dropped", dropped);
        return results;
    }
    Memory num, boxes, scores, classes, dropped;  // in this order: `scores` is sized after `boxes`
};

Results run_decode(const Case& c, const Setting& setting) {
    const Inputs in(c, setting.misaligned);
    const std::size_t rows = c.batch() * c.anchors();
    const Memory boxes(rows * 16, setting.poison),
        scores(rows * static_cast<std::size_t>(c.params.num_classes) * 4, setting.poison);
    dhead_shim::configure(setting.seed, setting.poison);
    const auto before = dhead_shim::launches();
    EXPECT(dhead::decode_cuda(in.params, {boxes.as<float>(), scores.as<float>()}, nullptr) == cudaSuccess);
    EXPECT(dhead_shim::launches() - before == 1);
    Results results;
    keep(results, "boxes", boxes);
    keep(results, "scores", scores);
    return results;
}

Results run_detect(const Case& c, const Setting& setting, const float* thresholds = nullptr) {
    const Inputs in(c, setting.misaligned);
    dhead::DetectOptions options = c.options;
    std::unique_ptr<uint8_t[]> mask(new uint8_t[c.class_mask.size()]);
    std::copy(c.class_mask.begin(), c.class_mask.end(), mask.get());
    if (c.some_classes) options.class_mask = mask.get();
    if (thresholds != nullptr) {
        options.conf = 0.999;
        options.iou = 0.01F;
    }
    const Detections detections(c.batch(), options.max_det, setting.poison);
    const std::size_t bytes = dhead::detect_workspace_bytes(in.params, options);
    EXPECT(bytes > 0);
    const Memory workspace(bytes, setting.poison);
    dhead_shim::configure(setting.seed, setting.poison);
    const auto before = dhead_shim::launches();
    EXPECT(dhead::detect_cuda(in.params, options, thresholds, detections.outputs(), workspace.get(), bytes, nullptr) ==
           cudaSuccess);
    EXPECT(dhead_shim::launches() - before <= 3);
    return detections.results();
}

void expect_same(const Results& a, const Results& b) {
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT(a[i].second == b[i].second);
}

// The CPU code's results, in the same form.
Results run_cpu(const Case& c, bool decode) {
    const Inputs in(c, false);
    const dhead::CpuOptions cpu{1, nullptr};
    Results results;
    if (decode) {
        const std::size_t rows = c.batch() * c.anchors();
        const Memory boxes(rows * 16, 0), scores(rows * static_cast<std::size_t>(c.params.num_classes) * 4, 0);
        dhead::decode_cpu(in.params, {boxes.as<float>(), scores.as<float>()}, cpu);
        keep(results, "boxes", boxes);
        keep(results, "scores", scores);
        return results;
    }
    dhead::DetectOptions options = c.options;
    if (c.some_classes) options.class_mask = c.class_mask.data();
    const Detections detections(c.batch(), options.max_det, 0);
    dhead::detect_cpu(in.params, options, detections.outputs(), cpu);
    return detections.results();
}

// Bit for bit, but for the payload of a NaN.
void expect_same_as_cpu(const Results& got, const Results& want) {
    for (std::size_t i = 0; i < got.size(); ++i) {
        const auto& [name, a] = got[i];
        const auto& b = want[i].second;
        EXPECT(a.size() == b.size());
        std::size_t different = 0;
        for (std::size_t at = 0; at + 4 <= a.size() && at + 4 <= b.size(); at += 4) {
            float x, y;
            std::memcpy(&x, &a[at], 4);
            std::memcpy(&y, &b[at], 4);
            const bool floats = name != "num_dets" && name != "det_classes" && name != "dropped";
            if (std::memcmp(&x, &y, 4) != 0 && !(floats && x != x && y != y)) ++different;
        }
        if (different != 0)
            std::fprintf(stderr, "%s: %zu elements of %s are not the CPU code's\n", current.c_str(), different,
                         name.c_str());
        EXPECT(different == 0);
    }
}

void run(const Case& c, const std::filesystem::path& out) {
    current = c.name;
    Results results[2];
    for (const Setting& setting : kSettings) {
        Results now[2] = {run_decode(c, setting), run_detect(c, setting)};
        for (int i = 0; i < 2; ++i) {
            if (!results[i].empty()) expect_same(results[i], now[i]);
            results[i] = std::move(now[i]);
        }
    }
    // Thresholds from the device tensor: the same as the same float thresholds given as options.
    const std::unique_ptr<float[]> thresholds(new float[2]{static_cast<float>(c.options.conf), c.options.iou});
    Case rounded = c;
    rounded.options.conf = thresholds[0];
    expect_same(run_detect(rounded, kSettings[1]), run_detect(rounded, kSettings[0], thresholds.get()));

    expect_same_as_cpu(results[0], run_cpu(c, true));
    expect_same_as_cpu(results[1], run_cpu(c, false));

    std::filesystem::create_directories(out / c.name);
    for (const Results& r : results)
        for (const auto& [name, bytes] : r)
            dhead_test::write_file(out / c.name / (name + ".bin"), bytes.data(), bytes.size());
}

// What the launchers refuse, before they touch a pointer.
void run_refusals() {
    current = "refusals";
    alignas(256) static unsigned char memory[4096];
    dhead::HeadParams good;
    good.levels[0] = {memory, memory, nullptr, 2, 2, 8.F};
    good.num_levels = good.batch = good.num_classes = good.bins = 1;
    const auto refused = [&](const dhead::HeadParams& p, const dhead::DetectOptions& o = {}, std::size_t bytes = 4096,
                             std::size_t shift = 0) {
        auto* f = reinterpret_cast<float*>(memory + shift);
        auto* i = reinterpret_cast<int32_t*>(memory);
        return dhead::detect_cuda(p, o, nullptr, {i, f, f, i, i}, memory, bytes, nullptr) == cudaErrorInvalidValue;
    };
    const auto before = dhead_shim::launches();
    const auto change = [&](auto apply) {
        dhead::HeadParams p = good;
        apply(p);
        EXPECT(refused(p));
        EXPECT(dhead::decode_cuda(p, {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory)}, nullptr) ==
               cudaErrorInvalidValue);
    };
    change([](auto& p) { p.num_levels = 0; });
    change([](auto& p) { p.num_levels = 7; });
    change([](auto& p) { p.num_levels = 2; });  // the second has no maps
    change([](auto& p) { p.batch = -1; });
    change([](auto& p) { p.num_classes = 0; });
    change([](auto& p) { p.bins = 0; });
    change([](auto& p) { p.bins = 65; });
    change([](auto& p) { p.levels[0].box = nullptr; });
    change([](auto& p) { p.levels[0].cls = memory + 2; });
    change([](auto& p) { p.levels[0].height = 0; });
    change([](auto& p) { p.levels[0].stride = 0.F; });
    change([](auto& p) { p.levels[0].height = p.levels[0].width = 1 << 16; });
    change([](auto& p) { p.num_classes = INT32_MAX; });
    dhead::DetectOptions options;
    options.max_det = 0;
    EXPECT(refused(good, options));
    options.max_det = 1;
    options.max_candidates = 0;
    EXPECT(refused(good, options));
    EXPECT(refused(good, {}, 64));       // too little workspace
    EXPECT(refused(good, {}, 4096, 4));  // boxes not aligned
    EXPECT(dhead_shim::launches() == before);

    // An error that an earlier call left behind is not this launch's, and not taken from whom it concerns.
    dhead_shim_last_error = cudaErrorMemoryAllocation;
    auto* spare = reinterpret_cast<float*>(memory + 2048);
    EXPECT(dhead::decode_cuda(good, {spare, spare + 64}, nullptr) == cudaSuccess);
    EXPECT(dhead_shim::launches() == before + 1);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation);
    // A launch that fails (the second dimension of the grid has a limit) leaves none behind.
    dhead::HeadParams wide = good;
    wide.num_classes = 5'000'000;
    EXPECT(dhead::decode_cuda(wide, {spare, spare + 64}, nullptr) == cudaErrorInvalidConfiguration);
    EXPECT(cudaGetLastError() == cudaSuccess);
    good.batch = 0;
    EXPECT(dhead::detect_cuda(good, {}, nullptr, {}, nullptr, 0, nullptr) == cudaSuccess);
    EXPECT(dhead::decode_cuda(good, {}, nullptr) == cudaSuccess);
    EXPECT(dhead_shim::launches() == before + 1);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s CASES OUT [most_anchors]\n", argv[0]);
        return 2;
    }
    try {
        const long most = argc > 3 ? std::strtol(argv[3], nullptr, 10) : 0;
        int ran = 0;
        run_refusals();
        for (const std::string& line : dhead_test::read_table(argv[1])) {
            const Case c = dhead_test::read_case(argv[1], line);
            if (most > 0 && static_cast<long>(c.batch() * c.anchors()) > most) continue;
            run(c, argv[2]);
            ++ran;
        }
        std::printf("%d cases, %llu kernel launches, %d failures\n", ran,
                    static_cast<unsigned long long>(dhead_shim::launches()), failures);
        return failures == 0 && ran > 0 ? 0 : 1;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 2;
    }
}
