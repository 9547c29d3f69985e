// One execution context with what belongs to it, and the pool that hands contexts to threads.
#pragma once

#include <NvInfer.h>

#include <condition_variable>
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

// A captured call: the same addresses again, with the context's shapes, can be replayed.
struct CapturedCall {
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
    bool settled = false;                   // has run with these shapes: only then may a call be captured
    std::vector<void*> addresses;           // of all tensors, inputs first
    std::vector<Staging> staging;
    // All of the shapes that are set: TensorRT leaves it undefined what a graph does whose context has changed.
    std::vector<CapturedCall> captured;
    std::vector<std::shared_ptr<void>> held;  // outputs that a graph of the caller's writes
};

// What a call looks for in a context.
struct Wanted {
    CudaStream stream = nullptr;
    bool any_stream = true;  // it runs on the context's own stream
    const ShapePlan* plan = nullptr;
    bool graphs = false;     // contexts whose graphs are of other shapes are the last choice
    bool capturing = false;  // the caller captures `stream`: nothing may be set up, allocated or waited for
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
        Lease(ContextPool& pool, const Wanted& wanted) : pool_(pool), context_(pool.take(wanted)) {}
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
    std::unique_ptr<Context> take(const Wanted& wanted);
    int best(const Wanted& wanted) const;
    void give(std::unique_ptr<Context> context, Fate fate) noexcept;
    std::unique_ptr<Context> make();

    nvinfer1::ICudaEngine& engine_;
    const CudaApi& cuda_;
    const std::size_t num_tensors_;
    const int max_contexts_;
    mutable std::mutex mutex_;
    std::mutex making_;  // TensorRT promises nothing for contexts created at the same time
    std::condition_variable returned_;
    std::vector<std::unique_ptr<Context>> idle_, kept_;
    int total_ = 0;
};

}  // namespace dhead::trt
