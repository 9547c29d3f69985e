// A test is a function that TEST registers; EXPECT and its kin say what does not hold, and the program then fails.
#pragma once

#include <cstdint>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace harness {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
    ++failures();
    std::cerr << file << ":" << line << ": " << what << std::endl;
}

template <class A, class B>
void expect_equal(const A& a, const B& b, const char* text, const char* file, int line) {
    if (a == b) return;
    fail(file, line, std::string(text) + ": " + std::to_string(a) + " and " + std::to_string(b));
}

// Deterministic numbers, the same everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {}
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }
    int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
    float uniform(float low, float high) {
        return low + (high - low) * static_cast<float>(next() >> 40) / static_cast<float>(1 << 24);
    }

  private:
    uint64_t state_;
};

}  // namespace harness

#define TEST(name)                                               \
    static void name();                                          \
    static const harness::Register register_##name(#name, name); \
    static void name()
#define EXPECT(condition)                                                           \
    do {                                                                            \
        if (!(condition)) harness::fail(__FILE__, __LINE__, "not so: " #condition); \
    } while (false)
#define EXPECT_EQUAL(a, b) harness::expect_equal((a), (b), #a " == " #b, __FILE__, __LINE__)
#define EXPECT_THROW(statement, kind)                                                  \
    do {                                                                               \
        bool thrown = false;                                                           \
        try {                                                                          \
            statement;                                                                 \
        } catch (const kind&) {                                                        \
            thrown = true;                                                             \
        }                                                                              \
        if (!thrown) harness::fail(__FILE__, __LINE__, "does not throw: " #statement); \
    } while (false)
