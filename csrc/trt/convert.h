// Between TensorRT's types and ours.
#pragma once

#include <NvInfer.h>

#include "types.h"

namespace dhead::trt {

inline Shape shape_of(const nvinfer1::Dims& dims) {
    return dims.nbDims < 0 ? Shape{} : Shape(dims.d, dims.d + dims.nbDims);
}

inline nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size() && i < nvinfer1::Dims::MAX_DIMS; ++i) dims.d[i] = shape[i];
    return dims;
}

// TensorRT numbers its data types as ElementType does, up to kINT4; later ones are kOther.
inline ElementType element_type(nvinfer1::DataType type) {
    static_assert(static_cast<int>(nvinfer1::DataType::kINT4) == static_cast<int>(ElementType::kInt4), "order");
    static_assert(static_cast<int>(nvinfer1::DataType::kINT64) == static_cast<int>(ElementType::kInt64), "order");
    const int number = static_cast<int>(type);
    return number <= static_cast<int>(ElementType::kInt4) ? static_cast<ElementType>(number) : ElementType::kOther;
}

inline bool is_dynamic(const Shape& shape) {
    for (const auto d : shape) {
        if (d < 0) return true;
    }
    return false;
}

}  // namespace dhead::trt
