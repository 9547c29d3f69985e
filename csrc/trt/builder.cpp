#include "builder.h"

#include <NvInfer.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "convert.h"
#include "cuda_api.h"
#include "logger.h"
#include "parser.h"
#include "timing_cache.h"
#include "versions.h"

namespace dhead::trt {
namespace {

using nvinfer1::BuilderFlag;
using nvinfer1::MemoryPoolType;

class HostMemoryPlan final : public Plan {
  public:
    HostMemoryPlan(std::unique_ptr<nvinfer1::IHostMemory> memory, std::shared_ptr<Library> library)
        : library_(std::move(library)), memory_(std::move(memory)) {}
    const void* data() const override { return memory_->data(); }
    std::size_t size() const override { return memory_->size(); }

  private:
    std::shared_ptr<Library> library_;
    std::unique_ptr<nvinfer1::IHostMemory> memory_;
};

// Passes progress on. What the user's function throws is kept and stops the build: it must not cross TensorRT.
class Monitor final : public nvinfer1::IProgressMonitor {
  public:
    explicit Monitor(const std::function<bool(const ProgressEvent&)>& callback) : callback_(callback) {}

    void phaseStart(char const* phase, char const* parent, int32_t steps) noexcept override {
        guarded([&] {
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                phases_[phase] = {phase, parent ? parent : "", 0, steps};
            }
            return tell(phase, 0);
        });
    }
    bool stepComplete(char const* phase, int32_t step) noexcept override {
        return guarded([&] { return tell(phase, step + 1); });
    }
    void phaseFinish(char const* phase) noexcept override {
        guarded([&] {
            ProgressEvent event;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                const auto it = phases_.find(phase);
                if (it == phases_.end()) return true;
                event = it->second;
                phases_.erase(it);
            }
            event.step = event.steps;
            return callback_(event);
        });
    }
    void throw_if_stopped() const {
        if (error_) std::rethrow_exception(error_);
        if (stopped_) throw Cancelled();
    }

  private:
    template <typename F>
    bool guarded(F&& f) noexcept {
        if (stopped_) return false;
        try {
            if (f()) return true;
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!error_) error_ = std::current_exception();
        }
        stopped_ = true;
        return false;
    }
    bool tell(const std::string& phase, int step) {
        ProgressEvent event;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            event = phases_[phase];
        }
        event.step = step;
        return callback_(event);
    }

    const std::function<bool(const ProgressEvent&)>& callback_;
    std::mutex mutex_;
    std::map<std::string, ProgressEvent> phases_;
    std::atomic<bool> stopped_{false};
    std::exception_ptr error_;
};

template <typename T>
T& require(T* pointer, Logger& logger, const char* what) {
    if (!pointer)
        throw Error(ErrorKind::kBuild, std::string("TensorRT could not create ") + what, logger.take_errors());
    return *pointer;
}

std::string parser_errors(const onnx_parser::IParser& parser) {
    std::string all;
    for (int i = 0; i < parser.getNbErrors() && i < 8; ++i) {
        const auto* e = parser.getError(i);
        if (!e) continue;
        auto str = [](const char* s) { return std::string(s ? s : ""); };
        if (!all.empty()) all += "; ";
        if (const auto op = str(e->nodeOperator()); !op.empty() || e->node() >= 0) {
            all += "node '" + str(e->nodeName()) + "' (" + (op.empty() ? "operator unknown" : op) + ", number " +
                   std::to_string(e->node()) + "): ";
        }
        all += str(e->desc());
    }
    return all;
}

void load_plugins(const Library& library, const std::vector<std::string>& paths, Logger& logger) {
    if (paths.empty()) return;
    if (library.is_rtx()) {
        throw Error(ErrorKind::kBuild, "TensorRT for RTX has no custom plugins", paths.front(), "a graph of form raw",
                    "Convert the graph to form=\"raw\": the same decode then runs after the engine");
    }
    load_plugin_libraries(library, paths, ErrorKind::kBuild, logger);
}

void mark_outputs(nvinfer1::INetworkDefinition& network, const BuildOptions& options) {
    std::set<std::string> wanted(options.mark_outputs.begin(), options.mark_outputs.end());
    for (int i = 0; i < network.getNbOutputs(); ++i) wanted.erase(network.getOutput(i)->getName());
    if (wanted.empty() && !options.mark_all_outputs) return;
    for (int i = 0; i < network.getNbLayers(); ++i) {
        const nvinfer1::ILayer* layer = network.getLayer(i);
        for (int j = 0; j < layer->getNbOutputs(); ++j) {
            nvinfer1::ITensor* tensor = layer->getOutput(j);
            if (!tensor || tensor->isNetworkOutput()) continue;
            const bool named = wanted.erase(tensor->getName()) > 0;
            const auto type = tensor->getType();
            const bool all = options.mark_all_outputs && !tensor->isShapeTensor() &&
                             layer->getType() != nvinfer1::LayerType::kCONSTANT &&
                             (type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF);
            if (named || all) network.markOutput(*tensor);
        }
    }
    if (!wanted.empty()) {
        throw Error(ErrorKind::kInput, "mark_outputs names a tensor that the network does not have", *wanted.begin(),
                    "names of tensors inside the ONNX graph");
    }
}

// Checks a profile against the network before TensorRT does, whose own message names neither input nor dimension.
void check_range(const std::string& input, const Shape& declared, const ShapeRange& range) {
    const std::string where = "The profile of input '" + input + "'";
    for (const Shape* s : {&range.min, &range.opt, &range.max}) {
        if (s->size() != declared.size()) {
            throw Error(ErrorKind::kInput, where + " has the wrong number of dimensions", to_string(*s),
                        to_string(declared));
        }
        for (std::size_t i = 0; i < s->size(); ++i) {
            if ((*s)[i] < 1 || (declared[i] >= 0 && (*s)[i] != declared[i])) {
                throw Error(ErrorKind::kInput, where + " does not fit the model in dimension " + std::to_string(i),
                            to_string(*s), to_string(declared) + ", where -1 is any positive size");
            }
        }
    }
    for (std::size_t i = 0; i < declared.size(); ++i) {
        if (range.min[i] > range.opt[i] || range.opt[i] > range.max[i]) {
            throw Error(
                ErrorKind::kInput, where + " is not ordered",
                "min " + to_string(range.min) + ", opt " + to_string(range.opt) + ", max " + to_string(range.max),
                "min <= opt <= max in every dimension");
        }
    }
}

void add_profiles(nvinfer1::IBuilder& builder, const nvinfer1::INetworkDefinition& network,
                  nvinfer1::IBuilderConfig& config, const BuildOptions& options, Logger& logger) {
    std::map<std::string, Shape> inputs;
    bool dynamic = false;
    for (int i = 0; i < network.getNbInputs(); ++i) {
        const auto* tensor = network.getInput(i);
        inputs[tensor->getName()] = shape_of(tensor->getDimensions());
        dynamic = dynamic || is_dynamic(inputs[tensor->getName()]);
    }
    if (dynamic && options.profiles.empty()) {
        for (const auto& [name, shape] : inputs) {
            if (!is_dynamic(shape)) continue;
            throw Error(ErrorKind::kInput,
                        "Input '" + name + "' has dynamic dimensions and no profile says their range", to_string(shape),
                        "a profile with min, opt and max shapes", "Pass batch=(min, opt, max), or profiles");
        }
    }
    for (std::size_t p = 0; p < options.profiles.size(); ++p) {
        auto& profile = require(builder.createOptimizationProfile(), logger, "an optimisation profile");
        for (const auto& [name, range] : options.profiles[p]) {
            const auto it = inputs.find(name);
            if (it == inputs.end()) {
                std::string names;
                for (const auto& input : inputs) names += (names.empty() ? "" : ", ") + input.first;
                throw Error(ErrorKind::kInput, "A profile names an input that the model does not have", name, names);
            }
            check_range(name, it->second, range);
            using Select = nvinfer1::OptProfileSelector;
            if (!profile.setDimensions(name.c_str(), Select::kMIN, dims_of(range.min)) ||
                !profile.setDimensions(name.c_str(), Select::kOPT, dims_of(range.opt)) ||
                !profile.setDimensions(name.c_str(), Select::kMAX, dims_of(range.max))) {
                throw Error(ErrorKind::kBuild, "TensorRT refused the profile of input '" + name + "'",
                            logger.take_errors());
            }
        }
        for (const auto& [name, shape] : inputs) {
            if (is_dynamic(shape) && !options.profiles[p].count(name)) {
                throw Error(ErrorKind::kInput, "Profile " + std::to_string(p) + " leaves out a dynamic input", name,
                            "its min, opt and max shapes");
            }
        }
        if (config.addOptimizationProfile(&profile) < 0) {
            throw Error(ErrorKind::kBuild, "TensorRT refused optimisation profile " + std::to_string(p),
                        logger.take_errors());
        }
    }
}

void set_dla(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config, const Library& library,
             const BuildOptions& options) {
    if (options.dla_core < 0) return;
    const int cores = library.is_rtx() ? 0 : builder.getNbDLACores();
    if (options.dla_core >= cores) {
        throw Error(
            ErrorKind::kBuild, "This machine does not offer that DLA core",
            "dla_core=" + std::to_string(options.dla_core),
            cores ? "0 to " + std::to_string(cores - 1) : std::string(library.product()) + " reports no DLA cores here",
            "Build on a Jetson with DLA (Xavier, Orin AGX or NX), or leave dla_core out");
    }
    config.setDefaultDeviceType(nvinfer1::DeviceType::kDLA);
    config.setDLACore(options.dla_core);
    if (options.gpu_fallback) config.setFlag(BuilderFlag::kGPU_FALLBACK);
}

void configure(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config, const Library& library,
               const BuildOptions& o) {
    if (library.is_rtx() && (o.refit || o.strip_plan || o.version_compatible)) {
        throw Error(ErrorKind::kBuild, "TensorRT for RTX has no such plans",
                    o.refit        ? "refit"
                    : o.strip_plan ? "strip_plan"
                                   : "version_compatible",
                    "none of these options");
    }
    const std::pair<MemoryPoolType, std::optional<std::size_t>> pools[] = {
        {MemoryPoolType::kWORKSPACE, o.workspace},
        {MemoryPoolType::kTACTIC_DRAM, o.tactic_dram},
        {MemoryPoolType::kTACTIC_SHARED_MEMORY, o.tactic_shared_memory},
        {MemoryPoolType::kDLA_MANAGED_SRAM, o.dla_sram},
        {MemoryPoolType::kDLA_LOCAL_DRAM, o.dla_local_dram},
        {MemoryPoolType::kDLA_GLOBAL_DRAM, o.dla_global_dram}};
    for (const auto& [pool, limit] : pools) {
        if (limit) config.setMemoryPoolLimit(pool, *limit);
    }
    if (o.optimization_level) {
        if (*o.optimization_level < 0 || *o.optimization_level > 5) {
            throw Error(ErrorKind::kInput, "The optimisation level is out of range",
                        std::to_string(*o.optimization_level), "0 to 5");
        }
        config.setBuilderOptimizationLevel(*o.optimization_level);
    }
    if (o.avg_timing_iterations) config.setAvgTimingIterations(*o.avg_timing_iterations);
    if (o.max_aux_streams) config.setMaxAuxStreams(*o.max_aux_streams);
    if (o.hardware == HardwareCompatibility::kAmperePlus) {
        config.setHardwareCompatibilityLevel(nvinfer1::HardwareCompatibilityLevel::kAMPERE_PLUS);
    } else if (o.hardware == HardwareCompatibility::kSameComputeCapability &&
               !(library.at_least(10, 8) && versions::set_same_compute_capability(config))) {
        throw Error(ErrorKind::kBuild, "This TensorRT does not know same_compute_capability", library.version(),
                    "TensorRT 10.8 or later");
    }
    if (o.version_compatible) config.setFlag(BuilderFlag::kVERSION_COMPATIBLE);
    if (o.exclude_lean_runtime) config.setFlag(BuilderFlag::kEXCLUDE_LEAN_RUNTIME);
    if (o.refit) config.setFlag(BuilderFlag::kREFIT);
    if (o.strip_plan) config.setFlag(BuilderFlag::kSTRIP_PLAN);
    if (o.sparse_weights) config.setFlag(BuilderFlag::kSPARSE_WEIGHTS);
    if (!o.tf32) config.clearFlag(BuilderFlag::kTF32);
    const nvinfer1::ProfilingVerbosity verbosity[] = {nvinfer1::ProfilingVerbosity::kLAYER_NAMES_ONLY,
                                                      nvinfer1::ProfilingVerbosity::kNONE,
                                                      nvinfer1::ProfilingVerbosity::kDETAILED};
    config.setProfilingVerbosity(verbosity[static_cast<int>(o.verbosity)]);
    set_dla(builder, config, library, o);
}

std::vector<TensorInfo> tensors(const nvinfer1::INetworkDefinition& network, const BuildOptions& options, bool inputs) {
    std::vector<TensorInfo> list;
    for (int i = 0; i < (inputs ? network.getNbInputs() : network.getNbOutputs()); ++i) {
        const auto* tensor = inputs ? network.getInput(i) : network.getOutput(i);
        TensorInfo info{
            tensor->getName(), element_type(tensor->getType()), shape_of(tensor->getDimensions()), inputs, {}};
        for (const auto& profile : options.profiles) {
            if (const auto it = profile.find(info.name); inputs && it != profile.end())
                info.profiles.push_back(it->second);
        }
        list.push_back(std::move(info));
    }
    return list;
}

}  // namespace

void load_plugin_libraries(const Library& library, const std::vector<std::string>& paths, ErrorKind kind,
                           Logger& logger) {
    static std::mutex mutex;
    static auto& loaded = *new std::set<std::pair<const void*, std::string>>;  // plugins stay registered
    auto* registry = static_cast<nvinfer1::IPluginRegistry*>(library.plugin_registry());
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& path : paths) {
        if (loaded.count({registry, path})) continue;
        if (!registry || !registry->loadLibrary(path.c_str())) {
            throw Error(kind, "The plugin library cannot be loaded: " + path, logger.take_errors(),
                        "a shared library that exports getCreators");
        }
        loaded.insert({registry, path});
    }
}

Builder::Builder(std::shared_ptr<Library> library) : library_(std::move(library)) {}

int Builder::dla_cores() const {
    if (library_->is_rtx()) return 0;
    const LoggerOwner owner;
    Logger& logger = *owner;
    const std::unique_ptr<nvinfer1::IBuilder> builder(
        static_cast<nvinfer1::IBuilder*>(library_->create_builder(&logger)));
    return builder->getNbDLACores();
}

BuildResult Builder::build_file(const std::string& path, const BuildOptions& options) const {
    const auto bytes = read_file(path, ErrorKind::kInput, "The model");
    return build(bytes.data(), bytes.size(), options, path);
}

BuildResult Builder::build(const void* model, std::size_t size, const BuildOptions& options,
                           const std::string& model_path) const {
    if (!model || size == 0) throw Error(ErrorKind::kInput, "The model is empty", "0 bytes", "an ONNX model");
    // TensorRT for RTX compiles ahead of time and needs no device; TensorRT times its kernels on one.
    std::unique_ptr<DeviceGuard> device;
    if (!library_->is_rtx()) {
        const CudaApi& cuda = library_->cuda();
        const int count = cuda.device_count();
        if (options.device < 0 || options.device >= count) {
            throw Error(ErrorKind::kInput, "There is no such CUDA device", std::to_string(options.device),
                        "0 to " + std::to_string(count - 1));
        }
        device = std::make_unique<DeviceGuard>(cuda, options.device);
    }

    const LoggerOwner owner(options.log);  // declared first: everything below may log until it is gone
    Logger& logger = *owner;
    const std::unique_ptr<nvinfer1::IBuilder> builder(
        static_cast<nvinfer1::IBuilder*>(library_->create_builder(&logger)));
    load_plugins(*library_, options.plugins, logger);
    const std::unique_ptr<nvinfer1::INetworkDefinition> network(
        &require(builder->createNetworkV2(versions::network_flags()), logger, "a network"));
    // The parser holds weights that the network points to: it must live until the build is over.
    const std::unique_ptr<onnx_parser::IParser> parser(
        static_cast<onnx_parser::IParser*>(library_->create_parser(network.get(), &logger)));
    if (!parser->parse(model, size, model_path.empty() ? nullptr : model_path.c_str())) {
        const std::string errors = parser_errors(*parser);
        throw Error(ErrorKind::kBuild, std::string(library_->product()) + " cannot parse the model",
                    errors.empty() ? logger.take_errors() : errors, "a graph whose every operator it supports");
    }
    mark_outputs(*network, options);
    const std::unique_ptr<nvinfer1::IBuilderConfig> config(
        &require(builder->createBuilderConfig(), logger, "a configuration"));
    configure(*builder, *config, *library_, options);
    add_profiles(*builder, *network, *config, options, logger);
    const TimingCache cache(*config, options.timing_cache);

    std::unique_ptr<Monitor> monitor;
    if (options.progress) {
        monitor = std::make_unique<Monitor>(options.progress);
        config->setProgressMonitor(monitor.get());
    }
    BuildResult result;
    std::unique_ptr<nvinfer1::IHostMemory> memory(builder->buildSerializedNetwork(*network, *config));
    config->setProgressMonitor(nullptr);
    if (monitor) monitor->throw_if_stopped();
    if (!memory || memory->size() == 0) {
        throw Error(ErrorKind::kBuild, std::string(library_->product()) + " could not build an engine",
                    logger.take_errors());
    }
    cache.save(*config);
    result.inputs = tensors(*network, options, true);
    result.outputs = tensors(*network, options, false);
    result.layers = network->getNbLayers();
    result.plan = std::make_shared<HostMemoryPlan>(std::move(memory), library_);
    result.tensorrt_version = library_->version();
    result.rtx = library_->is_rtx();
    result.timing_cache_used = cache.had_entries();
    result.warnings = logger.warnings();
    return result;
}

}  // namespace dhead::trt
