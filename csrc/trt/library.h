// TensorRT, its ONNX parser and the CUDA runtime, opened at run time: one build serves pip, SDK, Debian and JetPack
// installs, and loads on machines that have none of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "types.h"

namespace dhead::trt {

struct LibraryOptions {
    // A folder, or the file of libnvinfer itself. When given, nowhere else is looked.
    std::string path;
    // Folders tried after $DHEAD_TENSORRT_LIBRARY_DIR and before the system: where pip puts its libraries.
    std::vector<std::string> package_dirs;
    // TensorRT for RTX (libtensorrt_rtx) instead of TensorRT (libnvinfer). Needs a build against TensorRT 11 headers.
    bool rtx = false;
    // File of libcudart; empty: the one linked in, or the system's.
    std::string cudart;
};

struct CudaApi;

// Loaded once per set of files and kept loaded until the process ends: TensorRT keeps threads and static state.
class Library {
  public:
    struct Impl;

    // Search order: options.path → $DHEAD_TENSORRT_LIBRARY_DIR → options.package_dirs → the system's loader path.
    // Throws BackendUnavailable, listing each place tried and why it failed, or naming both versions on a mismatch.
    static std::shared_ptr<Library> open(const LibraryOptions& options = {});

    const std::string& path() const;     // file of libnvinfer
    const std::string& version() const;  // "10.14.1"
    bool is_rtx() const;
    const char* product() const;  // "TensorRT" or "TensorRT for RTX"
    // True when the loaded library is of this version or later. TensorRT for RTX counts as the headers built against.
    bool at_least(int major, int minor) const;

    // The entry points. The parser is opened when first asked for, from the folder of libnvinfer, then the system.
    void* create_builder(void* logger) const;
    void* create_runtime(void* logger) const;
    void* create_parser(void* network, void* logger) const;
    void* plugin_registry() const;
    // The CUDA runtime. Throws BackendUnavailable where there is none.
    const CudaApi& cuda() const;

    explicit Library(std::unique_ptr<Impl> impl);
    ~Library();

  private:
    std::unique_ptr<Impl> impl_;
};

struct DeviceInfo {
    std::string name;
    int compute_major = 0, compute_minor = 0;
};
// The CUDA devices of this machine. Throws BackendUnavailable where there is no driver or no device.
std::vector<DeviceInfo> list_devices(const Library& library);

// Version of the TensorRT headers this was built against, "10.14.1".
std::string header_version();
// True where kernels that decode raw maps on the device were linked in.
bool has_kernels();
// True where the CUDA runtime was linked in, so that none need be installed.
bool has_static_cudart();

}  // namespace dhead::trt
