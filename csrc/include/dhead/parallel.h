// A small persistent pool of threads, shared by everything in the process.
//
// No thread exists before the first call that wants more than one. A child process made by fork() starts with an empty
// pool of its own. Several callers may run at once: each works on its own tasks, and the pool's threads help wherever
// tasks are left.
#pragma once

#include <cstdint>

namespace dhead {

// Processors this process may use, at least 1.
int32_t hardware_threads();

// Calls body(context, task) for each task in [0, tasks), on up to `threads` threads, the caller among them. Returns
// when all have returned. The first exception thrown by a task is thrown again; tasks not yet begun are then left out.
// Does not allocate once the pool has its threads.
void parallel_run(int64_t tasks, int32_t threads, void (*body)(void* context, int64_t task), void* context);

// The same for a callable.
template <class Body>
void parallel_for(int64_t tasks, int32_t threads, const Body& body) {
    parallel_run(
        tasks, threads, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace dhead
