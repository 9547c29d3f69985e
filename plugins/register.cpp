// libdhead_trt_plugins_register.so: the same plugins for hosts that only open a library (Triton, DeepStream,
// trtexec --staticPlugins), instead of calling IPluginRegistry::loadLibrary. As it is opened it adds its creators to
// the registry of the TensorRT that is in the process, and takes them out again as it is closed.
#include <NvInferRuntime.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <string>

#include "head_plugin.h"
#include "log.h"

namespace dhead::plugins {
namespace {

using GetRegistry = nvinfer1::IPluginRegistry* (*)();
using GetVersion = int32_t (*)();

// The registry of the TensorRT that is loaded, of the major version this file was compiled for; null, and a sentence in
// the log, where there is none.
nvinfer1::IPluginRegistry* find_registry() {
    // By name: hosts such as Triton keep libnvinfer out of the global scope.
    const std::string name = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOLOAD | RTLD_LAZY);
    void* scope = library != nullptr ? library : RTLD_DEFAULT;
    const auto get = reinterpret_cast<GetRegistry>(dlsym(scope, "getPluginRegistry"));
    const auto version = reinterpret_cast<GetVersion>(dlsym(scope, "getInferLibVersion"));
    nvinfer1::IPluginRegistry* registry = nullptr;
    if (get == nullptr || version == nullptr) {
        log_error("dhead_trt plugins: " + name + " is not loaded in this process; nothing was registered");
    } else if (const int32_t found = version(); found / (found < 10000 ? 1000 : 10000) != NV_TENSORRT_MAJOR) {
        log_error("dhead_trt plugins: built for TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + ", but version " +
                  std::to_string(found) + " is loaded; nothing was registered");
    } else {
        registry = get();
    }
    if (library != nullptr) dlclose(library);  // the host keeps its own
    return registry;
}

class Registration {
  public:
    Registration() : registry_(find_registry()) {
        for (HeadPluginCreator* creator : {&decode_, &detect_})
            if (registry_ != nullptr && !registry_->registerCreator(*creator, ""))
                log_error(std::string("dhead_trt plugins: ") + creator->getPluginName() +
                          " was not registered; another library may have done so");
    }
    ~Registration() {
        for (HeadPluginCreator* creator : {&decode_, &detect_})
            if (registry_ != nullptr) (void)registry_->deregisterCreator(*creator);
    }
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;

  private:
    HeadPluginCreator decode_{Op::kDecode}, detect_{Op::kDetect};
    nvinfer1::IPluginRegistry* registry_;
};

const Registration registration;

}  // namespace
}  // namespace dhead::plugins
