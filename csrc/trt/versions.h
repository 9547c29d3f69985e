// Every difference between TensorRT 10.3 … 11.x and TensorRT for RTX that the builder and the engine must know about.
// The other files call what is here and contain no version test of their own.
#pragma once

#include <NvInfer.h>

#include <cstdint>
#include <string>

namespace dhead::trt::versions {

struct Version {
    int major = 0, minor = 0, patch = 0;
};

constexpr Version kHeaders{NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
constexpr Version kOldest{10, 3, 0};
constexpr Version kOldestRtx{1, 5, 0};  // the first whose ABI is that of the TensorRT 11 headers

static_assert(NV_TENSORRT_MAJOR >= 10, "TensorRT 10.3 or later is needed");
static_assert(NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 3, "TensorRT 10.3 or later is needed");

inline std::string text(const Version& v) {
    return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
}

// getInferLibVersion(): major·10000 + minor·100 + patch, and major·1000 + … before TensorRT 10.
inline Version decode(int number, bool rtx) {
    if (!rtx && number < 100000) return {number / 1000, number / 100 % 10, number % 100};
    return {number / 10000, number / 100 % 100, number % 100};
}

inline bool older(const Version& a, const Version& b) {
    return a.major != b.major ? a.major < b.major : a.minor != b.minor ? a.minor < b.minor : a.patch < b.patch;
}

// The versions this build can load, in words.
inline std::string wanted(bool rtx) {
    if (rtx) return "TensorRT for RTX " + text(kOldestRtx) + " or later";
    return "TensorRT " + std::to_string(kHeaders.major) + ".x" +
           (kHeaders.major == kOldest.major ? " from " + text(kOldest) + " on" : "") +
           " (compiled with the headers of " + text(kHeaders) + ")";
}

// Why a library of this version cannot be used, or nothing. TensorRT's C++ ABI only grows within a major version, and
// what is called here exists since 10.3.
inline std::string why_incompatible(const Version& found, bool rtx) {
    const bool bad =
        rtx ? older(found, kOldestRtx) || found.major >= 10 : found.major != kHeaders.major || older(found, kOldest);
    if (!bad) return "";
    return "is version " + text(found) + ", but this module needs " + wanted(rtx);
}

inline std::string soname(bool rtx) {
    return rtx ? "libtensorrt_rtx.so.1" : "libnvinfer.so." + std::to_string(kHeaders.major);
}
inline std::string parser_soname(bool rtx) {
    return rtx ? "libtensorrt_onnxparser_rtx.so.1" : "libnvonnxparser.so." + std::to_string(kHeaders.major);
}

// Networks are always strongly typed: precision is in the graph. TensorRT 11 knows nothing else.
inline nvinfer1::NetworkDefinitionCreationFlags network_flags() {
#if NV_TENSORRT_MAJOR < 11
    return 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#else
    return 0;
#endif
}

// "Same compute capability" came with 10.8.
inline bool set_same_compute_capability(nvinfer1::IBuilderConfig& config) {
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 8
    config.setHardwareCompatibilityLevel(nvinfer1::HardwareCompatibilityLevel::kSAME_COMPUTE_CAPABILITY);
    return true;
#else
    (void)config;
    return false;
#endif
}

// Workspace, in bytes, that one profile of an engine needs.
inline int64_t device_memory(const nvinfer1::ICudaEngine& engine) { return engine.getDeviceMemorySizeV2(); }

}  // namespace dhead::trt::versions
