// ONNX → TensorRT plan. Networks are strongly typed: the precision is in the graph, so there is none to choose here.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "library.h"
#include "types.h"

namespace dhead::trt {

enum class HardwareCompatibility { kNone, kAmperePlus, kSameComputeCapability };
enum class ProfilingVerbosity { kLayerNames, kNone, kDetailed };

// A phase of the build began (step 0 of `steps`), advanced, or ended (`step` == `steps`).
struct ProgressEvent {
    std::string phase, parent;
    int step = 0, steps = 0;
};

struct BuildOptions {
    // One entry per optimisation profile; every input with a dynamic extent must be in each. Empty: a static model.
    std::vector<Profile> profiles;

    // Memory pools, bytes; unset: TensorRT's own limit. The DLA pools are powers of two.
    std::optional<std::size_t> workspace, tactic_dram, tactic_shared_memory, dla_sram, dla_local_dram, dla_global_dram;

    std::string timing_cache;               // file; read if present, written back, shared between processes by a lock
    std::optional<int> optimization_level;  // 0 (fastest build) to 5; unset: TensorRT's default, 3
    std::optional<int> avg_timing_iterations, max_aux_streams;
    HardwareCompatibility hardware = HardwareCompatibility::kNone;
    bool version_compatible = false;    // the plan also runs on later minor versions of this major
    bool exclude_lean_runtime = false;  // with version_compatible: leave the runtime out of the plan
    bool refit = false, strip_plan = false, sparse_weights = false, tf32 = true;
    ProfilingVerbosity verbosity = ProfilingVerbosity::kLayerNames;

    int dla_core = -1;         // -1: GPU only. Otherwise Jetson's DLA core
    bool gpu_fallback = true;  // with dla_core: layers the DLA cannot run go to the GPU

    // More tensors to make outputs, by name, to compare an engine with another implementation layer by layer.
    std::vector<std::string> mark_outputs;
    bool mark_all_outputs = false;  // every floating-point tensor of the network

    std::vector<std::string> plugins;  // plugin libraries to load first

    std::function<bool(const ProgressEvent&)> progress;     // false cancels the build. Any thread may call it
    std::function<void(LogLevel, const std::string&)> log;  // TensorRT's log. Any thread may call it
    int device = 0;
};

// The finished plan, in TensorRT's own memory.
class Plan {
  public:
    virtual ~Plan() = default;
    virtual const void* data() const = 0;
    virtual std::size_t size() const = 0;
};

struct BuildResult {
    std::shared_ptr<const Plan> plan;
    std::vector<TensorInfo> inputs, outputs;
    std::string tensorrt_version;
    bool rtx = false;
    int layers = 0;
    bool timing_cache_used = false;     // entries were there to begin with
    std::vector<std::string> warnings;  // what TensorRT warned of, without repetitions
};

class Builder {
  public:
    explicit Builder(std::shared_ptr<Library> library);

    // `model_path`: where the model's external data lies (the model's own path, or one in the same folder).
    // Throws: InputError (options that contradict the model), BuildError (parser and builder errors, with node name and
    // operator), Cancelled, BackendUnavailable.
    BuildResult build(const void* model, std::size_t size, const BuildOptions& options,
                      const std::string& model_path = {}) const;
    BuildResult build_file(const std::string& model_path, const BuildOptions& options) const;

    // DLA cores of this machine: 0 except on a Jetson that has them.
    int dla_cores() const;

  private:
    std::shared_ptr<Library> library_;
};

// Writes to a temporary file in the same folder, then renames it. Throws Error(kInput) naming the path and the reason.
void write_file(const std::string& path, const void* data, std::size_t size);
std::vector<char> read_file(const std::string& path, ErrorKind kind, const char* what);

}  // namespace dhead::trt
