// Runs every test, or those whose names hold an argument.
#include <cstring>

#include "harness.h"

int main(int argc, char** argv) {
    int run = 0;
    for (const harness::Test& test : harness::tests()) {
        bool wanted = argc == 1;
        for (int i = 1; i < argc; ++i) wanted = wanted || std::strstr(test.name, argv[i]) != nullptr;
        if (!wanted) continue;
        const int before = harness::failures();
        test.run();
        ++run;
        std::cout << (harness::failures() == before ? "ok    " : "FAIL  ") << test.name << std::endl;
    }
    std::cout << run << " tests, " << harness::failures() << " failures" << std::endl;
    return harness::failures() == 0 && run > 0 ? 0 : 1;
}
