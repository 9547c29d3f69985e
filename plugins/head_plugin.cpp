#include "head_plugin.h"

#include <exception>
#include <memory>
#include <utility>

#include "dhead/launch.h"
#include "log.h"

namespace dhead::plugins {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";

const char* name_of(Op op) { return op == Op::kDecode ? "DHeadDecode" : "DHeadDetect"; }

std::string text_of(const Dims& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i > 0 ? ", " : "") + std::to_string(dims.d[i]);
    return text + "]";
}

// Runs `body`; what it throws is logged and becomes `failed`.
template <class Result, class Body>
Result guarded(Op op, Result failed, Body body) noexcept {
    try {
        return body();
    } catch (const BadPlugin& e) {
        log_error(e.what());
    } catch (const std::exception& e) {
        try {
            log_error(std::string(name_of(op)) + ": " + e.what());
        } catch (...) {
        }
    } catch (...) {
        log_error("an unknown error");
    }
    return failed;
}

DataType output_type(Op op, int32_t index) {
    return op == Op::kDetect && (index == 0 || index == 3) ? DataType::kINT32 : DataType::kFLOAT;
}

}  // namespace

HeadPlugin::HeadPlugin(Op op, Fields fields) : op_(op), fields_(std::move(fields)) {
    timing_cache_id_ = std::string(kVersion) + " " + to_text(op_, fields_);
}

HeadPlugin::HeadPlugin(const HeadPlugin& other) : HeadPlugin(other.op_, other.fields_) {
    num_inputs_ = other.num_inputs_;
}

nvinfer1::IPluginCapability* HeadPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* HeadPlugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>(op_, nullptr, [&] { return std::make_unique<HeadPlugin>(*this).release(); });
}

const char* HeadPlugin::getPluginName() const noexcept { return name_of(op_); }
const char* HeadPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* HeadPlugin::getPluginNamespace() const noexcept { return kNamespace; }
int32_t HeadPlugin::getNbOutputs() const noexcept { return op_ == Op::kDecode ? 2 : 4; }
const char* HeadPlugin::getTimingCacheID() noexcept { return timing_cache_id_.c_str(); }

bool HeadPlugin::takes(int32_t num_inputs) const {
    return num_inputs == fields_.num_maps() || (op_ == Op::kDetect && num_inputs == fields_.num_maps() + 1);
}

void HeadPlugin::expect_counts(int32_t num_inputs, int32_t num_outputs) const {
    if (!takes(num_inputs) || num_outputs != getNbOutputs())
        throw BadPlugin(std::string(name_of(op_)) + " has " + std::to_string(num_inputs) + " inputs and " +
                        std::to_string(num_outputs) + " outputs; it takes " + std::to_string(fields_.num_maps()) +
                        " maps" + (op_ == Op::kDetect ? " (and thresholds, where wanted)" : "") + " for " +
                        std::to_string(fields_.num_levels()) + " levels and gives " + std::to_string(getNbOutputs()));
}

int32_t HeadPlugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t num_inputs,
                                    const DynamicPluginTensorDesc*, int32_t num_outputs) noexcept {
    return guarded(op_, -1, [&] {
        expect_counts(num_inputs, num_outputs);
        num_inputs_ = num_inputs;
        (void)params(&in[0].max, sizeof(DynamicPluginTensorDesc), in[0].desc.type);  // validates the shapes
        return 0;
    });
}

bool HeadPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                           int32_t num_outputs) noexcept {
    if (tensors == nullptr || position < 0 || position >= num_inputs + num_outputs || !takes(num_inputs) ||
        num_outputs != getNbOutputs())
        return false;
    const PluginTensorDesc& t = tensors[position].desc;
    if (t.format != TensorFormat::kLINEAR) return false;
    if (position >= num_inputs) return t.type == output_type(op_, position - num_inputs);
    if (position == fields_.num_maps()) return t.type == DataType::kFLOAT;  // thresholds
    if (position == 0) return t.type == DataType::kFLOAT || t.type == DataType::kHALF;
    return t.type == tensors[0].desc.type;
}

int32_t HeadPlugin::getOutputDataTypes(DataType* output_types, int32_t num_outputs, const DataType* input_types,
                                       int32_t num_inputs) const noexcept {
    return guarded(op_, -1, [&] {
        expect_counts(num_inputs, num_outputs);
        for (int32_t i = 0; i < num_inputs; ++i) {
            const bool thresholds = i == fields_.num_maps();
            const bool good = thresholds ? input_types[i] == DataType::kFLOAT
                                         : input_types[i] == input_types[0] && (input_types[i] == DataType::kFLOAT ||
                                                                                input_types[i] == DataType::kHALF);
            if (!good)
                throw BadPlugin(
                    std::string(name_of(op_)) + ": input " + std::to_string(i) + " has data type " +
                    std::to_string(static_cast<int>(input_types[i])) +
                    (thresholds ? "; thresholds must be float32" : "; all maps must be float32 or all float16"));
        }
        for (int32_t i = 0; i < num_outputs; ++i) output_types[i] = output_type(op_, i);
        return 0;
    });
}

int32_t HeadPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*,
                                    int32_t, nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                    nvinfer1::IExprBuilder& expressions) noexcept {
    return guarded(op_, -1, [&] {
        expect_counts(num_inputs, num_outputs);
        for (int32_t i = 0; i < fields_.num_maps(); ++i)
            if (inputs[i].nbDims != 4)
                throw BadPlugin(std::string(name_of(op_)) + ": input " + std::to_string(i) + " has " +
                                std::to_string(inputs[i].nbDims) + " dimensions; a raw map has 4, [B, channels, H, W]");
        const nvinfer1::IDimensionExpr* batch = inputs[0].d[0];
        const auto set = [&](int32_t index, std::initializer_list<const nvinfer1::IDimensionExpr*> dims) {
            outputs[index].nbDims = 0;
            for (const nvinfer1::IDimensionExpr* d : dims) outputs[index].d[outputs[index].nbDims++] = d;
        };
        if (op_ == Op::kDetect) {
            const nvinfer1::IDimensionExpr* k = expressions.constant(fields_.max_det);
            set(0, {batch, expressions.constant(1)});
            set(1, {batch, k, expressions.constant(4)});
            set(2, {batch, k});
            set(3, {batch, k});
            return 0;
        }
        const nvinfer1::IDimensionExpr* anchors = nullptr;
        for (int32_t i = 0; i < fields_.num_levels(); ++i) {
            const nvinfer1::DimsExprs& box = inputs[2 * i];
            const auto* cells = expressions.operation(nvinfer1::DimensionOperation::kPROD, *box.d[2], *box.d[3]);
            anchors = anchors == nullptr ? cells
                                         : expressions.operation(nvinfer1::DimensionOperation::kSUM, *anchors, *cells);
        }
        set(0, {batch, anchors, expressions.constant(4)});
        set(1, {batch, anchors, expressions.constant(fields_.num_classes)});
        return 0;
    });
}

// The maps' sizes, checked against the fields and each other. dims of input i lie dims_stride bytes apart.
HeadParams HeadPlugin::params(const Dims* dims, std::size_t dims_stride, DataType type) const {
    const auto at = [&](int32_t i) -> const Dims& {
        return *reinterpret_cast<const Dims*>(reinterpret_cast<const unsigned char*>(dims) +
                                              static_cast<std::size_t>(i) * dims_stride);
    };
    HeadParams p;
    p.num_levels = fields_.num_levels();
    p.num_classes = fields_.num_classes;
    p.bins = fields_.bins;
    p.pixel_distance = fields_.pixel_distance != 0;
    p.dtype = type == DataType::kHALF ? DType::kFloat16 : DType::kFloat32;
    p.batch = static_cast<int32_t>(at(0).d[0]);
    const auto expect = [&](int32_t input, int64_t channels, int32_t level) {
        const Dims& d = at(input);
        LevelMaps& l = p.levels[level];
        if (d.nbDims != 4 || d.d[0] != p.batch || d.d[1] != channels || d.d[2] < 1 || d.d[3] < 1 ||
            (l.height != 0 && (d.d[2] != l.height || d.d[3] != l.width)))
            throw BadPlugin(std::string(name_of(op_)) + ": input " + std::to_string(input) + " is " + text_of(d) +
                            "; level " + std::to_string(level) + " needs [" + std::to_string(p.batch) + ", " +
                            std::to_string(channels) + ", " + (l.height != 0 ? std::to_string(l.height) : "H") + ", " +
                            (l.height != 0 ? std::to_string(l.width) : "W") + "]");
        l.height = static_cast<int32_t>(d.d[2]);
        l.width = static_cast<int32_t>(d.d[3]);
    };
    for (int32_t i = 0; i < p.num_levels; ++i) {
        p.levels[i].stride = static_cast<float>(fields_.strides[static_cast<std::size_t>(i)]);
        expect(2 * i, 4 * int64_t{fields_.bins}, i);
        expect(2 * i + 1, fields_.num_classes, i);
        if (fields_.objectness != 0) expect(2 * p.num_levels + i, 1, i);
    }
    if (num_inputs_ == fields_.num_maps() + 1) {
        const Dims& d = at(fields_.num_maps());
        if (d.nbDims != 1 || d.d[0] != 2)
            throw BadPlugin(std::string(name_of(op_)) + ": thresholds is " + text_of(d) +
                            "; it must be [2] (conf, iou)");
    }
    return p;
}

DetectOptions HeadPlugin::options() const {
    DetectOptions o;
    o.conf = fields_.conf;
    o.iou = fields_.iou;
    o.max_candidates = fields_.max_candidates;
    o.max_det = fields_.max_det;
    o.class_agnostic = fields_.class_agnostic != 0;
    o.multi_label = fields_.multi_label != 0;
    return o;
}

std::size_t HeadPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                         const DynamicPluginTensorDesc*, int32_t num_outputs) const noexcept {
    if (op_ == Op::kDecode) return 0;
    return guarded(op_, std::size_t{0}, [&] {
        expect_counts(num_inputs, num_outputs);
        const std::size_t bytes = detect_workspace_bytes(
            params(&inputs[0].max, sizeof(DynamicPluginTensorDesc), inputs[0].desc.type), options());
        if (bytes == 0) throw BadPlugin("DHeadDetect: anchors times classes is beyond 2^31");
        return bytes;
    });
}

int32_t HeadPlugin::onShapeChange(const PluginTensorDesc* in, int32_t num_inputs, const PluginTensorDesc*,
                                  int32_t num_outputs) noexcept {
    return guarded(op_, -1, [&] {
        expect_counts(num_inputs, num_outputs);
        num_inputs_ = num_inputs;
        (void)params(&in[0].dims, sizeof(PluginTensorDesc), in[0].type);
        return 0;
    });
}

int32_t HeadPlugin::enqueue(const PluginTensorDesc* input_desc, const PluginTensorDesc*, const void* const* inputs,
                            void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded(op_, -1, [&] {
        HeadParams p = params(&input_desc[0].dims, sizeof(PluginTensorDesc), input_desc[0].type);
        for (int32_t i = 0; i < p.num_levels; ++i) {
            p.levels[i].box = inputs[2 * i];
            p.levels[i].cls = inputs[2 * i + 1];
            if (fields_.objectness != 0) p.levels[i].obj = inputs[2 * p.num_levels + i];
        }
        cudaError_t error;
        if (op_ == Op::kDecode) {
            error = decode_cuda(p, {static_cast<float*>(outputs[0]), static_cast<float*>(outputs[1])}, stream);
        } else {
            DetectOutputs out;
            out.num_dets = static_cast<int32_t*>(outputs[0]);
            out.boxes = static_cast<float*>(outputs[1]);
            out.scores = static_cast<float*>(outputs[2]);
            out.classes = static_cast<int32_t*>(outputs[3]);
            const bool thresholds = num_inputs_ == fields_.num_maps() + 1;
            const DetectOptions o = options();
            // TensorRT gives at least the bytes that getWorkspaceSize asked for, for shapes at least as large.
            error = detect_cuda(p, o, thresholds ? static_cast<const float*>(inputs[fields_.num_maps()]) : nullptr, out,
                                workspace, detect_workspace_bytes(p, o), stream);
        }
        if (error != cudaSuccess)
            throw BadPlugin(std::string(name_of(op_)) + ": the kernel was not launched: " + cudaGetErrorString(error));
        return 0;
    });
}

nvinfer1::IPluginV3* HeadPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* HeadPlugin::getFieldsToSerialize() noexcept {
    return guarded<const nvinfer1::PluginFieldCollection*>(op_, nullptr, [&] {
        serialized_ = write_fields(op_, fields_);
        serialized_collection_.nbFields = static_cast<int32_t>(serialized_.size());
        serialized_collection_.fields = serialized_.data();
        return &serialized_collection_;
    });
}

HeadPluginCreator::HeadPluginCreator(Op op) : op_(op), names_(field_names(op)) {
    collection_.nbFields = static_cast<int32_t>(names_.size());
    collection_.fields = names_.data();
}

nvinfer1::IPluginV3* HeadPluginCreator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* collection,
                                                     nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>(
        op_, nullptr, [&] { return std::make_unique<HeadPlugin>(op_, read_fields(op_, collection)).release(); });
}

const nvinfer1::PluginFieldCollection* HeadPluginCreator::getFieldNames() noexcept { return &collection_; }
const char* HeadPluginCreator::getPluginName() const noexcept { return name_of(op_); }
const char* HeadPluginCreator::getPluginVersion() const noexcept { return kVersion; }
const char* HeadPluginCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace dhead::plugins
