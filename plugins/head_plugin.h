// DHeadDecode and DHeadDetect as TensorRT plugins: thin adapters over dhead/launch.h.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "dhead/params.h"
#include "fields.h"

namespace dhead::plugins {

// What the two plugins share: inputs, fields, and what TensorRT asks of every plugin. Inputs are the raw maps in the
// order of HeadSpec.input_names (box_0, cls_0, box_1, …, then obj_0, …), all float32 or all float16, linear.
class HeadPlugin : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
  public:
    HeadPlugin(Op op, Fields fields);
    HeadPlugin(const HeadPlugin& other);
    HeadPlugin& operator=(const HeadPlugin&) = delete;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    // Build
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t num_outputs) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   int32_t num_inputs, int32_t num_outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                               const nvinfer1::DataType* input_types, int32_t num_inputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                            nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                            nvinfer1::IExprBuilder& expressions) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* outputs,
                                 int32_t num_outputs) const noexcept override;
    const char* getTimingCacheID() noexcept override;

    // Runtime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::PluginTensorDesc* out, int32_t num_outputs) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* input_desc, const nvinfer1::PluginTensorDesc* output_desc,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

    const Fields& fields() const { return fields_; }

  private:
    bool takes(int32_t num_inputs) const;
    void expect_counts(int32_t num_inputs, int32_t num_outputs) const;
    HeadParams params(const nvinfer1::Dims* dims, std::size_t dims_stride, nvinfer1::DataType type) const;
    DetectOptions options() const;

    Op op_;
    Fields fields_;
    int32_t num_inputs_ = 0;  // known from configurePlugin or onShapeChange on; with thresholds one more than the maps
    std::string timing_cache_id_;
    std::vector<nvinfer1::PluginField> serialized_;
    nvinfer1::PluginFieldCollection serialized_collection_{};
};

class HeadPluginCreator final : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit HeadPluginCreator(Op op);
    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* collection,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

  private:
    Op op_;
    std::vector<nvinfer1::PluginField> names_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace dhead::plugins
