// An ONNX parser for tests: reads a real model's inputs, outputs and node names from its protobuf, and nothing else. A
// node of operator "Unsupported", or of domain "dhead" while no plugin is loaded, is an error, as in the real one.
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "control.h"
#include "graph.h"
#include "parser.h"

namespace {

using standin::Value;
namespace api = dhead::trt::onnx_parser;

// A cursor over protobuf's wire format.
class Wire {
  public:
    Wire(const char* data, std::size_t size) : at_(data), end_(data + size) {}
    bool next() {
        if (at_ >= end_ || bad_) return false;
        const uint64_t key = varint();
        field = static_cast<int>(key >> 3);
        switch (key & 7) {
            case 0:
                number = varint();
                break;
            case 1:
                skip(8);
                break;
            case 5:
                skip(4);
                break;
            case 2: {
                const uint64_t n = varint();
                if (bad_ || n > static_cast<uint64_t>(end_ - at_)) return bad_ = true, false;
                bytes = {at_, static_cast<std::size_t>(n)};
                at_ += n;
                break;
            }
            default:
                bad_ = true;
        }
        return !bad_;
    }
    bool bad() const { return bad_; }
    int field = 0;
    uint64_t number = 0;
    std::string bytes;

  private:
    uint64_t varint() {
        uint64_t v = 0;
        for (int shift = 0; at_ < end_ && shift < 64; shift += 7) {
            const auto c = static_cast<unsigned char>(*at_++);
            v |= static_cast<uint64_t>(c & 0x7F) << shift;
            if (!(c & 0x80)) return v;
        }
        bad_ = true;
        return 0;
    }
    void skip(std::ptrdiff_t n) {
        if (end_ - at_ < n)
            bad_ = true;
        else
            at_ += n;
    }
    const char *at_, *end_;
    bool bad_ = false;
};

int trt_type(uint64_t onnx) {
    switch (onnx) {
        case 1:
            return 0;  // float
        case 10:
            return 1;  // float16
        case 3:
            return 2;  // int8
        case 6:
            return 3;  // int32
        case 9:
            return 4;  // bool
        case 2:
            return 5;  // uint8
        case 7:
            return 8;  // int64
        case 16:
            return 7;  // bfloat16
        default:
            return -1;
    }
}

Value value_info(const std::string& text) {
    Value v;
    for (Wire w(text.data(), text.size()); w.next();) {
        if (w.field == 1) v.name = w.bytes;
        if (w.field != 2) continue;
        for (Wire type(w.bytes.data(), w.bytes.size()); type.next();) {
            if (type.field != 1) continue;
            const std::string tensor = type.bytes;
            for (Wire t(tensor.data(), tensor.size()); t.next();) {
                if (t.field == 1) v.type = trt_type(t.number);
                if (t.field != 2) continue;
                const std::string shape = t.bytes;
                for (Wire s(shape.data(), shape.size()); s.next();) {
                    const std::string dim = s.bytes;
                    int64_t size = -1;
                    std::string symbol;
                    for (Wire d(dim.data(), dim.size()); d.next();) {
                        if (d.field == 1) size = static_cast<int64_t>(d.number);
                        if (d.field == 2) symbol = d.bytes;
                    }
                    v.dims.push_back(size);
                    v.symbols.push_back(symbol);
                }
            }
        }
    }
    return v;
}

struct Node {
    std::string name, op, domain;
    std::vector<std::string> outputs;
};

class ParserError final : public api::IParserError {
  public:
    ParserError(std::string what, int node, std::string name, std::string op)
        : what_(std::move(what)), node_(node), name_(std::move(name)), op_(std::move(op)) {}
#ifdef NV_ONNX_PARSER_H
    api::ErrorCode code() const override { return api::ErrorCode::kUNSUPPORTED_NODE; }
    char const* const* localFunctionStack() const override { return nullptr; }
    int32_t localFunctionStackSize() const override { return 0; }
#else
    int code() const override { return 8; }
#endif
    char const* desc() const override { return what_.c_str(); }
    char const* file() const override { return "standin"; }
    int line() const override { return 1; }
    char const* func() const override { return "parse"; }
    int node() const override { return node_; }
    char const* nodeName() const override { return name_.c_str(); }
    char const* nodeOperator() const override { return op_.c_str(); }

  private:
    std::string what_;
    int node_;
    std::string name_, op_;
};

class Parser final : public api::IParser {
  public:
    explicit Parser(void* network) : network_(static_cast<nvinfer1::INetworkDefinition*>(network)) {}

    bool parse(void const* model, std::size_t size, char const*) noexcept override {
        std::string graph;
        Wire m(static_cast<const char*>(model), size);
        while (m.next()) {
            if (m.field == 7) graph = m.bytes;
        }
        if (m.bad() || graph.empty()) return fail("Failed to parse the ONNX model", -1, "", "");
        std::vector<Value> inputs, outputs;
        std::set<std::string> initializers;
        std::vector<Node> nodes;
        for (Wire g(graph.data(), graph.size()); g.next();) {
            if (g.field == 11) inputs.push_back(value_info(g.bytes));
            if (g.field == 12) outputs.push_back(value_info(g.bytes));
            if (g.field == 5) {
                const std::string tensor = g.bytes;
                for (Wire t(tensor.data(), tensor.size()); t.next();) {
                    if (t.field == 8) initializers.insert(t.bytes);
                }
            }
            if (g.field != 1) continue;
            Node node;
            const std::string text = g.bytes;
            for (Wire n(text.data(), text.size()); n.next();) {
                if (n.field == 2) node.outputs.push_back(n.bytes);
                if (n.field == 3) node.name = n.bytes;
                if (n.field == 4) node.op = n.bytes;
                if (n.field == 7) node.domain = n.bytes;
            }
            nodes.push_back(std::move(node));
        }
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            const bool plugin = nodes[i].domain == "dhead";
            if (nodes[i].op == "Unsupported" || (plugin && !standin::standin_plugins_loaded())) {
                return fail(plugin ? "Plugin not found, are the plugin name, version, and namespace correct?"
                                   : "No importer registered for op: Unsupported",
                            static_cast<int>(i), nodes[i].name, nodes[i].op);
            }
        }
        for (const auto& input : inputs) {
            if (initializers.count(input.name)) continue;
            nvinfer1::Dims dims{};
            dims.nbDims = static_cast<int32_t>(input.dims.size());
            for (std::size_t i = 0; i < input.dims.size(); ++i) dims.d[i] = input.dims[i];
            network_->addInput(input.name.c_str(), static_cast<nvinfer1::DataType>(input.type), dims);
            standin::standin_name_symbols(network_, &input);
        }
        for (const auto& node : nodes) {
            std::vector<Value> made;
            for (const auto& name : node.outputs) {
                Value v;
                v.name = name;
                v.dims = {1};
                v.symbols = {""};
                for (const auto& output : outputs) {
                    if (output.name == name) v = output;
                }
                made.push_back(std::move(v));
            }
            standin::standin_add_layer(network_, node.op.c_str(), made.data(), static_cast<int>(made.size()));
        }
        for (const auto& output : outputs) {
            for (int i = 0; i < network_->getNbLayers(); ++i) {
                for (int j = 0; j < network_->getLayer(i)->getNbOutputs(); ++j) {
                    nvinfer1::ITensor* t = network_->getLayer(i)->getOutput(j);
                    if (output.name == t->getName()) network_->markOutput(*t);
                }
            }
        }
        return true;
    }
    int getNbErrors() const noexcept override { return static_cast<int>(errors_.size()); }
    api::IParserError const* getError(int i) const noexcept override {
        return errors_[static_cast<std::size_t>(i)].get();
    }
    void clearErrors() noexcept override { errors_.clear(); }
    bool supportsOperator(char const*) const noexcept override { return true; }
    bool parseFromFile(char const*, int) noexcept override { return false; }
#ifdef NV_ONNX_PARSER_H
#if NV_TENSORRT_MAJOR < 11
    bool supportsModel(void const*, size_t, SubGraphCollection_t&, char const*) noexcept override { return false; }
    bool parseWithWeightDescriptors(void const*, size_t) noexcept override { return false; }
#else
    bool setBuilderConfig(nvinfer1::IBuilderConfig const* const) noexcept override { return true; }
#endif
    char const* const* getUsedVCPluginLibraries(int64_t& n) const noexcept override { return n = 0, nullptr; }
    void setFlags(api::OnnxParserFlags) noexcept override {}
    api::OnnxParserFlags getFlags() const noexcept override { return 0; }
    void clearFlag(api::OnnxParserFlag) noexcept override {}
    void setFlag(api::OnnxParserFlag) noexcept override {}
    bool getFlag(api::OnnxParserFlag) const noexcept override { return false; }
    nvinfer1::ITensor const* getLayerOutputTensor(char const*, int64_t) noexcept override { return nullptr; }
    bool supportsModelV2(void const*, size_t, char const*) noexcept override { return true; }
    int64_t getNbSubgraphs() noexcept override { return 0; }
    bool isSubgraphSupported(int64_t) noexcept override { return true; }
    int64_t* getSubgraphNodes(int64_t, int64_t& n) noexcept override { return n = 0, nullptr; }
    bool loadModelProto(void const*, size_t, char const*) noexcept override { return false; }
    bool loadInitializer(char const*, void const*, size_t) noexcept override { return false; }
    bool parseModelProto() noexcept override { return false; }
#elif NV_TENSORRT_MAJOR < 11
    bool unused_supportsModel(void const*, size_t, void*, char const*) noexcept override { return false; }
    bool unused_parseWithWeightDescriptors(void const*, size_t) noexcept override { return false; }
#endif

  private:
    bool fail(const std::string& what, int node, const std::string& name, const std::string& op) {
        errors_.push_back(std::make_unique<ParserError>(what, node, name, op));
        return false;
    }
    nvinfer1::INetworkDefinition* network_;
    std::vector<std::unique_ptr<ParserError>> errors_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void* createNvOnnxParser_INTERNAL(void* network, void*,
                                                                                    int) noexcept {
    return new Parser(network);
}
extern "C" __attribute__((visibility("default"))) int getNvOnnxParserVersion() noexcept { return 100; }
