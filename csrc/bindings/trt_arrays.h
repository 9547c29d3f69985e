// Arrays of other libraries (numpy, torch, CuPy, PyCUDA, …) as the engine's, and the engine's as theirs.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"

namespace dhead::trt {

// The stable part of DLPack 0.x (github.com/dmlc/dlpack), which every producer offers when not asked for a version.
namespace dlpack {
struct Device {
    int32_t type, id;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};
constexpr int32_t kCpu = 1, kCuda = 2, kCudaManaged = 13;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6;
}  // namespace dlpack

inline ElementType element_type_of(char kind, std::size_t size) {
    switch (kind) {
        case 'f':
            return size == 4 ? ElementType::kFloat32 : size == 2 ? ElementType::kFloat16 : ElementType::kOther;
        case 'i':
            return size == 4   ? ElementType::kInt32
                   : size == 8 ? ElementType::kInt64
                   : size == 1 ? ElementType::kInt8
                               : ElementType::kOther;
        case 'u':
            return size == 1 ? ElementType::kUInt8 : ElementType::kOther;
        case 'b':
            return size == 1 ? ElementType::kBool : ElementType::kOther;
        default:
            return ElementType::kOther;
    }
}

// numpy's type string, or null where it has none ("bfloat16").
inline const char* typestr(ElementType type) {
    switch (type) {
        case ElementType::kFloat32:
            return "<f4";
        case ElementType::kFloat16:
            return "<f2";
        case ElementType::kInt8:
            return "|i1";
        case ElementType::kInt32:
            return "<i4";
        case ElementType::kInt64:
            return "<i8";
        case ElementType::kBool:
            return "|b1";
        case ElementType::kUInt8:
            return "|u1";
        default:
            return nullptr;
    }
}

inline bool contiguous(const Shape& shape, const int64_t* strides, int64_t unit) {
    int64_t expected = unit;
    for (std::size_t i = shape.size(); i-- > 0;) {
        if (shape[i] != 1 && strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

// An array handed in: what the engine needs of it, what keeps it alive, and the stream its content is ready on.
struct Borrowed {
    Array array;
    pybind11::object keep;
    bool has_stream = false;
    void* stream = nullptr;
};

Borrowed borrow(pybind11::handle value, const TensorInfo& info, bool writable, const InferOptions& options);

// A result in device memory. Offers __cuda_array_interface__ and DLPack; `numpy()` copies it to the host.
class DeviceArray {
  public:
    DeviceArray(std::shared_ptr<Engine> engine, Array array, bool asynchronous, void* stream)
        : engine_(std::move(engine)), array_(std::move(array)), asynchronous_(asynchronous), stream_(stream) {}
    static void bind(pybind11::module_& m);
    const Array& array() const { return array_; }
    bool asynchronous() const { return asynchronous_; }
    void* stream() const { return stream_; }

  private:
    pybind11::dict cuda_array_interface() const;
    pybind11::capsule dlpack(pybind11::object stream) const;
    pybind11::array numpy() const;

    std::shared_ptr<Engine> engine_;
    Array array_;
    bool asynchronous_;
    void* stream_;
};

}  // namespace dhead::trt
