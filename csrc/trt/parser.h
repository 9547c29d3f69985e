// The ONNX parser's interface. Some TensorRT header packages leave NvOnnxParser.h out; the declarations below stand in:
// the virtual functions up to the destructor, in the order they have had since TensorRT 10.0. Where the real header is
// present it is used instead, and tests/cpp/trt/parser_layout_test.cpp compares the two layouts.
#pragma once

#include <NvInfer.h>

#if !defined(DHEAD_TRT_PARSER_STAND_IN) && __has_include(<NvOnnxParser.h>)
#include <NvOnnxParser.h>
namespace dhead::trt {
namespace onnx_parser = ::nvonnxparser;
}
#else

namespace dhead::trt::onnx_parser {

class IParserError {
  public:
    virtual int code() const = 0;
    virtual char const* desc() const = 0;
    virtual char const* file() const = 0;
    virtual int line() const = 0;
    virtual char const* func() const = 0;
    virtual int node() const = 0;
    virtual char const* nodeName() const = 0;
    virtual char const* nodeOperator() const = 0;

  protected:
    virtual ~IParserError() {}
};

class IParser {
  public:
    virtual bool parse(void const* model, size_t size, char const* path = nullptr) noexcept = 0;
    virtual bool parseFromFile(char const* path, int verbosity) noexcept = 0;
#if NV_TENSORRT_MAJOR < 11
    virtual bool unused_supportsModel(void const*, size_t, void*, char const*) noexcept = 0;
    virtual bool unused_parseWithWeightDescriptors(void const*, size_t) noexcept = 0;
#endif
    virtual bool supportsOperator(char const* name) const noexcept = 0;
    virtual int getNbErrors() const noexcept = 0;
    virtual IParserError const* getError(int index) const noexcept = 0;
    virtual void clearErrors() noexcept = 0;
    virtual ~IParser() noexcept = default;
};

}  // namespace dhead::trt::onnx_parser
#endif

namespace dhead::trt {
constexpr int kOnnxParserVersion = 100;  // NV_ONNX_PARSER_VERSION, 0.1.0 in every TensorRT 10 and 11
}
