// Runs decode and detect over the case table on every SIMD level, and writes what they found.
//
//   core_cases CASES OUT
//
// CASES is what `tests/cases.py --dump` wrote; OUT gets a folder per case. All levels must write the same bits, every
// one of them: outputs come poisoned. tests/test_aarch64.py compares what another architecture found with this one's.
#include <cstdio>
#include <cstring>
#include <memory>

#include "../kernels/cases.h"
#include "dhead/decode_cpu.h"

namespace {

using dhead_test::Bytes;
using dhead_test::Case;

struct Result {
    const char* name;
    bool floats;
    Bytes bytes;
    template <class T>
    T* as() {
        return reinterpret_cast<T*>(bytes.data());
    }
};
using Results = std::vector<Result>;

Results run(const Case& c, const char* level, unsigned char poison) {
    dhead::HeadParams params = c.params;
    std::vector<std::unique_ptr<unsigned char[]>> maps;  // without a byte to spare
    for (int i = 0; i < params.num_levels; ++i) {
        const void** to[] = {&params.levels[i].box, &params.levels[i].cls, &params.levels[i].obj};
        for (int k = 0; k < (c.objectness ? 3 : 2); ++k) {
            const Bytes& bytes = c.maps[i][k];
            maps.emplace_back(new unsigned char[bytes.size()]);
            std::memcpy(maps.back().get(), bytes.data(), bytes.size());
            *to[k] = maps.back().get();
        }
    }
    const auto make = [&](const char* name, bool floats, std::size_t elements) {
        return Result{name, floats, Bytes(elements * 4, poison)};
    };
    const std::size_t anchors = c.batch() * c.anchors();
    const std::size_t rows = c.batch() * static_cast<std::size_t>(c.options.max_det);
    Results r;
    r.push_back(make("boxes", true, anchors * 4));
    r.push_back(make("scores", true, anchors * static_cast<std::size_t>(params.num_classes)));
    r.push_back(make("num_dets", false, c.batch()));
    r.push_back(make("det_boxes", true, rows * 4));
    r.push_back(make("det_scores", true, rows));
    r.push_back(make("det_classes", false, rows));
    r.push_back(make("dropped", false, c.batch()));
    dhead::DetectOptions options = c.options;
    if (c.some_classes) options.class_mask = c.class_mask.data();
    const dhead::CpuOptions cpu{2, level};
    dhead::decode_cpu(params, {r[0].as<float>(), r[1].as<float>()}, cpu);
    dhead::detect_cpu(params, options,
                      {r[2].as<int32_t>(), r[3].as<float>(), r[4].as<float>(), r[5].as<int32_t>(), r[6].as<int32_t>()},
                      cpu);
    return r;
}

// Elements whose bits differ, but for the payload of a NaN.
std::size_t different(const Result& a, const Result& b) {
    std::size_t count = 0;
    for (std::size_t at = 0; at < a.bytes.size(); at += 4) {
        float x, y;
        std::memcpy(&x, &a.bytes[at], 4);
        std::memcpy(&y, &b.bytes[at], 4);
        count += std::memcmp(&x, &y, 4) != 0 && !(a.floats && x != x && y != y);
    }
    return count;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s CASES OUT\n", argv[0]);
        return 2;
    }
    try {
        const std::filesystem::path out = argv[2];
        int ran = 0, failures = 0;
        for (const std::string& line : dhead_test::read_table(argv[1])) {
            const Case c = dhead_test::read_case(argv[1], line);
            Results first, last;
            unsigned char poison = 0xFF;  // NaN, then numbers: an element that a level leaves out differs
            for (const std::string& level : dhead::simd_levels()) {
                last = run(c, level.c_str(), poison);
                poison = 0x7B;
                if (first.empty()) first = last;
                for (std::size_t i = 0; i < last.size(); ++i) {
                    const std::size_t n = different(first[i], last[i]);
                    if (n == 0) continue;
                    std::fprintf(stderr, "%s: %zu elements of %s differ on %s\n", c.name.c_str(), n, last[i].name,
                                 level.c_str());
                    ++failures;
                }
            }
            std::filesystem::create_directories(out / c.name);
            for (const Result& r : last)
                dhead_test::write_file(out / c.name / (std::string(r.name) + ".bin"), r.bytes.data(), r.bytes.size());
            ++ran;
        }
        std::printf("levels:");
        for (const std::string& level : dhead::simd_levels()) std::printf(" %s", level.c_str());
        std::printf("\n%d cases, %d failures\n", ran, failures);
        return failures == 0 && ran > 0 ? 0 : 1;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 2;
    }
}
