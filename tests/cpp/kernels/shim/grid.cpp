#include "grid.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(DHEAD_SHIM_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DHEAD_SHIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

// -- switching between stacks -----------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void dhead_shim_switch(void** save, void* to);
asm(R"(
.text
.globl dhead_shim_switch
.type dhead_shim_switch,@function
dhead_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size dhead_shim_switch,.-dhead_shim_switch
)");
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The dynamic shared memory that the kernels declare `extern`.
namespace dhead {
alignas(128) unsigned char dhead_shared[dhead_shim::kMaxShared];
}

namespace dhead_shim {
namespace {

using dhead::dhead_shared;

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "kernel error: %s (block %u,%u,%u thread %u,%u,%u)\n", what, blockIdx.x, blockIdx.y,
                 blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    std::fflush(stderr);
    std::abort();
}

enum class State : int { kReady, kInWarp, kInBlock, kDone };

struct Context {
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t uc{};
#endif
    void* tsan = nullptr;
    void* fake_stack = nullptr;
    const void* stack_bottom = nullptr;
    std::size_t stack_size = 0;
};

struct Fiber {
    Context context;
    std::unique_ptr<unsigned char[]> stack;
    uint3 thread{};
    State state = State::kDone;
    unsigned linear = 0;
};

enum class Op : int { kSyncWarp = 1, kBallot, kExchange };

struct Warp {
    Op op{};
    unsigned arrived = 0;
    std::uint64_t meeting = 0;
    std::uint64_t values[2][kWarp] = {};
    char order = 0;  // what TSan orders __syncwarp by
};

struct Grid {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    Context scheduler;
    const std::function<void()>* body = nullptr;
    unsigned num_threads = 0;
    Fiber* running = nullptr;
    int block_line = 0;
    unsigned block_arrived = 0;
    char block_order = 0;
    char block_start = 0;  // what TSan orders the threads of a block by: all before it, none among themselves
    char block_end = 0;
    std::mt19937_64 random{1};
    unsigned char poison = 0xCD;
    std::uint64_t launches = 0;
};

Grid grid;

void switch_to(Context& from, Context& to, bool leaving_for_good = false) {
#if defined(DHEAD_SHIM_ASAN)
    __sanitizer_start_switch_fiber(leaving_for_good ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
#else
    (void)leaving_for_good;
#endif
#if defined(DHEAD_SHIM_TSAN)
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
    dhead_shim_switch(&from.sp, to.sp);
#else
    swapcontext(&from.uc, &to.uc);
#endif
#if defined(DHEAD_SHIM_ASAN)
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
    if (&from != &grid.scheduler && grid.scheduler.stack_bottom == nullptr) {
        grid.scheduler.stack_bottom = bottom;
        grid.scheduler.stack_size = size;
    }
#endif
}

void acquire([[maybe_unused]] void* what) {
#if defined(DHEAD_SHIM_TSAN)
    __tsan_acquire(what);
#endif
}

void release([[maybe_unused]] void* what) {
#if defined(DHEAD_SHIM_TSAN)
    __tsan_release(what);
#endif
}

void give_way(State state) {
    Fiber* self = grid.running;
    self->state = state;
    switch_to(self->context, grid.scheduler);
}

extern "C" void dhead_shim_fiber_main() {
#if defined(DHEAD_SHIM_ASAN)
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    grid.scheduler.stack_bottom = bottom;
    grid.scheduler.stack_size = size;
#endif
    for (;;) {
        acquire(&grid.block_start);
        (*grid.body)();
        release(&grid.block_end);
        give_way(State::kDone);
    }
}

void make_fiber(Fiber& fiber) {
    fiber.stack.reset(new unsigned char[kStackBytes]);
    fiber.context.stack_bottom = fiber.stack.get();
    fiber.context.stack_size = kStackBytes;
#if defined(DHEAD_SHIM_TSAN)
    fiber.context.tsan = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
    auto top = reinterpret_cast<std::uintptr_t>(fiber.stack.get() + kStackBytes) & ~std::uintptr_t{15};
    auto* sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // a return address for the ABI's alignment: the entry sees rsp = 16n + 8
    *--sp = reinterpret_cast<void*>(&dhead_shim_fiber_main);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    fiber.context.sp = sp;
#else
    getcontext(&fiber.context.uc);
    fiber.context.uc.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc.uc_stack.ss_size = kStackBytes;
    fiber.context.uc.uc_link = nullptr;
    makecontext(&fiber.context.uc, dhead_shim_fiber_main, 0);
#endif
}

template <typename T>
void shuffle(std::vector<T>& v) {
    for (std::size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[grid.random() % i]);
}

void run_block(const std::vector<unsigned>& warp_order, const std::vector<unsigned>& lane_order) {
    unsigned done = 0;
    while (done < grid.num_threads) {
        bool progress = false;
        for (unsigned w : warp_order) {
            for (bool again = true; again;) {
                again = false;
                for (unsigned l : lane_order) {
                    Fiber& fiber = *grid.fibers[w * kWarp + l];
                    if (fiber.state != State::kReady) continue;
                    grid.running = &fiber;
                    threadIdx = fiber.thread;
                    switch_to(grid.scheduler, fiber.context);
                    progress = again = true;
                    if (fiber.state == State::kDone) ++done;
                }
            }
        }
        if (!progress) fail("deadlock: some threads wait where the others never come");
    }
    if (grid.block_arrived != 0) fail("a thread left the kernel while others waited at a barrier");
}

}  // namespace

void configure(std::uint64_t seed, unsigned char poison) {
    grid.random.seed(seed);
    grid.poison = poison;
}

std::uint64_t launches() { return grid.launches; }

unsigned lane() { return grid.running->linear % kWarp; }

bool accepts(dim3 dims, dim3 block, std::size_t shared_bytes) {
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const std::uint64_t blocks = std::uint64_t{dims.x} * dims.y * dims.z;
    // What a default launch may ask for on every architecture; dynamic shared memory beyond 48 KiB needs an opt-in.
    return threads != 0 && threads <= 1024 && blocks != 0 && dims.x <= 0x7FFFFFFFU && dims.y <= 65535 &&
           dims.z <= 65535 && shared_bytes <= 48 * 1024;
}

bool run_grid(dim3 dims, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
    if (!accepts(dims, block, shared_bytes)) return false;
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const std::uint64_t blocks = std::uint64_t{dims.x} * dims.y * dims.z;
    if (threads % kWarp != 0) fail("the block is not made of whole warps");
    static std::mutex turn;  // there is one grid; launches from several threads take turns
    const std::lock_guard<std::mutex> locked(turn);
    ++grid.launches;
    grid.num_threads = static_cast<unsigned>(threads);
    grid.body = &body;
    blockDim = block;
    gridDim = dims;
#if defined(DHEAD_SHIM_TSAN)
    if (grid.scheduler.tsan == nullptr) grid.scheduler.tsan = __tsan_get_current_fiber();
#endif
    while (grid.fibers.size() < threads) {
        grid.fibers.push_back(std::make_unique<Fiber>());
        make_fiber(*grid.fibers.back());
    }
    std::vector<std::uint64_t> order(blocks);
    for (std::uint64_t i = 0; i < blocks; ++i) order[i] = i;
    shuffle(order);
    std::vector<unsigned> warps(threads / kWarp), lanes(kWarp);
    for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
    for (unsigned i = 0; i < kWarp; ++i) lanes[i] = i;
    for (std::uint64_t index : order) {
        shuffle(warps);
        shuffle(lanes);
        grid.warps.assign(warps.size(), Warp{});
        grid.block_arrived = 0;
#if defined(DHEAD_SHIM_ASAN)
        __asan_unpoison_memory_region(dhead_shared, kMaxShared);
#endif
        std::memset(dhead_shared, grid.poison, kMaxShared);
#if defined(DHEAD_SHIM_ASAN)
        __asan_poison_memory_region(dhead_shared + shared_bytes, kMaxShared - shared_bytes);
#endif
        for (unsigned i = 0; i < threads; ++i) {
            Fiber& fiber = *grid.fibers[i];
            fiber.linear = i;
            fiber.state = State::kReady;
            fiber.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        }
        blockIdx = {static_cast<unsigned>(index % dims.x), static_cast<unsigned>(index / dims.x % dims.y),
                    static_cast<unsigned>(index / dims.x / dims.y)};
        release(&grid.block_start);
        run_block(warps, lanes);
        acquire(&grid.block_end);
    }
    return true;
}

void meet_block(int line) {
    if (grid.block_arrived == 0) {
        grid.block_line = line;
        for (unsigned i = 0; i < grid.num_threads; ++i)
            if (grid.fibers[i]->state == State::kDone) fail("a barrier after a thread has left the kernel");
    } else if (grid.block_line != line) {
        fail("threads of one block wait at different barriers");
    }
    release(&grid.block_order);
    if (++grid.block_arrived == grid.num_threads) {
        grid.block_arrived = 0;
        for (unsigned i = 0; i < grid.num_threads; ++i)
            if (grid.fibers[i]->state == State::kInBlock) grid.fibers[i]->state = State::kReady;
    } else {
        give_way(State::kInBlock);
    }
    acquire(&grid.block_order);
}

namespace {

// The 32 lanes' values, valid until the lane's next meeting.
const std::uint64_t* meet(Op op, std::uint32_t mask, std::uint64_t value) {
    if (mask != 0xFFFFFFFFU) fail("a warp collective without all of its lanes");
    Warp& warp = grid.warps[grid.running->linear / kWarp];
    if (warp.arrived == 0)
        warp.op = op;
    else if (warp.op != op)
        fail("lanes of one warp meet in different collectives");
    std::uint64_t* values = warp.values[warp.meeting & 1];
    values[lane()] = value;
    if (++warp.arrived == kWarp) {
        warp.arrived = 0;
        ++warp.meeting;
        const unsigned first = grid.running->linear / kWarp * kWarp;
        for (unsigned i = first; i < first + kWarp; ++i)
            if (grid.fibers[i]->state == State::kInWarp) grid.fibers[i]->state = State::kReady;
    } else {
        give_way(State::kInWarp);
    }
    return values;
}

}  // namespace

void meet_warp(std::uint32_t mask) {
    char& order = grid.warps[grid.running->linear / kWarp].order;  // the other collectives order no memory accesses
    release(&order);
    meet(Op::kSyncWarp, mask, 0);
    acquire(&order);
}

std::uint32_t ballot(std::uint32_t mask, bool predicate) {
    const std::uint64_t* values = meet(Op::kBallot, mask, predicate ? 1U : 0U);
    std::uint32_t word = 0;
    for (unsigned i = 0; i < kWarp; ++i) word |= static_cast<std::uint32_t>(values[i]) << i;
    return word;
}

std::uint64_t exchange(std::uint32_t mask, std::uint64_t value, unsigned from) {
    return meet(Op::kExchange, mask, value)[from];
}

}  // namespace dhead_shim
