// Runs the tests of the TensorRT builder and engine; after each, nothing may be left behind.
#include "trt_test.h"

#include <chrono>
#include <cstdio>
#include <string>

using namespace trt_test;

int main(int argc, char** argv) {
    int failed = 0;
    for (const auto& test : tests()) {
        if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
        const auto start = std::chrono::steady_clock::now();
        try {
            reset();
            test.run();
            reset();
            // Nothing is left behind: every object of TensorRT and of CUDA has been given back.
            for (const char* kind : {"device", "pinned", "stream", "event", "graph"}) {
                if (const long n = cuda_live(kind)) throw Failure(std::to_string(n) + " " + kind + " objects leaked");
            }
            if (trt_get("live") != 0) throw Failure(std::to_string(trt_get("live")) + " TensorRT objects leaked");
            if (trt_get("unexpected") != 0) throw Failure("unexpected calls of TensorRT");
        } catch (const std::exception& e) {
            std::printf("FAILED %s: %s\n", test.name, e.what());
            ++failed;
            continue;
        }
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
        std::printf("ok     %s (%lld ms)\n", test.name, static_cast<long long>(ms.count()));
    }
    std::printf("%d of %zu failed\n", failed, tests().size());
    return failed != 0;
}
