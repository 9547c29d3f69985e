// Our stand-in for NvOnnxParser.h has the layout of the real header: the functions we call sit at the same places.
#include <NvOnnxParser.h>

#define DHEAD_TRT_PARSER_STAND_IN
#include <cstdio>
#include <cstring>

#include "parser.h"

namespace ours = dhead::trt::onnx_parser;

namespace {

int failures = 0;

// In the Itanium C++ ABI a pointer to a virtual member function holds 1 + the function's offset in the table.
template <typename A, typename B>
void same(const char* name, A a, B b) {
    static_assert(sizeof(a) == sizeof(b));
    std::ptrdiff_t x = 0, y = 0;
    std::memcpy(&x, &a, sizeof(x));
    std::memcpy(&y, &b, sizeof(y));
    if (x != y || x % 2 != 1) {
        std::printf("%s: %td in NvOnnxParser.h, %td in ours\n", name, x, y);
        ++failures;
    }
}

}  // namespace

int main() {
    using Theirs = nvonnxparser::IParser;
    using Error = nvonnxparser::IParserError;
#define SAME(f) same(#f, &Theirs::f, &ours::IParser::f)
    SAME(parse);
    SAME(parseFromFile);
    SAME(supportsOperator);
    SAME(getNbErrors);
    SAME(getError);
    SAME(clearErrors);
#undef SAME
#define SAME(f) same(#f, &Error::f, &ours::IParserError::f)
    SAME(code);
    SAME(desc);
    SAME(node);
    SAME(nodeName);
    SAME(nodeOperator);
#undef SAME
    if (NV_ONNX_PARSER_VERSION != dhead::trt::kOnnxParserVersion) {
        std::printf("the parser's version is %d\n", NV_ONNX_PARSER_VERSION);
        ++failures;
    }
    std::printf("%s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
