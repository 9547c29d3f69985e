#include "plan_header.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine.h"

namespace dhead::trt {
namespace {

// The layout trtexec's --getPlanVersionOnly reads: a tag, the layout's number (0), …, and at byte 24 the version.
constexpr std::size_t kHeaderBytes = 32;
constexpr const char* kRebuild = "Build the engine again (dhead-trt build), on this machine where it is TensorRT's";

std::string what_is(const unsigned char* p, std::size_t size) {
    const auto starts = [&](const char* text) {
        const std::size_t n = std::strlen(text);
        return size >= n && std::memcmp(p, text, n) == 0;
    };
    if (starts("<?xml")) return "an XML file (OpenVINO's?)";
    if (starts("{")) return "a JSON file (its sidecar?)";
    if (starts("PK")) return "a zip archive (a PyTorch file?)";
    if (size > 2 && p[0] == 0x08 && p[1] < 0x20) return "an ONNX model";
    return "a file of another kind";
}

}  // namespace

std::string check_plan_header(const Library& library, const void* plan, std::size_t size) {
    const auto* p = static_cast<const unsigned char*>(plan);
    const std::string expected = std::string("a plan of ") + library.product();
    if (!p || size == 0) throw Error(ErrorKind::kArtifact, "The plan is empty", "0 bytes", expected, kRebuild);
    if (size < 4 || std::memcmp(p + 1, "trt", 3) != 0) {
        throw Error(ErrorKind::kArtifact, "This is not a TensorRT plan", what_is(p, size), expected, kRebuild);
    }
    if (size < kHeaderBytes) {
        throw Error(ErrorKind::kArtifact, "The plan is truncated", std::to_string(size) + " bytes", expected, kRebuild);
    }
    uint32_t layout = 0;
    std::memcpy(&layout, p + 4, sizeof(layout));
    if (layout != 0) return "";  // a later layout: TensorRT will say what it thinks of it
    const std::string version =
        std::to_string(p[24]) + "." + std::to_string(p[25]) + "." + std::to_string(p[26]) + "." + std::to_string(p[27]);
    const bool of_rtx = p[24] < 8;  // TensorRT for RTX counts from 1
    const std::string made_by = std::string("one of ") + (of_rtx ? "TensorRT for RTX " : "TensorRT ") + version;
    if (of_rtx != library.is_rtx()) {
        throw Error(ErrorKind::kArtifact, "The plan is of another backend", made_by, expected + " " + library.version(),
                    of_rtx ? "Load it with the tensorrt_rtx backend, or build it again with --backend tensorrt"
                           : "Load it with the tensorrt backend, or build it again with --backend tensorrt_rtx");
    }
    const int major = std::atoi(library.version().c_str());
    if (!of_rtx && p[24] != major) {
        throw Error(ErrorKind::kArtifact, "The plan was built by another major version of TensorRT", version,
                    std::to_string(major) + ".x (" + library.version() + " is loaded)", kRebuild);
    }
    if (of_rtx) {
        uint64_t total = 0;
        std::memcpy(&total, p + 16, sizeof(total));
        if (total > size) {
            throw Error(ErrorKind::kArtifact, "The plan is truncated", std::to_string(size) + " bytes",
                        std::to_string(total) + " bytes", kRebuild);
        }
    }
    return version;
}

void check_expectations(const Library& library, const EngineOptions& options, int compute_major, int compute_minor,
                        const std::string& device_name) {
    const std::string& built = options.expected_version;
    if (!built.empty()) {
        // "10.14.1.48" and "10.14.1" agree. A later minor version may run a plan only if it was built for that.
        const std::string& here = library.version();
        const bool same =
            built.compare(0, here.size(), here) == 0 && (built.size() == here.size() || built[here.size()] == '.');
        const bool same_major = std::atoi(built.c_str()) == std::atoi(here.c_str());
        if (!same && !library.is_rtx() && !(options.version_compatible && same_major)) {
            throw Error(
                ErrorKind::kArtifact, "The engine was built by another version of TensorRT", built, here,
                "Build it again with TensorRT " + here + (same_major ? ", or with version_compatible=True" : ""));
        }
    }
    if (options.expected_compute.empty()) return;
    const int here = compute_major * 10 + compute_minor;
    std::string list;
    for (const auto& text : options.expected_compute) {
        list += (list.empty() ? "" : ", ") + text;
        const auto dot = text.find('.');
        if (dot == std::string::npos) continue;
        const int wanted = std::atoi(text.c_str()) * 10 + std::atoi(text.c_str() + dot + 1);
        if (here == wanted || (text.back() == '+' && here > wanted)) return;
    }
    throw Error(
        ErrorKind::kArtifact, "The engine was built for another GPU",
        device_name + " of compute capability " + std::to_string(compute_major) + "." + std::to_string(compute_minor),
        "compute capability " + list,
        library.is_rtx() ? "Build it again with compute_capabilities naming this GPU" : "Build it again on this GPU");
}

}  // namespace dhead::trt
