// The few CUDA runtime functions the engine needs, as a table filled by Library: from the static runtime where the
// toolkit was there at build time, from libcudart otherwise. RAII owners for what they hand out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "error.h"

namespace dhead::trt {

using CudaStream = void*;  // cudaStream_t
using CudaEvent = void*;   // cudaEvent_t

// Numbers of the CUDA runtime API; they have not changed since CUDA 10.1.
constexpr int kCudaOutOfMemory = 2;
constexpr int kCudaInvalidHandle = 400;
constexpr int kCudaNotReady = 600;
constexpr int kCudaHostToDevice = 1, kCudaDeviceToHost = 2, kCudaDeviceToDevice = 3;
constexpr int kCudaAttrMajor = 75, kCudaAttrMinor = 76;
constexpr unsigned kCudaStreamNonBlocking = 1, kCudaEventDisableTiming = 2;
constexpr int kCudaCaptureThreadLocal = 1, kCudaCaptureNone = 0;
constexpr int kCudaMemoryUnregistered = 0, kCudaMemoryHost = 1, kCudaMemoryDevice = 2, kCudaMemoryManaged = 3;

struct CudaPointerAttributes {  // cudaPointerAttributes, with room for what later versions append
    int type;
    int device;
    void* device_pointer;
    void* host_pointer;
    int64_t reserved[16];
};

#define DHEAD_CUDA_FUNCTIONS(X)                                        \
    X(GetDeviceCount, (int*))                                          \
    X(GetDevice, (int*))                                               \
    X(SetDevice, (int))                                                \
    X(DeviceGetAttribute, (int*, int, int))                            \
    X(MemGetInfo, (std::size_t*, std::size_t*))                        \
    X(Malloc, (void**, std::size_t))                                   \
    X(Free, (void*))                                                   \
    X(HostAlloc, (void**, std::size_t, unsigned))                      \
    X(FreeHost, (void*))                                               \
    X(MemcpyAsync, (void*, const void*, std::size_t, int, CudaStream)) \
    X(StreamCreateWithFlags, (CudaStream*, unsigned))                  \
    X(StreamDestroy, (CudaStream))                                     \
    X(StreamSynchronize, (CudaStream))                                 \
    X(StreamWaitEvent, (CudaStream, CudaEvent, unsigned))              \
    X(StreamIsCapturing, (CudaStream, int*))                           \
    X(EventCreateWithFlags, (CudaEvent*, unsigned))                    \
    X(EventDestroy, (CudaEvent))                                       \
    X(EventRecord, (CudaEvent, CudaStream))                            \
    X(EventQuery, (CudaEvent))                                         \
    X(EventSynchronize, (CudaEvent))                                   \
    X(PointerGetAttributes, (CudaPointerAttributes*, const void*))     \
    X(StreamBeginCapture, (CudaStream, int))                           \
    X(StreamEndCapture, (CudaStream, void**))                          \
    X(GraphInstantiateWithFlags, (void**, void*, unsigned long long))  \
    X(GraphLaunch, (void*, CudaStream))                                \
    X(GraphExecDestroy, (void*))                                       \
    X(GraphDestroy, (void*))                                           \
    X(GetLastError, ())

struct CudaApi {
#define X(name, args) int(*name) args = nullptr;
    DHEAD_CUDA_FUNCTIONS(X)
#undef X
    const char* (*GetErrorString)(int) = nullptr;
    int (*RuntimeGetVersion)(int*) = nullptr;
    int (*GetDeviceProperties)(void*, int) = nullptr;  // fills a struct whose first member is char name[256]

    // Throws Error(kRuntime) for a CUDA error, with what was being done.
    void check(int status, const char* doing) const {
        if (status != 0) fail(status, doing);
    }
    [[noreturn]] void fail(int status, const char* doing) const;
    std::string device_name(int device) const;
    // Devices present; throws BackendUnavailable when there is no driver or no device.
    int device_count() const;
};

// Fills the table: from the file `path`; if empty, from the runtime linked in, else from the system's libcudart.
CudaApi load_cuda(const std::string& path);

// Makes a device current for a scope.
class DeviceGuard {
  public:
    DeviceGuard(const CudaApi& cuda, int device) : cuda_(cuda) {
        cuda_.check(cuda_.GetDevice(&previous_), "asking for the current device");
        if (previous_ != device) {
            cuda_.check(cuda_.SetDevice(device), "selecting the device");
            changed_ = true;
        }
    }
    ~DeviceGuard() {
        if (changed_) cuda_.SetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    const CudaApi& cuda_;
    int previous_ = 0;
    bool changed_ = false;
};

// Owns one handle of the CUDA runtime and gives it back.
template <typename T, int (*CudaApi::*Destroy)(T)>
class CudaHandle {
  public:
    CudaHandle() = default;
    CudaHandle(const CudaApi* cuda, T value) : cuda_(cuda), value_(value) {}
    CudaHandle(CudaHandle&& o) noexcept : cuda_(o.cuda_), value_(std::exchange(o.value_, T{})) {}
    CudaHandle& operator=(CudaHandle&& o) noexcept {
        if (this != &o) {
            reset();
            cuda_ = o.cuda_;
            value_ = std::exchange(o.value_, T{});
        }
        return *this;
    }
    ~CudaHandle() { reset(); }
    T get() const { return value_; }
    explicit operator bool() const { return value_ != T{}; }
    void reset() {
        if (value_) (cuda_->*Destroy)(value_);
        value_ = T{};
    }

  private:
    const CudaApi* cuda_ = nullptr;
    T value_{};
};

using StreamHandle = CudaHandle<void*, &CudaApi::StreamDestroy>;
using EventHandle = CudaHandle<void*, &CudaApi::EventDestroy>;
using DeviceMemory = CudaHandle<void*, &CudaApi::Free>;
using PinnedMemory = CudaHandle<void*, &CudaApi::FreeHost>;
using GraphHandle = CudaHandle<void*, &CudaApi::GraphDestroy>;
using GraphExecHandle = CudaHandle<void*, &CudaApi::GraphExecDestroy>;

inline StreamHandle make_stream(const CudaApi& cuda) {
    void* value = nullptr;
    cuda.check(cuda.StreamCreateWithFlags(&value, kCudaStreamNonBlocking), "creating a stream");
    return {&cuda, value};
}
inline EventHandle make_event(const CudaApi& cuda) {
    void* value = nullptr;
    cuda.check(cuda.EventCreateWithFlags(&value, kCudaEventDisableTiming), "creating an event");
    return {&cuda, value};
}

}  // namespace dhead::trt
