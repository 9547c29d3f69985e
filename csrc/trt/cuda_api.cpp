#include "cuda_api.h"

#include <dlfcn.h>

#include "library.h"

#ifdef DHEAD_TRT_STATIC_CUDART
#include <cuda_runtime_api.h>
#endif

namespace dhead::trt {

void CudaApi::fail(int status, const char* doing) const {
    const char* text = GetErrorString ? GetErrorString(status) : nullptr;
    if (GetLastError) GetLastError();  // clear it, so that the next caller does not find it
    const std::string what = text ? text : "error " + std::to_string(status);
    if (status == kCudaOutOfMemory) {
        std::size_t free_bytes = 0, total = 0;
        std::string left;
        if (MemGetInfo && MemGetInfo(&free_bytes, &total) == 0) {
            left = std::to_string(free_bytes >> 20) + " of " + std::to_string(total >> 20) + " MiB free";
        }
        throw Error(ErrorKind::kRuntime, std::string("Out of memory while ") + doing, left, "",
                    "Use a smaller batch or image, fewer contexts, or free memory on the device");
    }
    throw Error(ErrorKind::kRuntime, std::string("CUDA failed while ") + doing + ": " + what);
}

std::string CudaApi::device_name(int device) const {
    // cudaDeviceProp has grown over time (about 1 KiB now) and begins with char name[256].
    alignas(16) char properties[16384] = {};
    if (!GetDeviceProperties || GetDeviceProperties(properties, device) != 0) return "unknown";
    properties[255] = 0;
    return properties;
}

int CudaApi::device_count() const {
    int count = 0;
    const int status = GetDeviceCount(&count);
    if (status != 0 || count < 1) {
        const char* text = status != 0 && GetErrorString ? GetErrorString(status) : "no CUDA device";
        if (GetLastError) GetLastError();
        throw Error(ErrorKind::kUnavailable, "No NVIDIA GPU can be used on this machine", text ? text : "", "",
                    "Run on a machine with an NVIDIA GPU and driver, or build the model for the openvino backend");
    }
    return count;
}

namespace {

CudaApi from_shared(void* so, const std::string& path) {
    CudaApi api;
    std::string missing;
#define X(name, args)                                                  \
    api.name = reinterpret_cast<int(*) args>(dlsym(so, "cuda" #name)); \
    if (!api.name) missing += missing.empty() ? "cuda" #name : ", cuda" #name;
    DHEAD_CUDA_FUNCTIONS(X)
#undef X
    api.GetErrorString = reinterpret_cast<const char* (*)(int)>(dlsym(so, "cudaGetErrorString"));
    api.RuntimeGetVersion = reinterpret_cast<int (*)(int*)>(dlsym(so, "cudaRuntimeGetVersion"));
    for (const char* name : {"cudaGetDeviceProperties_v2", "cudaGetDeviceProperties"}) {
        if (!api.GetDeviceProperties) api.GetDeviceProperties = reinterpret_cast<int (*)(void*, int)>(dlsym(so, name));
    }
    if (!missing.empty()) {
        throw Error(ErrorKind::kUnavailable, "The CUDA runtime " + path + " lacks " + missing, "", "CUDA 11.4 or later",
                    "Install a newer CUDA runtime");
    }
    return api;
}

}  // namespace

bool has_static_cudart() {
#ifdef DHEAD_TRT_STATIC_CUDART
    return true;
#else
    return false;
#endif
}

CudaApi load_cuda(const std::string& path) {
    std::string why;
    auto open = [&](const std::string& file) {
        void* so = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!so) {
            const char* text = dlerror();
            why += (why.empty() ? "" : "; ") + (text ? std::string(text) : file);
        }
        return so;
    };
    if (!path.empty()) {
        if (void* so = open(path)) return from_shared(so, path);
    } else {
#ifdef DHEAD_TRT_STATIC_CUDART
        CudaApi api;
#define X(name, args) api.name = reinterpret_cast<int(*) args>(reinterpret_cast<void*>(&cuda##name));
        DHEAD_CUDA_FUNCTIONS(X)
#undef X
        api.GetErrorString = reinterpret_cast<const char* (*)(int)>(reinterpret_cast<void*>(&cudaGetErrorString));
        api.RuntimeGetVersion = reinterpret_cast<int (*)(int*)>(reinterpret_cast<void*>(&cudaRuntimeGetVersion));
        api.GetDeviceProperties = reinterpret_cast<int (*)(void*, int)>(
            reinterpret_cast<void*>(static_cast<cudaError_t (*)(cudaDeviceProp*, int)>(&cudaGetDeviceProperties)));
        return api;
#else
        for (const char* file : {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"}) {
            if (void* so = open(file)) return from_shared(so, file);
        }
#endif
    }
    throw Error(ErrorKind::kUnavailable, "The CUDA runtime cannot be loaded", why, "libcudart",
                "Install the CUDA runtime: pip install nvidia-cuda-runtime-cu12, the toolkit, or JetPack");
}

}  // namespace dhead::trt
