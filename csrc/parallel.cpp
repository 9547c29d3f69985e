#include "dhead/parallel.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace dhead {
namespace {

constexpr int32_t kMaxThreads = 256;
// How long an idle thread looks for new work before it sleeps: about what waking it again would cost.
constexpr auto kSpin = std::chrono::microseconds(30);

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Looks at `done()` for a while; true as soon as it holds.
template <class Done>
bool spin_until(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

// A run of tasks, and the next of them that nobody has begun.
struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

// One call of parallel_run; it lives on the caller's stack. `helpers`, `helpers_wanted`, `joined` and the list are
// guarded by the pool's mutex.
//
// Each thread begins with a share of its own, the caller with the first, and then takes what is left of the others': so
// the next call like this one finds the same memory in the same processor's cache.
struct Job {
    static constexpr int32_t kMaxShares = 8;

    void (*body)(void*, int64_t);
    void* context;
    Share shares[kMaxShares];
    int32_t num_shares;
    std::atomic<int32_t> helpers{0};
    int32_t helpers_wanted = 0;
    int32_t joined = 0;
    std::mutex error_mutex;
    std::exception_ptr error;
    Job* following = nullptr;

    Job(void (*run)(void*, int64_t), void* argument, int64_t tasks, int32_t threads)
        : body(run), context(argument), num_shares(threads < kMaxShares ? threads : kMaxShares) {
        for (int64_t i = 0; i < num_shares; ++i) {
            shares[i].next.store(tasks / num_shares * i + tasks % num_shares * i / num_shares,
                                 std::memory_order_relaxed);
            shares[i].end = tasks / num_shares * (i + 1) + tasks % num_shares * (i + 1) / num_shares;
        }
    }

    bool more() const {
        for (int32_t i = 0; i < num_shares; ++i) {
            if (shares[i].next.load(std::memory_order_relaxed) < shares[i].end) return true;
        }
        return false;
    }

    void work(int32_t first) noexcept {
        for (int32_t i = 0; i < num_shares; ++i) {
            Share& share = shares[(first + i) % num_shares];
            for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
                try {
                    body(context, task);
                } catch (...) {
                    const std::lock_guard<std::mutex> lock(error_mutex);
                    if (!error) error = std::current_exception();
                    for (int32_t k = 0; k < num_shares; ++k) {
                        shares[k].next.store(shares[k].end, std::memory_order_relaxed);
                    }
                }
            }
        }
    }
};

class Pool {
  public:
    void run(Job& job, int32_t helpers) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            add_threads(helpers);
            job.helpers_wanted = helpers < threads_ ? helpers : threads_;
            job.following = jobs_;
            jobs_ = &job;
            posted_.fetch_add(1, std::memory_order_relaxed);
        }
        for (int32_t i = 0; i < helpers && i < sleeping_.load(std::memory_order_relaxed); ++i) wake_.notify_one();
        job.work(0);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            Job** p = &jobs_;
            while (*p != &job) p = &(*p)->following;
            *p = job.following;  // nobody can join it any more
        }
        const auto alone = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
        if (!spin_until(alone)) {
            std::unique_lock<std::mutex> lock(mutex_);
            left_.wait(lock, alone);
        }
        // The last helper leaves under the mutex: it is through with the job once we can have the mutex.
        const std::lock_guard<std::mutex> lock(mutex_);
    }

  private:
    void add_threads(int32_t wanted) {
        while (threads_ < wanted && threads_ < kMaxThreads) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // fewer helpers, the same result
            }
            ++threads_;
        }
    }

    // A job that wants one more helper. The mutex is held.
    Job* find() const {
        for (Job* job = jobs_; job != nullptr; job = job->following) {
            if (job->helpers_wanted > 0 && job->more()) return job;
        }
        return nullptr;
    }

    [[noreturn]] void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            if (Job* job = find()) {
                --job->helpers_wanted;
                job->helpers.fetch_add(1, std::memory_order_relaxed);
                const int32_t place = ++job->joined;
                lock.unlock();
                job->work(place);
                lock.lock();
                if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) left_.notify_all();
                continue;
            }
            const int64_t seen = posted_.load(std::memory_order_relaxed);
            lock.unlock();
            const bool more = spin_until([&] { return posted_.load(std::memory_order_relaxed) != seen; });
            lock.lock();
            if (more || posted_.load(std::memory_order_relaxed) != seen) continue;
            sleeping_.fetch_add(1, std::memory_order_relaxed);
            wake_.wait(lock, [&] { return posted_.load(std::memory_order_relaxed) != seen; });
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable left_;
    std::atomic<int64_t> posted_{0};
    std::atomic<int32_t> sleeping_{0};
    Job* jobs_ = nullptr;
    int32_t threads_ = 0;
};

std::atomic<Pool*> g_pool{nullptr};

// The pool is never destroyed: its threads may be in it when the process ends. A forked child has none of the threads,
// and its parent's mutex may be locked for ever: it forgets that pool, and makes its own when it first needs one.
Pool& pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
    (void)registered;
    Pool* current = g_pool.load(std::memory_order_acquire);
    if (current == nullptr) {
        auto* fresh = new Pool;
        if (g_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;
    }
    return *current;
}

}  // namespace

int32_t hardware_threads() {
    static const auto count = static_cast<int32_t>(std::thread::hardware_concurrency());
    return count > 0 ? count : 1;
}

void parallel_run(int64_t tasks, int32_t threads, void (*body)(void*, int64_t), void* context) {
    if (tasks <= 0) return;
    if (threads > tasks) threads = static_cast<int32_t>(tasks);
    if (threads <= 1) {
        for (int64_t task = 0; task < tasks; ++task) body(context, task);
        return;
    }
    Job job(body, context, tasks, threads);
    pool().run(job, threads - 1);
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace dhead
