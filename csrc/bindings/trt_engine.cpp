// The Engine class of _trt10 / _trt11.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "engine.h"
#include "trt_arrays.h"
#include "trt_convert.h"

namespace py = pybind11;

namespace dhead::trt {
namespace {

class PyEngine {
  public:
    PyEngine(std::shared_ptr<Library> library, const py::object& plan, EngineOptions options) {
        if (py::isinstance<py::str>(plan) || py::hasattr(plan, "__fspath__")) {
            const std::string path = py::str(py::module_::import("os").attr("fspath")(plan));
            const py::gil_scoped_release release;
            engine_ = Engine::load_file(std::move(library), path, std::move(options));
        } else {
            Py_buffer view{};
            if (PyObject_GetBuffer(plan.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
            const std::unique_ptr<Py_buffer, void (*)(Py_buffer*)> owner(&view, PyBuffer_Release);
            const py::gil_scoped_release release;
            engine_ = std::make_shared<Engine>(std::move(library), view.buf, static_cast<std::size_t>(view.len),
                                               std::move(options));
        }
        for (const auto& t : engine_->inputs()) input_names_.emplace_back(t.name);
        for (const auto& t : engine_->outputs()) output_names_.emplace_back(t.name);
    }

    const Engine& engine() const {
        if (!engine_) throw Error(ErrorKind::kInput, "This engine is closed", "", "", "Open it again");
        return *engine_;
    }
    const std::vector<Shape>& last_shapes() const { return last_shapes_; }
    // Calls in flight hold the engine themselves.
    void close() {
        auto engine = std::move(engine_);
        const py::gil_scoped_release release;
        engine.reset();
    }

    py::dict infer(const py::object& inputs, const py::object& out, const py::object& stream, bool device_outputs) {
        engine();
        const std::shared_ptr<Engine> held = engine_;
        const auto &ins = held->inputs(), &outs = held->outputs();
        InferOptions options;
        if (!stream.is_none()) {
            options.has_stream = true;
            const auto number = stream_number(stream);
            options.stream = reinterpret_cast<void*>(number == 1 ? 0 : number);
        }
        std::vector<Array> in_arrays, out_arrays(outs.size());
        std::vector<py::object> keep;  // until the call has been queued
        in_arrays.reserve(ins.size());
        keep.reserve(ins.size() + outs.size());
        bool any_device = device_outputs;
        const auto take = [&](py::handle value, const TensorInfo& info, bool writable) {
            Borrowed b = borrow(value, info, writable, options);
            if (b.has_stream) options.wait_for.push_back(b.stream);
            keep.push_back(std::move(b.keep));
            any_device = any_device || b.array.on_device;
            return std::move(b.array);
        };
        bind(inputs, ins, input_names_, "inputs", [&](std::size_t i, py::handle value) {
            (void)i;
            in_arrays.push_back(take(value, ins[i], false));
        });
        std::vector<py::object> results(outs.size());
        if (!out.is_none()) {
            bind(out, outs, output_names_, "out", [&](std::size_t i, py::handle value) {
                results[i] = py::reinterpret_borrow<py::object>(value);
                out_arrays[i] = take(value, outs[i], true);
            });
        } else if (!any_device) {  // host in, host out
            std::vector<Shape> shapes;
            for (const auto& a : in_arrays) shapes.push_back(a.shape);
            const std::vector<Shape> out_shapes = held->output_shapes(shapes);
            for (std::size_t i = 0; i < outs.size(); ++i) {
                const char* type = typestr(outs[i].type);
                py::object dtype =
                    type ? py::object(py::dtype(type)) : py::module_::import("ml_dtypes").attr("bfloat16");
                py::array array(py::dtype::from_args(dtype),
                                std::vector<py::ssize_t>(out_shapes[i].begin(), out_shapes[i].end()));
                out_arrays[i] = {array.mutable_data(), outs[i].type, out_shapes[i], false, nullptr};
                results[i] = std::move(array);
            }
        }
        last_shapes_.resize(in_arrays.size());
        for (std::size_t i = 0; i < in_arrays.size(); ++i) last_shapes_[i] = in_arrays[i].shape;
        {
            const py::gil_scoped_release release;
            held->infer(in_arrays, out_arrays, options);
        }
        py::dict d;
        for (std::size_t i = 0; i < outs.size(); ++i) {
            if (!results[i]) {
                results[i] =
                    py::cast(new DeviceArray(held, std::move(out_arrays[i]), options.has_stream, options.stream),
                             py::return_value_policy::take_ownership);
            }
            d[output_names_[i]] = results[i];
        }
        return d;
    }

  private:
    // An integer, or an object of another library: torch's cuda_stream, CuPy's ptr, PyCUDA's handle, __cuda_stream__.
    static std::uintptr_t stream_number(const py::object& stream) {
        try {
            if (PyLong_Check(stream.ptr())) return stream.cast<std::uintptr_t>();
            for (const char* name : {"cuda_stream", "ptr", "handle"}) {
                if (py::hasattr(stream, name)) return stream.attr(name).cast<std::uintptr_t>();
            }
            if (py::hasattr(stream, "__cuda_stream__")) {
                const py::tuple pair = stream.attr("__cuda_stream__")();
                return pair[1].cast<std::uintptr_t>();
            }
        } catch (const py::cast_error&) {  // negative, or no number
        }
        throw Error(ErrorKind::kInput, "This is not a CUDA stream",
                    py::str(py::type::handle_of(stream).attr("__name__")),
                    "a cudaStream_t as an integer, or a stream of torch, CuPy or PyCUDA");
    }

    template <typename F>
    static void bind(const py::object& given, const std::vector<TensorInfo>& infos, const std::vector<py::str>& names,
                     const char* what, F&& use) {
        const auto signature = [&] {
            std::string all;
            for (const auto& t : infos) all += (all.empty() ? "" : ", ") + t.name;
            return all;
        };
        if (PyDict_Check(given.ptr())) {
            for (std::size_t i = 0; i < infos.size(); ++i) {
                PyObject* value = PyDict_GetItem(given.ptr(), names[i].ptr());
                if (!value)
                    throw Error(ErrorKind::kInput, std::string(what) + " lacks '" + infos[i].name + "'",
                                py::str(py::list(given)), signature());
                use(i, value);
            }
            if (static_cast<std::size_t>(PyDict_GET_SIZE(given.ptr())) != infos.size()) {
                throw Error(ErrorKind::kInput, std::string(what) + " has names the engine does not know",
                            py::str(py::list(given)), signature());
            }
            return;
        }
        if (!PyTuple_Check(given.ptr()) && !PyList_Check(given.ptr())) {
            throw Error(ErrorKind::kInput, std::string(what) + " is neither a dict nor a sequence",
                        py::str(py::type::handle_of(given).attr("__name__")), signature());
        }
        const py::sequence list = py::reinterpret_borrow<py::sequence>(given);
        if (list.size() != infos.size()) {
            throw Error(ErrorKind::kInput, std::string(what) + " has the wrong number of arrays",
                        std::to_string(list.size()), signature());
        }
        for (std::size_t i = 0; i < infos.size(); ++i) use(i, py::object(list[i]));
    }

    std::shared_ptr<Engine> engine_;
    std::vector<py::str> input_names_, output_names_;
    std::vector<Shape> last_shapes_;  // of the last call; guarded by Python's lock
};

}  // namespace

void bind_engine(py::module_& m) {
    DeviceArray::bind(m);
    py::class_<PyEngine>(m, "Engine", py::module_local(), "A plan, loaded and ready to run from several threads.")
        .def(py::init([](std::shared_ptr<Library> library, const py::object& plan, int device, int max_contexts,
                         bool cuda_graphs, bool host_code, std::vector<std::string> plugins,
                         const std::string& expected_version, std::vector<std::string> expected_compute,
                         bool version_compatible) {
                 EngineOptions o;
                 o.device = device;
                 o.max_contexts = max_contexts;
                 o.cuda_graphs = cuda_graphs;
                 o.host_code = host_code;
                 o.plugins = std::move(plugins);
                 o.expected_version = expected_version;
                 o.expected_compute = std::move(expected_compute);
                 o.version_compatible = version_compatible;
                 return std::make_unique<PyEngine>(std::move(library), plan, std::move(o));
             }),
             py::arg("library"), py::arg("plan"), py::kw_only(), py::arg("device") = 0, py::arg("max_contexts") = 8,
             py::arg("cuda_graphs") = false, py::arg("host_code") = false,
             py::arg("plugins") = std::vector<std::string>{}, py::arg("expected_version") = "",
             py::arg("expected_compute") = std::vector<std::string>{}, py::arg("version_compatible") = false)
        .def_property_readonly("inputs", [](const PyEngine& e) { return list_of(e.engine().inputs()); })
        .def_property_readonly("outputs", [](const PyEngine& e) { return list_of(e.engine().outputs()); })
        .def_property_readonly("device", [](const PyEngine& e) { return e.engine().device(); })
        .def_property_readonly("num_profiles", [](const PyEngine& e) { return e.engine().num_profiles(); })
        .def_property_readonly("device_memory", [](const PyEngine& e) { return e.engine().device_memory(); })
        .def("infer", &PyEngine::infer, py::arg("inputs"), py::arg("out") = py::none(), py::arg("stream") = py::none(),
             py::arg("device_outputs") = false)
        .def_property_readonly("last_shapes", &PyEngine::last_shapes)
        .def("output_shapes",
             [](const PyEngine& e, const std::vector<Shape>& shapes) {
                 py::list list;
                 for (const auto& s : e.engine().output_shapes(shapes)) list.append(tuple_of(s));
                 return list;
             })
        .def("profile_layers",
             [](const PyEngine& e, const std::vector<Shape>& shapes) {
                 const py::gil_scoped_release release;
                 return e.engine().profile_layers(shapes);
             })
        .def("describe_layers", [](const PyEngine& e) { return e.engine().describe_layers(); })
        .def("stats",
             [](const PyEngine& e) {
                 const auto s = e.engine().stats();
                 py::dict d;
                 d["contexts"] = s.contexts;
                 d["graphs"] = s.graphs;
                 d["pool_bytes"] = s.pool_bytes;
                 d["graph_launches"] = s.graph_launches;
                 d["graph_failures"] = s.graph_failures;
                 d["calls"] = s.calls;
                 return d;
             })
        .def("close", &PyEngine::close);
}

}  // namespace dhead::trt
