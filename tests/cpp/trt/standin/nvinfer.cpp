// A TensorRT for tests, compiled from TensorRT's real headers: it "builds" plans that hold a network's tensors, and
// "runs" them by adding the inputs up. What the package uses is modelled; any other call is reported (unexpected.h).
#include <NvInfer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "control.h"
#include "graph.h"
#include "stubs.h"

std::atomic<int> standin::unexpected_calls{0};

namespace standin {
namespace {

using std::string;
using std::vector;

std::mutex settings_mutex;
std::map<string, long>& settings() {
    static auto& s = *new std::map<string, long>;
    return s;
}
long setting(const char* key) {
    const std::lock_guard<std::mutex> lock(settings_mutex);
    const auto it = settings().find(key);
    return it == settings().end() ? 0 : it->second;
}
std::atomic<long> live{0};
std::atomic<bool> slow_path{false};  // some setting is on
struct Counted {
    Counted() { ++live; }
    ~Counted() { --live; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
};

int version_number() {
    const char* text = std::getenv("DHEAD_STANDIN_VERSION");
    return text ? std::atoi(text) : NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

vector<int64_t> to_vector(const Dims& d) { return {d.d, d.d + d.nbDims}; }
Dims to_dims(const vector<int64_t>& v) {
    Dims d{};
    d.nbDims = static_cast<int32_t>(v.size());
    for (std::size_t i = 0; i < v.size(); ++i) d.d[i] = v[i];
    return d;
}

// Every public class is an empty shell around its implementation.
#define SHELL(Class, Member)                                                       \
    template <typename Impl>                                                       \
    class Fake##Class final : public nvinfer1::I##Class, Counted {                 \
      public:                                                                      \
        template <typename... Args>                                                \
        explicit Fake##Class(Args&&... args) : impl(std::forward<Args>(args)...) { \
            Member = &impl;                                                        \
        }                                                                          \
        Impl impl;                                                                 \
    };
SHELL(Tensor, mImpl)
SHELL(Layer, mLayer)
SHELL(NetworkDefinition, mImpl)
SHELL(BuilderConfig, mImpl)
SHELL(OptimizationProfile, mImpl)
SHELL(TimingCache, mImpl)
SHELL(HostMemory, mImpl)
SHELL(Builder, mImpl)
SHELL(Runtime, mImpl)
SHELL(CudaEngine, mImpl)
SHELL(ExecutionContext, mImpl)
SHELL(EngineInspector, mImpl)
#undef SHELL

struct HostMemory final : StubHostMemory {
    explicit HostMemory(string b) : bytes(std::move(b)) {}
    void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
    std::size_t size() const noexcept override { return bytes.size(); }
    string bytes;
};

struct Tensor final : StubTensor {
    explicit Tensor(Value v, bool input) : value(std::move(v)), input(input) {}
    char const* getName() const noexcept override { return value.name.c_str(); }
    Dims getDimensions() const noexcept override { return to_dims(value.dims); }
    DataType getType() const noexcept override { return static_cast<DataType>(value.type); }
    bool isNetworkInput() const noexcept override { return input; }
    bool isNetworkOutput() const noexcept override { return output; }
    bool isShapeTensor() const noexcept override { return false; }
    Value value;
    bool input, output = false;
};
using TensorShell = FakeTensor<Tensor>;

struct Layer final : StubLayer {
    explicit Layer(string o) : op(std::move(o)) {}
    LayerType getType() const noexcept override {
        return op == "Constant" ? LayerType::kCONSTANT : LayerType::kIDENTITY;
    }
    char const* getName() const noexcept override { return op.c_str(); }
    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(outputs.size()); }
    ITensor* getOutput(int32_t i) const noexcept override { return outputs[static_cast<std::size_t>(i)].get(); }
    string op;
    vector<std::unique_ptr<TensorShell>> outputs;
};
using LayerShell = FakeLayer<Layer>;

struct Network final : StubNetworkDefinition {
    ITensor* addInput(char const* name, DataType type, Dims const& dims) noexcept override {
        Value v;
        v.name = name;
        v.type = static_cast<int>(type);
        v.dims = to_vector(dims);
        v.symbols.resize(v.dims.size());
        inputs.push_back(std::make_unique<TensorShell>(std::move(v), true));
        return inputs.back().get();
    }
    void markOutput(ITensor& tensor) noexcept override {
        auto& t = static_cast<TensorShell&>(tensor);
        t.impl.output = true;
        outputs.push_back(&t);
    }
    int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
    ITensor* getInput(int32_t i) const noexcept override { return inputs[static_cast<std::size_t>(i)].get(); }
    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(outputs.size()); }
    ITensor* getOutput(int32_t i) const noexcept override { return outputs[static_cast<std::size_t>(i)]; }
    int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(layers.size()); }
    ILayer* getLayer(int32_t i) const noexcept override { return layers[static_cast<std::size_t>(i)].get(); }
    vector<std::unique_ptr<TensorShell>> inputs;
    vector<std::unique_ptr<LayerShell>> layers;
    vector<TensorShell*> outputs;
};
using NetworkShell = FakeNetworkDefinition<Network>;

struct Profile final : StubOptimizationProfile {
    bool setDimensions(char const* name, OptProfileSelector select, Dims const& dims) noexcept override {
        Range& r = ranges[name];
        (select == OptProfileSelector::kMIN   ? r.min
         : select == OptProfileSelector::kOPT ? r.opt
                                              : r.max) = to_vector(dims);
        return true;
    }
    std::map<string, Range> ranges;
};
using ProfileShell = FakeOptimizationProfile<Profile>;

struct TimingCache final : StubTimingCache {
    explicit TimingCache(std::set<string> e) : entries(std::move(e)) {}
    IHostMemory* serialize() const noexcept override {
        string text = "standin-cache\n";
        for (const auto& e : entries) text += e + "\n";
        return new FakeHostMemory<HostMemory>(text);
    }
    bool combine(ITimingCache const& other, bool) noexcept override {
        const auto& more = static_cast<const FakeTimingCache<TimingCache>&>(other).impl.entries;
        entries.insert(more.begin(), more.end());
        return true;
    }
    std::set<string> entries;
};
using CacheShell = FakeTimingCache<TimingCache>;

struct Config final : StubBuilderConfig {
    ITimingCache* createTimingCache(void const* blob, std::size_t size) const noexcept override {
        std::istringstream in(size ? string(static_cast<const char*>(blob), size) : "standin-cache\n");
        string line;
        std::getline(in, line);
        if (line != "standin-cache") return nullptr;
        std::set<string> entries;
        while (std::getline(in, line)) entries.insert(line);
        return new CacheShell(std::move(entries));
    }
    bool setTimingCache(ITimingCache const& cache, bool) noexcept override {
        used = std::make_unique<CacheShell>(static_cast<const CacheShell&>(cache).impl.entries);
        return true;
    }
    ITimingCache const* getTimingCache() const noexcept override { return used.get(); }
    void setFlag(BuilderFlag f) noexcept override { flags.insert(static_cast<int>(f)); }
    void clearFlag(BuilderFlag f) noexcept override { flags.erase(static_cast<int>(f)); }
    void setMemoryPoolLimit(MemoryPoolType pool, std::size_t size) noexcept override {
        record("pool" + std::to_string(static_cast<int>(pool)), static_cast<long>(size));
    }
    void setBuilderOptimizationLevel(int32_t level) noexcept override { record("level", level); }
    void setAvgTimingIterations(int32_t n) noexcept override { record("timing_iterations", n); }
#if NV_TENSORRT_MAJOR < 11
    void setMaxAuxStreams(int32_t n) noexcept override { record("aux_streams", n); }
#else
    bool setMaxAuxStreams(int32_t n) noexcept override { return record("aux_streams", n), true; }
#endif
    void setHardwareCompatibilityLevel(HardwareCompatibilityLevel level) noexcept override {
        record("hardware", static_cast<long>(level));
    }
    void setProfilingVerbosity(ProfilingVerbosity v) noexcept override { record("verbosity", static_cast<long>(v)); }
    void setDefaultDeviceType(DeviceType t) noexcept override { record("device_type", static_cast<long>(t)); }
    void setDLACore(int32_t core) noexcept override { record("dla_core", core); }
    void setProgressMonitor(IProgressMonitor* m) noexcept override { monitor = m; }
    int32_t addOptimizationProfile(IOptimizationProfile const* p) noexcept override {
        profiles.push_back(static_cast<const ProfileShell*>(p)->impl.ranges);
        return static_cast<int32_t>(profiles.size()) - 1;
    }
    void record(const string& key, long value) {
        const std::lock_guard<std::mutex> lock(settings_mutex);
        settings()["config." + key] = value;
    }
    std::set<int> flags;
    vector<std::map<string, Range>> profiles;
    std::unique_ptr<CacheShell> used;
    IProgressMonitor* monitor = nullptr;
};
using ConfigShell = FakeBuilderConfig<Config>;

uint32_t checksum(const string& text) {
    uint32_t h = 2166136261U;
    for (const unsigned char c : text) h = (h ^ c) * 16777619U;
    return h;
}

void put(std::ostream& out, const vector<int64_t>& v) {
    out << v.size();
    for (const auto d : v) out << ' ' << d;
    out << '\n';
}
vector<int64_t> take(std::istream& in) {
    std::size_t n = 0;
    in >> n;
    vector<int64_t> v(n < 16 ? n : 0);
    for (auto& d : v) in >> d;
    return v;
}

string serialize(const Graph& g) {
    std::ostringstream out;
    for (const auto* list : {&g.inputs, &g.outputs}) {
        out << list->size() << '\n';
        for (const auto& v : *list) {
            out << v.name << ' ' << v.type << ' ';
            put(out, v.dims);
            for (const auto& s : v.symbols) out << (s.empty() ? "-" : s) << '\n';
        }
    }
    out << g.profiles.size() << '\n';
    for (const auto& p : g.profiles) {
        for (const auto& v : g.inputs) {
            const auto it = p.find(v.name);
            const Range r = it == p.end() ? Range{v.dims, v.dims, v.dims} : it->second;
            for (const auto* s : {&r.min, &r.opt, &r.max}) put(out, *s);
        }
    }
    const string body = out.str();
    string header(32, '\0');
    std::memcpy(&header[0], "ftrt", 4);
    const int number = version_number();
    header[24] = static_cast<char>(number / 10000);
    header[25] = static_cast<char>(number / 100 % 100);
    header[26] = static_cast<char>(number % 100);
    const uint32_t sum = checksum(body);
    std::memcpy(&header[8], &sum, 4);
    return header + body;
}

bool deserialize(const string& plan, Graph* g) {
    if (plan.size() < 32) return false;
    uint32_t sum = 0;
    std::memcpy(&sum, &plan[8], 4);
    const string body = plan.substr(32);
    if (sum != checksum(body)) return false;
    std::istringstream in(body);
    for (auto* list : {&g->inputs, &g->outputs}) {
        std::size_t n = 0;
        in >> n;
        list->resize(n);
        for (auto& v : *list) {
            in >> v.name >> v.type;
            v.dims = take(in);
            v.symbols.resize(v.dims.size());
            for (auto& s : v.symbols) {
                in >> s;
                if (s == "-") s.clear();
            }
        }
    }
    std::size_t n = 0;
    in >> n;
    g->profiles.resize(n);
    for (auto& p : g->profiles) {
        for (const auto& v : g->inputs) {
            Range& r = p[v.name];
            for (auto* s : {&r.min, &r.opt, &r.max}) *s = take(in);
        }
    }
    return bool(in);
}

struct Registry final : StubPluginRegistry {
    ~Registry() noexcept override {}
    PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
        if (!std::ifstream(path)) {
            if (ILogger* logger = global_logger) logger->log(ILogger::Severity::kERROR, "no such plugin library");
            return nullptr;
        }
        ++loaded;
        return this;
    }
    std::atomic<int> loaded{0};
    std::atomic<ILogger*> global_logger{nullptr};  // as TensorRT's: the first one given
};
Registry& registry() {
    static Registry& r = *new Registry;
    return r;
}

void note_logger(void* logger) {
    ILogger* none = nullptr;
    registry().global_logger.compare_exchange_strong(none, static_cast<ILogger*>(logger));
}

struct Builder final : StubBuilder {
    explicit Builder(ILogger* l) : logger(l) {}
    int32_t getNbDLACores() const noexcept override { return static_cast<int32_t>(setting("dla_cores")); }
    IBuilderConfig* createBuilderConfig() noexcept override { return new ConfigShell; }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override {
#if NV_TENSORRT_MAJOR < 11
        if (flags != 2) {
            logger->log(ILogger::Severity::kERROR, "the network is not strongly typed");
            return nullptr;
        }
#else
        (void)flags;
#endif
        return new NetworkShell;
    }
    IOptimizationProfile* createOptimizationProfile() noexcept override {
        profiles.push_back(std::make_unique<ProfileShell>());
        return profiles.back().get();
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& n, IBuilderConfig& c) noexcept override {
        auto& network = static_cast<NetworkShell&>(n).impl;
        auto& config = static_cast<ConfigShell&>(c).impl;
        logger->log(ILogger::Severity::kWARNING, "this is a stand-in");
        const int steps = static_cast<int>(setting("build_steps"));
        if (config.monitor) {
            bool go_on = true;
            std::thread([&] {  // as TensorRT may: from a thread of its own
                config.monitor->phaseStart("Building", nullptr, steps);
                for (int i = 0; i < steps && go_on; ++i) {
                    std::this_thread::sleep_for(std::chrono::milliseconds(setting("step_ms")));
                    go_on = config.monitor->stepComplete("Building", i);
                }
                config.monitor->phaseFinish("Building");
            })
                .join();
            if (!go_on) return nullptr;
        }
        if (setting("fail_build")) {
            logger->log(ILogger::Severity::kERROR, "no tactic found for the stand-in layer");
            return nullptr;
        }
        Graph g;
        for (const auto& t : network.inputs) g.inputs.push_back(t->impl.value);
        for (const auto* t : network.outputs) g.outputs.push_back(t->impl.value);
        g.profiles = config.profiles;
        if (g.profiles.empty()) g.profiles.emplace_back();
        if (config.used) {
            for (const auto& v : g.outputs) config.used->impl.entries.insert(v.name);
        }
        config.record("flags", 0);
        for (const int f : config.flags) config.record("flag" + std::to_string(f), 1);
        return new FakeHostMemory<HostMemory>(serialize(g));
    }
    ILogger* logger;
    vector<std::unique_ptr<ProfileShell>> profiles;
};

struct Engine;

struct Context final : StubExecutionContext {
    explicit Context(const Graph& g) : graph(g), shapes(g.inputs.size()) {
        for (std::size_t i = 0; i < g.inputs.size(); ++i) shapes[i] = g.inputs[i].dims;
    }
    // As TensorRT may: the profile's data are copied on the stream given, and calls that run before are wrong.
    bool setOptimizationProfileAsync(int32_t p, cudaStream_t stream) noexcept override {
        profile = p;
        if (p < 0 || static_cast<std::size_t>(p) >= graph.profiles.size()) return false;
        return upload(stream, &DeviceState::profile, p, slow_path ? setting("profile_us") : 0);
    }
    // What lies in the context's device memory. Not atomic: work that is not ordered is a data race.
    struct DeviceState {
        int profile = -1, shapes = -1;
    };
    struct Upload {
        std::shared_ptr<DeviceState> state;
        int DeviceState::* member;
        int value;
        long delay_us;
    };
    bool upload(cudaStream_t stream, int DeviceState::* member, int value, long delay_us) {
        auto* u = new Upload{state, member, value, delay_us};
        return standin_launch(
                   stream,
                   [](void* p) {
                       const auto& u = *static_cast<Upload*>(p);
                       if (u.delay_us) std::this_thread::sleep_for(std::chrono::microseconds(u.delay_us));
                       (*u.state).*u.member = u.value;
                   },
                   u, [](void* p) { delete static_cast<Upload*>(p); }) == 0;
    }
    std::shared_ptr<DeviceState> state = std::make_shared<DeviceState>();
    int shapes_set = 0, shapes_settled = -1;  // counts changes; of the last plain call
    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        if (profile < 0) return false;
        for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
            if (graph.inputs[i].name != name) continue;
            const Range& r = graph.profiles[static_cast<std::size_t>(profile)].at(name);
            if (shapes[i] != to_vector(dims)) ++shapes_set;
            shapes[i] = to_vector(dims);
            for (std::size_t d = 0; d < shapes[i].size(); ++d) {
                if (shapes[i][d] < r.min[d] || shapes[i][d] > r.max[d]) return false;
            }
            return true;
        }
        return false;
    }
    vector<int64_t> shape_of(const Value& v) const {
        vector<int64_t> s = v.dims;
        for (std::size_t d = 0; d < s.size(); ++d) {
            for (std::size_t i = 0; s[d] < 0 && i < graph.inputs.size(); ++i) {
                for (std::size_t e = 0; e < graph.inputs[i].dims.size(); ++e) {
                    if (graph.inputs[i].symbols[e] == v.symbols[d]) s[d] = shapes[i][e];
                }
            }
        }
        return s;
    }
    Dims getTensorShape(char const* name) const noexcept override {
        for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
            if (graph.inputs[i].name == name) return to_dims(shapes[i]);
        }
        for (const auto& v : graph.outputs) {
            if (v.name == name) return to_dims(shape_of(v));
        }
        Dims none{};
        none.nbDims = -1;
        return none;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        if (reinterpret_cast<std::uintptr_t>(data) % 256 != 0) return false;
        addresses[name] = data;
        return true;
    }
    void setProfiler(IProfiler* p) noexcept override { profiler = p; }

    struct Job {
        vector<std::pair<const char*, std::size_t>> inputs;  // data, elements
        vector<std::pair<char*, std::size_t>> outputs;
        vector<int> output_types, input_types;
        int64_t batch = 1;
        long delay_us = 0;
        std::shared_ptr<DeviceState> state;
        int profile = 0, shapes = 0;
    };
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (slow_path && setting("fail_enqueue")) return false;
        if (busy.exchange(true)) {  // two threads in one context
            ++unexpected_calls;
            return false;
        }
        if (shapes_settled != shapes_set) {  // the first call after a change copies the shapes' data; not in a graph
            if (standin_capturing(stream)) {
                busy = false;
                return false;
            }
            upload(stream, &DeviceState::shapes, shapes_set, 0);
            shapes_settled = shapes_set;
        }
        if (!stream && slow_path) ++unexpected_calls;  // TensorRT waits for the device on the default stream
        auto job = std::make_unique<Job>();
        job->state = state;
        job->profile = profile;
        job->shapes = shapes_set;
        for (std::size_t i = 0; i < graph.inputs.size(); ++i) add(*job, graph.inputs[i], shapes[i], true);
        for (const auto& v : graph.outputs) add(*job, v, shape_of(v), false);
        job->batch = shapes[0].empty() ? 1 : shapes[0][0];
        job->delay_us = slow_path ? setting("delay_us") : 0;
        if (profiler) {
            profiler->reportLayerTime("conv", 0.25F);
            profiler->reportLayerTime("decode", 0.5F);
        }
        const int status = standin_launch(
            stream, [](void* p) { run(*static_cast<Job*>(p)); }, job.get(),
            [](void* p) { delete static_cast<Job*>(p); });
        job.release();
        busy = false;
        return status == 0;
    }
    void add(Job& job, const Value& v, const vector<int64_t>& shape, bool input) {
        std::size_t n = 1;
        for (const auto d : shape) n *= static_cast<std::size_t>(d);
        void* data = addresses[v.name];
        if (input) {
            job.inputs.emplace_back(static_cast<const char*>(data), n);
            job.input_types.push_back(v.type);
        } else {
            job.outputs.emplace_back(static_cast<char*>(data), n);
            job.output_types.push_back(v.type);
        }
    }
    // Output k, image b, element j: k + the sum over the inputs of their element j (modulo their size) of image b.
    static void run(const Job& job) {
        if (job.delay_us < 0) return;  // for timing: no work at all
        if (job.delay_us) std::this_thread::sleep_for(std::chrono::microseconds(job.delay_us));
        const auto batch = static_cast<std::size_t>(job.batch);
        // Without a profile chosen the context has profile 0. A graph is void when the context has changed since.
        const bool valid = std::max(job.state->profile, 0) == job.profile && job.state->shapes == job.shapes;
        for (std::size_t k = 0; k < job.outputs.size(); ++k) {
            auto* out = reinterpret_cast<float*>(job.outputs[k].first);
            if (job.output_types[k] != 0) continue;
            const std::size_t n = job.outputs[k].second, per = n % batch == 0 ? n / batch : n;
            for (std::size_t j = 0; j < n; ++j) {
                float sum = static_cast<float>(k);
                for (std::size_t i = 0; i < job.inputs.size(); ++i) {
                    if (job.input_types[i] != 0) continue;
                    const std::size_t m = job.inputs[i].second / batch;
                    sum += reinterpret_cast<const float*>(job.inputs[i].first)[j / per * m + j % per % m];
                }
                out[j] = valid ? sum : -1e9F;
            }
        }
    }
    const Graph& graph;
    vector<vector<int64_t>> shapes;
    std::map<string, void*> addresses;
    int profile = -1;
    std::atomic<bool> busy{false};
    IProfiler* profiler = nullptr;
};

struct Inspector final : StubEngineInspector {
    char const* getEngineInformation(LayerInformationFormat) const noexcept override {
        return "{\"Layers\": [\"conv\"]}";
    }
};

struct Engine final : StubCudaEngine {
    explicit Engine(Graph g) : graph(std::move(g)) {}
    int32_t getNbIOTensors() const noexcept override {
        return static_cast<int32_t>(graph.inputs.size() + graph.outputs.size());
    }
    char const* getIOTensorName(int32_t i) const noexcept override {
        return value(static_cast<std::size_t>(i)).name.c_str();
    }
    DataType getTensorDataType(char const* n) const noexcept override { return static_cast<DataType>(named(n).type); }
    Dims getTensorShape(char const* n) const noexcept override { return to_dims(named(n).dims); }
    TensorIOMode getTensorIOMode(char const* n) const noexcept override {
        for (const auto& v : graph.inputs) {
            if (v.name == n) return TensorIOMode::kINPUT;
        }
        return TensorIOMode::kOUTPUT;
    }
    TensorLocation getTensorLocation(char const*) const noexcept override { return TensorLocation::kDEVICE; }
    bool isShapeInferenceIO(char const*) const noexcept override { return false; }
    TensorFormat getTensorFormat(char const*) const noexcept override { return TensorFormat::kLINEAR; }
    char const* getTensorFormatDesc(char const*) const noexcept override { return "linear"; }
    int32_t getNbOptimizationProfiles() const noexcept override { return static_cast<int32_t>(graph.profiles.size()); }
    Dims getProfileShape(char const* n, int32_t p, OptProfileSelector select) const noexcept override {
        const Range& r = graph.profiles[static_cast<std::size_t>(p)].at(n);
        return to_dims(select == OptProfileSelector::kMIN ? r.min : select == OptProfileSelector::kOPT ? r.opt : r.max);
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { return 1 << 20; }
    IEngineInspector* createEngineInspector() const noexcept override { return new FakeEngineInspector<Inspector>; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
        return setting("fail_context") ? nullptr : new FakeExecutionContext<Context>(graph);
    }
    const Value& value(std::size_t i) const {
        return i < graph.inputs.size() ? graph.inputs[i] : graph.outputs[i - graph.inputs.size()];
    }
    const Value& named(const string& n) const {
        for (std::size_t i = 0; i < graph.inputs.size() + graph.outputs.size(); ++i) {
            if (value(i).name == n) return value(i);
        }
        return graph.inputs[0];
    }
    Graph graph;
};

struct Runtime final : StubRuntime {
    explicit Runtime(ILogger* l) : logger(l) {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        Graph g;
        if (!deserialize(string(static_cast<const char*>(blob), size), &g)) {
            logger->log(ILogger::Severity::kERROR, "Serialization assertion failed: checksum of the plan");
            return nullptr;
        }
        return new FakeCudaEngine<Engine>(std::move(g));
    }
    void setEngineHostCodeAllowed(bool) noexcept override {}
    ILogger* logger;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API void standin_add_layer(void* network, const char* op, const Value* outputs, int count) {
    auto& n = static_cast<NetworkShell*>(static_cast<INetworkDefinition*>(network))->impl;
    auto layer = std::make_unique<LayerShell>(string(op));
    for (int i = 0; i < count; ++i) layer->impl.outputs.push_back(std::make_unique<TensorShell>(outputs[i], false));
    n.layers.push_back(std::move(layer));
}
API void standin_name_symbols(void* network, const Value* value) {
    auto& n = static_cast<NetworkShell*>(static_cast<INetworkDefinition*>(network))->impl;
    n.inputs.back()->impl.value.symbols = value->symbols;
}
API int standin_plugins_loaded() { return registry().loaded; }

}  // namespace standin

API void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept {
    if (standin::setting("fail_builder")) return nullptr;
    standin::note_logger(logger);
    return new standin::FakeBuilder<standin::Builder>(static_cast<nvinfer1::ILogger*>(logger));
}
API void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
    standin::note_logger(logger);
    return new standin::FakeRuntime<standin::Runtime>(static_cast<nvinfer1::ILogger*>(logger));
}
API nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &standin::registry(); }
API int32_t getInferLibVersion() noexcept { return standin::version_number(); }

API void standin_trt_reset() {
    const std::lock_guard<std::mutex> lock(standin::settings_mutex);
    standin::settings().clear();
    standin::slow_path = false;
}
API void standin_trt_set(const char* key, long value) {
    const std::lock_guard<std::mutex> lock(standin::settings_mutex);
    standin::settings()[key] = value;
    standin::slow_path = true;
}
API long standin_trt_get(const char* key) {
    if (std::string(key) == "live") return standin::live;
    if (std::string(key) == "unexpected") return standin::unexpected_calls;
    return standin::setting(key);
}
