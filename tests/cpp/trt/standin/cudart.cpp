// A CUDA runtime without a GPU, for tests: "device" memory is host memory that is kept account of, and each stream is a
// thread that runs its work in order. So work is as asynchronous as on a GPU, and ThreadSanitizer sees a missing wait.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "control.h"

namespace {

enum : int {
    kOk = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kNoDevice = 100,
    kInvalidDevice = 101,
    kInvalidHandle = 400,
    kNotReady = 600,
    kCaptureUnsupported = 900,
    kCaptureInvalidated = 901,
    kUnknown = 999
};

struct Task {
    std::function<void()> run;
};

struct Graph {
    std::vector<std::function<void()>> work;
};

class Stream {
  public:
    explicit Stream(int device) : device(device) {
        worker_ = std::thread([this] { loop(); });
    }
    ~Stream() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        changed_.notify_all();
        worker_.join();
    }
    void push(std::function<void()> work) {
        const std::lock_guard<std::mutex> lock(mutex_);
        queue_.push_back(std::move(work));
        ++pushed_;
        changed_.notify_all();
    }
    // Number of the last task queued.
    uint64_t ticket() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return pushed_;
    }
    bool done(uint64_t ticket) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return finished_ >= ticket;
    }
    void wait(uint64_t ticket) {
        std::unique_lock<std::mutex> lock(mutex_);
        idle_.wait(lock, [&] { return finished_ >= ticket; });
    }
    const int device;
    std::shared_ptr<Graph> capture;  // set while capturing
    bool capture_broken = false;

  private:
    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
            if (queue_.empty()) return;
            {
                auto work = std::move(queue_.front());
                queue_.pop_front();
                lock.unlock();
                work();
            }
            lock.lock();
            ++finished_;
            idle_.notify_all();
        }
    }
    std::mutex mutex_;
    std::condition_variable changed_, idle_;
    std::deque<std::function<void()>> queue_;
    uint64_t pushed_ = 0, finished_ = 0;
    bool stop_ = false;
    std::thread worker_;
};

struct Event {
    int device;
    std::mutex mutex;
    std::shared_ptr<Stream> stream;
    uint64_t ticket = 0;
};

struct Block {
    std::size_t size;
    int device;
};

struct State {
    std::mutex mutex;
    int devices = 2;
    long limit = -1, used = 0;
    std::map<void*, Block> device_memory;
    std::map<void*, std::size_t> pinned;
    std::map<void*, std::shared_ptr<Stream>> streams;
    std::map<int, std::shared_ptr<Stream>> defaults;
    std::map<void*, std::shared_ptr<Event>> events;
    std::set<void*> graphs, execs;
    std::map<std::string, int> faults;
    std::map<std::string, long> counts;
};
State& state() {
    static State& s = *new State;  // never destroyed: streams may still be running at exit
    return s;
}
std::atomic<bool> run_inline{false};
std::atomic<bool> any_fault{false};
thread_local int current_device = 0;
thread_local int last_error = 0;

// The injected fault of this call, or 0.
int fault(const char* call, int error) {
    if (!any_fault) return kOk;
    const std::lock_guard<std::mutex> lock(state().mutex);
    const auto it = state().faults.find(call);
    if (it == state().faults.end()) return kOk;
    if (it->second-- > 0) return kOk;
    state().faults.erase(it);
    return last_error = error;
}
void count(const char* what) {
    if (run_inline) return;
    const std::lock_guard<std::mutex> lock(state().mutex);
    ++state().counts[what];
}

std::shared_ptr<Stream> stream_of(void* handle) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    if (!handle || handle == reinterpret_cast<void*>(1)) {
        auto& s = state().defaults[current_device];
        if (!s) s = std::make_shared<Stream>(current_device);
        return s;
    }
    const auto it = state().streams.find(handle);
    return it == state().streams.end() ? nullptr : it->second;
}
std::shared_ptr<Event> event_of(void* handle) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    const auto it = state().events.find(handle);
    return it == state().events.end() ? nullptr : it->second;
}

// The work queued so far on all streams.
void wait_for_everything() {
    std::vector<std::shared_ptr<Stream>> streams;
    {
        const std::lock_guard<std::mutex> lock(state().mutex);
        for (auto& [h, stream] : state().streams) streams.push_back(stream);
        for (auto& [d, stream] : state().defaults) streams.push_back(stream);
    }
    for (auto& stream : streams) stream->wait(stream->ticket());
}

int queue(void* handle, std::function<void()> work) {
    const auto stream = stream_of(handle);
    if (!stream || stream->device != current_device) return last_error = kInvalidHandle;
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
    } else if (run_inline) {
        work();
    } else {
        stream->push(std::move(work));
    }
    return kOk;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int cudaGetDeviceCount(int* n) {
    if (int e = fault("GetDeviceCount", kNoDevice)) return e;
    *n = state().devices;
    return *n > 0 ? kOk : (last_error = kNoDevice);
}
API int cudaGetDevice(int* d) { return *d = current_device, kOk; }
API int cudaSetDevice(int d) {
    if (d < 0 || d >= state().devices) return last_error = kInvalidDevice;
    return current_device = d, kOk;
}
API int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    if (device < 0 || device >= state().devices) return last_error = kInvalidDevice;
    *value = attribute == 75 ? 8 : attribute == 76 ? (device == 0 ? 6 : 9) : 0;
    return kOk;
}
API int cudaGetDeviceProperties(void* properties, int device) {
    const std::string name = "Stand-in GPU " + std::to_string(device);
    std::memcpy(properties, name.c_str(), name.size() + 1);
    return kOk;
}
API int cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
    *free_bytes = *total = std::size_t{1} << 30;
    return kOk;
}
API int cudaMalloc(void** p, std::size_t size) {
    *p = nullptr;
    if (int e = fault("Malloc", kOutOfMemory)) return e;
    State& s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (s.limit >= 0 && s.used + static_cast<long>(size) > s.limit) return last_error = kOutOfMemory;
    *p = std::aligned_alloc(512, (size + 511) / 512 * 512);
    if (!*p) return last_error = kOutOfMemory;
    std::memset(*p, 0xA5, size);
    s.device_memory[*p] = {size, current_device};
    s.used += static_cast<long>(size);
    ++s.counts["malloc"];
    return kOk;
}
API int cudaFree(void* p) {
    if (!p) return kOk;
    State& s = state();
    {
        const std::lock_guard<std::mutex> lock(s.mutex);
        if (!s.device_memory.count(p)) return last_error = kInvalidValue;
    }
    wait_for_everything();  // as the real one: waits for the device
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.used -= static_cast<long>(s.device_memory[p].size);
    s.device_memory.erase(p);
    std::free(p);
    return kOk;
}
API int cudaDeviceSynchronize() { return wait_for_everything(), kOk; }
API int cudaHostAlloc(void** p, std::size_t size, unsigned) {
    *p = nullptr;
    if (int e = fault("HostAlloc", kOutOfMemory)) return e;
    *p = std::malloc(size);
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().pinned[*p] = size;
    return kOk;
}
API int cudaFreeHost(void* p) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    if (!state().pinned.erase(p)) return last_error = kInvalidValue;
    std::free(p);
    return kOk;
}
API int cudaMemcpyAsync(void* to, const void* from, std::size_t size, int, void* stream) {
    if (int e = fault("MemcpyAsync", kUnknown)) return e;
    count("copy");
    return queue(stream, [=] { std::memcpy(to, from, size); });
}
API int cudaStreamCreateWithFlags(void** stream, unsigned) {
    *stream = nullptr;
    if (int e = fault("StreamCreate", kOutOfMemory)) return e;
    auto s = std::make_shared<Stream>(current_device);
    *stream = s.get();
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().streams[*stream] = std::move(s);
    return kOk;
}
API int cudaStreamDestroy(void* stream) {
    std::shared_ptr<Stream> s;
    {
        const std::lock_guard<std::mutex> lock(state().mutex);
        const auto it = state().streams.find(stream);
        if (it == state().streams.end()) return last_error = kInvalidHandle;
        s = std::move(it->second);
        state().streams.erase(it);
    }
    s->wait(s->ticket());
    return kOk;
}
API int cudaStreamSynchronize(void* stream) {
    if (int e = fault("StreamSynchronize", kUnknown)) return e;
    count("sync");
    const auto s = stream_of(stream);
    if (!s) return last_error = kInvalidHandle;
    s->wait(s->ticket());
    return kOk;
}
API int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
    const auto s = stream_of(stream);
    const auto e = event_of(event);
    if (!s || !e || s->device != current_device) return last_error = kInvalidHandle;
    std::shared_ptr<Stream> other;
    uint64_t ticket;
    {
        const std::lock_guard<std::mutex> lock(e->mutex);
        other = e->stream;
        ticket = e->ticket;
    }
    if (!other || run_inline) return kOk;
    s->push([other, ticket] { other->wait(ticket); });
    return kOk;
}
API int cudaStreamIsCapturing(void* stream, int* status) {
    const auto s = stream_of(stream);
    if (!s) return last_error = kInvalidHandle;
    *status = s->capture ? 1 : 0;
    return kOk;
}
API int cudaEventCreateWithFlags(void** event, unsigned) {
    *event = nullptr;
    if (int e = fault("EventCreate", kOutOfMemory)) return e;
    auto e = std::make_shared<Event>();
    e->device = current_device;
    *event = e.get();
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().events[*event] = std::move(e);
    return kOk;
}
API int cudaEventDestroy(void* event) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    return state().events.erase(event) ? kOk : (last_error = kInvalidHandle);
}
API int cudaEventRecord(void* event, void* stream) {
    if (int e = fault("EventRecord", kUnknown)) return e;
    const auto s = stream_of(stream);
    const auto e = event_of(event);
    if (!s || !e || e->device != s->device) return last_error = kInvalidHandle;
    const std::lock_guard<std::mutex> lock(e->mutex);
    e->stream = s;
    e->ticket = s->ticket();
    return kOk;
}
API int cudaEventQuery(void* event) {
    const auto e = event_of(event);
    if (!e) return last_error = kInvalidHandle;
    const std::lock_guard<std::mutex> lock(e->mutex);
    return !e->stream || e->stream->done(e->ticket) ? kOk : kNotReady;
}
API int cudaEventSynchronize(void* event) {
    const auto e = event_of(event);
    if (!e) return last_error = kInvalidHandle;
    std::shared_ptr<Stream> s;
    uint64_t ticket;
    {
        const std::lock_guard<std::mutex> lock(e->mutex);
        s = e->stream;
        ticket = e->ticket;
    }
    if (s) s->wait(ticket);
    return kOk;
}
API int cudaPointerGetAttributes(void* attributes, const void* p) {
    struct {
        int type, device;
        const void *device_pointer, *host_pointer;
    } a{0, -1, nullptr, nullptr};
    State& s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    auto it = s.device_memory.upper_bound(const_cast<void*>(p));
    if (it != s.device_memory.begin() && --it != s.device_memory.end() &&
        static_cast<const char*>(p) < static_cast<const char*>(it->first) + it->second.size) {
        a = {2, it->second.device, p, nullptr};
    } else if (s.pinned.count(const_cast<void*>(p))) {
        a = {1, 0, nullptr, p};
    }
    std::memcpy(attributes, &a, sizeof(a));
    return kOk;
}
API int standin_capturing(void* stream) {
    int status = 0;
    return stream && cudaStreamIsCapturing(stream, &status) == 0 && status != 0;
}
API int cudaStreamBeginCapture(void* stream, int) {
    if (int e = fault("StreamBeginCapture", kCaptureUnsupported)) return e;
    const auto s = stream_of(stream);
    if (!s || !stream) return last_error = kCaptureUnsupported;
    s->capture = std::make_shared<Graph>();
    return kOk;
}
API int cudaStreamEndCapture(void* stream, void** graph) {
    *graph = nullptr;
    const auto s = stream_of(stream);
    if (!s || !s->capture) return last_error = kInvalidHandle;
    auto captured = std::move(s->capture);
    if (int e = fault("StreamEndCapture", kCaptureInvalidated)) return e;
    *graph = new Graph(*captured);
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().graphs.insert(*graph);
    return kOk;
}
API int cudaGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
    *exec = nullptr;
    if (int e = fault("GraphInstantiate", kUnknown)) return e;
    *exec = new Graph(*static_cast<Graph*>(graph));
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().execs.insert(*exec);
    return kOk;
}
API int cudaGraphLaunch(void* exec, void* stream) {
    if (int e = fault("GraphLaunch", kUnknown)) return e;
    count("graph_launch");
    const Graph graph = *static_cast<Graph*>(exec);
    return queue(stream, [graph] {
        for (const auto& work : graph.work) work();
    });
}
API int cudaGraphExecDestroy(void* exec) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    if (!state().execs.erase(exec)) return last_error = kInvalidHandle;
    delete static_cast<Graph*>(exec);
    return kOk;
}
API int cudaGraphDestroy(void* graph) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    if (!state().graphs.erase(graph)) return last_error = kInvalidHandle;
    delete static_cast<Graph*>(graph);
    return kOk;
}
API int cudaGetLastError() {
    const int e = last_error;
    last_error = 0;
    return e;
}
API int cudaRuntimeGetVersion(int* v) { return *v = 12080, kOk; }
API const char* cudaGetErrorString(int error) {
    switch (error) {
        case kOutOfMemory:
            return "out of memory";
        case kNoDevice:
            return "no CUDA-capable device is detected";
        case kInvalidDevice:
            return "invalid device ordinal";
        case kInvalidHandle:
            return "invalid resource handle";
        case kCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        default:
            return "injected error";
    }
}

API void standin_cuda_reset() {
    State& s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.faults.clear();
    s.counts.clear();
    s.limit = -1;
    s.devices = 2;
    any_fault = false;
    run_inline = false;
}
API void standin_cuda_fail(const char* call, int after) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    state().faults[call] = after;
    any_fault = true;
}
API void standin_cuda_inline(int on) { run_inline = on != 0; }
API long standin_cuda_live(const char* kind) {
    State& s = state();
    const std::lock_guard<std::mutex> lock(s.mutex);
    const std::string k = kind;
    const std::size_t n = k == "device"   ? s.device_memory.size()
                          : k == "pinned" ? s.pinned.size()
                          : k == "stream" ? s.streams.size()
                          : k == "event"  ? s.events.size()
                                          : s.graphs.size() + s.execs.size();
    return static_cast<long>(n);
}
API long standin_cuda_count(const char* what) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    return state().counts[what];
}
API void standin_cuda_devices(int count) { state().devices = count; }
API void standin_cuda_limit(long bytes) { state().limit = bytes; }
API int standin_launch(void* stream, void (*work)(void*), void* argument, void (*free_argument)(void*)) {
    count("launch");
    const std::shared_ptr<void> held(argument, free_argument);
    return queue(stream, [work, held] { work(held.get()); });
}
