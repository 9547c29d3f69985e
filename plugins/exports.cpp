// The two functions that TensorRT looks up in a plugin library; everything else is hidden (exports.map).
#include <NvInferRuntime.h>

#include "head_plugin.h"
#include "log.h"

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using dhead::plugins::HeadPluginCreator;
    static HeadPluginCreator decode(dhead::plugins::Op::kDecode);
    static HeadPluginCreator detect(dhead::plugins::Op::kDetect);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&decode, &detect};
    count = 2;
    return creators;
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    dhead::plugins::set_logger_finder(finder);
}
}
