#include "library.h"

#include <NvInfer.h>
#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_api.h"
#include "parser.h"
#include "versions.h"

namespace dhead::trt {
namespace {

struct SharedObject {
    void* handle = nullptr;
    std::string path;
};

void add(std::string* why, const std::string& reason) { *why += (why->empty() ? "" : "; ") + reason; }

// Opens a library and keeps it: TensorRT leaves threads and thread-local destructors behind, so it is never closed.
SharedObject try_open(const std::string& file, std::string* why) {
    void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char* text = dlerror();
        add(why, text ? text : file + ": cannot be opened");
    }
    return {handle, file};
}

template <typename F>
F symbol(const SharedObject& so, const char* name) {
    return reinterpret_cast<F>(dlsym(so.handle, name));
}

bool is_directory(const std::string& path) {
    struct stat st{};
    return stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

// The path of the file that holds a symbol: what the loader really chose.
std::string file_of(void* function, const std::string& fallback) {
    Dl_info info{};
    return dladdr(function, &info) && info.dli_fname ? info.dli_fname : fallback;
}

std::string directory_of(const std::string& path) {
    const auto slash = path.rfind('/');
    return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

}  // namespace

struct Library::Impl {
    SharedObject nvinfer;
    int number = 0;  // getInferLibVersion()
    std::string version;
    bool rtx = false;
    std::string cudart_path;

    void* (*create_builder)(void*, int32_t) = nullptr;
    void* (*create_runtime)(void*, int32_t) = nullptr;
    void* (*registry)() = nullptr;

    std::mutex mutex;
    void* (*create_parser)(void*, void*, int) = nullptr;
    bool cuda_loaded = false;
    CudaApi cuda;
};

std::vector<DeviceInfo> list_devices(const Library& library) {
    const CudaApi& cuda = library.cuda();
    std::vector<DeviceInfo> devices;
    for (int i = 0, n = cuda.device_count(); i < n; ++i) {
        DeviceInfo info;
        info.name = cuda.device_name(i);
        cuda.check(cuda.DeviceGetAttribute(&info.compute_major, kCudaAttrMajor, i),
                   "asking for the compute capability");
        cuda.check(cuda.DeviceGetAttribute(&info.compute_minor, kCudaAttrMinor, i),
                   "asking for the compute capability");
        devices.push_back(std::move(info));
    }
    return devices;
}

std::string header_version() { return versions::text(versions::kHeaders); }

bool has_kernels() {
#ifdef DHEAD_TRT_KERNELS
    return true;
#else
    return false;
#endif
}

namespace {

// Looks the entry points up and checks the version. Returns null and appends to `why` if this is not the one wanted.
std::shared_ptr<Library> adopt(const SharedObject& so, const LibraryOptions& options, std::string* why) {
    auto impl = std::make_unique<Library::Impl>();
    auto get_version = symbol<int32_t (*)()>(so, "getInferLibVersion");
    impl->create_builder = symbol<void* (*)(void*, int32_t)>(so, "createInferBuilder_INTERNAL");
    impl->create_runtime = symbol<void* (*)(void*, int32_t)>(so, "createInferRuntime_INTERNAL");
    impl->registry = symbol<void* (*)()>(so, "getPluginRegistry");
    // A lean or dispatch runtime has no builder: engines still run. A library without a runtime is something else.
    if (!get_version || !impl->create_runtime) {
        add(why, so.path + ": has none of TensorRT's entry points");
        return nullptr;
    }
    impl->nvinfer = so;
    impl->nvinfer.path = file_of(reinterpret_cast<void*>(get_version), so.path);
    impl->number = get_version();
    impl->rtx = options.rtx;
    const auto found = versions::decode(impl->number, options.rtx);
    impl->version = versions::text(found);
    impl->cudart_path = options.cudart;
    const std::string problem = versions::why_incompatible(found, options.rtx);
    if (!problem.empty()) {
        add(why, impl->nvinfer.path + ": " + problem);
        return nullptr;
    }
    return std::make_shared<Library>(std::move(impl));
}

[[noreturn]] void not_found(const LibraryOptions& options, const std::string& why, bool explicit_place) {
    const std::string product = options.rtx ? "TensorRT for RTX" : "TensorRT";
    const std::string wanted = versions::wanted(options.rtx);
    const std::string fix =
        explicit_place
            ? "Correct that path, or leave it out to search the pip packages and the system"
            : (options.rtx ? std::string("Install it with: pip install \"dhead-trt[rtx]\"")
                           : "Install it (pip install \"dhead-trt[trt]\", the SDK or JetPack), or name its folder in "
                             "DHEAD_TENSORRT_LIBRARY_DIR");
    throw Error(ErrorKind::kUnavailable, product + " cannot be loaded", why, wanted, fix);
}

}  // namespace

std::shared_ptr<Library> Library::open(const LibraryOptions& options) {
    if (options.rtx && versions::kHeaders.major < 11) {
        throw Error(ErrorKind::kUnavailable, "This module cannot drive TensorRT for RTX",
                    "a build against TensorRT " + header_version() + " headers", "TensorRT 11 headers",
                    "Use the module built for TensorRT 11");
    }
    const std::string soname = versions::soname(options.rtx);
    std::string why;
    std::vector<std::string> files;
    auto look_in = [&](const std::string& place) {
        if (!is_directory(place)) {
            files.push_back(place);
            return;
        }
        files.push_back(place + "/" + soname);
        if (is_directory(place + "/lib")) files.push_back(place + "/lib/" + soname);
    };
    const char* env = std::getenv("DHEAD_TENSORRT_LIBRARY_DIR");
    const bool from_env = options.path.empty() && env && *env && !options.rtx;
    const bool explicit_place = !options.path.empty() || from_env;
    if (!options.path.empty()) {
        look_in(options.path);
    } else if (from_env) {
        look_in(env);
    } else {
        for (const auto& dir : options.package_dirs) look_in(dir);
        files.push_back(soname);
    }

    static std::mutex mutex;
    static auto& opened = *new std::map<std::pair<std::string, std::string>, std::shared_ptr<Library>>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& file : files) {
        const auto key = std::make_pair(file, options.cudart + (options.rtx ? "|rtx" : ""));
        if (auto it = opened.find(key); it != opened.end()) return it->second;
        const SharedObject so = try_open(file, &why);
        if (!so.handle) continue;
        if (auto library = adopt(so, options, &why)) return opened[key] = library;
    }
    not_found(options, why, explicit_place);
}

Library::Library(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Library::~Library() = default;

const std::string& Library::path() const { return impl_->nvinfer.path; }
const std::string& Library::version() const { return impl_->version; }
bool Library::is_rtx() const { return impl_->rtx; }
const char* Library::product() const { return impl_->rtx ? "TensorRT for RTX" : "TensorRT"; }

bool Library::at_least(int major, int minor) const {
    const auto v = impl_->rtx ? versions::kHeaders : versions::decode(impl_->number, false);
    return v.major > major || (v.major == major && v.minor >= minor);
}

void* Library::create_builder(void* logger) const {
    if (!impl_->create_builder) {
        throw Error(ErrorKind::kUnavailable, "This TensorRT library cannot build engines", path(),
                    "libnvinfer, not its lean or dispatch runtime", "");
    }
    void* builder = impl_->create_builder(logger, impl_->number);
    if (!builder) throw Error(ErrorKind::kUnavailable, "TensorRT could not create a builder", path());
    return builder;
}

void* Library::create_runtime(void* logger) const {
    void* runtime = impl_->create_runtime(logger, impl_->number);
    if (!runtime) throw Error(ErrorKind::kUnavailable, "TensorRT could not create a runtime", path());
    return runtime;
}

void* Library::plugin_registry() const { return impl_->registry ? impl_->registry() : nullptr; }

void* Library::create_parser(void* network, void* logger) const {
    {
        const std::lock_guard<std::mutex> lock(impl_->mutex);
        if (!impl_->create_parser) {
            const std::string soname = versions::parser_soname(impl_->rtx), dir = directory_of(path());
            std::string why;
            for (const auto& file : {dir.empty() ? soname : dir + "/" + soname, soname}) {
                const SharedObject so = try_open(file, &why);
                if (!so.handle) continue;
                impl_->create_parser = symbol<void* (*)(void*, void*, int)>(so, "createNvOnnxParser_INTERNAL");
                if (impl_->create_parser) break;
                add(&why, file + ": has no createNvOnnxParser_INTERNAL");
            }
            if (!impl_->create_parser) {
                throw Error(ErrorKind::kUnavailable, "TensorRT's ONNX parser cannot be loaded", why,
                            soname + " beside " + path(), "Install the parser of the same TensorRT release");
            }
        }
    }
    void* parser = impl_->create_parser(network, logger, kOnnxParserVersion);
    if (!parser) throw Error(ErrorKind::kUnavailable, "TensorRT could not create an ONNX parser", path());
    return parser;
}

const CudaApi& Library::cuda() const {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    if (!impl_->cuda_loaded) {
        impl_->cuda = load_cuda(impl_->cudart_path);
        impl_->cuda_loaded = true;
    }
    return impl_->cuda;
}

}  // namespace dhead::trt
