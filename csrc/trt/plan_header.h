// What the first bytes of a plan tell, before TensorRT reads it.
#pragma once

#include <cstddef>
#include <string>

#include "library.h"

namespace dhead::trt {

// Refuses what cannot be a plan for this library: empty, another file format, another product, another major version, a
// truncated plan of TensorRT for RTX (whose header holds its size). Returns the version that wrote the plan,
// "10.14.1.48", or nothing where the header does not tell. Throws ArtifactError.
std::string check_plan_header(const Library& library, const void* plan, std::size_t size);

// Refuses a plan whose sidecar names another version or other GPUs. Throws ArtifactError.
struct EngineOptions;
void check_expectations(const Library& library, const EngineOptions& options, int compute_major, int compute_minor,
                        const std::string& device_name);

}  // namespace dhead::trt
