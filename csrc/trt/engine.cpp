// An engine's life: from a plan to tensors, profiles and contexts, and what it tells of itself. infer.cpp runs it.
#include "engine.h"

#include <NvInfer.h>

#include "builder.h"
#include "engine_impl.h"
#include "plan_header.h"
#include "versions.h"

namespace dhead::trt {
namespace {

constexpr std::size_t kMaxShapePlans = 512;  // remembered sets of shapes

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

std::shared_ptr<const ShapePlan> Engine::Impl::plan_for(const std::vector<Shape>& shapes, bool capturing) {
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
    if (capturing) {
        throw Error(ErrorKind::kInput, "These shapes have not run yet, and the call is captured in a CUDA graph", "",
                    "a call with these shapes on this stream before the capture");
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
    ContextPool::Lease c(*contexts, {nullptr, true, nullptr, options.cuda_graphs, false});
    try {
        // Choosing a profile may queue copies: behind the context's last call, and ended before the next one, which may
        // be on any stream.
        if (c->pending) cuda.check(cuda.EventSynchronize(c->done.get()), "waiting for the last call");
        c->pending = false;
        set_shapes(*c, plan, c->stream.get());
        cuda.check(cuda.StreamSynchronize(c->stream.get()), "choosing the optimisation profile");
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
    c.settled = false;
    forget_graphs(c);
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

void Engine::Impl::enqueue(Context& c, CudaStream stream) {
    if (!c.context->enqueueV3(static_cast<cudaStream_t>(stream))) fail("running the engine");
    c.settled = true;
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
    s.runtime.reset(static_cast<nvinfer1::IRuntime*>(s.library->create_runtime(&s.logger)));
    load_plugin_libraries(*s.library, s.options.plugins, ErrorKind::kInput, s.logger);
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

std::vector<std::pair<std::string, float>> Engine::profile_layers(const std::vector<Shape>& shapes) const {
    Impl& s = *impl_;
    const DeviceGuard guard(s.cuda, s.options.device);
    const auto plan = s.plan_for(shapes);
    ContextPool::Lease c(*s.contexts, {nullptr, true, plan.get(), s.options.cuda_graphs, false});
    LayerTimes times;
    const auto stop = [&] {
        c->context->setProfiler(nullptr);
        c->addresses.assign(c->addresses.size(), nullptr);
    };
    try {
        if (c->pending) s.cuda.check(s.cuda.EventSynchronize(c->done.get()), "waiting for the last call");
        c->pending = false;
        s.set_shapes(*c, plan, c->stream.get());
        s.forget_graphs(*c);
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
