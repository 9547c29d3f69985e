// runtime.cpp for kernels that run beside the TensorRT stand-in: the same device memory, and launches that are queued
// on its streams (tests/cpp/trt/standin/cudart.cpp), so that work which is not ordered shows. Compiled with
// DHEAD_STANDIN_CUDART, the library's path, by which it is loaded: a real CUDA runtime may be in the process as well.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "cuda_runtime.h"

namespace {

template <class F>
F* function(const char* name) {
    static void* const library = dlopen(DHEAD_STANDIN_CUDART, RTLD_NOW | RTLD_LOCAL);
    void* found = library != nullptr ? dlsym(library, name) : nullptr;
    if (found == nullptr) {
        std::fprintf(stderr, "%s: %s\n", name, dlerror());
        std::abort();
    }
    return reinterpret_cast<F*>(found);
}

template <class... A>
cudaError_t call(const char* name, A... arguments) {
    const auto error = static_cast<cudaError_t>(function<int(A...)>(name)(arguments...));
    if (error != cudaSuccess) dhead_shim_last_error = error;
    return error;
}

using Work = std::function<void()>;

cudaError_t queue(cudaStream_t stream, Work work) {
    return call(
        "standin_launch", static_cast<void*>(stream), +[](void* w) { (*static_cast<Work*>(w))(); },
        static_cast<void*>(new Work(std::move(work))), +[](void* w) { delete static_cast<Work*>(w); });
}
[[maybe_unused]] const bool set = (dhead_shim_queue = &queue, true);

constexpr std::size_t kBefore = 256;  // bytes before an asynchronous allocation: they hold its size

void release(void* data) {
    auto* memory = static_cast<unsigned char*>(data) - kBefore;
    std::size_t bytes = 0;
    std::memcpy(&bytes, memory, sizeof(bytes));
    std::memset(data, 0xFF, bytes);  // whoever still reads it finds poison
    operator delete(memory, std::align_val_t{256});
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
    return function<const char*(int)>("cudaGetErrorString")(static_cast<int>(error));
}
cudaError_t cudaGetDeviceCount(int* count) { return call("cudaGetDeviceCount", count); }
cudaError_t cudaGetDevice(int* device) { return call("cudaGetDevice", device); }
cudaError_t cudaSetDevice(int device) { return call("cudaSetDevice", device); }
cudaError_t cudaMalloc(void** data, std::size_t bytes) { return call("cudaMalloc", data, bytes); }
cudaError_t cudaFree(void* data) { return call("cudaFree", data); }
cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t) {
    auto* memory = static_cast<unsigned char*>(operator new(kBefore + bytes, std::align_val_t{256}, std::nothrow));
    if (memory == nullptr) return dhead_shim_last_error = cudaErrorMemoryAllocation;
    std::memcpy(memory, &bytes, sizeof(bytes));
    std::memset(memory + kBefore, 0xFF, bytes);
    *data = memory + kBefore;
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
    return queue(stream, [data] { release(data); });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    const cudaError_t error = queue(nullptr, [=] { std::memcpy(to, from, bytes); });
    return error != cudaSuccess ? error : cudaStreamSynchronize(nullptr);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
    struct {
        int type, device;
        const void *device_pointer, *host_pointer;
    } found{};
    const cudaError_t error = call("cudaPointerGetAttributes", static_cast<void*>(&found), data);
    *attributes = {static_cast<cudaMemoryType>(found.type), found.device};
    return error;
}
cudaError_t cudaDeviceSynchronize() { return call("cudaDeviceSynchronize"); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return call("cudaStreamSynchronize", static_cast<void*>(stream));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    return call("cudaEventCreateWithFlags", reinterpret_cast<void**>(event), flags);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return call("cudaEventDestroy", static_cast<void*>(event)); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return call("cudaEventRecord", static_cast<void*>(event), static_cast<void*>(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return call("cudaStreamWaitEvent", static_cast<void*>(stream), static_cast<void*>(event), flags);
}
