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

// The idle context with the least to set up or to wait for, of several the one returned last; -1: none will do.
int ContextPool::best(const Wanted& wanted) const {
    int best = -1, most = -1;
    for (std::size_t i = idle_.size(); i-- > 0;) {
        const Context& c = *idle_[i];
        const bool same_plan = c.plan.get() == wanted.plan, same_stream = c.last_stream == wanted.stream;
        if (wanted.capturing && !(same_plan && c.settled && (!c.pending || same_stream))) continue;
        const int score = (wanted.graphs && (same_plan || c.captured.empty()) ? 4 : 0) +
                          (!wanted.any_stream && same_stream ? 2 : 0) + (same_plan ? 1 : 0) +
                          (wanted.graphs && same_plan ? 2 : 0);
        if (score > most) {
            best = static_cast<int>(i);
            most = score;
        }
    }
    return best;
}

std::unique_ptr<Context> ContextPool::take(const Wanted& wanted) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (bool cramped = false;;) {
        const int i = best(wanted);
        const bool spoils = i >= 0 && wanted.graphs && !idle_[static_cast<std::size_t>(i)]->captured.empty() &&
                            idle_[static_cast<std::size_t>(i)]->plan.get() != wanted.plan;
        if (i >= 0 && (!spoils || cramped || total_ >= max_contexts_)) {
            auto context = std::move(idle_[static_cast<std::size_t>(i)]);
            idle_.erase(idle_.begin() + i);
            return context;
        }
        if (wanted.capturing) {
            throw Error(ErrorKind::kInput, "No context is ready for a call that is captured in a CUDA graph", "",
                        "a call with these shapes on this stream before the capture");
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
                cramped = true;
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
            if (fate == Fate::kKeep) kept_.push_back(std::move(context));  // reserved in make()
        }
    }
    returned_.notify_one();
}

std::unique_ptr<Context> ContextPool::make() {
    auto context = std::make_unique<Context>();
    {
        const std::lock_guard<std::mutex> one_at_a_time(making_);
        context->context.reset(engine_.createExecutionContext());
    }
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
    kept_.reserve(kept_.size() + static_cast<std::size_t>(max_contexts_));
    return context;
}

}  // namespace dhead::trt
