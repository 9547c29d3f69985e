// The stand-in GPU itself: it must find what it is there to find. Each broken kernel runs in a child process.
//
// `dhead_shim_test` runs all; the race needs a build with TSan, the overrun one with ASan.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda_runtime.h"

namespace dhead {

int* shared_ints() {
    extern __shared__ __align__(16) unsigned char dhead_shared[];
    return reinterpret_cast<int*>(dhead_shared);
}

}  // namespace dhead

namespace {

void go(unsigned blocks, unsigned threads, std::size_t shared, const std::function<void()>& body) {
    if (!dhead_shim::run_grid(blocks, threads, shared, body)) std::_Exit(3);
}

bool fails(const char* what, const std::function<void()>& broken) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        (void)std::freopen("/dev/null", "w", stderr);
        broken();
        std::exit(0);  // not _Exit: TSan sets the exit code here
    }
    int status = 0;
    waitpid(child, &status, 0);
    const bool failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    if (!failed && what[0] != '\0') std::fprintf(stderr, "not found: %s\n", what);
    return failed;
}

bool collectives_work() {
    std::vector<int> sums(2 * 64, -1);
    std::vector<unsigned> words(2 * 64, 0);
    go(2, 64, 64 * sizeof(int), [&] {
        int* s = dhead::shared_ints();
        const int t = static_cast<int>(threadIdx.x);
        s[t] = t;
        __syncthreads();
        int sum = s[63 - t];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, step);
        sums[blockIdx.x * 64 + threadIdx.x] = sum + __shfl_up_sync(0xFFFFFFFFU, t % 32, 1U);
        words[blockIdx.x * 64 + threadIdx.x] = __ballot_sync(0xFFFFFFFFU, t % 3 == 0);
    });
    bool good = true;
    for (int i = 0; i < 128; ++i) {
        const int t = i % 64, warp = t / 32, lane = t % 32;
        const int want = (warp == 0 ? (32 + 63) * 16 : 31 * 16) + (lane > 0 ? lane - 1 : 0);
        unsigned word = 0;
        for (int l = 0; l < 32; ++l) word |= static_cast<unsigned>((warp * 32 + l) % 3 == 0) << l;
        good = good && sums[static_cast<std::size_t>(i)] == want && words[static_cast<std::size_t>(i)] == word;
    }
    if (!good) std::fprintf(stderr, "collectives give wrong values\n");
    return good;
}

}  // namespace

int main() {
    bool good = true;
    good &= fails("a barrier that half the block skips", [] {
        go(1, 64, 0, [] {
            if (threadIdx.x < 32) __syncthreads();
        });
    });
    good &= fails("two different barriers", [] {
        go(1, 64, 0, [] {
            if (threadIdx.x < 32)
                __syncthreads();
            else
                __syncthreads();
        });
    });
    good &= fails("a collective that a lane skips", [] {
        go(1, 32, 0, [] {
            if (threadIdx.x != 5) (void)__ballot_sync(0xFFFFFFFFU, true);
        });
    });
    good &= fails("a block of part of a warp", [] { go(1, 33, 0, [] {}); });
    good &= fails("more threads than a block may have", [] { go(1, 2048, 0, [] {}); });
    good &= fails("more shared memory than is there without an opt-in", [] { go(1, 32, 49 * 1024, [] {}); });
#if defined(DHEAD_SHIM_ASAN)
    good &= fails("shared memory beyond what the launch asked for",
                  [] { go(1, 32, 31 * sizeof(int), [] { dhead::shared_ints()[threadIdx.x] = 1; }); });
#endif
#if defined(DHEAD_SHIM_TSAN)
    good &= fails("a race in shared memory", [] {
        go(1, 64, 64 * sizeof(int), [] {
            int* s = dhead::shared_ints();
            s[threadIdx.x] = 1;
            s[63 - threadIdx.x] = 2;
        });
    });
    good &= fails("a race within a warp, over a shuffle", [] {
        go(1, 32, 32 * sizeof(int), [] {
            int* s = dhead::shared_ints();
            s[threadIdx.x] = 1;
            (void)__shfl_sync(0xFFFFFFFFU, 1, 0);  // orders no memory
            s[31 - threadIdx.x] = 2;
        });
    });
    good &= !fails("", [] {  // and this is none
        go(1, 32, 32 * sizeof(int), [] {
            int* s = dhead::shared_ints();
            s[threadIdx.x] = 1;
            __syncwarp();
            s[31 - threadIdx.x] = 2;
        });
    });
#endif
    good &= collectives_work();
    std::printf("%s\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}
