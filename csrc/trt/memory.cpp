#include "memory.h"

#include <algorithm>

namespace dhead::trt {
namespace {

// Sizes are rounded so that nearby shapes share buffers: to 1/8 of the next lower power of two, at least 512 bytes.
std::size_t rounded(std::size_t bytes) {
    std::size_t step = 512;
    while (step * 16 <= bytes) step *= 2;
    return std::max<std::size_t>((bytes + step - 1) / step * step, 512);
}

constexpr std::size_t kMaxKeys = 256;

}  // namespace

DevicePool::~DevicePool() { trim(); }

std::shared_ptr<void> DevicePool::acquire(std::size_t bytes, CudaStream stream) {
    const Key key{stream, rounded(bytes)};
    void* data = nullptr;
    bool crowded = false;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto& list = free_[key];
        if (!list.empty()) {
            data = list.back();
            list.pop_back();
        } else {
            list.reserve(8);  // so that release() need not allocate
            crowded = free_.size() > kMaxKeys;
        }
    }
    if (!data) {
        if (crowded) trim();  // many streams or shapes have passed
        int status = cuda_.Malloc(&data, key.second);
        if (status == kCudaOutOfMemory) {  // buffers of other shapes may be lying idle
            cuda_.GetLastError();
            trim();
            status = cuda_.Malloc(&data, key.second);
        }
        cuda_.check(status, "allocating an output");
        bytes_ += key.second;
    }
    // If this throws, it has called the deleter.
    return std::shared_ptr<void>(data, [pool = shared_from_this(), key](void* p) { pool->release(p, key); });
}

void DevicePool::release(void* data, Key key) noexcept {
    try {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_[key].push_back(data);
    } catch (...) {
        bytes_ -= key.second;
        cuda_.Free(data);
    }
}

void DevicePool::trim() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    int previous = 0;
    const bool changed = cuda_.GetDevice(&previous) == 0 && previous != device_ && cuda_.SetDevice(device_) == 0;
    for (auto& [key, list] : free_) {
        for (void* data : list) {
            cuda_.Free(data);  // waits for the device: what still uses it has ended
            bytes_ -= key.second;
        }
        list.clear();
    }
    free_.clear();
    if (changed) cuda_.SetDevice(previous);
}

void Staging::reserve(const CudaApi& cuda, std::size_t bytes, bool pinned) {
    if (bytes > bytes_) {
        device_.reset();
        bytes_ = 0;
        void* data = nullptr;
        cuda.check(cuda.Malloc(&data, rounded(bytes)), "allocating device memory for an array");
        device_ = DeviceMemory(&cuda, data);
        bytes_ = rounded(bytes);
    }
    if (pinned && bytes > host_bytes_) {
        host_.reset();
        host_bytes_ = 0;
        void* data = nullptr;
        cuda.check(cuda.HostAlloc(&data, rounded(bytes), 0), "allocating page-locked memory for an array");
        host_ = PinnedMemory(&cuda, data);
        host_bytes_ = rounded(bytes);
    }
}

}  // namespace dhead::trt
