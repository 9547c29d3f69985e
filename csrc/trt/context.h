// One execution context with what belongs to it, and the pool that hands contexts to threads.
#pragma once

#include <NvInfer.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_api.h"
#include "memory.h"
#include "types.h"

namespace dhead::trt {

// Where one set of input shapes runs, and what comes out. Immutable once made; shared by all contexts.
struct ShapePlan {
    std::vector<Shape> inputs;
    int profile = 0;
    std::vector<Shape> outputs;
    std::vector<std::size_t> output_bytes;
};

// A captured call: the same shapes and addresses again can be replayed.
struct CapturedCall {
    std::shared_ptr<const ShapePlan> plan;
    std::vector<void*> addresses;
    int seen = 0;  // the first call runs plainly, the second is captured
    bool unfit = false;
    GraphExecHandle graph;
};

struct Context {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    StreamHandle stream;   // for calls that give none, and for capture
    EventHandle done;      // after the last call's work
    EventHandle entry;     // after what the call has to wait for
    bool pending = false;  // `done` has been recorded and not been waited for
    CudaStream last_stream = nullptr;
    int profile = -1;
    std::shared_ptr<const ShapePlan> plan;  // shapes that are set
    std::vector<void*> addresses;           // of all tensors, inputs first
    std::vector<Staging> staging;
    std::vector<CapturedCall> captured;
    uint64_t calls = 0;
};

class ContextPool {
  public:
    ContextPool(nvinfer1::ICudaEngine& engine, const CudaApi& cuda, std::size_t num_tensors, int max_contexts)
        : engine_(engine), cuda_(cuda), num_tensors_(num_tensors), max_contexts_(max_contexts) {}
    ~ContextPool();

    enum class Fate { kReuse, kDiscard, kKeep };

    // A context for one call; goes back to the pool at the end of the scope, unless `discard` was called because the
    // call failed half-way and its state is not known.
    class Lease {
      public:
        Lease(ContextPool& pool, CudaStream stream, bool any_stream)
            : pool_(pool), context_(pool.take(stream, any_stream)) {}
        ~Lease() { pool_.give(std::move(context_), fate_); }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        Context* operator->() const { return context_.get(); }
        Context& operator*() const { return *context_; }
        void discard() { fate_ = Fate::kDiscard; }
        // Leaves the context out of the pool, but alive: a CUDA graph of the caller's holds it.
        void keep() { fate_ = Fate::kKeep; }

      private:
        ContextPool& pool_;
        std::unique_ptr<Context> context_;
        Fate fate_ = Fate::kReuse;
    };

    int size() const;

  private:
    std::unique_ptr<Context> take(CudaStream stream, bool any_stream);
    void give(std::unique_ptr<Context> context, Fate fate) noexcept;
    std::unique_ptr<Context> make();

    nvinfer1::ICudaEngine& engine_;
    const CudaApi& cuda_;
    const std::size_t num_tensors_;
    const int max_contexts_;
    mutable std::mutex mutex_;
    std::condition_variable returned_;
    std::vector<std::unique_ptr<Context>> idle_, kept_;
    int total_ = 0;
};

}  // namespace dhead::trt
