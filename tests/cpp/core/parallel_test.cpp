// The pool of threads.
#include "dhead/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>

#include "dhead/decode_cpu.h"
#include "random_head.h"

TEST(every_task_runs_once) {
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
        for (const int32_t threads : {0, 1, 2, 4, 9}) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
            dhead::parallel_for(tasks, threads, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
            for (const auto& r : runs) EXPECT_EQUAL(r.load(), 1);
        }
    }
}

TEST(writes_of_a_task_are_seen_after_the_call) {
    for (int turn = 0; turn < 300; ++turn) {
        std::vector<int> plain(64);  // not atomic: ThreadSanitizer looks on
        dhead::parallel_for(64, 4, [&](int64_t i) { plain[static_cast<size_t>(i)] = turn; });
        EXPECT_EQUAL(std::accumulate(plain.begin(), plain.end(), 0), 64 * turn);
    }
}

TEST(an_exception_reaches_the_caller_and_the_pool_goes_on) {
    for (int turn = 0; turn < 50; ++turn) {
        std::atomic<int> ran{0};
        EXPECT_THROW(dhead::parallel_for(100, 4,
                                         [&](int64_t i) {
                                             ++ran;
                                             if (i == turn) throw std::runtime_error("task");
                                         }),
                     std::runtime_error);
        EXPECT(ran.load() <= 100);
    }
    std::atomic<int> sum{0};
    dhead::parallel_for(10, 4, [&](int64_t) { ++sum; });
    EXPECT_EQUAL(sum.load(), 10);
}

TEST(many_callers_at_once) {
    std::vector<std::thread> callers;
    std::atomic<int64_t> total{0};
    for (int c = 0; c < 8; ++c) {
        callers.emplace_back([&, c] {
            for (int turn = 0; turn < 60; ++turn) {
                int64_t own[40] = {};
                dhead::parallel_for(40, 1 + c % 5, [&](int64_t i) { own[i] = i; });
                total += std::accumulate(own, own + 40, int64_t{0});
            }
        });
    }
    for (std::thread& t : callers) t.join();
    EXPECT_EQUAL(total.load(), 8 * 60 * 780);
}

TEST(a_task_may_call_again) {
    std::atomic<int> sum{0};
    dhead::parallel_for(6, 3, [&](int64_t) { dhead::parallel_for(6, 3, [&](int64_t) { ++sum; }); });
    EXPECT_EQUAL(sum.load(), 36);
}

TEST(callers_share_no_working_memory) {
    HeadShape shape;
    shape.num_classes = 20;
    shape.sizes = {{40, 40}, {20, 20}};
    shape.batch = 2;
    std::vector<std::thread> callers;
    for (uint64_t c = 0; c < 6; ++c) {
        callers.emplace_back([&, c] {
            const RandomHead head = make_head(shape, c + 1);
            dhead::DetectOptions o;
            const auto run = [&](int32_t threads) {
                std::vector<int32_t> n(2), classes(600), dropped(2);
                std::vector<float> boxes(2400), scores(600);
                dhead::detect_cpu(head.params, o,
                                  {n.data(), boxes.data(), scores.data(), classes.data(), dropped.data()}, {threads});
                return boxes;
            };
            const std::vector<float> want = run(1);
            for (int turn = 0; turn < 10; ++turn) EXPECT(run(1 + turn % 4) == want);
        });
    }
    for (std::thread& t : callers) t.join();
}

#if !defined(__SANITIZE_THREAD__)  // which does not follow a fork of many threads
TEST(a_forked_child_has_a_pool_of_its_own) {
    dhead::parallel_for(16, 4, [](int64_t) {});
    for (int turn = 0; turn < 5; ++turn) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            std::atomic<int> sum{0};
            dhead::parallel_for(100, 4, [&](int64_t) { ++sum; });
            _exit(sum.load() == 100 ? 0 : 1);
        }
        int status = -1;
        EXPECT_EQUAL(waitpid(child, &status, 0), child);
        EXPECT_EQUAL(status, 0);
    }
}
#endif
