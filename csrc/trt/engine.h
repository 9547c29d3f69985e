// Runs a plan. Safe from several threads: each call takes an execution context of its own from a pool.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "library.h"
#include "types.h"

namespace dhead::trt {

struct EngineOptions {
    int device = 0;
    int max_contexts = 8;  // calls that run at the same time; more of them wait. Each context costs workspace memory
    bool cuda_graphs = false;  // replay calls of the same shapes and addresses as a CUDA graph
    bool host_code = false;    // allow version-compatible plans, which contain host code: only from a source you trust
    std::vector<std::string> plugins;  // plugin libraries to load first
    std::function<void(LogLevel, const std::string&)> log;

    // What the sidecar says of the plan; empty: not checked. A mismatch is refused before the plan is read.
    std::string expected_version;               // TensorRT version that built it
    std::vector<std::string> expected_compute;  // "8.6", …: where it runs; a "+" at the end means "and later"
    bool version_compatible = false;            // it was built so: later minor versions may run it
};

// An array of the caller's: C-contiguous, in host memory or on the engine's device. data may be null for outputs only:
// then the engine provides device memory, which `owner` keeps until it is released.
struct Array {
    void* data = nullptr;
    ElementType type = ElementType::kFloat32;
    Shape shape;
    bool on_device = false;
    std::shared_ptr<void> owner;
};

struct InferOptions {
    // The caller's cudaStream_t. Given: the call is only enqueued, unless an output is in host memory. Not given: the
    // engine uses a stream of its own, after what the default stream holds, and waits for the result.
    bool has_stream = false;
    void* stream = nullptr;
    // Streams whose present work the inputs depend on.
    std::vector<void*> wait_for;
};

class Engine {
  public:
    // Throws: ArtifactError (not a plan, damaged, of another version or GPU), BackendUnavailable (no device),
    // InputError (no such device), DheadError (out of memory).
    Engine(std::shared_ptr<Library> library, const void* plan, std::size_t size, EngineOptions options = {});
    static std::shared_ptr<Engine> load_file(std::shared_ptr<Library> library, const std::string& path,
                                             EngineOptions options = {});
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const std::vector<TensorInfo>& inputs() const;
    const std::vector<TensorInfo>& outputs() const;
    int device() const;
    int num_profiles() const;
    std::size_t device_memory() const;  // bytes of workspace per context, for the largest profile

    // Shapes of the outputs, in their order, for these shapes of the inputs. Throws InputError where no profile fits.
    std::vector<Shape> output_shapes(const std::vector<Shape>& inputs) const;

    // Runs once. Inputs and outputs in the order of inputs() and outputs(); writes each output's shape, and its data
    // where it was null. Device arrays are used in place (copied on the device where they are not aligned to 256
    // bytes).
    void infer(const std::vector<Array>& inputs, std::vector<Array>& outputs, const InferOptions& options = {}) const;

    // Device memory from the engine's pool, for work on `stream`. Returned to the pool with the last owner.
    std::shared_ptr<void> allocate(std::size_t bytes, void* stream) const;
    // Makes later work of `stream` wait for the present work of `other`.
    void order(void* stream, void* other) const;
    // Copies device memory to the host and waits for it.
    void copy_to_host(void* to, const void* from, std::size_t bytes, void* stream) const;

    // Copies host memory to the device and waits for it.
    void copy_to_device(void* to, const void* from, std::size_t bytes, void* stream) const;

    // Milliseconds per layer, as TensorRT names them, of one run on device memory of its own (contents undefined).
    std::vector<std::pair<std::string, float>> profile_layers(const std::vector<Shape>& inputs) const;
    // What TensorRT tells of the plan's layers, JSON. Detailed where it was built with detailed verbosity.
    std::string describe_layers() const;

    // For tests and monitoring.
    struct Stats {
        int contexts = 0, graphs = 0;
        std::size_t pool_bytes = 0;  // device memory held for outputs and staging
        std::size_t graph_launches = 0, graph_failures = 0, calls = 0;
    };
    Stats stats() const;

  private:
    struct Impl;
    std::shared_ptr<Impl> impl_;
};

}  // namespace dhead::trt
