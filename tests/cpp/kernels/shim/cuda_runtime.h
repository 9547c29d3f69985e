// Stand-in for the CUDA runtime's C++ header: kernels compile with a host compiler and run on the fibers of grid.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"
#include "grid.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define __syncthreads() dhead_shim::meet_block(__LINE__)

inline void __syncwarp(std::uint32_t mask = 0xFFFFFFFFU) { dhead_shim::meet_warp(mask); }
inline std::uint32_t __ballot_sync(std::uint32_t mask, bool predicate) { return dhead_shim::ballot(mask, predicate); }

namespace dhead_shim {

template <class T>
T shuffle(std::uint32_t mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, from);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace dhead_shim

template <class T>
T __shfl_sync(std::uint32_t mask, T value, int from) {
    return dhead_shim::shuffle(mask, value, static_cast<unsigned>(from) % 32);
}
template <class T>
T __shfl_xor_sync(std::uint32_t mask, T value, int with) {
    return dhead_shim::shuffle(mask, value, (dhead_shim::lane() ^ static_cast<unsigned>(with)) % 32);
}
template <class T>
T __shfl_up_sync(std::uint32_t mask, T value, unsigned by) {
    const unsigned lane = dhead_shim::lane();
    return dhead_shim::shuffle(mask, value, lane >= by ? lane - by : lane);
}

inline int __popc(std::uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Fibers give way at barriers only, so plain code would do; atomics so that TSan sees what a GPU would.
inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline std::uint32_t atomicOr(std::uint32_t* to, std::uint32_t value) {
    return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    void* attrs;
    unsigned numAttrs;
};

// Queues work on a stream; null: launches are done when they return. Set by a runtime that has streams.
inline cudaError_t (*dhead_shim_queue)(cudaStream_t stream, std::function<void()> work) = nullptr;

// The kernel's arguments are copied, as into a GPU's parameters: the caller's may be gone when the launch runs.
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
    cudaError_t error = cudaErrorInvalidConfiguration;
    if (dhead_shim::accepts(config->gridDim, config->blockDim, config->dynamicSmemBytes)) {
        auto work = [at = *config, kernel, given = std::tuple<std::decay_t<P>...>(static_cast<P>(args)...)] {
            dhead_shim::run_grid(at.gridDim, at.blockDim, at.dynamicSmemBytes, [&] { std::apply(kernel, given); });
        };
        error = dhead_shim_queue != nullptr ? dhead_shim_queue(config->stream, std::move(work)) : (work(), cudaSuccess);
    }
    if (error != cudaSuccess) dhead_shim_last_error = error;
    return error;
}
