// Plain types of the C++ side as Python's.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "types.h"

namespace dhead::trt {

inline pybind11::tuple tuple_of(const Shape& shape) { return pybind11::tuple(pybind11::cast(shape)); }

inline pybind11::list list_of(const std::vector<TensorInfo>& tensors) {
    namespace py = pybind11;
    py::list list;
    for (const auto& t : tensors) {
        py::list profiles;
        for (const auto& p : t.profiles)
            profiles.append(py::make_tuple(tuple_of(p.min), tuple_of(p.opt), tuple_of(p.max)));
        py::dict d;
        d["name"] = t.name;
        d["dtype"] = name(t.type);
        d["shape"] = tuple_of(t.shape);
        d["profiles"] = py::tuple(profiles);
        list.append(d);
    }
    return list;
}

void bind_engine(pybind11::module_& m);

}  // namespace dhead::trt
