// Runs every test, or those whose names hold an argument; "-text" leaves out those whose names hold `text`.
// (qemu-user can not fork a program of several threads: run "core_tests -fork" there.)
#include <cstring>

#include "harness.h"

int main(int argc, char** argv) {
    int run = 0;
    for (const harness::Test& test : harness::tests()) {
        bool chosen = false;
        bool named = false;
        bool left_out = false;
        for (int i = 1; i < argc; ++i) {
            const bool out = argv[i][0] == '-';
            const bool hit = std::strstr(test.name, argv[i] + (out ? 1 : 0)) != nullptr;
            named = named || !out;
            chosen = chosen || (!out && hit);
            left_out = left_out || (out && hit);
        }
        const bool wanted = (chosen || !named) && !left_out;
        if (!wanted) continue;
        const int before = harness::failures();
        test.run();
        ++run;
        std::cout << (harness::failures() == before ? "ok    " : "FAIL  ") << test.name << std::endl;
    }
    std::cout << run << " tests, " << harness::failures() << " failures" << std::endl;
    return harness::failures() == 0 && run > 0 ? 0 : 1;
}
