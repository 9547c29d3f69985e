// libdhead_trt_plugins_register.so in a process that has a TensorRT (a stand-in: this program), another version, or
// none.
//
//   plugin_register_test LIBRARY
#include <NvInferRuntime.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // TensorRT 10's own virtual functions
struct Registry final : IPluginRegistry {
    ~Registry() noexcept override = default;
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(IPluginCreator&, const AsciiChar*) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
    IPluginCreator* getPluginCreator(const AsciiChar*, const AsciiChar*, const AsciiChar*) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
#endif
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(const AsciiChar*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    bool registerCreator(IPluginCreatorInterface& creator, const AsciiChar* name_space) noexcept override {
        const auto& one = static_cast<IPluginCreatorV3One&>(creator);
        names.push_back(std::string(name_space) + one.getPluginName() + one.getPluginVersion());
        return true;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept override { return nullptr; }
    IPluginCreatorInterface* getCreator(const AsciiChar*, const AsciiChar*, const AsciiChar*) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(const IPluginCreatorInterface&) noexcept override {
        ++removed;
        return true;
    }
    IPluginResource* acquirePluginResource(const AsciiChar*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(const AsciiChar*) noexcept override { return 0; }
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept { return nullptr; }

    std::vector<std::string> names;
    int removed = 0;
};

Registry registry;
int32_t version = NV_TENSORRT_MAJOR * 10000 + 300;

bool open_and_close(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return false;
    }
    return dlclose(library) == 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept { return version; }

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    bool good = open_and_close(argv[1]);
    good = good && registry.names == std::vector<std::string>{"DHeadDecode1", "DHeadDetect1"} && registry.removed == 2;
    registry.names.clear();
    version = (NV_TENSORRT_MAJOR + 1) * 10000;  // another major: its registry must not be touched
    good = good && open_and_close(argv[1]) && registry.names.empty() && registry.removed == 2;
    std::printf("%s\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}
