// The engine against the stand-ins: arrays, profile choice, threads, faults, leaks.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "trt_test.h"

using namespace trt_test;

namespace {

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
