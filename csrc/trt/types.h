// Plain types shared by the builder, the engine and their users. No TensorRT or CUDA header is needed to include it.
//
// One build of this code serves one TensorRT major version (10 or 11), and a program links one: TensorRT's own inline
// functions differ between them. The Python package keeps them apart in two extension modules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dhead::trt {

using Shape = std::vector<int64_t>;  // -1: dynamic

// The range of shapes an input may take in one optimisation profile, and the one that tactics are chosen for.
struct ShapeRange {
    Shape min, opt, max;
};
using Profile = std::map<std::string, ShapeRange>;  // by input name

enum class ElementType : int32_t {
    kFloat32,
    kFloat16,
    kInt8,
    kInt32,
    kBool,
    kUInt8,
    kFloat8,
    kBFloat16,
    kInt64,
    kInt4,
    kOther
};

const char* name(ElementType type);            // "float32", "bfloat16", …
std::size_t element_size(ElementType type);    // bytes; 0 where elements are not whole bytes
std::string to_string(const Shape& shape);     // "(1, 3, 640, 640)"
std::size_t num_elements(const Shape& shape);  // 0 for a shape with a dynamic extent

struct TensorInfo {
    std::string name;
    ElementType type = ElementType::kFloat32;
    Shape shape;  // -1 where dynamic
    bool is_input = false;
    std::vector<ShapeRange> profiles;  // inputs: one per optimisation profile
};

enum class LogLevel : int32_t { kInternalError, kError, kWarning, kInfo, kVerbose };

}  // namespace dhead::trt
