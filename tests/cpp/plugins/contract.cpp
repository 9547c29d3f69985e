// The plugins as TensorRT meets them: through getCreators of the opened library, with the real headers.
//
//   plugin_contract LIBRARY [CASES]
//
// With CASES (what tests/cases.py --dump wrote) enqueue runs over the whole table: on the host where the library and
// this program were built with the stand-in for CUDA, else on a GPU.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "dhead/decode_cpu.h"

namespace {

using namespace nvinfer1;

int failures = 0;
#define EXPECT(condition)                                                                \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                                  \
        }                                                                                \
    } while (false)

struct Logger : ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity == Severity::kERROR) last = text;
    }
    std::string last;
};
struct Finder : ILoggerFinder {
    ILogger* findLogger() override { return &logger; }
    Logger logger;
};
Finder finder;

// Dimension arithmetic on known numbers. The public classes of TensorRT forward to implementations like these.
struct Dimension : IDimensionExpr {
    explicit Dimension(int64_t v) : impl(v) { mImpl = &impl; }
    ~Dimension() noexcept override = default;
    struct Impl : apiv::VDimensionExpr {
        explicit Impl(int64_t v) : value(v) {}
        bool isConstant() const override { return true; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
    } impl;
};
struct Expressions : IExprBuilder {
    Expressions() { mImpl = &impl; }
    ~Expressions() noexcept override = default;
    struct Impl : apiv::VExprBuilder {
        const IDimensionExpr* constant(int64_t v) override { return &all.emplace_back(v); }
        const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& a,
                                        const IDimensionExpr& b) override {
            const int64_t x = a.getConstantValue(), y = b.getConstantValue();
            switch (op) {
                case DimensionOperation::kSUM:
                    return constant(x + y);
                case DimensionOperation::kPROD:
                    return constant(x * y);
                default:
                    std::fprintf(stderr, "an operation that is not expected\n");
                    std::abort();
            }
        }
        const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
            std::abort();
        }
        std::deque<Dimension> all;
    } impl;
};

// A set of fields that owns its values.
struct FieldSet {
    void put_ints(const std::string& name, std::vector<int32_t> values) {
        ints.push_back(std::move(values));
        names.push_back(name);
        fields.emplace_back(names.back().c_str(), ints.back().data(), PluginFieldType::kINT32,
                            static_cast<int32_t>(ints.back().size()));
    }
    void put_float(const std::string& name, float value) {
        floats.push_back(value);
        names.push_back(name);
        fields.emplace_back(names.back().c_str(), &floats.back(), PluginFieldType::kFLOAT32, 1);
    }
    void put_text(const std::string& name, const std::string& text) {
        names.push_back(text);
        const char* data = names.back().c_str();
        names.push_back(name);
        fields.emplace_back(names.back().c_str(), data, PluginFieldType::kCHAR, static_cast<int32_t>(text.size()));
    }
    void drop(const std::string& name) {
        for (std::size_t i = 0; i < fields.size(); ++i)
            if (name == fields[i].name) {
                fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i));
                return;
            }
    }
    PluginFieldCollection collection() { return {static_cast<int32_t>(fields.size()), fields.data()}; }

    std::deque<std::vector<int32_t>> ints;
    std::deque<float> floats;
    std::deque<std::string> names;
    std::vector<PluginField> fields;
};

struct Head {
    bool detect = false, objectness = false, thresholds = false;
    int32_t classes = 5, bins = 17;
    int32_t levels() const { return 3; }
    int32_t maps() const { return levels() * (objectness ? 3 : 2); }
    int32_t inputs() const { return maps() + (thresholds ? 1 : 0); }
    int32_t outputs() const { return detect ? 4 : 2; }
};

void fill(FieldSet& f, const Head& head) {
    f.put_ints("num_classes", {head.classes});
    f.put_ints("bins", {head.bins});
    f.put_ints("strides", {8, 16, 32});
    f.put_ints("pixel_distance", {0});
    f.put_ints("objectness", {head.objectness ? 1 : 0});
    f.put_text("plugin_version", std::string("1"));
    f.put_text("plugin_namespace", std::string());
    if (!head.detect) return;
    f.put_float("conf", 0.3F);
    f.put_float("iou", 0.6F);
    f.put_ints("max_candidates", {1000});
    f.put_ints("max_det", {50});
    f.put_ints("class_agnostic", {1});
    f.put_ints("multi_label", {0});
}

IPluginCreatorV3One* creators[2] = {};

std::unique_ptr<IPluginV3> create(const Head& head, const std::function<void(FieldSet&)>& change = {},
                                  TensorRTPhase phase = TensorRTPhase::kBUILD) {
    FieldSet f;
    fill(f, head);
    if (change) change(f);
    const PluginFieldCollection collection = f.collection();
    return std::unique_ptr<IPluginV3>(creators[head.detect ? 1 : 0]->createPlugin("node", &collection, phase));
}

template <class T>
T* part(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<T*>(plugin.getCapabilityInterface(type));
}
IPluginV3OneBuild* build_part(IPluginV3& p) { return part<IPluginV3OneBuild>(p, PluginCapabilityType::kBUILD); }
IPluginV3OneCore* core_part(IPluginV3& p) { return part<IPluginV3OneCore>(p, PluginCapabilityType::kCORE); }
IPluginV3OneRuntime* runtime_part(IPluginV3& p) { return part<IPluginV3OneRuntime>(p, PluginCapabilityType::kRUNTIME); }

Dims dims_of(std::initializer_list<int64_t> values) {
    Dims d{};
    for (int64_t v : values) d.d[d.nbDims++] = v;
    return d;
}

std::vector<Dims> input_dims(const Head& head, int64_t batch) {
    std::vector<Dims> dims;
    const int64_t sizes[3][2] = {{9, 13}, {5, 7}, {3, 4}};
    for (const auto& s : sizes) {
        dims.push_back(dims_of({batch, 4 * head.bins, s[0], s[1]}));
        dims.push_back(dims_of({batch, head.classes, s[0], s[1]}));
    }
    if (head.objectness)
        for (const auto& s : sizes) dims.push_back(dims_of({batch, 1, s[0], s[1]}));
    if (head.thresholds) dims.push_back(dims_of({2}));
    return dims;
}

std::vector<DynamicPluginTensorDesc> descriptions(const Head& head, DataType type, int64_t batch) {
    std::vector<DynamicPluginTensorDesc> all;
    const auto add = [&](const Dims& d, DataType t) {
        DynamicPluginTensorDesc x{};
        x.desc.dims = x.min = x.max = x.opt = d;
        x.desc.type = t;
        x.desc.format = TensorFormat::kLINEAR;
        all.push_back(x);
    };
    const auto dims = input_dims(head, batch);
    for (std::size_t i = 0; i < dims.size(); ++i)
        add(dims[i], static_cast<int32_t>(i) == head.maps() ? DataType::kFLOAT : type);
    for (int32_t i = 0; i < head.outputs(); ++i)
        add(dims_of({batch}), head.detect && (i == 0 || i == 3) ? DataType::kINT32 : DataType::kFLOAT);
    return all;
}

std::vector<Head> heads() {
    std::vector<Head> all;
    for (int i = 0; i < 8; ++i) {
        Head h;
        h.detect = (i & 1) != 0;
        h.objectness = (i & 2) != 0;
        h.thresholds = (i & 4) != 0;
        if (h.detect || !h.thresholds) all.push_back(h);
    }
    return all;
}

void test_creators() {
    const char* names[] = {"DHeadDecode", "DHeadDetect"};
    for (int i = 0; i < 2; ++i) {
        EXPECT(std::string(creators[i]->getPluginName()) == names[i]);
        EXPECT(std::string(creators[i]->getPluginVersion()) == "1");
        EXPECT(std::string(creators[i]->getPluginNamespace()).empty());
        EXPECT(std::string(creators[i]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
        const PluginFieldCollection* fields = creators[i]->getFieldNames();
        EXPECT(fields->nbFields == (i == 0 ? 5 : 11));
        for (int32_t k = 0; k < fields->nbFields; ++k) EXPECT(fields->fields[k].name[0] != '\0');
    }
}

void test_identity_and_shapes() {
    for (const Head& head : heads()) {
        const auto plugin = create(head);
        EXPECT(plugin != nullptr);
        if (!plugin) continue;
        EXPECT(std::string(core_part(*plugin)->getPluginName()) == (head.detect ? "DHeadDetect" : "DHeadDecode"));
        EXPECT(std::string(core_part(*plugin)->getPluginVersion()) == "1");
        EXPECT(build_part(*plugin)->getNbOutputs() == head.outputs());
        for (const int64_t batch : {1, 3}) {
            Expressions e;
            const auto dims = input_dims(head, batch);
            std::vector<DimsExprs> in(dims.size()), out(static_cast<std::size_t>(head.outputs()));
            for (std::size_t i = 0; i < dims.size(); ++i) {
                in[i].nbDims = dims[i].nbDims;
                for (int k = 0; k < dims[i].nbDims; ++k) in[i].d[k] = e.constant(dims[i].d[k]);
            }
            EXPECT(build_part(*plugin)->getOutputShapes(in.data(), head.inputs(), nullptr, 0, out.data(),
                                                        head.outputs(), e) == 0);
            std::vector<std::vector<int64_t>> got, want;
            for (const DimsExprs& d : out) {
                got.emplace_back();
                for (int k = 0; k < d.nbDims; ++k) got.back().push_back(d.d[k]->getConstantValue());
            }
            const int64_t anchors = 9 * 13 + 5 * 7 + 3 * 4;
            if (head.detect)
                want = {{batch, 1}, {batch, 50, 4}, {batch, 50}, {batch, 50}};
            else
                want = {{batch, anchors, 4}, {batch, anchors, head.classes}};
            EXPECT(got == want);
        }
    }
}

void test_formats() {
    const DataType types[] = {DataType::kFLOAT, DataType::kHALF,  DataType::kINT8, DataType::kINT32,
                              DataType::kBOOL,  DataType::kUINT8, DataType::kBF16, DataType::kINT64};
    const TensorFormat formats[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8,
                                    TensorFormat::kCHW32, TensorFormat::kHWC};
    for (const Head& head : heads()) {
        const auto plugin = create(head);
        IPluginV3OneBuild& build = *build_part(*plugin);
        for (const DataType maps : {DataType::kFLOAT, DataType::kHALF}) {
            auto all = descriptions(head, maps, 2);
            for (int32_t i = 0; i < head.inputs() + head.outputs(); ++i) {
                EXPECT(build.supportsFormatCombination(i, all.data(), head.inputs(), head.outputs()));
                const DynamicPluginTensorDesc good = all[static_cast<std::size_t>(i)];
                for (const DataType type : types)
                    for (const TensorFormat format : formats) {
                        auto& t = all[static_cast<std::size_t>(i)];
                        t.desc.type = type;
                        t.desc.format = format;
                        const bool map = i < head.maps();
                        const bool right = map && i == 0 ? type == DataType::kFLOAT || type == DataType::kHALF
                                                         : type == good.desc.type;
                        EXPECT(build.supportsFormatCombination(i, all.data(), head.inputs(), head.outputs()) ==
                               (right && format == TensorFormat::kLINEAR));
                    }
                all[static_cast<std::size_t>(i)] = good;
            }
            std::vector<DataType> in, out(static_cast<std::size_t>(head.outputs()));
            for (int32_t i = 0; i < head.inputs(); ++i) in.push_back(all[static_cast<std::size_t>(i)].desc.type);
            EXPECT(build.getOutputDataTypes(out.data(), head.outputs(), in.data(), head.inputs()) == 0);
            for (int32_t i = 0; i < head.outputs(); ++i)
                EXPECT(out[static_cast<std::size_t>(i)] == all[static_cast<std::size_t>(head.inputs() + i)].desc.type);
            in[1] = maps == DataType::kFLOAT ? DataType::kHALF : DataType::kFLOAT;  // mixed
            EXPECT(build.getOutputDataTypes(out.data(), head.outputs(), in.data(), head.inputs()) != 0);
            EXPECT(finder.logger.last.find("all maps must be") != std::string::npos);
        }
        EXPECT(!build.supportsFormatCombination(0, descriptions(head, DataType::kFLOAT, 1).data(), head.inputs() + 2,
                                                head.outputs()));
    }
}

std::string text_of(const PluginFieldCollection& c) {
    std::string text;
    for (int32_t i = 0; i < c.nbFields; ++i) {
        const PluginField& f = c.fields[i];
        text += std::string(f.name) + ":" + std::to_string(static_cast<int>(f.type)) + ":";
        text.append(static_cast<const char*>(f.data), 4 * static_cast<std::size_t>(f.length));
        text += ";";
    }
    return text;
}

void test_round_trip() {
    for (const Head& head : heads()) {
        const auto plugin = create(head);
        const PluginFieldCollection* stored = runtime_part(*plugin)->getFieldsToSerialize();
        EXPECT(stored != nullptr && stored->nbFields == (head.detect ? 11 : 5));
        const std::unique_ptr<IPluginV3> again(
            creators[head.detect ? 1 : 0]->createPlugin("node", stored, TensorRTPhase::kRUNTIME));
        EXPECT(again != nullptr);
        if (!again) continue;
        EXPECT(text_of(*runtime_part(*again)->getFieldsToSerialize()) == text_of(*stored));
        const std::unique_ptr<IPluginV3> copy(again->clone());
        const std::unique_ptr<IPluginV3> attached(runtime_part(*again)->attachToContext(nullptr));
        EXPECT(copy != nullptr && copy.get() != again.get() && attached != nullptr);
        const std::string cache_id = build_part(*plugin)->getTimingCacheID();
        EXPECT(cache_id == build_part(*copy)->getTimingCacheID() &&
               cache_id.find("strides=8,16,32,") != std::string::npos);
        const auto other = create(head, [](FieldSet& f) {
            f.drop("bins");
            f.put_ints("bins", {16});
        });
        EXPECT(cache_id != build_part(*other)->getTimingCacheID());
        EXPECT(text_of(*runtime_part(*copy)->getFieldsToSerialize()) == text_of(*stored));
        EXPECT(text_of(*runtime_part(*attached)->getFieldsToSerialize()) == text_of(*stored));
    }
}

void test_bad_fields() {
    Head head;
    head.detect = true;
    struct Bad {
        const char* says;
        std::function<void(FieldSet&)> change;
    };
    const auto replace = [](const char* name, std::vector<int32_t> v) {
        return [=](FieldSet& f) {
            f.drop(name);
            f.put_ints(name, v);
        };
    };
    const auto replace_float = [](const char* name, float v) {
        return [=](FieldSet& f) {
            f.drop(name);
            f.put_float(name, v);
        };
    };
    const Bad all[] = {
        {"'num_classes' is missing", [](FieldSet& f) { f.drop("num_classes"); }},
        {"'bins' is missing", [](FieldSet& f) { f.drop("bins"); }},
        {"'strides' is missing", [](FieldSet& f) { f.drop("strides"); }},
        {"'num_classes' is 0", replace("num_classes", {0})},
        {"'bins' is 65", replace("bins", {65})},
        {"'bins' is 0", replace("bins", {0})},
        {"'strides' holds 0", replace("strides", {8, 0})},
        {"at most 6 levels", replace("strides", {1, 2, 3, 4, 5, 6, 7})},
        {"'objectness' is 2", replace("objectness", {2})},
        {"'max_det' is 0", replace("max_det", {0})},
        {"'max_candidates' is -1", replace("max_candidates", {-1})},
        {"'conf' is nan", replace_float("conf", std::numeric_limits<float>::quiet_NaN())},
        {"'conf' is 1.5", replace_float("conf", 1.5F)},
        {"'iou' is -0.1", replace_float("iou", -0.1F)},
        {"'bins' must be one int32", replace("bins", {16, 17})},
        {"'bins' must be one int32", replace_float("bins", 16.F)},
        {"'conf' must be one float32", replace("conf", {1})},
        {"'surprise' is not known", [](FieldSet& f) { f.put_ints("surprise", {1}); }},
        {"'bins' was given twice", [](FieldSet& f) { f.put_ints("bins", {16}); }},
    };
    for (const Bad& bad : all) {
        finder.logger.last.clear();
        const auto plugin = create(head, bad.change);
        EXPECT(plugin == nullptr);
        if (finder.logger.last.find(bad.says) == std::string::npos || finder.logger.last.find("DHeadDetect") != 0)
            std::fprintf(stderr, "said '%s', not '%s'\n", finder.logger.last.c_str(), bad.says);
        EXPECT(finder.logger.last.find(bad.says) != std::string::npos);
    }
    EXPECT(creators[1]->createPlugin("node", nullptr, TensorRTPhase::kBUILD) == nullptr);
    // Defaults: only the three that have none.
    FieldSet least;
    least.put_ints("num_classes", {3});
    least.put_ints("bins", {1});
    least.put_ints("strides", {32});
    const PluginFieldCollection collection = least.collection();
    const std::unique_ptr<IPluginV3> plugin(creators[1]->createPlugin("node", &collection, TensorRTPhase::kBUILD));
    EXPECT(plugin != nullptr);
    const PluginFieldCollection* stored = runtime_part(*plugin)->getFieldsToSerialize();
    for (int32_t i = 0; i < stored->nbFields; ++i) {
        const PluginField& f = stored->fields[i];
        const std::string name = f.name;
        if (name == "conf") EXPECT(*static_cast<const float*>(f.data) == 0.25F);
        if (name == "iou") EXPECT(*static_cast<const float*>(f.data) == 0.7F);
        if (name == "max_candidates") EXPECT(*static_cast<const int32_t*>(f.data) == 4096);
        if (name == "max_det") EXPECT(*static_cast<const int32_t*>(f.data) == 300);
    }
    // DHeadDecode knows no detect options.
    EXPECT(create(Head{}, [](FieldSet& f) { f.put_float("conf", 0.5F); }) == nullptr);
}

void test_bad_shapes() {
    for (const Head& head : heads()) {
        const auto plugin = create(head);
        IPluginV3OneBuild& build = *build_part(*plugin);
        auto all = descriptions(head, DataType::kHALF, 2);
        const auto configure = [&] {
            finder.logger.last.clear();
            return build.configurePlugin(all.data(), head.inputs(), all.data() + head.inputs(), head.outputs());
        };
        EXPECT(configure() == 0);
        EXPECT((build.getWorkspaceSize(all.data(), head.inputs(), all.data() + head.inputs(), head.outputs()) > 0) ==
               head.detect);
        for (int32_t i = 0; i < head.inputs(); ++i) {
            Dims& d = all[static_cast<std::size_t>(i)].max;
            for (int k = 0; k < d.nbDims; ++k) {
                if (i == 0 && k == 0) continue;  // the batch of the first input is the batch
                const int64_t was = d.d[k];
                d.d[k] = was + 1;
                EXPECT(configure() != 0);
                EXPECT(!finder.logger.last.empty());
                d.d[k] = was;
            }
        }
        EXPECT(configure() == 0);
        EXPECT(build.configurePlugin(all.data(), head.inputs() - 1, all.data() + head.inputs(), head.outputs()) != 0 ||
               head.thresholds);
        EXPECT(build.configurePlugin(all.data(), head.inputs(), all.data() + head.inputs(), head.outputs() + 1) != 0);
    }
    // More batch, more workspace; the wanted size covers every smaller batch.
    Head head;
    head.detect = true;
    const auto plugin = create(head);
    std::size_t last = 0;
    for (const int64_t batch : {1, 2, 8, 1000}) {
        const auto all = descriptions(head, DataType::kFLOAT, batch);
        const std::size_t bytes = build_part(*plugin)->getWorkspaceSize(all.data(), head.inputs(),
                                                                        all.data() + head.inputs(), head.outputs());
        EXPECT(bytes > last);
        last = bytes;
    }
}

// Device memory of exactly so many bytes, poisoned.
class Device {
  public:
    explicit Device(std::size_t bytes) : bytes_(bytes) {
        EXPECT(cudaMalloc(&data_, bytes) == cudaSuccess);
        put(dhead_test::Bytes(bytes, 0xFF));
    }
    explicit Device(const dhead_test::Bytes& bytes) : bytes_(bytes.size()) {
        EXPECT(cudaMalloc(&data_, bytes_) == cudaSuccess);
        put(bytes);
    }
    ~Device() { (void)cudaFree(data_); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    void* get() const { return data_; }
    dhead_test::Bytes fetch() const {
        dhead_test::Bytes host(bytes_);
        EXPECT(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess);
        return host;
    }

  private:
    void put(const dhead_test::Bytes& host) {
        EXPECT(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice) == cudaSuccess);
    }
    std::size_t bytes_;
    void* data_ = nullptr;
};

// enqueue over the case table: the CPU code's bits.
void test_enqueue(const std::string& directory) {
    int ran = 0;
    for (const std::string& line : dhead_test::read_table(directory)) {
        const dhead_test::Case c = dhead_test::read_case(directory, line);
        if (c.some_classes) continue;           // the plugins have no class filter
        for (int form = 0; form < 3; ++form) {  // decode, detect, detect with thresholds
            const bool detect = form > 0, thresholds = form == 2;
            FieldSet f;
            std::vector<int32_t> strides;
            for (int i = 0; i < c.params.num_levels; ++i)
                strides.push_back(static_cast<int32_t>(c.params.levels[i].stride));
            f.put_ints("num_classes", {c.params.num_classes});
            f.put_ints("bins", {c.params.bins});
            f.put_ints("strides", strides);
            f.put_ints("pixel_distance", {c.params.pixel_distance ? 1 : 0});
            f.put_ints("objectness", {c.objectness ? 1 : 0});
            if (detect) {
                f.put_float("conf", thresholds ? 0.9F : static_cast<float>(c.options.conf));
                f.put_float("iou", thresholds ? 0.1F : c.options.iou);
                f.put_ints("max_candidates", {c.options.max_candidates});
                f.put_ints("max_det", {c.options.max_det});
                f.put_ints("class_agnostic", {c.options.class_agnostic ? 1 : 0});
                f.put_ints("multi_label", {c.options.multi_label ? 1 : 0});
            }
            const PluginFieldCollection collection = f.collection();
            const std::unique_ptr<IPluginV3> made(
                creators[detect ? 1 : 0]->createPlugin("node", &collection, TensorRTPhase::kRUNTIME));
            EXPECT(made != nullptr);
            if (!made) return;
            const std::unique_ptr<IPluginV3> plugin(runtime_part(*made)->attachToContext(nullptr));
            const DataType type = c.params.dtype == dhead::DType::kFloat16 ? DataType::kHALF : DataType::kFLOAT;
            std::vector<PluginTensorDesc> in;
            std::vector<const void*> inputs;
            std::deque<Device> held;
            std::vector<DynamicPluginTensorDesc> dynamic;
            const auto add = [&](const Dims& d, DataType t, const void* data) {
                PluginTensorDesc x{};
                x.dims = d;
                x.type = t;
                x.format = TensorFormat::kLINEAR;
                in.push_back(x);
                inputs.push_back(data);
                DynamicPluginTensorDesc y{};
                y.desc = x;
                y.min = y.max = y.opt = d;
                dynamic.push_back(y);
            };
            for (int k = 0; k < 2; ++k)
                for (int i = 0; i < c.params.num_levels; ++i) {
                    const auto& l = c.params.levels[i];
                    const auto add_map = [&](int kind, int64_t channels) {
                        add(dims_of({c.params.batch, channels, l.height, l.width}), type,
                            held.emplace_back(c.maps[i][kind]).get());
                    };
                    if (k == 0) {
                        add_map(0, 4 * c.params.bins);
                        add_map(1, c.params.num_classes);
                    } else if (c.objectness) {
                        add_map(2, 1);
                    }
                }
            const float values[2] = {static_cast<float>(c.options.conf), c.options.iou};
            if (thresholds) {
                dhead_test::Bytes bytes(sizeof(values));
                std::memcpy(bytes.data(), values, sizeof(values));
                add(dims_of({2}), DataType::kFLOAT, held.emplace_back(bytes).get());
            }
            const auto n = static_cast<int32_t>(in.size());
            const std::size_t batch = c.batch(), k = static_cast<std::size_t>(c.options.max_det);
            std::vector<std::size_t> sizes;
            if (detect)
                sizes = {batch * 4, batch * k * 16, batch * k * 4, batch * k * 4};
            else
                sizes = {batch * c.anchors() * 16,
                         batch * c.anchors() * static_cast<std::size_t>(c.params.num_classes) * 4};
            std::deque<Device> results;
            std::vector<void*> outputs;
            std::vector<PluginTensorDesc> out(sizes.size());
            std::vector<DynamicPluginTensorDesc> dynamic_out(sizes.size());
            for (std::size_t size : sizes) outputs.push_back(results.emplace_back(size).get());
            const auto num_out = static_cast<int32_t>(out.size());
            EXPECT(runtime_part(*plugin)->onShapeChange(in.data(), n, out.data(), num_out) == 0);
            const Device workspace(
                build_part(*plugin)->getWorkspaceSize(dynamic.data(), n, dynamic_out.data(), num_out) +
                (detect ? 0 : 1));
            EXPECT(runtime_part(*plugin)->enqueue(in.data(), out.data(), inputs.data(), outputs.data(), workspace.get(),
                                                  nullptr) == 0);
            EXPECT(cudaStreamSynchronize(nullptr) == cudaSuccess);
            std::vector<dhead_test::Bytes> memory;
            for (const Device& result : results) memory.push_back(result.fetch());
            std::vector<dhead_test::Bytes> want;
            for (std::size_t size : sizes) want.emplace_back(size);
            const auto as_float = [&](int i) {
                return reinterpret_cast<float*>(want[static_cast<std::size_t>(i)].data());
            };
            const auto as_int = [&](int i) {
                return reinterpret_cast<int32_t*>(want[static_cast<std::size_t>(i)].data());
            };
            dhead::HeadParams params = c.params;
            for (int i = 0; i < params.num_levels; ++i) {
                params.levels[i].box = c.maps[i][0].data();
                params.levels[i].cls = c.maps[i][1].data();
                if (c.objectness) params.levels[i].obj = c.maps[i][2].data();
            }
            dhead::DetectOptions options = c.options;
            options.conf = static_cast<float>(options.conf);  // as the fields and the tensor carry it
            if (detect)
                dhead::detect_cpu(params, options, {as_int(0), as_float(1), as_float(2), as_int(3), nullptr},
                                  {1, nullptr});
            else
                dhead::decode_cpu(params, {as_float(0), as_float(1)}, {1, nullptr});
            for (std::size_t i = 0; i < want.size(); ++i) {
                std::size_t different = 0;
                for (std::size_t at = 0; at < sizes[i]; at += 4) {
                    float x, y;
                    std::memcpy(&x, &memory[i][at], 4);
                    std::memcpy(&y, &want[i][at], 4);
                    const bool both_nan = !detect && x != x && y != y;
                    if (std::memcmp(&x, &y, 4) != 0 && !both_nan) ++different;
                }
                if (different > 0) std::fprintf(stderr, "%s, form %d, output %zu\n", c.name.c_str(), form, i);
                EXPECT(different == 0);
            }
            ++ran;
        }
    }
    EXPECT(ran > 100);
    std::printf("enqueue: %d runs\n", ran);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    const auto get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    const auto set = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    EXPECT(get != nullptr && set != nullptr);
    if (failures != 0) return 1;
    set(&finder);
    int32_t count = 0;
    IPluginCreatorInterface* const* found = get(count);
    EXPECT(count == 2);
    for (int i = 0; i < 2; ++i) creators[i] = static_cast<IPluginCreatorV3One*>(found[i]);
    test_creators();
    test_identity_and_shapes();
    test_formats();
    test_round_trip();
    test_bad_fields();
    test_bad_shapes();
    if (argc > 2) test_enqueue(argv[2]);
    std::printf("%s: %d failures\n", argv[1], failures);
    return failures == 0 ? 0 : 1;
}
