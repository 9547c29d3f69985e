// The engine on streams: what waits for what, and CUDA graphs.
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "trt_test.h"

using namespace trt_test;

namespace {

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

}  // namespace
