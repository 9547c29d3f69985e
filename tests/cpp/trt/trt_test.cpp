// Builder and engine end to end against the stand-ins: life cycle, profile choice, error paths, threads, leaks.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "builder.h"
#include "control.h"
#include "cuda_api.h"
#include "engine.h"
#include "library.h"

using namespace dhead::trt;

namespace {

// ---------------------------------------------------------------- a very small test frame

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Test {
    const char* name;
    void (*run)();
};
std::vector<Test>& tests() {
    static std::vector<Test> list;
    return list;
}
struct Register {
    Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                               \
    void name();                                 \
    const Register register_##name(#name, name); \
    void name()
#define CHECK(condition)                                                                                         \
    do {                                                                                                         \
        if (!(condition)) throw Failure(std::string(__FILE__ ":") + std::to_string(__LINE__) + ": " #condition); \
    } while (false)

// The call fails with this kind of error, and its text contains each of `words`.
void check_fails(int line, ErrorKind kind, const std::vector<std::string>& words, const std::function<void()>& call) {
    const std::string where = "line " + std::to_string(line) + ": ";
    try {
        call();
    } catch (const Error& e) {
        if (e.kind != kind) throw Failure(where + "another kind of error: " + e.what());
        for (const auto& word : words) {
            if (std::string(e.what()).find(word) == std::string::npos)
                throw Failure(where + "no '" + word + "' in: " + e.what());
        }
        return;
    }
    throw Failure(where + "did not fail");
}
#define FAILS(kind, words, ...) check_fails(__LINE__, ErrorKind::kind, words, [&] { __VA_ARGS__; })
using Words = std::vector<std::string>;

// ---------------------------------------------------------------- the stand-ins

const std::string kDir = STANDIN_DIR;
const std::string kLibrary = kDir + "/libnvinfer.so." + std::to_string(TRT_MAJOR);
const std::string kCudart = kDir + "/libcudart.so." + std::to_string(TRT_MAJOR);

template <typename F>
F control(const char* name) {
    static void* cuda = dlopen(kCudart.c_str(), RTLD_NOW | RTLD_LOCAL);
    static void* trt = dlopen(kLibrary.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* p = dlsym(std::strstr(name, "trt") ? trt : cuda, name);
    if (!p) throw Failure(std::string("no ") + name);
    return reinterpret_cast<F>(p);
}
void cuda_fail(const char* call, int after = 0) {
    control<void (*)(const char*, int)>("standin_cuda_fail")(call, after);
}
long cuda_live(const char* kind) { return control<long (*)(const char*)>("standin_cuda_live")(kind); }
long cuda_count(const char* what) { return control<long (*)(const char*)>("standin_cuda_count")(what); }
void trt_set(const char* key, long value) { control<void (*)(const char*, long)>("standin_trt_set")(key, value); }
long trt_get(const char* key) { return control<long (*)(const char*)>("standin_trt_get")(key); }
void reset() {
    control<void (*)()>("standin_cuda_reset")();
    control<void (*)()>("standin_trt_reset")();
}

std::shared_ptr<Library> library() {
    LibraryOptions o;
    o.path = kLibrary;
    o.cudart = kCudart;
    return Library::open(o);
}

// ---------------------------------------------------------------- ONNX models, just enough of the format

std::string varint(uint64_t v) {
    std::string s;
    for (; v >= 0x80; v >>= 7) s += static_cast<char>(v | 0x80);
    return s + static_cast<char>(v);
}
std::string field(int number, const std::string& bytes) {
    return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string field(int number, uint64_t value) { return varint(static_cast<uint64_t>(number) << 3) + varint(value); }

std::string value(const std::string& name, const Shape& shape, int type = 1) {
    std::string dims;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        dims += field(1, shape[i] < 0 ? field(2, "symbol" + std::to_string(-shape[i]))
                                      : field(1, static_cast<uint64_t>(shape[i])));
    }
    return field(1, name) + field(2, field(1, field(1, static_cast<uint64_t>(type)) + field(2, dims)));
}
std::string node(const std::string& output, const std::string& op = "Identity", const std::string& domain = "",
                 const std::string& name = "node_0") {
    return field(2, output) + field(3, name) + field(4, op) + (domain.empty() ? "" : field(7, domain));
}
std::string model(const std::vector<std::string>& inputs, const std::vector<std::string>& nodes,
                  const std::vector<std::string>& outputs) {
    std::string graph;
    for (const auto& n : nodes) graph += field(1, n);
    for (const auto& i : inputs) graph += field(11, i);
    for (const auto& o : outputs) graph += field(12, o);
    return field(1, 8U) + field(7, graph);
}
// images [B, 3, 4, 4] → a [B, 5], b [B, 2]; dynamic batch where B is -1.
std::string two_outputs(int64_t batch) {
    return model({value("images", {batch, 3, 4, 4})}, {node("a"), node("b")},
                 {value("a", {batch, 5}), value("b", {batch, 2})});
}
Profile batches(int64_t min, int64_t opt, int64_t max) {
    return {{"images", {{min, 3, 4, 4}, {opt, 3, 4, 4}, {max, 3, 4, 4}}}};
}
BuildOptions with(std::vector<Profile> profiles) {
    BuildOptions o;
    o.profiles = std::move(profiles);
    return o;
}
std::string plan_of(const std::string& onnx, const BuildOptions& options = {}) {
    const auto r = Builder(library()).build(onnx.data(), onnx.size(), options);
    return {static_cast<const char*>(r.plan->data()), r.plan->size()};
}
std::shared_ptr<Engine> engine_of(const std::string& plan, EngineOptions options = {}) {
    return std::make_shared<Engine>(library(), plan.data(), plan.size(), std::move(options));
}

// ---------------------------------------------------------------- arrays

std::vector<float> numbers(std::size_t n, float start) {
    std::vector<float> v(n);
    std::iota(v.begin(), v.end(), start);
    return v;
}
// What the stand-in computes.
std::vector<float> expected(const std::vector<float>& in, std::size_t batch, std::size_t per, float k) {
    std::vector<float> out(batch * per);
    const std::size_t m = in.size() / batch;
    for (std::size_t j = 0; j < out.size(); ++j) out[j] = k + in[j / per * m + j % per % m];
    return out;
}
Array host(std::vector<float>& v, Shape shape) {
    return {v.data(), ElementType::kFloat32, std::move(shape), false, nullptr};
}

// Device memory of the stand-in is host memory: a test may look at it when the work has ended.
struct Device {
    explicit Device(std::size_t bytes) { CHECK(library()->cuda().Malloc(&data, bytes) == 0); }
    explicit Device(const std::vector<float>& v) : Device(v.size() * 4) { std::memcpy(data, v.data(), v.size() * 4); }
    ~Device() { library()->cuda().Free(data); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    std::vector<float> read(std::size_t n) const {
        const float* p = static_cast<const float*>(data);
        return {p, p + n};
    }
    void* data = nullptr;
};
Array device(const Device& d, Shape shape, std::size_t offset = 0) {
    return {static_cast<char*>(d.data) + offset, ElementType::kFloat32, std::move(shape), true, nullptr};
}
std::vector<float> read(const Array& a) {
    const float* p = static_cast<const float*>(a.data);
    return {p, p + num_elements(a.shape)};
}

void run_and_check(const Engine& engine, std::size_t batch, float start) {
    auto in = numbers(batch * 48, start);
    const auto b = static_cast<int64_t>(batch);
    std::vector<float> a(batch * 5), c(batch * 2);
    std::vector<Array> outputs{host(a, {b, 5}), host(c, {b, 2})};
    engine.infer({host(in, {b, 3, 4, 4})}, outputs);
    CHECK(a == expected(in, batch, 5, 0));
    CHECK(c == expected(in, batch, 2, 1));
}

// ---------------------------------------------------------------- library

TEST(library_search) {
    CHECK(library()->version() == header_version());
    CHECK(library()->path() == kLibrary);
    CHECK(library() == library());
    LibraryOptions o;
    o.path = kDir;  // a folder
    CHECK(Library::open(o)->path() == kLibrary);

    o.path = "/nonexistent/libnvinfer.so";
    FAILS(kUnavailable, (Words{"TensorRT cannot be loaded", "/nonexistent", "Correct that path"}), Library::open(o));
    o.path = kCudart;
    FAILS(kUnavailable, (Words{"none of TensorRT's entry points"}), Library::open(o));

    LibraryOptions env;
    env.package_dirs = {kDir};
    setenv("DHEAD_TENSORRT_LIBRARY_DIR", "/nonexistent", 1);  // set, it is the only place
    FAILS(kUnavailable, (Words{"/nonexistent"}), Library::open(env));
    setenv("DHEAD_TENSORRT_LIBRARY_DIR", kDir.c_str(), 1);
    CHECK(Library::open({})->path() == kLibrary);
    unsetenv("DHEAD_TENSORRT_LIBRARY_DIR");
    env.package_dirs = {"/nonexistent", kDir};
    CHECK(Library::open(env)->path() == kLibrary);
}

TEST(library_versions) {
    const std::string copy = kDir + "/copy-" + std::to_string(getpid()) + ".so";  // loaded ones are remembered by path
    LibraryOptions o;
    o.path = copy;
    for (const auto& [number, words] : std::vector<std::pair<const char*, Words>>{
             {"100001", {"10.0.1"}},
             {"8601", {"8.6.1"}},
             {"120000", {"12.0.0"}},
             {TRT_MAJOR == 10 ? "110100" : "101401",
              {"but this module needs TensorRT " + std::to_string(TRT_MAJOR) + ".x"}}}) {
        CHECK(symlink(kLibrary.c_str(), copy.c_str()) == 0);
        setenv("DHEAD_STANDIN_VERSION", number, 1);
        FAILS(kUnavailable, words, Library::open(o));
        unsetenv("DHEAD_STANDIN_VERSION");
        unlink(copy.c_str());
    }
#if TRT_MAJOR < 11
    o.path = kLibrary;
    o.rtx = true;
    FAILS(kUnavailable, (Words{"TensorRT 11 headers"}), Library::open(o));
#endif
}

TEST(no_device) {
    control<void (*)(int)>("standin_cuda_devices")(0);
    const std::string onnx = two_outputs(1);
    FAILS(kUnavailable, (Words{"No NVIDIA GPU"}), plan_of(onnx));
    FAILS(kUnavailable, (Words{"No NVIDIA GPU"}), list_devices(*library()));
    reset();
    const std::string plan = plan_of(onnx);
    control<void (*)(int)>("standin_cuda_devices")(0);
    FAILS(kUnavailable, (Words{"No NVIDIA GPU"}), engine_of(plan));
    reset();
    CHECK(list_devices(*library()).size() == 2);
    CHECK(list_devices(*library())[1].name == "Stand-in GPU 1" && list_devices(*library())[1].compute_minor == 9);
}

TEST(no_cuda_runtime) {
    LibraryOptions o;
    o.path = kLibrary;
    o.cudart = "/nonexistent/libcudart.so";
    FAILS(kUnavailable, (Words{"CUDA runtime cannot be loaded", "/nonexistent"}), Library::open(o)->cuda());
    o.cudart = "libm.so.6";  // a library, but not that
    FAILS(kUnavailable, (Words{"lacks"}), Library::open(o)->cuda());
}

// ---------------------------------------------------------------- builder

TEST(build_static) {
    const std::string onnx = two_outputs(2);
    const auto r = Builder(library()).build(onnx.data(), onnx.size(), {});
    CHECK(r.inputs.size() == 1 && r.inputs[0].name == "images" && r.inputs[0].shape == (Shape{2, 3, 4, 4}));
    CHECK(r.outputs.size() == 2 && r.outputs[1].name == "b" && r.outputs[1].shape == (Shape{2, 2}));
    CHECK(r.layers == 2 && r.tensorrt_version == header_version() && !r.rtx);
    CHECK(r.warnings == std::vector<std::string>{"this is a stand-in"});
    CHECK(r.plan->size() > 32);
}

TEST(build_file_and_write) {
    const std::string path = kDir + "/model-" + std::to_string(getpid()) + ".onnx", out = path + ".plan";
    const std::string onnx = two_outputs(1);
    write_file(path, onnx.data(), onnx.size());
    const auto r = Builder(library()).build_file(path, {});
    write_file(out, r.plan->data(), r.plan->size());
    CHECK(Engine::load_file(library(), out)->inputs().size() == 1);
    unlink(path.c_str());
    unlink(out.c_str());
    FAILS(kInput, (Words{"The model cannot be read", path}), Builder(library()).build_file(path, {}));
    FAILS(kInput, (Words{"cannot be written", "/nonexistent"}), write_file("/nonexistent/x.plan", "x", 1));
    FAILS(kArtifact, (Words{"The plan cannot be read"}), Engine::load_file(library(), out));
    FAILS(kArtifact, (Words{"The plan"}), Engine::load_file(library(), kDir));
}

TEST(build_options_reach_the_builder) {
    BuildOptions o;
    o.workspace = 123 << 20;
    o.tactic_dram = 1 << 20;
    o.optimization_level = 4;
    o.avg_timing_iterations = 8;
    o.max_aux_streams = 2;
    o.hardware = HardwareCompatibility::kAmperePlus;
    o.version_compatible = o.exclude_lean_runtime = true;
    o.tf32 = false;
    o.verbosity = ProfilingVerbosity::kDetailed;
    plan_of(two_outputs(1), o);
    CHECK(trt_get("config.pool0") == 123 << 20);
    CHECK(trt_get("config.pool4") == 1 << 20);
    CHECK(trt_get("config.level") == 4);
    CHECK(trt_get("config.timing_iterations") == 8);
    CHECK(trt_get("config.aux_streams") == 2);
    CHECK(trt_get("config.hardware") == 1);
    CHECK(trt_get("config.verbosity") == 2);
    o.optimization_level = 9;
    FAILS(kInput, (Words{"optimisation level", "9", "0 to 5"}), plan_of(two_outputs(1), o));
}

TEST(build_dla) {
    BuildOptions o;
    o.dla_core = 0;
    FAILS(kBuild, (Words{"does not offer that DLA core", "reports no DLA cores", "Jetson"}),
          plan_of(two_outputs(1), o));
    trt_set("dla_cores", 2);
    CHECK(Builder(library()).dla_cores() == 2);
    o.dla_core = 1;
    plan_of(two_outputs(1), o);
    CHECK(trt_get("config.dla_core") == 1 && trt_get("config.device_type") == 1);
    o.dla_core = 2;
    FAILS(kBuild, (Words{"dla_core=2", "0 to 1"}), plan_of(two_outputs(1), o));
}

TEST(build_profiles) {
    const std::string onnx = two_outputs(-1);
    FAILS(kInput, (Words{"'images'", "dynamic", "batch=(min, opt, max)"}), plan_of(onnx));
    FAILS(kInput, (Words{"not ordered"}), plan_of(onnx, with({batches(1, 8, 4)})));
    FAILS(kInput, (Words{"does not fit", "dimension 0"}), plan_of(onnx, with({batches(0, 1, 4)})));
    FAILS(kInput, (Words{"number of dimensions"}), plan_of(onnx, with({{{"images", {{1, 3}, {1, 3}, {1, 3}}}}})));
    FAILS(kInput, (Words{"does not fit", "dimension 2"}),
          plan_of(onnx, with({{{"images", {{1, 3, 8, 4}, {1, 3, 8, 4}, {1, 3, 8, 4}}}}})));
    FAILS(kInput, (Words{"does not have", "image"}), plan_of(onnx, with({{{"image", {{1}, {1}, {1}}}}})));
    FAILS(kInput, (Words{"leaves out", "images"}), plan_of(onnx, with({batches(1, 1, 2), {}})));
    const auto engine = engine_of(plan_of(onnx, with({batches(1, 1, 1), batches(1, 4, 8)})));
    CHECK(engine->num_profiles() == 2);
    CHECK(engine->inputs()[0].profiles[1].max == (Shape{8, 3, 4, 4}));
}

TEST(parser_errors) {
    const std::string bad =
        model({value("x", {1})}, {node("y", "Unsupported", "", "/head/bad_node")}, {value("y", {1})});
    FAILS(kBuild, (Words{"cannot parse", "/head/bad_node", "(Unsupported, number 0)"}), plan_of(bad));
    const std::string custom =
        model({value("x", {1})}, {node("y", "DHeadDetect", "dhead", "detect")}, {value("y", {1})});
    FAILS(kBuild, (Words{"'detect' (DHeadDetect", "Plugin not found"}), plan_of(custom));
    FAILS(kBuild, (Words{"Failed to parse"}), plan_of("this is not a model"));
    FAILS(kBuild, (Words{"cannot parse"}), plan_of(two_outputs(1).substr(0, 40)));
    FAILS(kInput, (Words{"The model is empty"}), plan_of(""));
    BuildOptions o;
    o.plugins = {"/nonexistent/libplugin.so"};
    FAILS(kBuild, (Words{"/nonexistent/libplugin.so"}), plan_of(custom, o));
    o.plugins = {kLibrary};
    CHECK(!plan_of(custom, o).empty());
}

TEST(build_failures) {
    trt_set("fail_build", 1);
    FAILS(kBuild, (Words{"could not build", "no tactic found"}), plan_of(two_outputs(1)));
    reset();
    trt_set("fail_builder", 1);
    FAILS(kUnavailable, (Words{"could not create a builder"}), plan_of(two_outputs(1)));
    BuildOptions o;
    o.device = 7;
    reset();
    FAILS(kInput, (Words{"no such CUDA device", "7", "0 to 1"}), plan_of(two_outputs(1), o));
}

TEST(progress_and_cancel) {
    trt_set("build_steps", 10);
    std::vector<ProgressEvent> events;
    BuildOptions o;
    o.progress = [&](const ProgressEvent& e) {
        events.push_back(e);
        return true;
    };
    plan_of(two_outputs(1), o);
    CHECK(events.size() == 12);
    CHECK(events.front().phase == "Building" && events.front().step == 0 && events.front().steps == 10);
    CHECK(events[1].step == 1 && events.back().step == 10);

    const std::string cache = kDir + "/cancel-" + std::to_string(getpid());
    o.timing_cache = cache;
    int calls = 0;
    o.progress = [&](const ProgressEvent&) { return ++calls < 4; };
    bool cancelled = false;
    try {
        plan_of(two_outputs(1), o);
    } catch (const Cancelled&) {
        cancelled = true;
    }
    CHECK(cancelled && calls == 4);
    CHECK(access(cache.c_str(), F_OK) != 0);  // nothing of a cancelled build is written
    o.progress = [&](const ProgressEvent&) -> bool { throw std::out_of_range("from the callback"); };
    bool thrown = false;
    try {
        plan_of(two_outputs(1), o);
    } catch (const std::out_of_range&) {
        thrown = true;
    }
    CHECK(thrown);
    unlink((cache + ".lock").c_str());
}

std::string contents(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

TEST(timing_cache) {
    const std::string path = kDir + "/cache-" + std::to_string(getpid());
    BuildOptions o;
    o.timing_cache = path;
    const auto build = [&](const std::string& onnx) { return Builder(library()).build(onnx.data(), onnx.size(), o); };
    CHECK(!build(two_outputs(1)).timing_cache_used);
    CHECK(contents(path) == "standin-cache\na\nb\n");
    CHECK(build(two_outputs(1)).timing_cache_used);
    // Several builds at once lose nothing.
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
        threads.emplace_back([&, i] {
            const std::string n = "out" + std::to_string(i);
            build(model({value("x", {1})}, {node(n)}, {value(n, {1})}));
        });
    }
    for (auto& t : threads) t.join();
    CHECK(contents(path) == "standin-cache\na\nb\nout0\nout1\nout2\nout3\nout4\nout5\n");
    // A cache of another version is replaced; an unwritable place is an error.
    std::ofstream(path) << "something else";
    CHECK(!build(two_outputs(1)).timing_cache_used);
    CHECK(contents(path) == "standin-cache\na\nb\n");
    unlink(path.c_str());
    unlink((path + ".lock").c_str());
    o.timing_cache = "/nonexistent/cache";
    FAILS(kInput, (Words{"/nonexistent/cache"}), build(two_outputs(1)));
}

TEST(mark_outputs) {
    const std::string onnx = model({value("x", {2, 4})}, {node("mid"), node("y")}, {value("y", {2, 4})});
    BuildOptions o;
    o.mark_outputs = {"mid", "y"};
    const auto r = Builder(library()).build(onnx.data(), onnx.size(), o);
    CHECK(r.outputs.size() == 2 && r.outputs[1].name == "mid");
    o.mark_outputs = {"nothing"};
    FAILS(kInput, (Words{"mark_outputs", "nothing"}), plan_of(onnx, o));
    o.mark_outputs.clear();
    o.mark_all_outputs = true;
    CHECK(Builder(library()).build(onnx.data(), onnx.size(), o).outputs.size() == 2);
}

// ---------------------------------------------------------------- engine

TEST(run_host) {
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})));
    CHECK(engine->output_shapes({{3, 3, 4, 4}}) == (std::vector<Shape>{{3, 5}, {3, 2}}));
    for (std::size_t batch : {1, 8, 3, 3, 1}) run_and_check(*engine, batch, static_cast<float>(batch));
}

TEST(run_device_in_place) {
    const auto engine = engine_of(plan_of(two_outputs(2)));
    const auto in = numbers(96, 5);
    const Device d(in), a(40), b(16);
    std::vector<Array> outputs{device(a, {2, 5}), device(b, {2, 2})};
    const long copies = cuda_count("copy");
    engine->infer({device(d, {2, 3, 4, 4})}, outputs);
    CHECK(a.read(10) == expected(in, 2, 5, 0) && b.read(4) == expected(in, 2, 2, 1));
    CHECK(cuda_count("copy") == copies);  // used in place
    CHECK(engine->stats().pool_bytes == 0);

    // The engine's own output memory is used again once it is let go.
    void* first = nullptr;
    for (int i = 0; i < 3; ++i) {
        std::vector<Array> own(2);
        engine->infer({device(d, {2, 3, 4, 4})}, own);
        CHECK(own[0].on_device && own[0].shape == (Shape{2, 5}) && read(own[1]) == expected(in, 2, 2, 1));
        if (!first) first = own[0].data;
        CHECK(own[0].data == first || own[1].data == first);
    }
    CHECK(engine->stats().pool_bytes == 1024);
    std::vector<Array> kept(2), other(2);
    engine->infer({device(d, {2, 3, 4, 4})}, kept);
    engine->infer({device(d, {2, 3, 4, 4})}, other);
    CHECK(kept[0].data != other[0].data);
}

TEST(run_device_unaligned) {
    const auto engine = engine_of(plan_of(two_outputs(1)));
    auto all = numbers(49, 0);
    const Device d(all), a(64), b(512);
    std::vector<Array> outputs{device(a, {1, 5}, 4), device(b, {1, 2})};
    engine->infer({device(d, {1, 3, 4, 4}, 4)}, outputs);
    all.erase(all.begin());
    CHECK(read(outputs[0]) == expected(all, 1, 5, 0) && read(outputs[1]) == expected(all, 1, 2, 1));
}

TEST(outputs_outlive_the_engine) {
    auto engine = engine_of(plan_of(two_outputs(1)));
    const auto in = numbers(48, 1);
    const Device d(in);
    std::vector<Array> own(2);
    engine->infer({device(d, {1, 3, 4, 4})}, own);
    engine.reset();
    CHECK(read(own[0]) == expected(in, 1, 5, 0));
}

TEST(profile_by_shape) {
    const auto engine =
        engine_of(plan_of(two_outputs(-1), with({batches(1, 16, 16), batches(1, 1, 2), batches(4, 4, 32)})));
    for (std::size_t batch : {1, 2, 3, 16, 32, 20, 1}) run_and_check(*engine, batch, 0);
    FAILS(kInput, (Words{"No optimisation profile", "images (33, 3, 4, 4)", "(4, 3, 4, 4) to (32, 3, 4, 4)"}),
          run_and_check(*engine, 33, 0));
    run_and_check(*engine, 2, 7);  // and works after an error
}

TEST(wrong_arrays) {
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})));
    auto in = numbers(48, 0);
    std::vector<float> a(5), b(2);
    const auto run = [&](std::vector<Array> inputs, std::vector<Array> outputs) { engine->infer(inputs, outputs); };
    const Array ok = host(in, {1, 3, 4, 4}), oa = host(a, {1, 5}), ob = host(b, {1, 2});
    run({ok}, {oa, ob});
    FAILS(kInput, (Words{"Wrong number"}), run({}, {oa, ob}));
    FAILS(kInput, (Words{"Wrong number"}), run({ok}, {oa}));
    FAILS(kInput, (Words{"'images'", "wrong shape", "(1, 3, 4)"}), run({host(in, {1, 3, 4})}, {oa, ob}));
    FAILS(kInput, (Words{"'images'", "(1, 3, 4, 5)"}), run({host(in, {1, 3, 4, 5})}, {oa, ob}));
    FAILS(kInput, (Words{"'images'", "(0, 3, 4, 4)"}), run({host(in, {0, 3, 4, 4})}, {oa, ob}));
    FAILS(kInput, (Words{"'images'", "(-1, 3, 4, 4)"}), run({host(in, {-1, 3, 4, 4})}, {oa, ob}));
    FAILS(kInput, (Words{"Output 'b'", "wrong shape", "(2, 2)", "(1, 2)"}), run({ok}, {oa, host(b, {2, 2})}));
    Array half = ok;
    half.type = ElementType::kFloat16;
    FAILS(kInput, (Words{"'images'", "dtype", "float16", "float32"}), run({half}, {oa, ob}));
    half = oa;
    half.type = ElementType::kInt32;
    FAILS(kInput, (Words{"Output 'a'", "int32"}), run({ok}, {half, ob}));
    Array null = ok;
    null.data = nullptr;
    FAILS(kInput, (Words{"'images'", "no data"}), run({null}, {oa, ob}));
    Array lie = ok;
    lie.on_device = true;  // host memory said to be on the device, as a freed buffer would be
    FAILS(kInput, (Words{"'images'", "not in device memory", "freed"}), run({lie}, {oa, ob}));
    void* pinned = nullptr;
    library()->cuda().HostAlloc(&pinned, 192, 0);
    lie.data = pinned;
    FAILS(kInput, (Words{"host memory"}), run({lie}, {oa, ob}));
    library()->cuda().FreeHost(pinned);
    {
        const DeviceGuard other(library()->cuda(), 1);
        const Device d(192);
        FAILS(kInput, (Words{"another device", "device 1", "device 0"}), run({device(d, {1, 3, 4, 4})}, {oa, ob}));
    }
    Device* freed = new Device(192);
    const Array dangling = device(*freed, {1, 3, 4, 4});
    delete freed;
    FAILS(kInput, (Words{"not in device memory"}), run({dangling}, {oa, ob}));
    run({ok}, {oa, ob});
    CHECK(engine->stats().contexts == 1);  // refused before a context was touched
}

TEST(given_stream_does_not_wait) {
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const auto in = numbers(48, 3);
    const Device d(in), a(20), b(8);
    const StreamHandle stream = make_stream(cuda), second = make_stream(cuda);
    std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
    InferOptions o;
    o.has_stream = true;
    o.stream = stream.get();
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    trt_set("delay_us", 50000);
    const long syncs = cuda_count("sync");
    const auto start = std::chrono::steady_clock::now();
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    o.stream = second.get();  // the same context on another stream: ordered on the device
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(45));
    CHECK(cuda_count("sync") == syncs && engine->stats().contexts == 1);
    cuda.StreamSynchronize(second.get());
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(95));
    CHECK(a.read(5) == expected(in, 1, 5, 0));
    // Host outputs make it wait, since they are read on return.
    std::vector<float> ha(5), hb(2);
    std::vector<Array> host_outputs{host(ha, {1, 5}), host(hb, {1, 2})};
    engine->infer({device(d, {1, 3, 4, 4})}, host_outputs, o);
    CHECK(ha == expected(in, 1, 5, 0));
    // Host inputs may be changed as soon as the call returns.
    auto mine = numbers(48, 100);
    for (int i = 0; i < 3; ++i) {
        engine->infer({host(mine, {1, 3, 4, 4})}, outputs, o);
        std::fill(mine.begin(), mine.end(), -1.0F);
        cuda.StreamSynchronize(second.get());
        CHECK(a.read(5) == expected(numbers(48, 100), 1, 5, 0));
        mine = numbers(48, 100);
    }
}

TEST(stream_of_another_device) {
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const Device d(numbers(48, 0)), a(20), b(8);
    std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
    InferOptions o;
    o.has_stream = true;
    StreamHandle there;
    {
        const DeviceGuard other(cuda, 1);
        there = make_stream(cuda);
    }
    o.stream = there.get();
    for (int i = 0; i < 2; ++i) {
        FAILS(kInput, (Words{"stream", "another device"}), engine->infer({device(d, {1, 3, 4, 4})}, outputs, o));
    }
    run_and_check(*engine, 1, 4);
}

TEST(waits_for_the_producer) {
    // The input is written by slow work on the default stream, then by one on a stream named in wait_for.
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const auto in = numbers(48, 9);
    const Device source(in), d(192);
    const StreamHandle producer = make_stream(cuda);
    const auto launch = control<int (*)(void*, void (*)(void*), void*, void (*)(void*))>("standin_launch");
    for (void* stream : {static_cast<void*>(nullptr), producer.get()}) {
        std::memset(d.data, 0, 192);
        launch(
            stream, [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }, nullptr, [](void*) {});
        cuda.MemcpyAsync(d.data, source.data, 192, kCudaDeviceToDevice, stream);
        std::vector<Array> own(2);
        InferOptions o;
        if (stream) o.wait_for = {stream};
        engine->infer({device(d, {1, 3, 4, 4})}, own, o);
        CHECK(read(own[0]) == expected(in, 1, 5, 0));
    }
}

TEST(host_inputs_back_to_back) {
    // The second call must not overwrite page-locked memory that the first one's copy has yet to read.
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const StreamHandle stream = make_stream(cuda);
    const auto launch = control<int (*)(void*, void (*)(void*), void*, void (*)(void*))>("standin_launch");
    InferOptions o;
    o.has_stream = true;
    o.stream = stream.get();
    const Device a1(20), b1(8), a2(20), b2(8);
    std::vector<Array> first{device(a1, {1, 5}), device(b1, {1, 2})}, second{device(a2, {1, 5}), device(b2, {1, 2})};
    auto one = numbers(48, 1), two = numbers(48, 500);
    launch(
        stream.get(), [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(30)); }, nullptr, [](void*) {});
    engine->infer({host(one, {1, 3, 4, 4})}, first, o);
    engine->infer({host(two, {1, 3, 4, 4})}, second, o);
    cuda.StreamSynchronize(stream.get());
    CHECK(a1.read(5) == expected(one, 1, 5, 0) && a2.read(5) == expected(two, 1, 5, 0));
}

TEST(cuda_graphs) {
    EngineOptions eo;
    eo.cuda_graphs = true;
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})), eo);
    for (int i = 0; i < 5; ++i) run_and_check(*engine, 2, static_cast<float>(i));
    for (int i = 0; i < 5; ++i) run_and_check(*engine, 4, static_cast<float>(i));
    run_and_check(*engine, 2, 9);
    auto s = engine->stats();
    // New shapes may move the staging memory, and with it the addresses; then a graph is captured anew.
    CHECK(s.graphs >= 2 && s.graph_failures == 0 && s.graph_launches >= 8);

    const auto in = numbers(48, 2);
    const Device d(in), a(20), b(8);
    const long launched = static_cast<long>(engine->stats().graph_launches);
    for (int i = 0; i < 4; ++i) {
        std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
        std::memset(a.data, 0, 20);
        engine->infer({device(d, {1, 3, 4, 4})}, outputs);
        CHECK(a.read(5) == expected(in, 1, 5, 0));
    }
    CHECK(static_cast<long>(engine->stats().graph_launches) == launched + 3);
    // Ever new addresses: no graph is kept beyond the bound.
    for (int i = 0; i < 100; ++i) {
        const Device fresh(in);
        std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
        engine->infer({device(fresh, {1, 3, 4, 4})}, outputs);
    }
    CHECK(engine->stats().graphs <= 16);
}

TEST(graphs_of_alternating_shapes) {
    // A graph does not outlive a change of its context's shapes: with one context none is ever replayed, with more
    // each set of shapes keeps one.
    for (const int contexts : {1, 8}) {
        EngineOptions eo;
        eo.cuda_graphs = true;
        eo.max_contexts = contexts;
        const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})), eo);
        for (int i = 0; i < 12; ++i) run_and_check(*engine, i % 2 ? 2 : 4, static_cast<float>(i));
        const auto s = engine->stats();
        CHECK(s.graph_failures == 0 && (contexts == 1 ? s.graph_launches == 0 : s.graph_launches >= 8));
        CHECK(s.contexts == (contexts == 1 ? 1 : 2));
    }
}

TEST(profile_choice_is_ordered) {
    // What TensorRT copies for a profile is there before the first call, whichever stream that is on.
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 1, 1), batches(2, 4, 8)})));
    trt_set("profile_us", 20000);
    const StreamHandle stream = make_stream(cuda);
    InferOptions o;
    o.has_stream = true;
    o.stream = stream.get();
    for (int i = 0; i < 4; ++i) {
        const int64_t batch = 1 + i % 2;
        const auto n = static_cast<std::size_t>(batch);
        const auto in = numbers(48 * n, 3);
        const Device d(in), a(20 * n), b(8 * n);
        std::vector<Array> outputs{device(a, {batch, 5}), device(b, {batch, 2})};
        engine->infer({device(d, {batch, 3, 4, 4})}, outputs, o);
        cuda.StreamSynchronize(stream.get());
        CHECK(a.read(5 * n) == expected(in, n, 5, 0));
    }
}

TEST(default_stream_does_not_wait) {
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const auto in = numbers(48, 3);
    const Device source(in), d(192), out(20);
    InferOptions o;
    o.has_stream = true;
    std::vector<Array> outputs(2);
    engine->infer({device(source, {1, 3, 4, 4})}, outputs, o);
    cuda.StreamSynchronize(nullptr);
    std::memset(d.data, 0, 192);
    trt_set("delay_us", 30000);
    const long syncs = cuda_count("sync");
    const auto start = std::chrono::steady_clock::now();
    cuda.MemcpyAsync(d.data, source.data, 192, kCudaDeviceToDevice, nullptr);
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    cuda.MemcpyAsync(out.data, outputs[0].data, 20, kCudaDeviceToDevice, nullptr);  // later work sees the result
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(25));
    CHECK(cuda_count("sync") == syncs);
    cuda.StreamSynchronize(nullptr);
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(30));
    CHECK(out.read(5) == expected(in, 1, 5, 0));
}

TEST(unaligned_arrays_on_a_stream_do_not_wait) {
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(1)));
    auto all = numbers(49, 0);
    const Device d(all), a(64), b(8);
    const StreamHandle stream = make_stream(cuda);
    InferOptions o;
    o.has_stream = true;
    o.stream = stream.get();
    std::vector<Array> outputs{device(a, {1, 5}, 4), device(b, {1, 2})};
    engine->infer({device(d, {1, 3, 4, 4}, 4)}, outputs, o);
    const long syncs = cuda_count("sync");
    for (int i = 0; i < 3; ++i) engine->infer({device(d, {1, 3, 4, 4}, 4)}, outputs, o);
    CHECK(cuda_count("sync") == syncs);
    cuda.StreamSynchronize(stream.get());
    all.erase(all.begin());
    CHECK(read(outputs[0]) == expected(all, 1, 5, 0));
}

TEST(captured_by_the_caller) {
    const CudaApi& cuda = library()->cuda();
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})));
    const Device d(numbers(48, 1)), a(20), b(8);
    const StreamHandle stream = make_stream(cuda);
    InferOptions o;
    o.has_stream = true;
    o.stream = stream.get();
    std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
    CHECK(cuda.StreamBeginCapture(stream.get(), kCudaCaptureThreadLocal) == 0);
    FAILS(kInput, (Words{"have not run yet"}), engine->infer({device(d, {1, 3, 4, 4})}, outputs, o));
    void* nothing = nullptr;
    CHECK(cuda.StreamEndCapture(stream.get(), &nothing) == 0);
    GraphHandle(&cuda, nothing).reset();
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    CHECK(cuda.StreamBeginCapture(stream.get(), kCudaCaptureThreadLocal) == 0);
    FAILS(kInput, (Words{"in place"}), engine->infer({device(d, {1, 3, 4, 4}, 4)}, outputs, o));
    engine->infer({device(d, {1, 3, 4, 4})}, outputs, o);
    CHECK(engine->stats().contexts == 0);  // the graph has it
    FAILS(kInput, (Words{"No context is ready"}), engine->infer({device(d, {1, 3, 4, 4})}, outputs, o));
    auto in = numbers(48, 0);
    FAILS(kInput, (Words{"captured"}), engine->infer({host(in, {1, 3, 4, 4})}, outputs, o));
    void *graph = nullptr, *exec = nullptr;
    CHECK(cuda.StreamEndCapture(stream.get(), &graph) == 0);
    const GraphHandle owner(&cuda, graph);
    CHECK(cuda.GraphInstantiateWithFlags(&exec, graph, 0) == 0);
    const GraphExecHandle replay(&cuda, exec);
    run_and_check(*engine, 1, 50);  // takes another context
    run_and_check(*engine, 3, 50);  // and sets other shapes
    for (const float start : {10.0F, 20.0F}) {
        const auto fresh = numbers(48, start);
        std::memcpy(d.data, fresh.data(), 192);
        CHECK(cuda.GraphLaunch(replay.get(), stream.get()) == 0 && cuda.StreamSynchronize(stream.get()) == 0);
        CHECK(a.read(5) == expected(fresh, 1, 5, 0));
    }
}

TEST(cuda_graph_capture_fails) {
    EngineOptions eo;
    eo.cuda_graphs = true;
    for (const char* call : {"StreamBeginCapture", "StreamEndCapture", "GraphInstantiate"}) {
        const auto engine = engine_of(plan_of(two_outputs(1)), eo);
        run_and_check(*engine, 1, 0);
        cuda_fail(call);
        for (int i = 0; i < 4; ++i) run_and_check(*engine, 1, static_cast<float>(i));
        CHECK(engine->stats().graph_failures == 1 && engine->stats().graphs == 0);
    }
    CHECK(cuda_live("graph") == 0);
}

TEST(threads) {
    for (const bool graphs : {false, true}) {
        EngineOptions eo;
        eo.cuda_graphs = graphs;
        eo.max_contexts = 3;  // fewer than threads: some wait
        const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8), batches(1, 1, 1)})), eo);
        std::atomic<int> failed{0};
        std::vector<std::thread> list;
        for (int t = 0; t < 8; ++t) {
            list.emplace_back([&, t] {
                try {
                    const CudaApi& cuda = library()->cuda();
                    const StreamHandle stream = make_stream(cuda);
                    for (int i = 0; i < 40; ++i) {
                        const std::size_t batch = static_cast<std::size_t>((t + i) % 4 + 1);
                        const float start = static_cast<float>(1000 * t + i);
                        if (i % 3 == 0) {
                            run_and_check(*engine, batch, start);
                            continue;
                        }
                        const auto in = numbers(batch * 48, start);
                        const Device d(in);
                        std::vector<Array> own(2);
                        InferOptions o;
                        o.has_stream = i % 3 == 1;
                        o.stream = stream.get();
                        engine->infer({device(d, {static_cast<int64_t>(batch), 3, 4, 4})}, own, o);
                        cuda.StreamSynchronize(stream.get());
                        CHECK(read(own[0]) == expected(in, batch, 5, 0) && read(own[1]) == expected(in, batch, 2, 1));
                    }
                } catch (const std::exception& e) {
                    std::fprintf(stderr, "thread %d: %s\n", t, e.what());
                    ++failed;
                }
            });
        }
        for (auto& t : list) t.join();
        CHECK(failed == 0 && engine->stats().contexts <= 3);
    }
}

TEST(threads_run_side_by_side) {
    trt_set("delay_us", 20000);
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> list;
    for (int t = 0; t < 4; ++t)
        list.emplace_back([&] {
            for (int i = 0; i < 3; ++i) run_and_check(*engine, 1, 0);
        });
    for (auto& t : list) t.join();
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(180));  // 240 one after the other
    CHECK(engine->stats().contexts > 1);
}

TEST(bad_plans) {
    const std::string plan = plan_of(two_outputs(1));
    FAILS(kArtifact, (Words{"The plan is empty"}), engine_of(""));
    FAILS(kArtifact, (Words{"not a TensorRT plan", "another kind"}), engine_of("hello, this is no plan at all"));
    FAILS(kArtifact, (Words{"XML"}), engine_of("<?xml version=\"1.0\"?><net>" + std::string(40, ' ')));
    FAILS(kArtifact, (Words{"an ONNX model"}), engine_of(two_outputs(1)));
    for (const std::size_t n :
         {std::size_t{1}, std::size_t{4}, std::size_t{31}, std::size_t{32}, plan.size() / 2, plan.size() - 1}) {
        FAILS(kArtifact, Words{}, engine_of(plan.substr(0, n)));
    }
    std::mt19937 random(7);
    for (int i = 0; i < 200; ++i) {
        std::string bad = plan;
        const std::size_t at = 32 + random() % (plan.size() - 32);
        bad[at] = static_cast<char>(bad[at] ^ (1 << random() % 8));
        FAILS(kArtifact, (Words{"cannot read the plan", "checksum"}), engine_of(bad));
    }
    std::string other = plan;
    other[24] = TRT_MAJOR == 10 ? 11 : 10;
    FAILS(kArtifact, (Words{"another major version"}), engine_of(other));
    other[24] = 1;
    FAILS(kArtifact, (Words{"another backend", "TensorRT for RTX 1.", "--backend tensorrt"}), engine_of(other));
}

TEST(the_first_logger_stays) {
    // TensorRT goes on logging to the first logger it was given, after its engine is gone.
    const auto plan = plan_of(two_outputs(1));
    engine_of(plan).reset();
    const auto other = engine_of(plan);
    EngineOptions eo;
    eo.plugins = {"/nonexistent/plugins.so"};
    FAILS(kInput, (Words{"/nonexistent/plugins.so"}), engine_of(plan, eo));
    run_and_check(*other, 1, 2);
}

TEST(expectations) {
    const std::string plan = plan_of(two_outputs(1)), version = library()->version();
    EngineOptions o;
    o.expected_version = version;
    o.expected_compute = {"8.6"};
    engine_of(plan, o);
    o.expected_version = version + ".48";
    engine_of(plan, o);
    o.expected_version = std::to_string(TRT_MAJOR) + ".99.0";
    FAILS(kArtifact, (Words{"another version", ".99.0", version, "version_compatible"}), engine_of(plan, o));
    o.version_compatible = true;
    engine_of(plan, o);
    o.expected_version = "8.6.1";
    FAILS(kArtifact, (Words{"8.6.1", version}), engine_of(plan, o));
    o.expected_version = "nonsense";
    FAILS(kArtifact, (Words{"nonsense"}), engine_of(plan, o));
    o.expected_version.clear();
    o.expected_compute = {"8.9"};
    FAILS(kArtifact, (Words{"another GPU", "Stand-in GPU 0", "8.6", "8.9"}), engine_of(plan, o));
    o.device = 1;
    engine_of(plan, o);
    o.expected_compute = {"9.0", "8.0+"};
    engine_of(plan, o);
    o.device = 5;
    FAILS(kInput, (Words{"no such CUDA device"}), engine_of(plan, o));
    o.device = 0;
    o.max_contexts = 0;
    FAILS(kInput, (Words{"max_contexts"}), engine_of(plan, o));
}

TEST(out_of_memory_and_other_faults) {
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})));
    for (const char* call :
         {"Malloc", "HostAlloc", "MemcpyAsync", "StreamSynchronize", "StreamCreate", "EventCreate"}) {
        for (int after = 0; after < 4; ++after) {
            const auto fresh = engine_of(plan_of(two_outputs(1)));
            cuda_fail(call, after);
            bool failed = false;
            try {
                run_and_check(*fresh, 1, 0);
            } catch (const Error& e) {
                failed = true;
                CHECK(e.kind == ErrorKind::kRuntime);
                const bool memory = std::string(call) == "Malloc" || std::string(call) == "HostAlloc";
                if (memory) CHECK(std::string(e.what()).find("Out of memory") == 0);
            }
            if (after == 0) CHECK(failed);
            reset();
            run_and_check(*fresh, 1, 1);  // and it works again
        }
    }
    for (const char* call : {"EventRecord", "GraphLaunch"}) {
        EngineOptions eo;
        eo.cuda_graphs = true;
        const auto fresh = engine_of(plan_of(two_outputs(1)), eo);
        const Device d(numbers(48, 0)), a(20), b(8);
        std::vector<Array> outputs{device(a, {1, 5}), device(b, {1, 2})};
        const auto run = [&] { fresh->infer({device(d, {1, 3, 4, 4})}, outputs); };
        run();
        run();
        cuda_fail(call);
        FAILS(kRuntime, (Words{"CUDA failed", "injected"}), run());
        run();
    }
    trt_set("fail_enqueue", 1);
    FAILS(kRuntime, (Words{"TensorRT failed while running"}), run_and_check(*engine, 1, 0));
    reset();
    trt_set("fail_context", 1);
    const auto fresh = engine_of(plan_of(two_outputs(1)));
    FAILS(kRuntime, (Words{"execution context"}), run_and_check(*fresh, 1, 0));
    reset();
    run_and_check(*fresh, 1, 0);
    // A limit instead of a fault: idle buffers of other shapes are given back first.
    const Device d(numbers(8 * 48, 0));
    std::vector<Array> own(2);
    engine->infer({device(d, {8, 3, 4, 4})}, own);
    const auto held = own;
    control<void (*)(long)>("standin_cuda_limit")(0);
    std::vector<Array> more(2);
    FAILS(kRuntime, (Words{"Out of memory while allocating an output", "MiB free"}),
          engine->infer({device(d, {8, 3, 4, 4})}, more));
}

TEST(per_layer_profile) {
    const auto engine = engine_of(plan_of(two_outputs(1)));
    const auto layers = engine->profile_layers({{1, 3, 4, 4}});
    CHECK(layers.size() == 2 && layers[0].first == "conv" && std::abs(layers[1].second - 0.5F) < 1e-6F);
    CHECK(engine->describe_layers().find("conv") != std::string::npos);
    run_and_check(*engine, 1, 0);
    FAILS(kInput, (Words{"wrong shape"}), engine->profile_layers({{2, 3, 4, 4}}));
}

TEST(many_calls_flat_memory) {
    EngineOptions eo;
    eo.cuda_graphs = true;
    const auto engine = engine_of(plan_of(two_outputs(-1), with({batches(1, 4, 8)})), eo);
    const Device d(numbers(8 * 48, 0));
    const auto call = [&](int i) {
        std::vector<Array> own(2);
        engine->infer({device(d, {i % 8 + 1, 3, 4, 4})}, own);
    };
    for (int i = 0; i < 64; ++i) call(i);
    const long before[] = {cuda_live("device"), cuda_live("pinned"), cuda_live("event"), cuda_live("stream")};
    for (int i = 0; i < 2000; ++i) call(i);
    const long after[] = {cuda_live("device"), cuda_live("pinned"), cuda_live("event"), cuda_live("stream")};
    for (int i = 0; i < 4; ++i) CHECK(before[i] == after[i]);
    CHECK(engine->stats().graphs <= 16);
}

}  // namespace

int main(int argc, char** argv) {
    int failed = 0;
    for (const auto& test : tests()) {
        if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
        const auto start = std::chrono::steady_clock::now();
        try {
            reset();
            test.run();
            reset();
            // Nothing is left behind: every object of TensorRT and of CUDA has been given back.
            for (const char* kind : {"device", "pinned", "stream", "event", "graph"}) {
                if (const long n = cuda_live(kind)) throw Failure(std::to_string(n) + " " + kind + " objects leaked");
            }
            if (trt_get("live") != 0) throw Failure(std::to_string(trt_get("live")) + " TensorRT objects leaked");
            if (trt_get("unexpected") != 0) throw Failure("unexpected calls of TensorRT");
        } catch (const std::exception& e) {
            std::printf("FAILED %s: %s\n", test.name, e.what());
            ++failed;
            continue;
        }
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
        std::printf("ok     %s (%lld ms)\n", test.name, static_cast<long long>(ms.count()));
    }
    std::printf("%d of %zu failed\n", failed, tests().size());
    return failed != 0;
}
