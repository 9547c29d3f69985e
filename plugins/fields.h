// The plugins' fields: HeadSpec and the detect options by name, as the ONNX nodes carry them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace dhead::plugins {

enum class Op { kDecode, kDetect };

// A field, a shape or a type is not what the plugin takes; what() is a sentence for the user.
class BadPlugin : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

struct Fields {
    int32_t num_classes = 0;
    int32_t bins = 0;
    std::vector<int32_t> strides;
    int32_t pixel_distance = 0;
    int32_t objectness = 0;
    // DHeadDetect only.
    float conf = 0.25F;
    float iou = 0.7F;
    int32_t max_candidates = 4096;
    int32_t max_det = 300;
    int32_t class_agnostic = 0;
    int32_t multi_label = 0;

    int32_t num_levels() const { return static_cast<int32_t>(strides.size()); }
    int32_t num_maps() const { return num_levels() * (objectness != 0 ? 3 : 2); }
};

// Names, types and lengths that a node may carry, for the ONNX parser.
std::vector<nvinfer1::PluginField> field_names(Op op);

// Reads and validates. num_classes, bins and strides must be there; the others have the defaults above. plugin_version
// and plugin_namespace are ignored. Throws BadPlugin.
Fields read_fields(Op op, const nvinfer1::PluginFieldCollection* collection);

// The fields as TensorRT stores them in a plan; they point into `fields`.
std::vector<nvinfer1::PluginField> write_fields(Op op, const Fields& fields);

// All fields in one line.
std::string to_text(Op op, const Fields& fields);

}  // namespace dhead::plugins
