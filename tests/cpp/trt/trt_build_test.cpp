// Library and builder against the stand-ins: search, versions, options, profiles, error paths, cancelling.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "trt_test.h"

using namespace trt_test;

namespace {

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

}  // namespace
