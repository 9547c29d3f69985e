// The extension module _cuda: the launchers of dhead/launch.h on raw device addresses. cuda.py checks what users pass.
//
// Addresses and streams are integers. Nothing here waits for the device but `synchronize` and copies to the host.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dhead/launch.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

// The CUDA runtime's error as a Python RuntimeError. Its state is cleared, so that the next call starts fresh.
void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}
cudaStream_t stream_of(Address stream) { return pointer<std::remove_pointer_t<cudaStream_t>>(stream); }

// Makes a device current for as long as it lives.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~OnDevice() { (void)cudaSetDevice(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
};

// Memory of a device, freed with the object; an array of `typestr` elements for whoever reads __cuda_array_interface__.
class DeviceArray {
  public:
    DeviceArray(std::vector<std::int64_t> shape, std::string typestr, int device)
        : shape_(std::move(shape)), typestr_(std::move(typestr)), device_(device) {
        const auto element = py::dtype(typestr_).itemsize();
        bytes_ = static_cast<std::size_t>(element);
        for (const std::int64_t n : shape_) {
            if (n < 0) throw std::invalid_argument("a negative size");
            bytes_ *= static_cast<std::size_t>(n);
        }
        const OnDevice on(device_);
        if (bytes_ > 0) check(cudaMalloc(&data_, bytes_), "cudaMalloc");
    }
    ~DeviceArray() {
        if (data_ != nullptr) (void)cudaFree(data_);
    }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    py::dict interface() const {
        py::dict d;
        d["shape"] = py::tuple(py::cast(shape_));
        d["typestr"] = typestr_;
        d["data"] = py::make_tuple(reinterpret_cast<Address>(data_), false);
        d["strides"] = py::none();
        d["version"] = 3;
        d["stream"] = py::none();  // whoever fills it says on which stream
        return d;
    }

    py::array to_host() const {
        py::array host(py::dtype(typestr_), shape_);
        void* to = host.mutable_data();
        const py::gil_scoped_release unlocked;
        const OnDevice on(device_);
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        if (bytes_ > 0) check(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
        return host;
    }

    void copy_from_host(const py::array& host) {
        if ((host.flags() & py::array::c_style) == 0 || static_cast<std::size_t>(host.nbytes()) != bytes_)
            throw std::invalid_argument("the host array is not contiguous or not of this size");
        const void* from = host.data();
        const py::gil_scoped_release unlocked;
        const OnDevice on(device_);
        if (bytes_ > 0) check(cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
    }

    const std::vector<std::int64_t>& shape() const { return shape_; }
    const std::string& typestr() const { return typestr_; }
    int device() const { return device_; }

  private:
    std::vector<std::int64_t> shape_;
    std::string typestr_;
    int device_ = 0;
    std::size_t bytes_ = 0;
    void* data_ = nullptr;
};

// One level: addresses of box, cls and obj (0: none), height, width, stride.
using Level = std::tuple<Address, Address, Address, std::int32_t, std::int32_t, float>;

dhead::HeadParams head_params(const std::vector<Level>& levels, std::int32_t batch, std::int32_t num_classes,
                              std::int32_t bins, bool pixel_distance, bool half) {
    dhead::HeadParams p;
    if (levels.size() > static_cast<std::size_t>(dhead::kMaxLevels)) throw std::invalid_argument("too many levels");
    for (const Level& in : levels) {
        dhead::LevelMaps& out = p.levels[p.num_levels++];
        out.box = pointer<const void>(std::get<0>(in));
        out.cls = pointer<const void>(std::get<1>(in));
        out.obj = pointer<const void>(std::get<2>(in));
        out.height = std::get<3>(in);
        out.width = std::get<4>(in);
        out.stride = std::get<5>(in);
    }
    p.batch = batch;
    p.num_classes = num_classes;
    p.bins = bins;
    p.pixel_distance = pixel_distance;
    p.dtype = half ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    return p;
}

dhead::DetectOptions detect_options(double conf, float iou, std::int32_t max_candidates, std::int32_t max_det,
                                    bool class_agnostic, bool multi_label, Address class_mask) {
    dhead::DetectOptions o;
    o.conf = conf;
    o.iou = iou;
    o.max_candidates = max_candidates;
    o.max_det = max_det;
    o.class_agnostic = class_agnostic;
    o.multi_label = multi_label;
    o.class_mask = pointer<const std::uint8_t>(class_mask);
    return o;
}

// Device memory in stream order, so that neither allocating nor freeing waits; plain where the device has no pools.
class Scratch {
  public:
    Scratch(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
        const cudaError_t error = cudaMallocAsync(&data_, bytes, stream);
        if (error == cudaErrorNotSupported) {
            (void)cudaGetLastError();
            pooled_ = false;
            check(cudaMalloc(&data_, bytes), "cudaMalloc");
        } else {
            check(error, "cudaMallocAsync");
        }
    }
    ~Scratch() { (void)(pooled_ ? cudaFreeAsync(data_, stream_) : cudaFree(data_)); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* get() const { return data_; }

  private:
    cudaStream_t stream_;
    void* data_ = nullptr;
    bool pooled_ = true;
};

// DLPack's ABI, version 0: what a "dltensor" capsule holds.
struct DLTensor {
    void* data;
    struct {
        std::int32_t type, id;
    } device;
    std::int32_t ndim;
    struct {
        std::uint8_t code, bits;
        std::uint16_t lanes;
    } dtype;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

// (address, shape, strides in elements or None, type code, bits, lanes, device type, device) of a capsule, which stays
// the owner.
py::tuple read_dlpack(const py::capsule& capsule) {
    if (capsule.name() == nullptr || std::string(capsule.name()) != "dltensor")
        throw std::invalid_argument("not an unused DLPack capsule");
    const auto* t = static_cast<const DLTensor*>(capsule.get_pointer());
    const std::vector<std::int64_t> shape(t->shape, t->shape + t->ndim);
    py::object strides = py::none();
    if (t->strides != nullptr)
        strides = py::tuple(py::cast(std::vector<std::int64_t>(t->strides, t->strides + t->ndim)));
    return py::make_tuple(reinterpret_cast<Address>(t->data) + t->byte_offset, py::tuple(py::cast(shape)), strides,
                          t->dtype.code, t->dtype.bits, t->dtype.lanes, t->device.type, t->device.id);
}

// One image: addresses of the samples and of the chroma plane (0: none), row, pixel and chroma strides, offsets of the
// three channels, height, width.
using Image = std::tuple<Address, Address, std::int64_t, std::int64_t, std::int64_t,
                         std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int32_t, std::int32_t>;

// Returns resized height and width, top, left, gain of each image.
std::vector<std::tuple<int, int, int, int, double>> letterbox(const std::vector<Image>& images, std::int32_t height,
                                                              std::int32_t width, bool scaleup, int pad_value,
                                                              bool half, Address output, int device, Address stream) {
    std::vector<dhead::LetterboxSource> sources;
    std::vector<std::tuple<int, int, int, int, double>> where;
    for (const Image& in : images) {
        dhead::LetterboxSource s;
        s.image.data = pointer<const std::uint8_t>(std::get<0>(in));
        s.chroma = pointer<const std::uint8_t>(std::get<1>(in));
        s.image.row_stride = std::get<2>(in);
        s.image.pixel_stride = std::get<3>(in);
        s.chroma_stride = std::get<4>(in);
        const auto& [c0, c1, c2] = std::get<5>(in);
        s.image.channel_offset[0] = c0;
        s.image.channel_offset[1] = c1;
        s.image.channel_offset[2] = c2;
        s.geometry = dhead::letterbox_geometry(std::get<6>(in), std::get<7>(in), height, width, scaleup, false, 32);
        where.emplace_back(s.geometry.resized_height, s.geometry.resized_width, s.geometry.top, s.geometry.left,
                           s.geometry.gain);
        sources.push_back(s);
    }
    const py::gil_scoped_release unlocked;
    const OnDevice on(device);
    check(dhead::letterbox_cuda(sources.data(), static_cast<int>(sources.size()), static_cast<std::uint8_t>(pad_value),
                                half ? dhead::DType::kFloat16 : dhead::DType::kFloat32, pointer<void>(output),
                                stream_of(stream)),
          "letterbox");
    return where;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels on raw device addresses; use dhead_trt.cuda.";

    py::class_<DeviceArray>(m, "DeviceArray")
        .def(py::init<std::vector<std::int64_t>, std::string, int>(), py::arg("shape"), py::arg("typestr"),
             py::arg("device") = 0)
        .def_property_readonly("__cuda_array_interface__", &DeviceArray::interface)
        .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
        .def_property_readonly("dtype", [](const DeviceArray& a) { return py::dtype(a.typestr()); })
        .def_property_readonly("device", &DeviceArray::device)
        .def("to_host", &DeviceArray::to_host)
        .def("copy_from_host", &DeviceArray::copy_from_host, py::arg("host"));

    m.def("status", []() -> std::pair<int, std::string> {
        int count = 0;
        const cudaError_t error = cudaGetDeviceCount(&count);
        if (error != cudaSuccess) {
            (void)cudaGetLastError();
            return {0, cudaGetErrorString(error)};
        }
        return {count, count > 0 ? "" : "no device"};
    });
    m.def(
        "device_of",
        [](Address address) {
            cudaPointerAttributes a{};
            check(cudaPointerGetAttributes(&a, pointer<const void>(address)), "cudaPointerGetAttributes");
            return a.type == cudaMemoryTypeDevice || a.type == cudaMemoryTypeManaged ? a.device : -1;
        },
        py::arg("address"));
    m.def(
        "wait_for",
        [](Address stream, Address producer, int device) {
            const py::gil_scoped_release unlocked;
            const OnDevice on(device);
            cudaEvent_t event = nullptr;
            check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
            const std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, cudaError_t (*)(cudaEvent_t)> owner(
                event, &cudaEventDestroy);
            check(cudaEventRecord(event, stream_of(producer)), "cudaEventRecord");
            check(cudaStreamWaitEvent(stream_of(stream), event, 0), "cudaStreamWaitEvent");
        },
        py::arg("stream"), py::arg("producer"), py::arg("device"));
    m.def(
        "synchronize",
        [](Address stream, int device) {
            const py::gil_scoped_release unlocked;
            const OnDevice on(device);
            check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
        },
        py::arg("stream"), py::arg("device"));
    m.def("read_dlpack", &read_dlpack, py::arg("capsule"));

    m.def(
        "decode",
        [](const std::vector<Level>& levels, std::int32_t batch, std::int32_t num_classes, std::int32_t bins,
           bool pixel_distance, bool half, Address boxes, Address scores, int device, Address stream) {
            const auto p = head_params(levels, batch, num_classes, bins, pixel_distance, half);
            const py::gil_scoped_release unlocked;
            const OnDevice on(device);
            check(dhead::decode_cuda(p, {pointer<float>(boxes), pointer<float>(scores)}, stream_of(stream)), "decode");
        },
        py::arg("levels"), py::arg("batch"), py::arg("num_classes"), py::arg("bins"), py::arg("pixel_distance"),
        py::arg("half"), py::arg("boxes"), py::arg("scores"), py::arg("device"), py::arg("stream"));
    m.def(
        "workspace_bytes",
        [](const std::vector<Level>& levels, std::int32_t batch, std::int32_t num_classes, std::int32_t bins,
           std::int32_t max_candidates, std::int32_t max_det, bool multi_label) {
            return dhead::detect_workspace_bytes(
                head_params(levels, batch, num_classes, bins, false, false),
                detect_options(0.25, 0.7F, max_candidates, max_det, false, multi_label, 0));
        },
        py::arg("levels"), py::arg("batch"), py::arg("num_classes"), py::arg("bins"), py::arg("max_candidates"),
        py::arg("max_det"), py::arg("multi_label"));
    m.def(
        "detect",
        [](const std::vector<Level>& levels, std::int32_t batch, std::int32_t num_classes, std::int32_t bins,
           bool pixel_distance, bool half, double conf, float iou, std::int32_t max_candidates, std::int32_t max_det,
           bool class_agnostic, bool multi_label, Address class_mask, Address thresholds, Address num_dets,
           Address boxes, Address scores, Address classes, Address dropped, Address workspace,
           std::size_t workspace_bytes, int device, Address stream) {
            const auto p = head_params(levels, batch, num_classes, bins, pixel_distance, half);
            const auto o = detect_options(conf, iou, max_candidates, max_det, class_agnostic, multi_label, class_mask);
            dhead::DetectOutputs out;
            out.num_dets = pointer<std::int32_t>(num_dets);
            out.boxes = pointer<float>(boxes);
            out.scores = pointer<float>(scores);
            out.classes = pointer<std::int32_t>(classes);
            out.dropped = pointer<std::int32_t>(dropped);
            const py::gil_scoped_release unlocked;
            const OnDevice on(device);
            const auto run = [&](void* memory, std::size_t bytes) {
                check(dhead::detect_cuda(p, o, pointer<const float>(thresholds), out, memory, bytes, stream_of(stream)),
                      "detect");
            };
            if (workspace != 0) {
                run(pointer<void>(workspace), workspace_bytes);
                return;
            }
            const std::size_t bytes = dhead::detect_workspace_bytes(p, o);
            if (bytes == 0) throw std::invalid_argument("the sizes are out of range");
            const Scratch scratch(bytes, stream_of(stream));
            run(scratch.get(), bytes);
        },
        py::arg("levels"), py::arg("batch"), py::arg("num_classes"), py::arg("bins"), py::arg("pixel_distance"),
        py::arg("half"), py::arg("conf"), py::arg("iou"), py::arg("max_candidates"), py::arg("max_det"),
        py::arg("class_agnostic"), py::arg("multi_label"), py::arg("class_mask"), py::arg("thresholds"),
        py::arg("num_dets"), py::arg("boxes"), py::arg("scores"), py::arg("classes"), py::arg("dropped"),
        py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"));
    m.def("letterbox", &letterbox, py::arg("images"), py::arg("height"), py::arg("width"), py::arg("scaleup"),
          py::arg("pad_value"), py::arg("half"), py::arg("output"), py::arg("device"), py::arg("stream"));
}
