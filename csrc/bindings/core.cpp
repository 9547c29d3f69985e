// The extension module _core: numpy arrays in, numpy arrays filled. Everything is checked here, whoever calls;
// postprocess.py explains what was wrong.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "dhead/check.h"
#include "dhead/decode_cpu.h"
#include "dhead/nms.h"

namespace py = pybind11;

void bind_letterbox(py::module_& m);  // letterbox.cpp

namespace {

using dhead::InvalidArgument;

bool is_type(const py::array& a, char kind, py::ssize_t size) {
    const py::dtype type = a.dtype();
    return type.kind() == kind && type.itemsize() == size && type.byteorder() != '>';
}
bool is_half(const py::array& a) { return is_type(a, 'f', 2); }
bool is_float(const py::array& a) { return is_type(a, 'f', 4); }

void check_layout(const py::array& a, const std::string& name, py::ssize_t dimensions) {
    DHEAD_CHECK(a.ndim() == dimensions, name + " has the wrong number of dimensions");
    DHEAD_CHECK((a.flags() & py::array::c_style) != 0, name + " is not C-contiguous");
    DHEAD_CHECK(reinterpret_cast<uintptr_t>(a.data()) % static_cast<uintptr_t>(a.itemsize()) == 0,
                name + " is not aligned");
}

// Memory that arrays occupy. Nothing may overlap an output.
class Spans {
  public:
    void input(const py::array& a) { add(a, false); }
    void output(const py::array& a) { add(a, true); }

  private:
    struct Span {
        uintptr_t begin;
        uintptr_t end;
        bool is_output;
    };
    void add(const py::array& a, bool is_output) {
        const auto begin = reinterpret_cast<uintptr_t>(a.data());
        const Span added = {begin, begin + static_cast<uintptr_t>(a.nbytes()), is_output};
        for (const Span& s : spans_) {
            DHEAD_CHECK(!(is_output || s.is_output) || added.end <= s.begin || s.end <= added.begin,
                        "an output overlaps another array");
        }
        spans_.push_back(added);
    }
    std::vector<Span> spans_;
};

// The head as Python passes it: maps by kind, one per level.
struct Maps {
    std::vector<py::array> boxes;
    std::vector<py::array> classes;
    std::vector<py::array> objects;
};

dhead::HeadParams read_head(const Maps& maps, const std::vector<float>& strides, int32_t num_classes, int32_t bins,
                            bool pixel_distance, Spans& spans) {
    const size_t levels = strides.size();
    DHEAD_CHECK(levels >= 1 && levels <= static_cast<size_t>(dhead::kMaxLevels),
                "the number of levels is out of range");
    DHEAD_CHECK(maps.boxes.size() == levels && maps.classes.size() == levels &&
                    (maps.objects.empty() || maps.objects.size() == levels),
                "there must be one map of each kind per level");
    DHEAD_CHECK(bins >= 1 && bins <= dhead::kMaxBins, "bins is out of range");
    dhead::HeadParams p;
    p.num_levels = static_cast<int32_t>(levels);
    p.num_classes = num_classes;
    p.bins = bins;
    p.pixel_distance = pixel_distance;
    const bool half = is_half(maps.classes[0]);
    p.dtype = half ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    int64_t anchors = 0;
    for (size_t i = 0; i < levels; ++i) {
        dhead::LevelMaps& level = p.levels[i];
        level.stride = strides[i];
        const auto data = [&](const py::array& a, const char* kind, int64_t channels) {
            const std::string name = kind + std::string("_") + std::to_string(i);
            check_layout(a, name, 4);
            DHEAD_CHECK(half ? is_half(a) : is_float(a), name + " has the wrong dtype");
            for (int d = 0; d < 4; ++d) DHEAD_CHECK(a.shape(d) >= 1 && a.shape(d) <= kMost, name + " has no elements");
            if (level.height == 0) {
                if (i == 0) p.batch = static_cast<int32_t>(a.shape(0));
                level.height = static_cast<int32_t>(a.shape(2));
                level.width = static_cast<int32_t>(a.shape(3));
            }
            DHEAD_CHECK(a.shape(0) == p.batch && a.shape(1) == channels && a.shape(2) == level.height &&
                            a.shape(3) == level.width,
                        name + " has the wrong shape");
            spans.input(a);
            return a.data();
        };
        level.cls = data(maps.classes[i], "cls", num_classes);
        level.box = data(maps.boxes[i], "box", 4 * int64_t{bins});
        if (!maps.objects.empty()) level.obj = data(maps.objects[i], "obj", 1);
        anchors += int64_t{level.height} * level.width;
        DHEAD_CHECK(anchors <= kMost, "there are too many anchors");
    }
    return p;
}

// Memory of an output array of exactly this type and shape.
template <class T>
T* output(py::array& a, const char* name, std::initializer_list<int64_t> shape, Spans& spans) {
    check_layout(a, name, static_cast<py::ssize_t>(shape.size()));
    DHEAD_CHECK(is_type(a, std::is_integral_v<T> ? 'i' : 'f', sizeof(T)), std::string(name) + " has the wrong dtype");
    py::ssize_t dimension = 0;
    for (const int64_t size : shape) {
        DHEAD_CHECK(a.shape(dimension++) == size, std::string(name) + " has the wrong shape");
    }
    DHEAD_CHECK(a.writeable(), std::string(name) + " is read-only");
    spans.output(a);
    return static_cast<T*>(a.mutable_data());
}

// Options as Python passes them, by keyword.
struct Cpu {
    std::string simd;
    dhead::CpuOptions options;
    Cpu(int32_t threads, const std::optional<std::string>& level) : simd(level.value_or("")) {
        DHEAD_CHECK(threads >= 0, "threads is negative");
        options = {threads, level ? simd.c_str() : nullptr};
    }
};

void decode(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
            const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t num_classes, int32_t bins,
            bool pixel_distance, py::array out_boxes, py::array out_scores, int32_t threads,
            const std::optional<std::string>& simd) {
    Spans spans;
    const dhead::HeadParams p = read_head({boxes, classes, objects}, strides, num_classes, bins, pixel_distance, spans);
    const int64_t anchors = p.num_anchors();
    const dhead::DecodeOutputs out = {output<float>(out_boxes, "boxes", {p.batch, anchors, 4}, spans),
                                      output<float>(out_scores, "scores", {p.batch, anchors, num_classes}, spans)};
    const Cpu cpu(threads, simd);
    const py::gil_scoped_release release;
    dhead::decode_cpu(p, out, cpu.options);
}

struct Detection {
    dhead::DetectOptions options;
    dhead::DetectOutputs out;
};

Detection read_detection(int64_t batch, int64_t num_classes, double conf, double iou, int32_t max_candidates,
                         int32_t max_det, const std::optional<py::array>& class_mask, bool class_agnostic,
                         bool multi_label, std::vector<py::array>& out, Spans& spans) {
    Detection d;
    DHEAD_CHECK(conf >= 0.0 && conf <= 1.0, "conf is out of range");
    d.options.conf = conf;
    d.options.iou = static_cast<float>(iou);
    d.options.max_candidates = max_candidates;
    d.options.max_det = max_det;
    d.options.class_agnostic = class_agnostic;
    d.options.multi_label = multi_label;
    if (class_mask) {
        check_layout(*class_mask, "class_mask", 1);
        DHEAD_CHECK(is_type(*class_mask, 'u', 1) && class_mask->shape(0) == num_classes,
                    "class_mask must be uint8, one per class");
        d.options.class_mask = static_cast<const uint8_t*>(class_mask->data());
    }
    DHEAD_CHECK(out.size() == 5, "out must be five arrays");
    d.out.num_dets = output<int32_t>(out[0], "num_dets", {batch, 1}, spans);
    d.out.boxes = output<float>(out[1], "det_boxes", {batch, max_det, 4}, spans);
    d.out.scores = output<float>(out[2], "det_scores", {batch, max_det}, spans);
    d.out.classes = output<int32_t>(out[3], "det_classes", {batch, max_det}, spans);
    d.out.dropped = output<int32_t>(out[4], "dropped", {batch}, spans);
    return d;
}

void detect(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
            const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t num_classes, int32_t bins,
            bool pixel_distance, double conf, double iou, int32_t max_candidates, int32_t max_det,
            const std::optional<py::array>& class_mask, bool class_agnostic, bool multi_label,
            std::vector<py::array> out, int32_t threads, const std::optional<std::string>& simd) {
    Spans spans;
    const dhead::HeadParams p = read_head({boxes, classes, objects}, strides, num_classes, bins, pixel_distance, spans);
    const Detection d = read_detection(p.batch, num_classes, conf, iou, max_candidates, max_det, class_mask,
                                       class_agnostic, multi_label, out, spans);
    const Cpu cpu(threads, simd);
    const py::gil_scoped_release release;
    dhead::detect_cpu(p, d.options, d.out, cpu.options);
}

void nms(const py::array& boxes, const py::array& scores, double conf, double iou, int32_t max_candidates,
         int32_t max_det, const std::optional<py::array>& class_mask, bool class_agnostic, bool multi_label,
         std::vector<py::array> out, int32_t threads, const std::optional<std::string>& simd) {
    check_layout(boxes, "boxes", 3);
    check_layout(scores, "scores", 3);
    DHEAD_CHECK(is_float(boxes) && is_float(scores), "boxes and scores must be float32");
    DHEAD_CHECK(boxes.shape(0) == scores.shape(0) && boxes.shape(1) == scores.shape(1) && boxes.shape(2) == 4,
                "boxes must be [B, A, 4] and scores [B, A, C]");
    for (int i = 0; i < 3; ++i) {
        DHEAD_CHECK(scores.shape(i) >= 1 && scores.shape(i) <= std::numeric_limits<int32_t>::max(),
                    "scores has no elements");
    }
    Spans spans;
    spans.input(boxes);
    spans.input(scores);
    const dhead::DecodedBoxes in = {static_cast<const float*>(boxes.data()), static_cast<const float*>(scores.data()),
                                    static_cast<int32_t>(scores.shape(0)), static_cast<int32_t>(scores.shape(1)),
                                    static_cast<int32_t>(scores.shape(2))};
    const Detection d = read_detection(in.batch, in.num_classes, conf, iou, max_candidates, max_det, class_mask,
                                       class_agnostic, multi_label, out, spans);
    const Cpu cpu(threads, simd);
    const py::gil_scoped_release release;
    dhead::nms_cpu(in, d.options, d.out, cpu.options);
}

float read_maps(const std::vector<py::array>& boxes, const std::vector<py::array>& classes,
                const std::vector<py::array>& objects, const std::vector<float>& strides, int32_t num_classes,
                int32_t bins, bool read_boxes, int32_t threads, const std::optional<std::string>& simd) {
    Spans spans;
    const dhead::HeadParams p = read_head({boxes, classes, objects}, strides, num_classes, bins, false, spans);
    const Cpu cpu(threads, simd);
    const py::gil_scoped_release release;
    return dhead::read_maps_cpu(p, read_boxes, cpu.options);
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
          py::arg("num_classes"), py::arg("bins"), py::arg("pixel_distance"), py::arg("out_boxes"),
          py::arg("out_scores"), py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("detect", &detect, py::arg("boxes"), py::arg("classes"), py::arg("objects"), py::arg("strides"),
          py::arg("num_classes"), py::arg("bins"), py::arg("pixel_distance"), py::arg("conf"), py::arg("iou"),
          py::arg("max_candidates"), py::arg("max_det"), py::arg("class_mask"), py::arg("class_agnostic"),
          py::arg("multi_label"), py::arg("out"), py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("nms", &nms, py::arg("boxes"), py::arg("scores"), py::arg("conf"), py::arg("iou"), py::arg("max_candidates"),
          py::arg("max_det"), py::arg("class_mask"), py::arg("class_agnostic"), py::arg("multi_label"), py::arg("out"),
          py::arg("threads") = 0, py::arg("simd") = py::none());
    m.def("_read_maps", &read_maps, py::arg("boxes"), py::arg("classes"), py::arg("objects"), py::arg("strides"),
          py::arg("num_classes"), py::arg("bins"), py::arg("read_boxes"), py::arg("threads") = 0,
          py::arg("simd") = py::none(),
          "Reads the maps once and does nothing else: the floor that bench/decode.py measures against.");
    bind_letterbox(m);
}
