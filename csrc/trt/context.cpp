#include "context.h"

#include <utility>

namespace dhead::trt {

ContextPool::~ContextPool() {
    for (const auto& context : idle_) {  // work may still be running on a caller's stream
        if (context->pending) cuda_.EventSynchronize(context->done.get());
    }
}

int ContextPool::size() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return total_;
}

std::unique_ptr<Context> ContextPool::take(CudaStream stream, bool any_stream) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        if (!idle_.empty()) {
            // Best the one last used on this stream (nothing to wait for); else the one returned last, still warm.
            std::size_t best = idle_.size() - 1;
            for (std::size_t i = idle_.size(); i-- > 0 && !any_stream;) {
                if (idle_[i]->last_stream == stream) {
                    best = i;
                    break;
                }
            }
            auto context = std::move(idle_[best]);
            idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(best));
            return context;
        }
        if (total_ < max_contexts_) {
            ++total_;
            lock.unlock();
            try {
                return make();
            } catch (...) {
                lock.lock();
                --total_;
                returned_.notify_one();
                // Memory for one more context may be lacking while others work: then wait for one of them.
                if (total_ == 0) throw;
                if (idle_.empty()) returned_.wait(lock, [this] { return !idle_.empty() || total_ == 0; });
                continue;
            }
        }
        returned_.wait(lock);
    }
}

void ContextPool::give(std::unique_ptr<Context> context, Fate fate) noexcept {
    if (!context) return;
    if (fate == Fate::kDiscard) {
        if (context->pending) cuda_.EventSynchronize(context->done.get());
        if (context->stream) cuda_.StreamSynchronize(context->stream.get());
        context.reset();
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (fate == Fate::kReuse) {
            idle_.push_back(std::move(context));  // reserved in make()
        } else {
            --total_;
            if (fate == Fate::kKeep) kept_.push_back(std::move(context));
        }
    }
    returned_.notify_one();
}

std::unique_ptr<Context> ContextPool::make() {
    auto context = std::make_unique<Context>();
    context->context.reset(engine_.createExecutionContext());
    if (!context->context) {
        throw Error(ErrorKind::kRuntime, "TensorRT could not create an execution context", "",
                    "enough device memory for its workspace",
                    "Free memory on the device, or rebuild with a smaller workspace");
    }
    context->stream = make_stream(cuda_);
    context->done = make_event(cuda_);
    context->entry = make_event(cuda_);
    context->addresses.assign(num_tensors_, nullptr);
    context->staging.resize(num_tensors_);
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.reserve(static_cast<std::size_t>(max_contexts_));
    return context;
}

}  // namespace dhead::trt
