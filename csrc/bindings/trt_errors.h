// C++ errors become the Python ones, with their parts, in this one place.
#pragma once

#include <pybind11/pybind11.h>

#include "error.h"

namespace dhead::trt {

inline const char* python_name(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kInput:
            return "InputError";
        case ErrorKind::kBuild:
            return "BuildError";
        case ErrorKind::kArtifact:
            return "ArtifactError";
        case ErrorKind::kUnavailable:
            return "BackendUnavailable";
        case ErrorKind::kRuntime:
            break;
    }
    return "DheadError";
}

inline void register_errors() {
    namespace py = pybind11;
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const Error& e) {
            const auto text = [](const std::string& s) { return s.empty() ? py::object(py::none()) : py::str(s); };
            const py::object type = py::module_::import("dhead_trt.errors").attr(python_name(e.kind));
            const py::object error = type(py::str(e.problem), py::arg("received") = text(e.received),
                                          py::arg("expected") = text(e.expected), py::arg("fix") = text(e.fix));
            PyErr_SetObject(type.ptr(), error.ptr());
        }
    });
}

}  // namespace dhead::trt
