// Device memory that calls reuse: output buffers go back here when their last owner lets go.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_api.h"

namespace dhead::trt {

// Buffers are kept per stream: work queued on a stream may still use a buffer whose owner is gone, and only later work
// of the same stream is ordered behind it. Thread-safe; outlives its engine as long as a buffer is in use.
class DevicePool : public std::enable_shared_from_this<DevicePool> {
  public:
    DevicePool(const CudaApi& cuda, int device) : cuda_(cuda), device_(device) {}
    ~DevicePool();

    std::shared_ptr<void> acquire(std::size_t bytes, CudaStream stream);
    std::size_t bytes() const { return bytes_; }
    // Frees what no one uses.
    void trim() noexcept;

  private:
    using Key = std::pair<CudaStream, std::size_t>;
    void release(void* data, Key key) noexcept;

    const CudaApi& cuda_;
    const int device_;
    std::mutex mutex_;
    std::map<Key, std::vector<void*>> free_;
    std::atomic<std::size_t> bytes_{0};
};

// Page-locked host memory and device memory for one host array of the caller's; grows, never shrinks.
class Staging {
  public:
    // Throws Error(kRuntime) when memory runs out, leaving it empty.
    void reserve(const CudaApi& cuda, std::size_t bytes, bool pinned);
    void* host() const { return host_.get(); }
    void* device() const { return device_.get(); }
    std::size_t bytes() const { return bytes_; }

  private:
    PinnedMemory host_;
    DeviceMemory device_;
    std::size_t bytes_ = 0, host_bytes_ = 0;
};

}  // namespace dhead::trt
