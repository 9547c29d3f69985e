// What an engine holds: shared by engine.cpp (its life, its shapes, its profile) and infer.cpp (one call).
#pragma once

#include <NvInfer.h>

#include <atomic>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "context.h"
#include "convert.h"
#include "cuda_api.h"
#include "engine.h"
#include "logger.h"
#include "memory.h"

namespace dhead::trt {

inline std::size_t bytes_of(const TensorInfo& info, const Shape& shape) {
    return num_elements(shape) * element_size(info.type);
}

struct Engine::Impl {
    // Order matters: what is declared later is destroyed first, and needs what is declared earlier.
    std::shared_ptr<Library> library;
    EngineOptions options;
    LoggerOwner logger_owner;
    Logger& logger;
    const CudaApi& cuda;
    std::shared_ptr<DevicePool> memory;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::vector<TensorInfo> inputs, outputs;
    std::unique_ptr<ContextPool> contexts;

    mutable std::shared_mutex plans_mutex;
    std::map<std::vector<Shape>, std::shared_ptr<const ShapePlan>> plans;
    std::atomic<std::size_t> calls{0}, graph_launches{0}, graph_failures{0}, graphs{0};

    Impl(std::shared_ptr<Library> lib, EngineOptions o)
        : library(std::move(lib)),
          options(std::move(o)),
          logger_owner(options.log),
          logger(*logger_owner),
          cuda(library->cuda()) {}
    ~Impl() {
        try {
            const DeviceGuard guard(cuda, options.device);
            contexts.reset();
            engine.reset();
            runtime.reset();
            if (memory) memory->trim();
        } catch (...) {  // the driver is going down; the members' own destructors do what can be done
        }
    }

    const TensorInfo& tensor(std::size_t i) const { return i < inputs.size() ? inputs[i] : outputs[i - inputs.size()]; }
    void read_tensors();
    int choose_profile(const std::vector<Shape>& shapes) const;
    std::shared_ptr<const ShapePlan> plan_for(const std::vector<Shape>& shapes, bool capturing = false);
    void set_shapes(Context& c, const std::shared_ptr<const ShapePlan>& plan, CudaStream stream);
    [[noreturn]] void fail(const char* what) {
        throw Error(ErrorKind::kRuntime, std::string("TensorRT failed while ") + what, logger.take_errors());
    }
    void check_array(const Array& array, const TensorInfo& info, const Shape& shape) const;
    void enqueue(Context& c, CudaStream stream);
    bool capture(Context& c, CapturedCall& call);
    void forget_graphs(Context& c);
};

}  // namespace dhead::trt
