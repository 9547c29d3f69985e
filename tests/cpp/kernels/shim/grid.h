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

// Runs `body` once per thread of the grid. Returns false where a real device would refuse the launch.
bool run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body);

// Grids run so far.
std::uint64_t launches();

enum class Op : int { kSyncWarp = 1, kBallot, kShuffle, kBlock, kBlockOr, kBlockCount };

// All threads of the block meet; returns the number of threads whose `predicate` was non-zero.
int meet_block(Op op, int line, int predicate);

// All 32 lanes of the warp meet; each gives a value, the returned 32 values are valid until the lane's next meeting.
const std::uint64_t* meet_warp(Op op, std::uint32_t mask, std::uint64_t value);

unsigned lane();

}  // namespace dhead_shim
