// What a stub does that the stand-in did not expect to be called: says so, and counts it for the tests.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

namespace standin {

extern std::atomic<int> unexpected_calls;

template <typename T>
T unexpected(const char* what) {
    std::fprintf(stderr, "stand-in: unexpected call of %s\n", what);
    ++unexpected_calls;
    if constexpr (std::is_void_v<T>) {
        return;
    } else if constexpr (std::is_reference_v<T>) {
        std::abort();
    } else {
        return T{};
    }
}

}  // namespace standin
