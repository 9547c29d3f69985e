// What the JSON beside a plan says of it, for C++ programs; dhead_trt.Artifact is its Python side.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine.h"

namespace dhead::trt {

struct Sidecar {
    std::string backend, backend_version, form, precision, gpu;
    std::vector<std::string> compute_capabilities;
    std::size_t plan_size = 0;
    std::string plan_sha256;
    bool version_compatible = false;

    // The head; num_classes is 0 where the plan is a native graph that carries none.
    int num_classes = 0, bins = 0;
    std::vector<int> strides;
    bool pixel_distance = false, objectness = false;
    std::vector<std::string> names;

    // The sidecar of `plan`: the same path with the suffix .json. Throws ArtifactError: missing or damaged.
    static Sidecar load(const std::string& plan);
    // Throws ArtifactError where the plan's bytes are not those described.
    void verify(const void* plan, std::size_t size) const;
    // Options with what is expected of library and GPU filled in.
    EngineOptions expect(EngineOptions options = {}) const;
};

// A plan with its sidecar: reads both, compares them, and loads the engine. Throws as Sidecar::load and Engine do.
std::shared_ptr<Engine> load_engine(std::shared_ptr<Library> library, const std::string& plan, Sidecar* sidecar,
                                    EngineOptions options = {});

}  // namespace dhead::trt
