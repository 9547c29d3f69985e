// Python binding of the letterbox: checks and pointers only; dhead_trt/letterbox.py is what users call.
#include "dhead/letterbox.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

namespace py = pybind11;

namespace {

using dhead::DType;
using dhead::LetterboxGeometry;
using dhead::LetterboxImage;

LetterboxGeometry geometry(int64_t source_height, int64_t source_width, int64_t height, int64_t width, bool scaleup,
                           bool rect, int64_t stride) {
    for (const int64_t side : {source_height, source_width, height, width, stride})
        if (side < 1 || side > dhead::kLetterboxMaxSide) throw py::value_error("a side is out of range");
    return dhead::letterbox_geometry(static_cast<int32_t>(source_height), static_cast<int32_t>(source_width),
                                     static_cast<int32_t>(height), static_cast<int32_t>(width), scaleup, rect,
                                     static_cast<int32_t>(stride));
}

void letterbox(const py::array& image, const LetterboxGeometry& g, const py::array& out, int pad_value, int threads,
               const std::optional<std::string>& simd) {
    if (!image.dtype().is(py::dtype::of<uint8_t>()) || image.ndim() != 3 || image.shape(0) != g.source_height ||
        image.shape(1) != g.source_width || image.shape(2) != 3)
        throw py::value_error("image: expected uint8 [source_height, source_width, 3]");
    const bool half = out.dtype().kind() == 'f' && out.itemsize() == 2;
    const bool single = out.dtype().is(py::dtype::of<float>());
    const bool contiguous = (out.flags() & py::array::c_style) != 0;
    if (!(half || single) || !contiguous || !out.writeable() || out.ndim() != 3 || out.shape(0) != 3 ||
        out.shape(1) != g.height || out.shape(2) != g.width)
        throw py::value_error("out: expected writeable, contiguous float32 or float16 [3, height, width]");
    if (pad_value < 0 || pad_value > 255) throw py::value_error("pad_value: expected 0 to 255");
    LetterboxImage source;
    source.data = static_cast<const uint8_t*>(image.data());
    source.row_stride = image.strides(0);
    source.pixel_stride = image.strides(1);
    for (int c = 0; c < 3; ++c) source.channel_offset[c] = c * image.strides(2);
    void* output = const_cast<void*>(out.data());  // writeable was checked; mutable_data would copy the handle
    const py::gil_scoped_release release;
    dhead::letterbox_cpu(source, g, static_cast<uint8_t>(pad_value), half ? DType::kFloat16 : DType::kFloat32, output,
                         threads, simd ? simd->c_str() : nullptr);
}

}  // namespace

void bind_letterbox(py::module_& module) {
    py::class_<LetterboxGeometry>(module, "LetterboxGeometry")
        .def_readonly("source_height", &LetterboxGeometry::source_height)
        .def_readonly("source_width", &LetterboxGeometry::source_width)
        .def_readonly("height", &LetterboxGeometry::height)
        .def_readonly("width", &LetterboxGeometry::width)
        .def_readonly("resized_height", &LetterboxGeometry::resized_height)
        .def_readonly("resized_width", &LetterboxGeometry::resized_width)
        .def_readonly("top", &LetterboxGeometry::top)
        .def_readonly("left", &LetterboxGeometry::left)
        .def_readonly("gain", &LetterboxGeometry::gain);
    module.def("letterbox_geometry", &geometry, py::arg("source_height"), py::arg("source_width"), py::arg("height"),
               py::arg("width"), py::arg("scaleup"), py::arg("rect"), py::arg("stride"));
    module.def("letterbox", &letterbox, py::arg("image").noconvert(), py::arg("geometry"), py::arg("out").noconvert(),
               py::arg("pad_value"), py::arg("threads"), py::arg("simd") = py::none());
}
