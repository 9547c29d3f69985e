// The extension module _core: numpy arrays in, numpy arrays filled. Friendly messages are postprocess.py's; here every
// array is checked against what the code will read or write, whoever calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "dhead/check.h"
#include "dhead/decode_cpu.h"
#include "dhead/nms.h"

namespace py = pybind11;

#if defined(DHEAD_HAS_LETTERBOX)
void bind_letterbox(py::module_& m);
#endif

namespace {

using dhead::InvalidArgument;

bool is_half(const py::array& a) { return a.dtype().kind() == 'f' && a.dtype().itemsize() == 2; }
bool is_float(const py::array& a) { return a.dtype().kind() == 'f' && a.dtype().itemsize() == 4; }

void check_layout(const py::array& a, const std::string& name, py::ssize_t dimensions) {
    DHEAD_CHECK(a.ndim() == dimensions, name + " has the wrong number of dimensions");
    DHEAD_CHECK((a.flags() & py::array::c_style) != 0, name + " is not C-contiguous");
    DHEAD_CHECK(a.dtype().byteorder() != '>', name + " is not in native byte order");
}

struct Head {
    dhead::HeadParams params;
    std::vector<py::array> keep;
};

Head read_head(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
               const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t bins,
               bool pixel_distance) {
    const size_t levels = strides.size();
    DHEAD_CHECK(levels >= 1 && levels <= static_cast<size_t>(dhead::kMaxLevels),
                "the number of levels is out of range");
    DHEAD_CHECK(boxes.size() == levels && classes.size() == levels && (objects.empty() || objects.size() == levels),
                "there must be one map of each kind per level");
    DHEAD_CHECK(bins >= 1 && bins <= dhead::kMaxBins, "bins is out of range");
    Head head;
    dhead::HeadParams& p = head.params;
    p.num_levels = static_cast<int32_t>(levels);
    p.bins = bins;
    p.pixel_distance = pixel_distance;
    const py::array& first = classes[0];
    check_layout(first, "cls_0", 4);
    DHEAD_CHECK(is_half(first) || is_float(first), "the maps must be float32 or float16");
    p.dtype = is_half(first) ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    p.batch = static_cast<int32_t>(first.shape(0));
    p.num_classes = static_cast<int32_t>(first.shape(1));
    for (size_t i = 0; i < levels; ++i) {
        dhead::LevelMaps& level = p.levels[i];
        level.height = static_cast<int32_t>(classes[i].ndim() == 4 ? classes[i].shape(2) : 0);
        level.width = static_cast<int32_t>(classes[i].ndim() == 4 ? classes[i].shape(3) : 0);
        level.stride = strides[i];
        const auto data = [&](const py::array& a, const char* kind, int64_t channels) {
            const std::string name = kind + std::string("_") + std::to_string(i);
            check_layout(a, name, 4);
            DHEAD_CHECK(a.dtype().equal(first.dtype()), name + " has another dtype than cls_0");
            DHEAD_CHECK(a.shape(0) == p.batch && a.shape(1) == channels && a.shape(2) == level.height &&
                            a.shape(3) == level.width,
                        name + " has the wrong shape");
            return a.data();
        };
        level.box = data(boxes[i], "box", 4 * int64_t{bins});
        level.cls = data(classes[i], "cls", p.num_classes);
        if (!objects.empty()) level.obj = data(objects[i], "obj", 1);
    }
    return head;
}

// Memory of an output array of exactly this type and shape.
template <class T>
T* output(py::array& a, const char* name, const std::vector<int64_t>& shape) {
    check_layout(a, name, static_cast<py::ssize_t>(shape.size()));
    DHEAD_CHECK(a.dtype().equal(py::dtype::of<T>()), std::string(name) + " has the wrong dtype");
    for (size_t i = 0; i < shape.size(); ++i) {
        DHEAD_CHECK(a.shape(static_cast<py::ssize_t>(i)) == shape[i], std::string(name) + " has the wrong shape");
    }
    DHEAD_CHECK(a.writeable(), std::string(name) + " is read-only");
    return static_cast<T*>(a.mutable_data());
}

dhead::CpuOptions cpu_options(int32_t threads, const std::optional<std::string>& simd) {
    DHEAD_CHECK(threads >= 0, "threads is negative");
    return {threads, simd ? simd->c_str() : nullptr};
}

void decode(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
            const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t bins, bool pixel_distance,
            py::array out_boxes, py::array out_scores, int32_t threads, const std::optional<std::string>& simd) {
    const Head head = read_head(boxes, classes, objects, strides, bins, pixel_distance);
    const dhead::HeadParams& p = head.params;
    const dhead::DecodeOutputs out = {output<float>(out_boxes, "boxes", {p.batch, p.num_anchors(), 4}),
                                      output<float>(out_scores, "scores", {p.batch, p.num_anchors(), p.num_classes})};
    const dhead::CpuOptions options = cpu_options(threads, simd);
    const py::gil_scoped_release release;
    dhead::decode_cpu(p, out, options);
}

struct Detection {
    dhead::DetectOptions options;
    dhead::DetectOutputs out;
};

Detection read_detection(int64_t batch, int64_t num_classes, double conf, double iou, int32_t max_candidates,
                         int32_t max_det, const std::optional<py::array>& class_mask, bool class_agnostic,
                         bool multi_label, std::vector<py::array>& out) {
    Detection d;
    d.options.conf = conf;
    d.options.iou = static_cast<float>(iou);
    d.options.max_candidates = max_candidates;
    d.options.max_det = max_det;
    d.options.class_agnostic = class_agnostic;
    d.options.multi_label = multi_label;
    if (class_mask) {
        check_layout(*class_mask, "class_mask", 1);
        DHEAD_CHECK(class_mask->dtype().equal(py::dtype::of<uint8_t>()) && class_mask->shape(0) == num_classes,
                    "class_mask must be uint8, one per class");
        d.options.class_mask = static_cast<const uint8_t*>(class_mask->data());
    }
    DHEAD_CHECK(out.size() == 5, "out must be five arrays");
    d.out.num_dets = output<int32_t>(out[0], "num_dets", {batch, 1});
    d.out.boxes = output<float>(out[1], "det_boxes", {batch, max_det, 4});
    d.out.scores = output<float>(out[2], "det_scores", {batch, max_det});
    d.out.classes = output<int32_t>(out[3], "det_classes", {batch, max_det});
    d.out.dropped = output<int32_t>(out[4], "dropped", {batch});
    return d;
}

void detect(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
            const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t bins, bool pixel_distance,
            double conf, double iou, int32_t max_candidates, int32_t max_det,
            const std::optional<py::array>& class_mask, bool class_agnostic, bool multi_label,
            std::vector<py::array> out, int32_t threads, const std::optional<std::string>& simd) {
    const Head head = read_head(boxes, classes, objects, strides, bins, pixel_distance);
    const Detection d = read_detection(head.params.batch, head.params.num_classes, conf, iou, max_candidates, max_det,
                                       class_mask, class_agnostic, multi_label, out);
    const dhead::CpuOptions options = cpu_options(threads, simd);
    const py::gil_scoped_release release;
    dhead::detect_cpu(head.params, d.options, d.out, options);
}

void nms(const py::array& boxes, const py::array& scores, double conf, double iou, int32_t max_candidates,
         int32_t max_det, const std::optional<py::array>& class_mask, bool class_agnostic, bool multi_label,
         std::vector<py::array> out, int32_t threads, const std::optional<std::string>& simd) {
    check_layout(boxes, "boxes", 3);
    check_layout(scores, "scores", 3);
    DHEAD_CHECK(is_float(boxes) && is_float(scores), "boxes and scores must be float32");
    DHEAD_CHECK(boxes.shape(0) == scores.shape(0) && boxes.shape(1) == scores.shape(1) && boxes.shape(2) == 4,
                "boxes must be [B, A, 4] and scores [B, A, C]");
    const dhead::DecodedBoxes in = {static_cast<const float*>(boxes.data()), static_cast<const float*>(scores.data()),
                                    static_cast<int32_t>(scores.shape(0)), static_cast<int32_t>(scores.shape(1)),
                                    static_cast<int32_t>(scores.shape(2))};
    const Detection d = read_detection(in.batch, in.num_classes, conf, iou, max_candidates, max_det, class_mask,
                                       class_agnostic, multi_label, out);
    const dhead::CpuOptions options = cpu_options(threads, simd);
    const py::gil_scoped_release release;
    dhead::nms_cpu(in, d.options, d.out, options);
}

float read_maps(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
                const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t bins, bool read_boxes,
                int32_t threads, const std::optional<std::string>& simd) {
    const Head head = read_head(boxes, classes, objects, strides, bins, false);
    const dhead::CpuOptions options = cpu_options(threads, simd);
    const py::gil_scoped_release release;
    return dhead::read_maps_cpu(head.params, read_boxes, options);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "dhead_trt's compiled core. Use dhead_trt.postprocess, which checks its arguments and explains.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const InvalidArgument& e) {
            py::set_error(py::module_::import("dhead_trt.errors").attr("InputError"), e.what());
        }
    });
    m.def("simd_levels", &dhead::simd_levels, "SIMD levels this machine can run, best last.");
    m.def("decode", &decode, py::arg("boxes"), py::arg("classes"), py::arg("objects"), py::arg("strides"),
          py::arg("bins"), py::arg("pixel_distance"), py::arg("out_boxes"), py::arg("out_scores"),
          py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("detect", &detect, py::arg("boxes"), py::arg("classes"), py::arg("objects"), py::arg("strides"),
          py::arg("bins"), py::arg("pixel_distance"), py::arg("conf"), py::arg("iou"), py::arg("max_candidates"),
          py::arg("max_det"), py::arg("class_mask"), py::arg("class_agnostic"), py::arg("multi_label"), py::arg("out"),
          py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("nms", &nms, py::arg("boxes"), py::arg("scores"), py::arg("conf"), py::arg("iou"), py::arg("max_candidates"),
          py::arg("max_det"), py::arg("class_mask"), py::arg("class_agnostic"), py::arg("multi_label"), py::arg("out"),
          py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("_read_maps", &read_maps, py::arg("boxes"), py::arg("classes"), py::arg("objects"), py::arg("strides"),
          py::arg("bins"), py::arg("read_boxes"), py::arg("threads") = 0, py::arg("simd") = py::none(),
          "Reads the maps once and does nothing else: the floor that bench/decode.py measures against.");
#if defined(DHEAD_HAS_LETTERBOX)
    bind_letterbox(m);
#endif
}
