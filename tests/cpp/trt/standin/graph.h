// The little that the stand-ins know of a network: its tensors. It is the plan's content, too.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace standin {

struct Value {
    std::string name;
    int type = 0;                      // nvinfer1::DataType
    std::vector<int64_t> dims;         // -1: symbolic
    std::vector<std::string> symbols;  // of symbolic dimensions; "" elsewhere
};
struct Range {
    std::vector<int64_t> min, opt, max;
};
struct Graph {
    std::vector<Value> inputs, outputs;
    std::vector<std::map<std::string, Range>> profiles;
};

// Called by the parser stand-in, implemented beside the network: adds a layer with these outputs.
extern "C" void standin_add_layer(void* network, const char* op, const Value* outputs, int count);
extern "C" void standin_name_symbols(void* network, const Value* value);
extern "C" int standin_plugins_loaded();

}  // namespace standin
