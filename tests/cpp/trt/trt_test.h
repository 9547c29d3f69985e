// What the tests of the TensorRT builder and engine share: a very small frame, the stand-ins, models, arrays.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "builder.h"
#include "control.h"
#include "cuda_api.h"
#include "engine.h"
#include "library.h"

namespace trt_test {

using namespace dhead::trt;

// ---------------------------------------------------------------- a very small test frame

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Test {
    const char* name;
    void (*run)();
};
inline std::vector<Test>& tests() {
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
inline void check_fails(const char* file, int line, ErrorKind kind, const std::vector<std::string>& words,
                        const std::function<void()>& call) {
    const std::string where = std::string(file) + ":" + std::to_string(line) + ": ";
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
#define FAILS(kind, words, ...) check_fails(__FILE__, __LINE__, ErrorKind::kind, words, [&] { __VA_ARGS__; })
using Words = std::vector<std::string>;

// ---------------------------------------------------------------- the stand-ins

inline const std::string kDir = STANDIN_DIR;
inline const std::string kLibrary = kDir + "/libnvinfer.so." + std::to_string(TRT_MAJOR);
inline const std::string kCudart = kDir + "/libcudart.so." + std::to_string(TRT_MAJOR);

template <typename F>
F control(const char* name) {
    static void* cuda = dlopen(kCudart.c_str(), RTLD_NOW | RTLD_LOCAL);
    static void* trt = dlopen(kLibrary.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* p = dlsym(std::strstr(name, "trt") ? trt : cuda, name);
    if (!p) throw Failure(std::string("no ") + name);
    return reinterpret_cast<F>(p);
}
inline void cuda_fail(const char* call, int after = 0) {
    control<void (*)(const char*, int)>("standin_cuda_fail")(call, after);
}
inline long cuda_live(const char* kind) { return control<long (*)(const char*)>("standin_cuda_live")(kind); }
inline long cuda_count(const char* what) { return control<long (*)(const char*)>("standin_cuda_count")(what); }
inline void trt_set(const char* key, long value) {
    control<void (*)(const char*, long)>("standin_trt_set")(key, value);
}
inline long trt_get(const char* key) { return control<long (*)(const char*)>("standin_trt_get")(key); }
inline void reset() {
    control<void (*)()>("standin_cuda_reset")();
    control<void (*)()>("standin_trt_reset")();
}

inline std::shared_ptr<Library> library() {
    LibraryOptions o;
    o.path = kLibrary;
    o.cudart = kCudart;
    return Library::open(o);
}

// ---------------------------------------------------------------- ONNX models, just enough of the format

inline std::string varint(uint64_t v) {
    std::string s;
    for (; v >= 0x80; v >>= 7) s += static_cast<char>(v | 0x80);
    return s + static_cast<char>(v);
}
inline std::string field(int number, const std::string& bytes) {
    return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(bytes.size()) + bytes;
}
inline std::string field(int number, uint64_t value) {
    return varint(static_cast<uint64_t>(number) << 3) + varint(value);
}

inline std::string value(const std::string& name, const Shape& shape, int type = 1) {
    std::string dims;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        dims += field(1, shape[i] < 0 ? field(2, "symbol" + std::to_string(-shape[i]))
                                      : field(1, static_cast<uint64_t>(shape[i])));
    }
    return field(1, name) + field(2, field(1, field(1, static_cast<uint64_t>(type)) + field(2, dims)));
}
inline std::string node(const std::string& output, const std::string& op = "Identity", const std::string& domain = "",
                        const std::string& name = "node_0") {
    return field(2, output) + field(3, name) + field(4, op) + (domain.empty() ? "" : field(7, domain));
}
inline std::string model(const std::vector<std::string>& inputs, const std::vector<std::string>& nodes,
                         const std::vector<std::string>& outputs) {
    std::string graph;
    for (const auto& n : nodes) graph += field(1, n);
    for (const auto& i : inputs) graph += field(11, i);
    for (const auto& o : outputs) graph += field(12, o);
    return field(1, 8U) + field(7, graph);
}
// images [B, 3, 4, 4] → a [B, 5], b [B, 2]; dynamic batch where B is -1.
inline std::string two_outputs(int64_t batch) {
    return model({value("images", {batch, 3, 4, 4})}, {node("a"), node("b")},
                 {value("a", {batch, 5}), value("b", {batch, 2})});
}
inline Profile batches(int64_t min, int64_t opt, int64_t max) {
    return {{"images", {{min, 3, 4, 4}, {opt, 3, 4, 4}, {max, 3, 4, 4}}}};
}
inline BuildOptions with(std::vector<Profile> profiles) {
    BuildOptions o;
    o.profiles = std::move(profiles);
    return o;
}
inline std::string plan_of(const std::string& onnx, const BuildOptions& options = {}) {
    const auto r = Builder(library()).build(onnx.data(), onnx.size(), options);
    return {static_cast<const char*>(r.plan->data()), r.plan->size()};
}
inline std::shared_ptr<Engine> engine_of(const std::string& plan, EngineOptions options = {}) {
    return std::make_shared<Engine>(library(), plan.data(), plan.size(), std::move(options));
}

// ---------------------------------------------------------------- arrays

inline std::vector<float> numbers(std::size_t n, float start) {
    std::vector<float> v(n);
    std::iota(v.begin(), v.end(), start);
    return v;
}
// What the stand-in computes.
inline std::vector<float> expected(const std::vector<float>& in, std::size_t batch, std::size_t per, float k) {
    std::vector<float> out(batch * per);
    const std::size_t m = in.size() / batch;
    for (std::size_t j = 0; j < out.size(); ++j) out[j] = k + in[j / per * m + j % per % m];
    return out;
}
inline Array host(std::vector<float>& v, Shape shape) {
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
inline Array device(const Device& d, Shape shape, std::size_t offset = 0) {
    return {static_cast<char*>(d.data) + offset, ElementType::kFloat32, std::move(shape), true, nullptr};
}
inline std::vector<float> read(const Array& a) {
    const float* p = static_cast<const float*>(a.data);
    return {p, p + num_elements(a.shape)};
}

inline void run_and_check(const Engine& engine, std::size_t batch, float start) {
    auto in = numbers(batch * 48, start);
    const auto b = static_cast<int64_t>(batch);
    std::vector<float> a(batch * 5), c(batch * 2);
    std::vector<Array> outputs{host(a, {b, 5}), host(c, {b, 2})};
    engine.infer({host(in, {b, 3, 4, 4})}, outputs);
    CHECK(a == expected(in, batch, 5, 0));
    CHECK(c == expected(in, batch, 2, 1));
}

}  // namespace trt_test
