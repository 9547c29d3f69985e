// Runs CUDA kernels on the host, one fiber per CUDA thread: the test stand-in for a GPU.
//
// Blocks run one after another in shuffled order, their warps and lanes in shuffled order too. A fiber gives way only
// where a CUDA thread may have to wait: at a barrier or a warp collective. Strict where a GPU is lenient: every thread
// of the block must reach the same barrier, all 32 lanes the same collective, and no thread may have left before.
// Dynamic shared memory is poisoned before each block and, under ASan, closed beyond what the launch asked for. Under
// TSan the fibers are its threads and only barriers and __syncwarp order them, so that it finds shared-memory races.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Where the running fiber is in its grid.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace dhead_shim {

constexpr std::size_t kMaxShared = 96 * 1024;

// What the next launches do: order of blocks and threads, and the byte that shared memory is filled with.
void configure(std::uint64_t seed, unsigned char poison);

// Whether a real device would take such a launch.
bool accepts(dim3 grid, dim3 block, std::size_t shared_bytes);

// Runs `body` once per thread of the grid. Returns false where a real device would refuse the launch.
bool run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body);

// Grids run so far.
std::uint64_t launches();

// All threads of the block meet, at the barrier in this line of the source.
void meet_block(int line);

// All 32 lanes of the warp meet. ballot: a bit per lane whose predicate held. exchange: the value that lane `from`
// gave.
void meet_warp(std::uint32_t mask);
std::uint32_t ballot(std::uint32_t mask, bool predicate);
std::uint64_t exchange(std::uint32_t mask, std::uint64_t value, unsigned from);

unsigned lane();

}  // namespace dhead_shim
