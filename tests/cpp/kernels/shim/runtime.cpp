#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "cuda_runtime_api.h"

namespace {

std::map<const unsigned char*, std::size_t>& allocations() {
    static std::map<const unsigned char*, std::size_t> map;
    return map;
}
std::mutex lock;  // of `allocations`: callers may have threads

cudaError_t allocate(void** data, std::size_t bytes) {
    auto* memory = static_cast<unsigned char*>(operator new(bytes, std::align_val_t{256}, std::nothrow));
    if (memory == nullptr) return cudaErrorMemoryAllocation;
    std::memset(memory, 0xFF, bytes);  // poison
    const std::lock_guard<std::mutex> locked(lock);
    allocations()[memory] = bytes;
    *data = memory;
    return cudaSuccess;
}

cudaError_t release(void* data) {
    if (data == nullptr) return cudaSuccess;
    {
        const std::lock_guard<std::mutex> locked(lock);
        if (allocations().erase(static_cast<unsigned char*>(data)) == 0) return cudaErrorInvalidValue;
    }
    operator delete(data, std::align_val_t{256});
    return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorNotSupported:
            return "operation not supported";
    }
    return "unrecognized error code";
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaMalloc(void** data, std::size_t bytes) { return allocate(data, bytes); }
cudaError_t cudaFree(void* data) { return release(data); }
cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t) { return allocate(data, bytes); }
cudaError_t cudaFreeAsync(void* data, cudaStream_t) { return release(data); }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
    const auto* at = static_cast<const unsigned char*>(data);
    const std::lock_guard<std::mutex> locked(lock);
    auto next = allocations().upper_bound(at);
    const bool ours = next != allocations().begin() && (--next, at < next->first + next->second);
    *attributes = {ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, 0};
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = nullptr;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
