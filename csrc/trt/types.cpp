#include "types.h"

namespace dhead::trt {

const char* name(ElementType type) {
    switch (type) {
        case ElementType::kFloat32:
            return "float32";
        case ElementType::kFloat16:
            return "float16";
        case ElementType::kInt8:
            return "int8";
        case ElementType::kInt32:
            return "int32";
        case ElementType::kBool:
            return "bool";
        case ElementType::kUInt8:
            return "uint8";
        case ElementType::kFloat8:
            return "float8";
        case ElementType::kBFloat16:
            return "bfloat16";
        case ElementType::kInt64:
            return "int64";
        case ElementType::kInt4:
            return "int4";
        case ElementType::kOther:
            break;
    }
    return "other";
}

std::size_t element_size(ElementType type) {
    switch (type) {
        case ElementType::kInt64:
            return 8;
        case ElementType::kFloat32:
        case ElementType::kInt32:
            return 4;
        case ElementType::kFloat16:
        case ElementType::kBFloat16:
            return 2;
        case ElementType::kInt8:
        case ElementType::kBool:
        case ElementType::kUInt8:
        case ElementType::kFloat8:
            return 1;
        case ElementType::kInt4:
        case ElementType::kOther:
            break;
    }
    return 0;
}

std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

std::size_t num_elements(const Shape& shape) {
    std::size_t n = 1;
    for (const auto d : shape) {
        if (d < 0) return 0;
        n *= static_cast<std::size_t>(d);
    }
    return n;
}

}  // namespace dhead::trt
