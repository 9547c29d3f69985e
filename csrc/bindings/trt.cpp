// Python module _trt10 / _trt11: bindings only. One per TensorRT major version, beside _core.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>

#include "builder.h"
#include "library.h"
#include "trt_convert.h"
#include "trt_errors.h"

namespace py = pybind11;
using namespace dhead::trt;

namespace {

// Runs a build on a thread of its own while this one, which holds Python, hands progress and log lines to the callbacks
// and looks for Ctrl-C. Nothing Python-related runs on TensorRT's threads.
class Build {
  public:
    Build(py::object progress, py::object log) : progress_(std::move(progress)), log_(std::move(log)) {}

    BuildResult run(const Builder& builder, const char* data, std::size_t size, BuildOptions options,
                    const std::string& path) {
        options.progress = [this](const ProgressEvent& event) {
            push(event);
            return !cancelled_.load();
        };
        if (!log_.is_none()) {
            options.log = [this](LogLevel level, const std::string& text) { push(std::make_pair(level, text)); };
        }
        auto result = std::async(std::launch::async, [&] {
            struct Done {
                Build& build;
                ~Done() {
                    const std::lock_guard<std::mutex> lock(build.mutex_);
                    build.finished_ = true;
                    build.changed_.notify_all();
                }
            } done{*this};
            return builder.build(data, size, options, path);
        });
        for (bool finished = false; !finished;) {
            {
                const py::gil_scoped_release release;
                std::unique_lock<std::mutex> lock(mutex_);
                changed_.wait_for(lock, std::chrono::milliseconds(50), [this] { return finished_ || !items_.empty(); });
                finished = finished_ && items_.empty();
            }
            if (!cancelled_) {
                if (PyErr_CheckSignals() != 0) stop();
                deliver();
            } else {
                drop();
            }
        }
        {
            const py::gil_scoped_release release;
            result.wait();
        }
        if (error_) throw py::error_already_set(std::move(*error_));  // however the build ended
        return result.get();
    }

  private:
    struct Item {
        bool is_log = false;
        ProgressEvent event;
        LogLevel level = LogLevel::kInfo;
        std::string text;
    };
    void push(ProgressEvent event) { push(Item{false, std::move(event), LogLevel::kInfo, {}}); }
    void push(std::pair<LogLevel, std::string> line) { push(Item{true, {}, line.first, std::move(line.second)}); }
    void push(Item item) {
        const std::lock_guard<std::mutex> lock(mutex_);
        items_.push_back(std::move(item));
        changed_.notify_all();
    }
    bool pop(Item* item) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (items_.empty()) return false;
        *item = std::move(items_.front());
        items_.pop_front();
        return true;
    }
    void drop() {
        const std::lock_guard<std::mutex> lock(mutex_);
        items_.clear();
    }
    void deliver() {
        Item item;
        while (!cancelled_ && pop(&item)) {
            try {
                if (item.is_log) {
                    log_(static_cast<int>(item.level), item.text);
                } else if (!progress_.is_none()) {
                    const py::object answer =
                        progress_(item.event.phase, item.event.parent, item.event.step, item.event.steps);
                    if (!answer.is_none() && !answer.cast<bool>()) cancelled_ = true;
                }
            } catch (py::error_already_set& e) {
                e.restore();
                stop();
            }
        }
    }
    // Keeps Python's current error for the caller and asks the build to end.
    void stop() {
        error_.emplace();
        cancelled_ = true;
    }

    py::object progress_, log_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Item> items_;
    bool finished_ = false;
    std::atomic<bool> cancelled_{false};
    std::optional<py::error_already_set> error_;
};

using PyRange = std::tuple<Shape, Shape, Shape>;

template <typename T>
T one_of(const std::string& value, const char* what, const std::vector<std::pair<const char*, T>>& choices) {
    std::string names;
    for (const auto& [key, choice] : choices) {
        if (value == key) return choice;
        names += (names.empty() ? "" : ", ") + std::string(key);
    }
    throw Error(ErrorKind::kInput, std::string("There is no such ") + what, value, names);
}

py::dict build(const std::shared_ptr<Library>& library, const py::bytes& model, const std::string& model_path,
               const std::vector<std::map<std::string, PyRange>>& profiles, std::optional<std::size_t> workspace,
               std::optional<std::size_t> tactic_dram, std::optional<std::size_t> tactic_shared_memory,
               std::optional<std::size_t> dla_sram, std::optional<std::size_t> dla_local_dram,
               std::optional<std::size_t> dla_global_dram, const std::string& timing_cache,
               std::optional<int> optimization_level, std::optional<int> avg_timing_iterations,
               std::optional<int> max_aux_streams, const std::string& hardware, bool version_compatible,
               bool exclude_lean_runtime, bool refit, bool strip_plan, bool sparse_weights, bool tf32,
               const std::string& verbosity, int dla_core, bool gpu_fallback, std::vector<std::string> mark_outputs,
               bool mark_all_outputs, std::vector<std::string> plugins, int device, const std::string& output,
               py::object progress, py::object log) {
    BuildOptions o;
    for (const auto& p : profiles) {
        Profile& profile = o.profiles.emplace_back();
        for (const auto& [input, r] : p) profile[input] = {std::get<0>(r), std::get<1>(r), std::get<2>(r)};
    }
    o.workspace = workspace;
    o.tactic_dram = tactic_dram;
    o.tactic_shared_memory = tactic_shared_memory;
    o.dla_sram = dla_sram;
    o.dla_local_dram = dla_local_dram;
    o.dla_global_dram = dla_global_dram;
    o.timing_cache = timing_cache;
    o.optimization_level = optimization_level;
    o.avg_timing_iterations = avg_timing_iterations;
    o.max_aux_streams = max_aux_streams;
    o.hardware =
        one_of<HardwareCompatibility>(hardware, "hardware compatibility",
                                      {{"none", HardwareCompatibility::kNone},
                                       {"ampere_plus", HardwareCompatibility::kAmperePlus},
                                       {"same_compute_capability", HardwareCompatibility::kSameComputeCapability}});
    o.version_compatible = version_compatible;
    o.exclude_lean_runtime = exclude_lean_runtime;
    o.refit = refit;
    o.strip_plan = strip_plan;
    o.sparse_weights = sparse_weights;
    o.tf32 = tf32;
    o.verbosity = one_of<ProfilingVerbosity>(verbosity, "profiling verbosity",
                                             {{"layer_names", ProfilingVerbosity::kLayerNames},
                                              {"none", ProfilingVerbosity::kNone},
                                              {"detailed", ProfilingVerbosity::kDetailed}});
    o.dla_core = dla_core;
    o.gpu_fallback = gpu_fallback;
    o.mark_outputs = std::move(mark_outputs);
    o.mark_all_outputs = mark_all_outputs;
    o.plugins = std::move(plugins);
    o.device = device;

    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(model.ptr(), &data, &size) != 0) throw py::error_already_set();
    const BuildResult r = Build(std::move(progress), std::move(log))
                              .run(Builder(library), data, static_cast<std::size_t>(size), o, model_path);
    if (!output.empty()) {
        const py::gil_scoped_release release;
        write_file(output, r.plan->data(), r.plan->size());
    }
    py::dict d;
    d["plan"] =
        output.empty() ? py::object(py::bytes(static_cast<const char*>(r.plan->data()), r.plan->size())) : py::none();
    d["size"] = r.plan->size();
    d["inputs"] = list_of(r.inputs);
    d["outputs"] = list_of(r.outputs);
    d["version"] = r.tensorrt_version;
    d["rtx"] = r.rtx;
    d["layers"] = r.layers;
    d["timing_cache_used"] = r.timing_cache_used;
    d["warnings"] = r.warnings;
    return d;
}

}  // namespace

PYBIND11_MODULE(DHEAD_TRT_MODULE, m) {
    m.doc() = "TensorRT builder and engine. Importing this opens no library.";
    register_errors();
    m.attr("HEADER_VERSION") = header_version();
    m.attr("HAS_KERNELS") = has_kernels();
    m.attr("STATIC_CUDART") = has_static_cudart();

    py::class_<Library, std::shared_ptr<Library>>(m, "Library", py::module_local(), "TensorRT, opened at run time.")
        .def(py::init([](const std::string& path, std::vector<std::string> package_dirs, bool rtx,
                         const std::string& cudart) {
                 const py::gil_scoped_release release;
                 return Library::open({path, std::move(package_dirs), rtx, cudart});
             }),
             py::arg("path") = "", py::kw_only(), py::arg("package_dirs") = std::vector<std::string>{},
             py::arg("rtx") = false, py::arg("cudart") = "")
        .def_property_readonly("path", &Library::path)
        .def_property_readonly("version", &Library::version)
        .def_property_readonly("rtx", &Library::is_rtx)
        .def_property_readonly("product", &Library::product)
        .def("devices",
             [](const Library& l) {
                 py::list list;
                 for (const auto& d : list_devices(l)) {
                     list.append(py::make_tuple(d.name, py::make_tuple(d.compute_major, d.compute_minor)));
                 }
                 return list;
             })
        .def("dla_cores", [](const std::shared_ptr<Library>& l) { return Builder(l).dla_cores(); });

    m.def("build", &build, py::arg("library"), py::arg("model"), py::kw_only(), py::arg("model_path") = "",
          py::arg("profiles") = std::vector<std::map<std::string, PyRange>>{}, py::arg("workspace") = py::none(),
          py::arg("tactic_dram") = py::none(), py::arg("tactic_shared_memory") = py::none(),
          py::arg("dla_sram") = py::none(), py::arg("dla_local_dram") = py::none(),
          py::arg("dla_global_dram") = py::none(), py::arg("timing_cache") = "",
          py::arg("optimization_level") = py::none(), py::arg("avg_timing_iterations") = py::none(),
          py::arg("max_aux_streams") = py::none(), py::arg("hardware") = "none", py::arg("version_compatible") = false,
          py::arg("exclude_lean_runtime") = false, py::arg("refit") = false, py::arg("strip_plan") = false,
          py::arg("sparse_weights") = false, py::arg("tf32") = true, py::arg("verbosity") = "layer_names",
          py::arg("dla_core") = -1, py::arg("gpu_fallback") = true,
          py::arg("mark_outputs") = std::vector<std::string>{}, py::arg("mark_all_outputs") = false,
          py::arg("plugins") = std::vector<std::string>{}, py::arg("device") = 0, py::arg("output") = "",
          py::arg("progress") = py::none(), py::arg("log") = py::none());
    bind_engine(m);
}
