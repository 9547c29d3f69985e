// How tests steer the stand-ins: faults to inject, and what is alive. Looked up with dlsym in both libraries.
#pragma once

extern "C" {
// libcudart stand-in.
void standin_cuda_reset();                            // no faults, counters to zero
void standin_cuda_fail(const char* call, int after);  // the call (as "Malloc") fails once, after that many successes
void standin_cuda_inline(int on);                     // work runs in the caller's thread at once: for timing
long standin_cuda_live(const char* kind);             // "device", "pinned", "stream", "event", "graph" not given back
long standin_cuda_count(const char* what);  // "launch", "graph_launch", "malloc", "copy", "sync" since the reset
void standin_cuda_devices(int count);
void standin_cuda_limit(long bytes);  // device memory; -1: none
// libnvinfer stand-in.
void standin_trt_reset();
void standin_trt_set(const char* key, long value);
long standin_trt_get(const char* key);
// Used by the libnvinfer stand-in: queues work on a stream; returns a CUDA error.
int standin_capturing(void* stream);
int standin_launch(void* stream, void (*work)(void*), void* argument, void (*free_argument)(void*));
}
