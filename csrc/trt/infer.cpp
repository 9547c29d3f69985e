// One call of an engine: arrays checked, addresses bound, work queued or replayed, results copied out.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "engine_impl.h"

namespace dhead::trt {
namespace {

constexpr std::size_t kAlignment = 256;   // of every address that TensorRT is given
constexpr std::size_t kMaxCaptured = 16;  // graphs per context; the oldest entry goes first

bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0; }

}  // namespace

// Graphs of a context are void once it changes.
void Engine::Impl::forget_graphs(Context& c) {
    const auto held = std::count_if(c.captured.begin(), c.captured.end(), [](const auto& e) { return bool(e.graph); });
    if (held > 0 && c.pending) cuda.EventSynchronize(c.done.get());  // one may be running
    graphs -= static_cast<std::size_t>(held);
    c.captured.clear();
}

void Engine::Impl::check_array(const Array& array, const TensorInfo& info, const Shape& shape) const {
    const std::string what = (info.is_input ? "Input '" : "Output '") + info.name + "'";
    if (array.type != info.type) {
        throw Error(ErrorKind::kInput, what + " has the wrong dtype", name(array.type), name(info.type));
    }
    if (!info.is_input && array.shape != shape) {
        throw Error(ErrorKind::kInput, what + " has the wrong shape", to_string(array.shape), to_string(shape));
    }
    if (!array.data) throw Error(ErrorKind::kInput, what + " has no data", "a null pointer", "an array");
    if (!array.on_device) return;
    CudaPointerAttributes attributes{};
    const int status = cuda.PointerGetAttributes(&attributes, array.data);
    if (status != 0) cuda.GetLastError();
    if (status != 0 || (attributes.type != kCudaMemoryDevice && attributes.type != kCudaMemoryManaged)) {
        throw Error(ErrorKind::kInput, what + " is not in device memory",
                    attributes.type == kCudaMemoryHost ? "host memory" : "an address CUDA does not know",
                    "a device array that has not been freed");
    }
    if (attributes.type == kCudaMemoryDevice && attributes.device != options.device) {
        throw Error(ErrorKind::kInput, what + " is on another device", "device " + std::to_string(attributes.device),
                    "device " + std::to_string(options.device), "Copy it to the engine's device");
    }
}

// Records the call as a graph. False where that does not work for this plan: it then runs plainly.
bool Engine::Impl::capture(Context& c, CapturedCall& call) {
    CudaStream stream = c.stream.get();
    if (cuda.StreamBeginCapture(stream, kCudaCaptureThreadLocal) != 0) {
        cuda.GetLastError();
        return false;
    }
    const bool queued = c.context->enqueueV3(static_cast<cudaStream_t>(stream));
    void* graph = nullptr;
    const int ended = cuda.StreamEndCapture(stream, &graph);
    const GraphHandle owner(&cuda, graph);
    void* exec = nullptr;
    if (!queued || ended != 0 || !graph || cuda.GraphInstantiateWithFlags(&exec, graph, 0) != 0) {
        cuda.GetLastError();
        logger.take_errors();
        return false;
    }
    call.graph = GraphExecHandle(&cuda, exec);
    ++graphs;
    return true;
}

void Engine::infer(const std::vector<Array>& inputs, std::vector<Array>& outputs, const InferOptions& options) const {
    Impl& s = *impl_;
    const CudaApi& cuda = s.cuda;
    const DeviceGuard guard(cuda, s.options.device);
    const std::size_t ni = s.inputs.size(), no = s.outputs.size();
    if (inputs.size() != ni || outputs.size() != no) {
        throw Error(ErrorKind::kInput, "Wrong number of arrays",
                    std::to_string(inputs.size()) + " inputs, " + std::to_string(outputs.size()) + " outputs",
                    std::to_string(ni) + " inputs, " + std::to_string(no) + " outputs");
    }
    std::vector<Shape> shapes;
    shapes.reserve(ni);
    bool device_arrays = false, host_inputs = false, host_outputs = false;
    for (const auto& a : inputs) {
        shapes.push_back(a.shape);
        (a.on_device ? device_arrays : host_inputs) = true;
    }
    // The default stream cannot be captured, and TensorRT would wait for the device on it: such calls run on a stream
    // of our own, between two events.
    const bool own_stream = !options.has_stream || !options.stream;
    int capturing = kCudaCaptureNone;
    if (!own_stream) cuda.check(cuda.StreamIsCapturing(options.stream, &capturing), "looking at the stream");
    const bool captured = capturing != kCudaCaptureNone;
    const std::shared_ptr<const ShapePlan> plan = s.plan_for(shapes, captured);
    for (std::size_t i = 0; i < ni; ++i) s.check_array(inputs[i], s.inputs[i], shapes[i]);
    for (std::size_t i = 0; i < no; ++i) {
        device_arrays = device_arrays || !outputs[i].data || outputs[i].on_device;
        if (!outputs[i].data) continue;
        s.check_array(outputs[i], s.outputs[i], plan->outputs[i]);
        host_outputs = host_outputs || !outputs[i].on_device;
    }
    if (captured && (host_outputs || host_inputs)) {
        throw Error(ErrorKind::kInput, "Host arrays cannot be part of a graph that is being captured", "",
                    "device arrays");
    }
    const auto misaligned = [](const Array& a) { return !aligned(a.data); };
    if (captured && (std::any_of(inputs.begin(), inputs.end(), misaligned) ||
                     std::any_of(outputs.begin(), outputs.end(), misaligned))) {
        throw Error(ErrorKind::kInput, "Arrays of a call that is captured in a CUDA graph must be used in place",
                    "an address that is no multiple of 256 bytes", "aligned arrays");
    }

    ContextPool::Lease c(*s.contexts, {options.stream, own_stream, plan.get(), s.options.cuda_graphs, captured});
    CudaStream stream = own_stream ? c->stream.get() : options.stream;
    try {
        if (!own_stream) {
            if (stream != c->last_stream) {
                const int status = cuda.EventRecord(c->entry.get(), stream);
                if (status == kCudaInvalidHandle) {
                    cuda.GetLastError();
                    throw Error(ErrorKind::kInput, "The stream cannot be used by this engine",
                                "a stream of another device", "a stream of device " + std::to_string(s.options.device));
                }
                cuda.check(status, "looking at the stream");
            }
        }
        // Results first: what used their memory before is then ordered before this call by what follows. Without a
        // stream of the caller's that is the default stream, as he is expected to order his use of them.
        for (std::size_t i = 0; i < no; ++i) {
            Array& out = outputs[i];
            if (out.data) continue;
            out.owner = s.memory->acquire(plan->output_bytes[i], options.stream);
            out.data = out.owner.get();
            out.on_device = true;
            out.type = s.outputs[i].type;
            out.shape = plan->outputs[i];
            if (captured) c->held.push_back(out.owner);  // each replay writes it
        }
        // Order this call behind the context's last one, and, on a stream of our own, behind the default stream, where
        // the arrays came from unless the caller said otherwise.
        if (c->pending && c->last_stream != stream) {
            cuda.check(cuda.StreamWaitEvent(stream, c->done.get(), 0), "ordering behind the last call");
        }
        const auto wait_for = [&](CudaStream other) {
            cuda.check(cuda.EventRecord(c->entry.get(), other), "ordering behind another stream");
            cuda.check(cuda.StreamWaitEvent(stream, c->entry.get(), 0), "ordering behind another stream");
        };
        if (own_stream && (device_arrays || options.has_stream)) wait_for(nullptr);
        for (void* other : options.wait_for) {
            if (other != (own_stream ? nullptr : stream)) wait_for(other);
        }
        s.set_shapes(*c, plan, stream);

        // Addresses: the caller's where TensorRT can take them, staging memory otherwise.
        bool staged_host = false;
        const auto address = [&](const Array& array, std::size_t i, std::size_t bytes) -> void* {
            if (array.on_device && aligned(array.data)) return array.data;
            // The last call may still be copying from or to this page-locked memory.
            if (!array.on_device && c->pending && !staged_host) {
                cuda.check(cuda.EventSynchronize(c->done.get()), "waiting for the last call");
                staged_host = true;
            }
            c->staging[i].reserve(cuda, bytes, !array.on_device);
            return c->staging[i].device();
        };
        const auto bind = [&](std::size_t i, void* data) {
            if (c->addresses[i] == data) return;
            c->addresses[i] = nullptr;
            if (!c->context->setTensorAddress(s.tensor(i).name.c_str(), data)) s.fail("setting an address");
            c->addresses[i] = data;
        };
        for (std::size_t i = 0; i < ni; ++i) {
            const std::size_t bytes = bytes_of(s.inputs[i], shapes[i]);
            void* data = address(inputs[i], i, bytes);
            bind(i, data);
            if (data == inputs[i].data) continue;
            const void* from = inputs[i].data;
            if (!inputs[i].on_device) {
                std::memcpy(c->staging[i].host(), from, bytes);
                from = c->staging[i].host();
            }
            cuda.check(cuda.MemcpyAsync(data, from, bytes,
                                        inputs[i].on_device ? kCudaDeviceToDevice : kCudaHostToDevice, stream),
                       "copying an input");
        }
        for (std::size_t i = 0; i < no; ++i) {
            bind(ni + i, address(outputs[i], ni + i, plan->output_bytes[i]));
        }

        CapturedCall* call = nullptr;
        if (s.options.cuda_graphs && !captured) {
            for (auto& entry : c->captured) {
                if (entry.addresses == c->addresses) call = &entry;
            }
            if (!call) {
                if (c->captured.size() >= kMaxCaptured) {
                    if (c->captured.front().graph) {
                        if (c->pending) cuda.EventSynchronize(c->done.get());  // it may be running
                        --s.graphs;
                    }
                    c->captured.erase(c->captured.begin());
                }
                c->captured.emplace_back();
                call = &c->captured.back();
                call->addresses = c->addresses;
            }
            ++call->seen;
            // The first call after new shapes must run plainly: TensorRT finishes its own preparations in it.
            if (call->seen > 1 && c->settled && !call->graph && !call->unfit && !s.capture(*c, *call)) {
                call->unfit = true;
                ++s.graph_failures;
            }
        }
        if (call && call->graph) {
            cuda.check(cuda.GraphLaunch(call->graph.get(), stream), "launching a graph");
            ++s.graph_launches;
        } else {
            s.enqueue(*c, stream);
        }

        for (std::size_t i = 0; i < no; ++i) {
            Array& out = outputs[i];
            void* from = c->addresses[ni + i];
            if (from == out.data) continue;
            cuda.check(
                cuda.MemcpyAsync(out.on_device ? out.data : c->staging[ni + i].host(), from, plan->output_bytes[i],
                                 out.on_device ? kCudaDeviceToDevice : kCudaDeviceToHost, stream),
                "copying an output");
        }
        c->last_stream = stream;
        if (!options.has_stream || host_outputs) {
            c->pending = false;
            cuda.check(cuda.StreamSynchronize(stream), "running the engine");
        } else if (captured) {
            c.keep();  // the graph uses its memory, for as long as the engine lives
        } else {
            c->pending = true;
            cuda.check(cuda.EventRecord(c->done.get(), stream), "marking the end of the call");
            if (own_stream) cuda.check(cuda.StreamWaitEvent(nullptr, c->done.get(), 0), "ordering the default stream");
        }
        for (std::size_t i = 0; i < no; ++i) {
            if (!outputs[i].on_device) std::memcpy(outputs[i].data, c->staging[ni + i].host(), plan->output_bytes[i]);
        }
    } catch (...) {
        if (captured) {  // nothing may be freed or waited for now
            c.keep();
            throw;
        }
        cuda.StreamSynchronize(stream);  // nothing may use the context any more
        s.forget_graphs(*c);
        c.discard();
        throw;
    }
    ++s.calls;
}

}  // namespace dhead::trt
