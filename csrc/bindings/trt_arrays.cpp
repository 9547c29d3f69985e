#include "trt_arrays.h"

namespace py = pybind11;

namespace dhead::trt {
namespace {

[[noreturn]] void refuse(const TensorInfo& info, const std::string& problem, const std::string& received,
                         const std::string& expected, const std::string& fix = "") {
    throw Error(ErrorKind::kInput, (info.is_input ? "Input '" : "Output '") + info.name + "' " + problem, received,
                expected, fix);
}

std::string type_name(py::handle value) { return py::str(py::type::handle_of(value).attr("__name__")); }

// CUDA streams as integers: 0 and 1 are the legacy default stream, 2 is the thread's.
void* stream_of(std::uintptr_t number) { return reinterpret_cast<void*>(number == 1 ? 0 : number); }

Borrowed from_numpy(py::array value, const TensorInfo& info, bool writable) {
    Borrowed b;
    const py::dtype dtype = value.dtype();
    b.array.type = element_type_of(dtype.kind(), static_cast<std::size_t>(dtype.itemsize()));
    if (b.array.type == ElementType::kOther && dtype.itemsize() == 2 &&
        py::str(dtype).cast<std::string>() == "bfloat16") {
        b.array.type = ElementType::kBFloat16;
    }
    if (b.array.type == ElementType::kOther) refuse(info, "has the wrong dtype", py::str(dtype), name(info.type));
    if (!(value.flags() & py::array::c_style)) {
        refuse(info, "is not C-contiguous", "a strided view", "a contiguous array",
               "Copy it: numpy.ascontiguousarray(x)");
    }
    if (writable && !value.writeable()) refuse(info, "cannot be written", "a read-only array", "a writable array");
    b.array.shape.assign(value.shape(), value.shape() + value.ndim());
    b.array.data = const_cast<void*>(value.data());
    b.keep = std::move(value);
    return b;
}

Borrowed from_interface(py::handle value, const py::dict& interface, const TensorInfo& info, bool writable) {
    struct Keys {
        py::str data{"data"}, shape{"shape"}, typestr{"typestr"}, strides{"strides"}, stream{"stream"}, mask{"mask"};
    };
    static const Keys& k = *new Keys;  // never freed: Python may be gone by then
    const auto get = [&](const py::str& key) { return py::handle(PyDict_GetItem(interface.ptr(), key.ptr())); };
    Borrowed b;
    b.array.on_device = true;
    const py::handle data = get(k.data), shape = get(k.shape), type = get(k.typestr), strides = get(k.strides),
                     stream = get(k.stream), mask = get(k.mask);
    if (!data || !shape || !type || !PyTuple_Check(data.ptr()) || PyTuple_GET_SIZE(data.ptr()) != 2 ||
        !PyTuple_Check(shape.ptr()) || (mask && !mask.is_none())) {
        refuse(info, "has a malformed __cuda_array_interface__", py::str(interface),
               "data, shape and typestr, no mask");
    }
    for (const py::handle d : py::reinterpret_borrow<py::tuple>(shape)) b.array.shape.push_back(d.cast<int64_t>());
    const std::string text = type.cast<std::string>();
    b.array.type = text.size() >= 3 && text[0] != '>'
                       ? element_type_of(text[1], std::strtoul(text.c_str() + 2, nullptr, 10))
                       : ElementType::kOther;
    if (b.array.type == ElementType::kOther) refuse(info, "has the wrong dtype", text, name(info.type));
    if (strides && !strides.is_none()) {
        std::vector<int64_t> s;
        for (const py::handle d : strides) s.push_back(d.cast<int64_t>());
        if (s.size() != b.array.shape.size() ||
            !contiguous(b.array.shape, s.data(), static_cast<int64_t>(element_size(b.array.type)))) {
            refuse(info, "is not C-contiguous", "a strided view", "a contiguous array",
                   "Call its .contiguous() or a copy");
        }
    }
    b.array.data = reinterpret_cast<void*>(py::handle(PyTuple_GET_ITEM(data.ptr(), 0)).cast<std::uintptr_t>());
    if (writable && py::handle(PyTuple_GET_ITEM(data.ptr(), 1)).cast<bool>()) {
        refuse(info, "cannot be written", "a read-only array", "a writable array");
    }
    if (stream && !stream.is_none()) {
        b.has_stream = true;
        b.stream = stream_of(stream.cast<std::uintptr_t>());
    }
    b.keep = py::reinterpret_borrow<py::object>(value);
    return b;
}

Borrowed from_dlpack(py::handle value, const TensorInfo& info, const InferOptions& options) {
    const auto [kind, id] = value.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    (void)id;
    if (kind == dlpack::kCpu) {
        return from_numpy(py::module_::import("numpy").attr("from_dlpack")(value), info, !info.is_input);
    }
    if (kind != dlpack::kCuda && kind != dlpack::kCudaManaged) {
        refuse(info, "is on a device of another kind", "DLPack device type " + std::to_string(kind),
               "the host or a CUDA device");
    }
    // The producer orders its work before the stream we name; without one of the caller's, before the default stream.
    const auto stream = reinterpret_cast<std::uintptr_t>(options.stream);
    py::object capsule;
    try {
        capsule = value.attr("__dlpack__")(py::arg("stream") = options.has_stream && stream ? stream : 1);
    } catch (const py::error_already_set& e) {  // each library raises its own: gradients, conjugates, sparse layouts
        refuse(info, "cannot be read as an array", py::str(e.value()), "a plain device array", "Pass x.detach()");
    }
    auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    const dlpack::Tensor& t = managed->tensor;
    Borrowed b;
    b.array.on_device = true;
    b.array.shape.assign(t.shape, t.shape + t.ndim);
    b.array.data = static_cast<char*>(t.data) + t.byte_offset;
    const char kinds[] = {'i', 'u', 'f', 0, 0, 0, 'b'};
    const std::size_t bytes = t.dtype.bits / 8U;
    b.array.type = t.dtype.code == dlpack::kBFloat && bytes == 2 ? ElementType::kBFloat16
                   : t.dtype.code < sizeof(kinds)                ? element_type_of(kinds[t.dtype.code], bytes)
                                                                 : ElementType::kOther;
    if (t.dtype.lanes != 1 || b.array.type == ElementType::kOther) {
        refuse(info, "has the wrong dtype", "DLPack type " + std::to_string(t.dtype.code), name(info.type));
    }
    if (t.strides && !contiguous(b.array.shape, t.strides, 1)) {
        refuse(info, "is not C-contiguous", "a strided view", "a contiguous array", "Call its .contiguous() or a copy");
    }
    b.keep = capsule;  // unused capsules free what they hold
    return b;
}

}  // namespace

Borrowed borrow(py::handle value, const TensorInfo& info, bool writable, const InferOptions& options) {
    if (py::isinstance<py::array>(value)) return from_numpy(py::reinterpret_borrow<py::array>(value), info, writable);
    if (py::isinstance<DeviceArray>(value)) {  // one of ours: no need to ask it in Python
        const auto& own = value.cast<const DeviceArray&>();
        return {own.array(), py::reinterpret_borrow<py::object>(value), own.asynchronous(), own.stream()};
    }
    static const py::str& key = *new py::str("__cuda_array_interface__");
    PyObject* found = PyObject_GetAttr(value.ptr(), key.ptr());
    if (found) {
        const auto interface = py::reinterpret_steal<py::object>(found);
        if (!py::isinstance<py::dict>(interface)) {
            refuse(info, "has a malformed __cuda_array_interface__", type_name(interface), "a dict");
        }
        return from_interface(value, py::reinterpret_borrow<py::dict>(interface), info, writable);
    }
    PyErr_Clear();  // torch raises for CPU tensors and for bfloat16
    if (py::hasattr(value, "__dlpack_device__")) return from_dlpack(value, info, options);
    refuse(info, "is not an array", type_name(value), "numpy, or a device array (torch, CuPy, PyCUDA, DLPack)");
}

py::dict DeviceArray::cuda_array_interface() const {
    const char* type = typestr(array_.type);
    if (!type) throw py::attribute_error("bfloat16 has no __cuda_array_interface__; use DLPack");
    py::dict d;
    d["shape"] = py::tuple(py::cast(array_.shape));
    d["typestr"] = type;
    d["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array_.data), false);
    d["strides"] = py::none();
    d["version"] = 3;
    const auto stream = reinterpret_cast<std::uintptr_t>(stream_);
    d["stream"] = asynchronous_ ? py::object(py::int_(stream ? stream : 1)) : py::none();
    return d;
}

py::capsule DeviceArray::dlpack(py::object stream) const {
    if (asynchronous_ && !(PyLong_Check(stream.ptr()) && stream.cast<long long>() == -1)) {
        void* consumer = stream.is_none() ? nullptr : stream_of(stream.cast<std::uintptr_t>());
        engine_->order(consumer, stream_);
    }
    struct Owner {
        dlpack::Managed managed{};
        std::shared_ptr<Engine> engine;
        Array array;
    };
    auto owner = std::make_unique<Owner>();
    owner->engine = engine_;
    owner->array = array_;
    auto& t = owner->managed.tensor;
    t.data = array_.data;
    t.device = {dlpack::kCuda, engine_->device()};
    t.ndim = static_cast<int32_t>(array_.shape.size());
    const uint8_t code = array_.type == ElementType::kBFloat16 ? dlpack::kBFloat
                         : array_.type == ElementType::kBool   ? dlpack::kBool
                         : array_.type == ElementType::kUInt8  ? dlpack::kUInt
                         : array_.type == ElementType::kFloat32 || array_.type == ElementType::kFloat16 ? dlpack::kFloat
                                                                                                        : dlpack::kInt;
    t.dtype = {code, static_cast<uint8_t>(element_size(array_.type) * 8), 1};
    t.shape = owner->array.shape.data();
    owner->managed.context = owner.get();
    owner->managed.deleter = [](dlpack::Managed* m) { delete static_cast<Owner*>(m->context); };
    py::capsule capsule(&owner->managed, "dltensor", [](PyObject* c) {
        if (!PyCapsule_IsValid(c, "dltensor")) return;  // a consumer renamed it and owns the tensor now
        auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(c, "dltensor"));
        m->deleter(m);
    });
    owner.release();
    return capsule;
}

py::array DeviceArray::numpy() const {
    const char* type = typestr(array_.type);
    py::object dtype = type ? py::object(py::dtype(type)) : py::module_::import("ml_dtypes").attr("bfloat16");
    py::array out(py::dtype::from_args(dtype), std::vector<py::ssize_t>(array_.shape.begin(), array_.shape.end()));
    void* to = out.mutable_data();
    const std::size_t bytes = static_cast<std::size_t>(out.nbytes());
    const py::gil_scoped_release release;
    engine_->copy_to_host(to, array_.data, bytes, stream_);
    return out;
}

void DeviceArray::bind(py::module_& m) {
    py::class_<DeviceArray>(m, "DeviceArray", py::module_local(),
                            "A result in device memory, kept until the last reference to it is gone.")
        .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.array_.shape)); })
        .def_property_readonly("dtype", [](const DeviceArray& a) { return name(a.array_.type); })
        .def_property_readonly("ptr",
                               [](const DeviceArray& a) { return reinterpret_cast<std::uintptr_t>(a.array_.data); })
        .def_property_readonly("device", [](const DeviceArray& a) { return a.engine_->device(); })
        .def_property_readonly("__cuda_array_interface__", &DeviceArray::cuda_array_interface)
        .def(
            "__dlpack__",
            [](const DeviceArray& a, py::object stream, const py::kwargs& more) {
                const auto asked = [&](const char* key) {
                    return more.contains(key) ? py::object(more[key]) : py::none();
                };
                const py::object copy = asked("copy"), device = asked("dl_device");
                if ((!copy.is_none() && copy.cast<bool>()) ||
                    (!device.is_none() && !device.equal(py::make_tuple(dlpack::kCuda, a.engine_->device())))) {
                    throw py::buffer_error("a DeviceArray is handed out in place, on its own device only");
                }
                return a.dlpack(std::move(stream));
            },
            py::arg("stream") = py::none())
        .def("__dlpack_device__",
             [](const DeviceArray& a) { return py::make_tuple(dlpack::kCuda, a.engine_->device()); })
        .def("numpy", &DeviceArray::numpy, "Copies to the host, after waiting for the work that makes it.")
        .def("__repr__", [](const DeviceArray& a) {
            return "DeviceArray(" + to_string(a.array_.shape) + ", " + name(a.array_.type) +
                   ", cuda:" + std::to_string(a.engine_->device()) + ")";
        });
}

}  // namespace dhead::trt
