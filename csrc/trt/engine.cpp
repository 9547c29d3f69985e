#include "engine.h"

#include <NvInfer.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <shared_mutex>
#include <utility>

#include "builder.h"
#include "context.h"
#include "convert.h"
#include "cuda_api.h"
#include "logger.h"
#include "memory.h"
#include "plan_header.h"
#include "versions.h"

namespace dhead::trt {
namespace {

constexpr std::size_t kAlignment = 256;      // of every address that TensorRT is given
constexpr std::size_t kMaxCaptured = 16;     // graphs per context; the oldest entry goes first
constexpr std::size_t kMaxShapePlans = 512;  // remembered sets of shapes

bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0; }

std::size_t bytes_of(const TensorInfo& info, const Shape& shape) {
    return num_elements(shape) * element_size(info.type);
}

std::string describe(const TensorInfo& t) {
    std::string text = std::string(name(t.type)) + " " + to_string(t.shape);
    for (const auto& p : t.profiles) text += ", " + to_string(p.min) + " to " + to_string(p.max);
    return text;
}

class LayerTimes final : public nvinfer1::IProfiler {
  public:
    void reportLayerTime(char const* layer, float ms) noexcept override {
        try {
            times.emplace_back(layer ? layer : "", ms);
        } catch (...) {
        }
    }
    std::vector<std::pair<std::string, float>> times;
};

}  // namespace

struct Engine::Impl {
    // Order matters: what is declared later is destroyed first, and needs what is declared earlier.
    std::shared_ptr<Library> library;
    EngineOptions options;
    Logger logger;
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
        : library(std::move(lib)), options(std::move(o)), logger(options.log), cuda(library->cuda()) {}
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
    std::shared_ptr<const ShapePlan> plan_for(const std::vector<Shape>& shapes);
    void set_shapes(Context& c, const std::shared_ptr<const ShapePlan>& plan, CudaStream stream);
    [[noreturn]] void fail(const char* what) {
        throw Error(ErrorKind::kRuntime, std::string("TensorRT failed while ") + what, logger.take_errors());
    }
    void check_array(const Array& array, const TensorInfo& info, const Shape& shape) const;
    void enqueue(Context& c, CudaStream stream);
    bool capture(Context& c, CapturedCall& call);
};

void Engine::Impl::read_tensors() {
    const int profiles = engine->getNbOptimizationProfiles();
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* n = engine->getIOTensorName(i);
        TensorInfo info{n,
                        element_type(engine->getTensorDataType(n)),
                        shape_of(engine->getTensorShape(n)),
                        engine->getTensorIOMode(n) == nvinfer1::TensorIOMode::kINPUT,
                        {}};
        if (engine->getTensorLocation(n) != nvinfer1::TensorLocation::kDEVICE || engine->isShapeInferenceIO(n) ||
            engine->getTensorFormat(n) != nvinfer1::TensorFormat::kLINEAR || element_size(info.type) == 0) {
            throw Error(ErrorKind::kArtifact, "The plan has a tensor this engine cannot handle",
                        "'" + info.name + "' (" + name(info.type) + ", " + engine->getTensorFormatDesc(n) + ")",
                        "tensors in device memory, in linear format", "Export the model without shape inputs");
        }
        for (int p = 0; info.is_input && p < profiles; ++p) {
            using Select = nvinfer1::OptProfileSelector;
            info.profiles.push_back({shape_of(engine->getProfileShape(n, p, Select::kMIN)),
                                     shape_of(engine->getProfileShape(n, p, Select::kOPT)),
                                     shape_of(engine->getProfileShape(n, p, Select::kMAX))});
        }
        (info.is_input ? inputs : outputs).push_back(std::move(info));
    }
    if (inputs.empty() || outputs.empty()) {
        throw Error(ErrorKind::kArtifact, "The plan has no inputs or no outputs");
    }
}

// The profile that holds these shapes; of several, the one with the least room to spare.
int Engine::Impl::choose_profile(const std::vector<Shape>& shapes) const {
    int best = -1;
    double least = 0;
    for (int p = 0; p < engine->getNbOptimizationProfiles(); ++p) {
        bool fits = true;
        double room = 0;
        for (std::size_t i = 0; i < inputs.size() && fits; ++i) {
            const ShapeRange& r = inputs[i].profiles[static_cast<std::size_t>(p)];
            for (std::size_t d = 0; d < shapes[i].size() && fits; ++d) {
                fits = d < r.min.size() && r.min[d] <= shapes[i][d] && shapes[i][d] <= r.max[d];
            }
            room += static_cast<double>(num_elements(r.max));
        }
        if (fits && (best < 0 || room < least)) {
            best = p;
            least = room;
        }
    }
    return best;
}

std::shared_ptr<const ShapePlan> Engine::Impl::plan_for(const std::vector<Shape>& shapes) {
    {
        const std::shared_lock<std::shared_mutex> lock(plans_mutex);
        if (const auto it = plans.find(shapes); it != plans.end()) return it->second;
    }
    if (shapes.size() != inputs.size()) {
        throw Error(ErrorKind::kInput, "Wrong number of inputs", std::to_string(shapes.size()),
                    std::to_string(inputs.size()));
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Shape &given = shapes[i], &declared = inputs[i].shape;
        bool fits = given.size() == declared.size();
        for (std::size_t d = 0; fits && d < given.size(); ++d) {
            fits = given[d] > 0 && (declared[d] < 0 || declared[d] == given[d]);
        }
        if (!fits) {
            throw Error(ErrorKind::kInput, "Input '" + inputs[i].name + "' has the wrong shape", to_string(given),
                        describe(inputs[i]));
        }
    }
    auto plan = std::make_shared<ShapePlan>();
    plan->inputs = shapes;
    plan->profile = choose_profile(shapes);
    if (plan->profile < 0) {
        std::string received, expected;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            received += (i ? "; " : "") + inputs[i].name + " " + to_string(shapes[i]);
            expected += (i ? "; " : "") + inputs[i].name + " " + describe(inputs[i]);
        }
        throw Error(ErrorKind::kInput, "No optimisation profile of the engine holds these shapes", received, expected,
                    "Build the engine again with a profile that does");
    }
    ContextPool::Lease c(*contexts, nullptr, true);
    try {
        set_shapes(*c, plan, c->stream.get());
        for (const auto& out : outputs) {
            const Shape shape = shape_of(c->context->getTensorShape(out.name.c_str()));
            if (is_dynamic(shape)) {
                throw Error(ErrorKind::kArtifact, "The shape of output '" + out.name + "' depends on the data",
                            to_string(shape), "outputs whose shape follows from the inputs'");
            }
            plan->outputs.push_back(shape);
            plan->output_bytes.push_back(bytes_of(out, shape));
        }
    } catch (...) {
        c.discard();
        throw;
    }
    const std::unique_lock<std::shared_mutex> lock(plans_mutex);
    if (plans.size() >= kMaxShapePlans) plans.clear();
    return plans.emplace(shapes, plan).first->second;
}

void Engine::Impl::set_shapes(Context& c, const std::shared_ptr<const ShapePlan>& plan, CudaStream stream) {
    if (c.plan == plan) return;
    c.plan.reset();
    if (c.profile != plan->profile) {
        if (!c.context->setOptimizationProfileAsync(plan->profile, static_cast<cudaStream_t>(stream))) {
            fail("choosing the optimisation profile");
        }
        c.profile = plan->profile;
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (!c.context->setInputShape(inputs[i].name.c_str(), dims_of(plan->inputs[i])))
            fail("setting an input's shape");
    }
    c.plan = plan;
}

void Engine::Impl::check_array(const Array& array, const TensorInfo& info, const Shape& shape) const {
    const std::string what = (info.is_input ? "Input '" : "Output '") + info.name + "'";
    if (array.type != info.type) {
        throw Error(ErrorKind::kInput, what + " has the wrong dtype", name(array.type), name(info.type));
    }
    if (!info.is_input && array.shape != shape) {
        throw Error(ErrorKind::kInput, what + " has the wrong shape", to_string(array.shape), to_string(shape));
    }
    if (!array.data) throw Error(ErrorKind::kInput, what + " has no data", "a null pointer", "an array");
    if (!array.on_device) return;
    CudaPointerAttributes attributes{};
    const int status = cuda.PointerGetAttributes(&attributes, array.data);
    if (status != 0) cuda.GetLastError();
    if (status != 0 || (attributes.type != kCudaMemoryDevice && attributes.type != kCudaMemoryManaged)) {
        throw Error(ErrorKind::kInput, what + " is not in device memory",
                    attributes.type == kCudaMemoryHost ? "host memory" : "an address CUDA does not know",
                    "a device array that has not been freed");
    }
    if (attributes.type == kCudaMemoryDevice && attributes.device != options.device) {
        throw Error(ErrorKind::kInput, what + " is on another device", "device " + std::to_string(attributes.device),
                    "device " + std::to_string(options.device), "Copy it to the engine's device");
    }
}

void Engine::Impl::enqueue(Context& c, CudaStream stream) {
    if (!c.context->enqueueV3(static_cast<cudaStream_t>(stream))) fail("running the engine");
}

// Records the call as a graph. False where that does not work for this plan: it then runs plainly.
bool Engine::Impl::capture(Context& c, CapturedCall& call) {
    CudaStream stream = c.stream.get();
    if (cuda.StreamBeginCapture(stream, kCudaCaptureThreadLocal) != 0) {
        cuda.GetLastError();
        return false;
    }
    const bool queued = c.context->enqueueV3(static_cast<cudaStream_t>(stream));
    void* graph = nullptr;
    const int ended = cuda.StreamEndCapture(stream, &graph);
    const GraphHandle owner(&cuda, graph);
    void* exec = nullptr;
    if (!queued || ended != 0 || !graph || cuda.GraphInstantiateWithFlags(&exec, graph, 0) != 0) {
        cuda.GetLastError();
        logger.take_errors();
        return false;
    }
    call.graph = GraphExecHandle(&cuda, exec);
    ++graphs;
    return true;
}

Engine::Engine(std::shared_ptr<Library> library, const void* plan, std::size_t size, EngineOptions options)
    : impl_(std::make_shared<Impl>(std::move(library), std::move(options))) {
    Impl& s = *impl_;
    const std::string plan_version = check_plan_header(*s.library, plan, size);
    const int count = s.cuda.device_count();
    if (s.options.device < 0 || s.options.device >= count) {
        throw Error(ErrorKind::kInput, "There is no such CUDA device", std::to_string(s.options.device),
                    "0 to " + std::to_string(count - 1));
    }
    if (s.options.max_contexts < 1) {
        throw Error(ErrorKind::kInput, "max_contexts is out of range", std::to_string(s.options.max_contexts),
                    "at least 1");
    }
    const auto device = list_devices(*s.library)[static_cast<std::size_t>(s.options.device)];
    check_expectations(*s.library, s.options, device.compute_major, device.compute_minor, device.name);

    const DeviceGuard guard(s.cuda, s.options.device);
    s.memory = std::make_shared<DevicePool>(s.cuda, s.options.device);
    if (!s.options.plugins.empty() && s.library->is_rtx()) {
        throw Error(ErrorKind::kInput, "TensorRT for RTX has no custom plugins", s.options.plugins.front());
    }
    load_plugin_libraries(*s.library, s.options.plugins, ErrorKind::kInput, s.logger);
    s.runtime.reset(static_cast<nvinfer1::IRuntime*>(s.library->create_runtime(&s.logger)));
    if (s.options.host_code) s.runtime->setEngineHostCodeAllowed(true);
    s.engine.reset(s.runtime->deserializeCudaEngine(plan, size));
    if (!s.engine) {
        const std::string by = plan_version.empty() ? "" : " (the plan is of version " + plan_version + ")";
        throw Error(ErrorKind::kArtifact,
                    std::string(s.library->product()) + " " + s.library->version() + " cannot read the plan" + by,
                    s.logger.take_errors(), "an undamaged plan built by this version for " + device.name,
                    "Build the engine again (dhead-trt build)");
    }
    s.read_tensors();
    s.contexts =
        std::make_unique<ContextPool>(*s.engine, s.cuda, s.inputs.size() + s.outputs.size(), s.options.max_contexts);
}

std::shared_ptr<Engine> Engine::load_file(std::shared_ptr<Library> library, const std::string& path,
                                          EngineOptions options) {
    const auto bytes = read_file(path, ErrorKind::kArtifact, "The plan");
    return std::make_shared<Engine>(std::move(library), bytes.data(), bytes.size(), std::move(options));
}

Engine::~Engine() = default;

const std::vector<TensorInfo>& Engine::inputs() const { return impl_->inputs; }
const std::vector<TensorInfo>& Engine::outputs() const { return impl_->outputs; }
int Engine::device() const { return impl_->options.device; }
int Engine::num_profiles() const { return impl_->engine->getNbOptimizationProfiles(); }
std::size_t Engine::device_memory() const { return static_cast<std::size_t>(versions::device_memory(*impl_->engine)); }

std::vector<Shape> Engine::output_shapes(const std::vector<Shape>& inputs) const {
    const DeviceGuard guard(impl_->cuda, impl_->options.device);
    return impl_->plan_for(inputs)->outputs;
}

std::shared_ptr<void> Engine::allocate(std::size_t bytes, void* stream) const {
    const DeviceGuard guard(impl_->cuda, impl_->options.device);
    return impl_->memory->acquire(bytes, stream);
}

void Engine::order(void* stream, void* other) const {
    if (stream == other) return;
    const CudaApi& cuda = impl_->cuda;
    const DeviceGuard guard(cuda, impl_->options.device);
    const EventHandle event = make_event(cuda);  // destroying it while it is waited for is allowed
    cuda.check(cuda.EventRecord(event.get(), other), "ordering two streams");
    cuda.check(cuda.StreamWaitEvent(stream, event.get(), 0), "ordering two streams");
}

void Engine::copy_to_host(void* to, const void* from, std::size_t bytes, void* stream) const {
    const DeviceGuard guard(impl_->cuda, impl_->options.device);
    impl_->cuda.check(impl_->cuda.MemcpyAsync(to, from, bytes, kCudaDeviceToHost, stream), "copying to the host");
    impl_->cuda.check(impl_->cuda.StreamSynchronize(stream), "waiting for a copy");
}

void Engine::copy_to_device(void* to, const void* from, std::size_t bytes, void* stream) const {
    const DeviceGuard guard(impl_->cuda, impl_->options.device);
    impl_->cuda.check(impl_->cuda.MemcpyAsync(to, from, bytes, kCudaHostToDevice, stream), "copying to the device");
    impl_->cuda.check(impl_->cuda.StreamSynchronize(stream), "waiting for a copy");
}

void Engine::infer(const std::vector<Array>& inputs, std::vector<Array>& outputs, const InferOptions& options) const {
    Impl& s = *impl_;
    const CudaApi& cuda = s.cuda;
    const DeviceGuard guard(cuda, s.options.device);
    const std::size_t ni = s.inputs.size(), no = s.outputs.size();
    if (inputs.size() != ni || outputs.size() != no) {
        throw Error(ErrorKind::kInput, "Wrong number of arrays",
                    std::to_string(inputs.size()) + " inputs, " + std::to_string(outputs.size()) + " outputs",
                    std::to_string(ni) + " inputs, " + std::to_string(no) + " outputs");
    }
    std::vector<Shape> shapes;
    shapes.reserve(ni);
    bool device_arrays = false, host_inputs = false, host_outputs = false;
    for (const auto& a : inputs) {
        shapes.push_back(a.shape);
        (a.on_device ? device_arrays : host_inputs) = true;
    }
    const std::shared_ptr<const ShapePlan> plan = s.plan_for(shapes);
    for (std::size_t i = 0; i < ni; ++i) s.check_array(inputs[i], s.inputs[i], shapes[i]);
    for (std::size_t i = 0; i < no; ++i) {
        device_arrays = device_arrays || !outputs[i].data || outputs[i].on_device;
        if (!outputs[i].data) continue;
        s.check_array(outputs[i], s.outputs[i], plan->outputs[i]);
        host_outputs = host_outputs || !outputs[i].on_device;
    }

    ContextPool::Lease c(*s.contexts, options.stream, !options.has_stream);
    CudaStream stream = options.has_stream ? options.stream : c->stream.get();
    int capturing = kCudaCaptureNone;
    try {
        if (options.has_stream) {
            if (stream != c->last_stream) {
                const int status = cuda.EventRecord(c->entry.get(), stream);
                if (status == kCudaInvalidHandle) {
                    cuda.GetLastError();
                    throw Error(ErrorKind::kInput, "The stream cannot be used by this engine",
                                "a stream of another device", "a stream of device " + std::to_string(s.options.device));
                }
                cuda.check(status, "looking at the stream");
            }
            cuda.check(cuda.StreamIsCapturing(stream, &capturing), "looking at the stream");
            if (capturing != kCudaCaptureNone && (host_outputs || host_inputs)) {
                throw Error(ErrorKind::kInput, "Host arrays cannot be part of a graph that is being captured", "",
                            "device arrays");
            }
        }
        // Order this call behind the context's last one, and, on a stream of our own, behind the default stream, where
        // the arrays came from unless the caller said otherwise.
        if (c->pending && c->last_stream != stream) {
            cuda.check(cuda.StreamWaitEvent(stream, c->done.get(), 0), "ordering behind the last call");
        }
        const auto wait_for = [&](CudaStream other) {
            cuda.check(cuda.EventRecord(c->entry.get(), other), "ordering behind another stream");
            cuda.check(cuda.StreamWaitEvent(stream, c->entry.get(), 0), "ordering behind another stream");
        };
        if (!options.has_stream && device_arrays) wait_for(nullptr);
        for (void* other : options.wait_for) {
            if (other != stream) wait_for(other);
        }
        s.set_shapes(*c, plan, stream);

        // Addresses: the caller's where TensorRT can take them, staging memory otherwise.
        bool staged_host = false;
        const auto address = [&](const Array& array, std::size_t i, std::size_t bytes) -> void* {
            if (array.on_device && aligned(array.data)) return array.data;
            if (c->pending && !staged_host) {  // the last call may still be reading or writing this staging memory
                cuda.check(cuda.EventSynchronize(c->done.get()), "waiting for the last call");
                staged_host = true;
            }
            c->staging[i].reserve(cuda, bytes, !array.on_device);
            return c->staging[i].device();
        };
        const auto bind = [&](std::size_t i, void* data) {
            if (c->addresses[i] == data) return;
            c->addresses[i] = nullptr;
            if (!c->context->setTensorAddress(s.tensor(i).name.c_str(), data)) s.fail("setting an address");
            c->addresses[i] = data;
        };
        for (std::size_t i = 0; i < ni; ++i) {
            const std::size_t bytes = bytes_of(s.inputs[i], shapes[i]);
            void* data = address(inputs[i], i, bytes);
            bind(i, data);
            if (data == inputs[i].data) continue;
            const void* from = inputs[i].data;
            if (!inputs[i].on_device) {
                std::memcpy(c->staging[i].host(), from, bytes);
                from = c->staging[i].host();
            }
            cuda.check(cuda.MemcpyAsync(data, from, bytes,
                                        inputs[i].on_device ? kCudaDeviceToDevice : kCudaHostToDevice, stream),
                       "copying an input");
        }
        for (std::size_t i = 0; i < no; ++i) {
            Array& out = outputs[i];
            if (!out.data) {
                // Without a stream of the caller's all is ordered behind the default stream, as he is expected to be.
                out.owner = s.memory->acquire(plan->output_bytes[i], options.has_stream ? stream : nullptr);
                out.data = out.owner.get();
                out.on_device = true;
                out.type = s.outputs[i].type;
                out.shape = plan->outputs[i];
            }
            bind(ni + i, address(out, ni + i, plan->output_bytes[i]));
        }

        CapturedCall* call = nullptr;
        if (s.options.cuda_graphs && capturing == kCudaCaptureNone) {
            for (auto& entry : c->captured) {
                if (entry.plan == plan && entry.addresses == c->addresses) call = &entry;
            }
            if (!call) {
                if (c->captured.size() >= kMaxCaptured) {
                    if (c->captured.front().graph) --s.graphs;
                    c->captured.erase(c->captured.begin());
                }
                c->captured.emplace_back();
                call = &c->captured.back();
                call->plan = plan;
                call->addresses = c->addresses;
            }
            ++call->seen;
            // The first call of new shapes must run plainly: TensorRT finishes its own preparations in it.
            if (call->seen == 2 && !call->unfit && !s.capture(*c, *call)) {
                call->unfit = true;
                ++s.graph_failures;
            }
        }
        if (call && call->graph) {
            cuda.check(cuda.GraphLaunch(call->graph.get(), stream), "launching a graph");
            ++s.graph_launches;
        } else {
            s.enqueue(*c, stream);
        }

        for (std::size_t i = 0; i < no; ++i) {
            Array& out = outputs[i];
            void* from = c->addresses[ni + i];
            if (from == out.data) continue;
            cuda.check(
                cuda.MemcpyAsync(out.on_device ? out.data : c->staging[ni + i].host(), from, plan->output_bytes[i],
                                 out.on_device ? kCudaDeviceToDevice : kCudaDeviceToHost, stream),
                "copying an output");
        }
        c->last_stream = stream;
        if (!options.has_stream || host_outputs) {
            c->pending = false;
            cuda.check(cuda.StreamSynchronize(stream), "running the engine");
        } else if (capturing == kCudaCaptureNone) {
            c->pending = true;
            cuda.check(cuda.EventRecord(c->done.get(), stream), "marking the end of the call");
        }
        for (std::size_t i = 0; i < no; ++i) {
            if (!outputs[i].on_device) std::memcpy(outputs[i].data, c->staging[ni + i].host(), plan->output_bytes[i]);
        }
    } catch (...) {
        if (capturing == kCudaCaptureNone) cuda.StreamSynchronize(stream);  // nothing may use the context any more
        s.graphs -= static_cast<std::size_t>(
            std::count_if(c->captured.begin(), c->captured.end(), [](const CapturedCall& e) { return bool(e.graph); }));
        c.discard();
        throw;
    }
    ++s.calls;
}

std::vector<std::pair<std::string, float>> Engine::profile_layers(const std::vector<Shape>& shapes) const {
    Impl& s = *impl_;
    const DeviceGuard guard(s.cuda, s.options.device);
    const auto plan = s.plan_for(shapes);
    ContextPool::Lease c(*s.contexts, nullptr, true);
    LayerTimes times;
    const auto stop = [&] {
        c->context->setProfiler(nullptr);
        c->addresses.assign(c->addresses.size(), nullptr);
    };
    try {
        if (c->pending) s.cuda.check(s.cuda.EventSynchronize(c->done.get()), "waiting for the last call");
        c->pending = false;
        s.set_shapes(*c, plan, c->stream.get());
        for (std::size_t i = 0; i < s.inputs.size() + s.outputs.size(); ++i) {
            const std::size_t ni = s.inputs.size();
            c->staging[i].reserve(s.cuda, i < ni ? bytes_of(s.inputs[i], shapes[i]) : plan->output_bytes[i - ni],
                                  false);
            if (!c->context->setTensorAddress(s.tensor(i).name.c_str(), c->staging[i].device()))
                s.fail("setting an address");
        }
        s.enqueue(*c, c->stream.get());  // once to warm up
        c->context->setProfiler(&times);
        s.enqueue(*c, c->stream.get());
        s.cuda.check(s.cuda.StreamSynchronize(c->stream.get()), "running the engine");
    } catch (...) {
        stop();
        c.discard();
        throw;
    }
    stop();
    return times.times;
}

std::string Engine::describe_layers() const {
    const std::unique_ptr<nvinfer1::IEngineInspector> inspector(impl_->engine->createEngineInspector());
    if (!inspector) return "";
    const char* text = inspector->getEngineInformation(nvinfer1::LayerInformationFormat::kJSON);
    return text ? text : "";
}

Engine::Stats Engine::stats() const {
    const Impl& s = *impl_;
    return {s.contexts->size(),      static_cast<int>(s.graphs.load()), s.memory->bytes(),
            s.graph_launches.load(), s.graph_failures.load(),           s.calls.load()};
}

}  // namespace dhead::trt
