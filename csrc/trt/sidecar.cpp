#include "sidecar.h"

#include <utility>

#include "builder.h"
#include "json.h"
#include "sha256.h"

namespace dhead::trt {
namespace {

constexpr const char* kRebuild = "Build the engine again (dhead-trt build)";
using json::Value;
using Kind = Value::Kind;

std::string sidecar_path(const std::string& plan) {
    const auto slash = plan.rfind('/'), dot = plan.rfind('.');
    const bool suffix = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1);
    return (suffix ? plan.substr(0, dot) : plan) + ".json";
}

std::vector<std::string> texts(const Value& list) {
    std::vector<std::string> out;
    for (const auto& v : list.list) out.push_back(v.text);
    return out;
}

}  // namespace

Sidecar Sidecar::load(const std::string& plan) {
    const std::string path = sidecar_path(plan);
    const auto bytes = read_file(path, ErrorKind::kArtifact, "The sidecar");
    Sidecar s;
    try {
        const std::string text(bytes.begin(), bytes.end());
        const Value root = json::Parser(text).parse();
        s.backend = root.at("backend", Kind::kText).text;
        s.backend_version = root.at("backend_version", Kind::kText).text;
        s.form = root.at("form", Kind::kText).text;
        s.precision = root.at("precision", Kind::kText).text;
        if (const auto it = root.object.find("gpu"); it != root.object.end()) s.gpu = it->second.text;
        s.compute_capabilities = texts(root.at("compute_capabilities", Kind::kList));
        const auto& files = root.at("files", Kind::kList).list;
        if (files.empty()) throw std::runtime_error("it lists no files");
        s.plan_size = static_cast<std::size_t>(files[0].at("size", Kind::kNumber).number);
        s.plan_sha256 = files[0].at("sha256", Kind::kText).text;
        const auto& options = root.at("options", Kind::kObject).object;
        const auto compatible = options.find("version_compatible");
        s.version_compatible = compatible != options.end() && compatible->second.boolean;
        const auto spec = root.object.find("spec");
        if (spec != root.object.end() && spec->second.kind == Kind::kObject) {
            const Value& head = spec->second;
            s.num_classes = static_cast<int>(head.at("num_classes", Kind::kNumber).number);
            s.bins = static_cast<int>(head.at("bins", Kind::kNumber).number);
            for (const auto& v : head.at("strides", Kind::kList).list) s.strides.push_back(static_cast<int>(v.number));
            s.pixel_distance = head.at("distance_unit", Kind::kText).text == "pixel";
            s.objectness = head.at("objectness", Kind::kBool).boolean;
            s.names = texts(head.at("names", Kind::kList));
        }
    } catch (const std::runtime_error& e) {
        throw Error(ErrorKind::kArtifact, "The sidecar is not readable", path + ": " + e.what(), "", kRebuild);
    }
    return s;
}

void Sidecar::verify(const void* plan, std::size_t size) const {
    if (size < plan_size) {
        throw Error(ErrorKind::kArtifact, "The plan is truncated", std::to_string(size) + " bytes",
                    std::to_string(plan_size) + " bytes", kRebuild);
    }
    if (size != plan_size || sha256_hex(plan, size) != plan_sha256) {
        throw Error(ErrorKind::kArtifact,
                    "The plan is not the one its sidecar describes: it is damaged, or of another build",
                    std::to_string(size) + " bytes",
                    std::to_string(plan_size) + " bytes, sha256 " + plan_sha256.substr(0, 12) + "…", kRebuild);
    }
}

EngineOptions Sidecar::expect(EngineOptions options) const {
    options.expected_version = backend_version;
    options.expected_compute = compute_capabilities;
    options.version_compatible = options.host_code = version_compatible;
    return options;
}

std::shared_ptr<Engine> load_engine(std::shared_ptr<Library> library, const std::string& plan, Sidecar* sidecar,
                                    EngineOptions options) {
    Sidecar s = Sidecar::load(plan);
    const std::string wanted = library->is_rtx() ? "tensorrt_rtx" : "tensorrt";
    if (s.backend != wanted) {
        throw Error(ErrorKind::kArtifact, "The engine is of another backend", s.backend, wanted,
                    "Build it again with --backend " + wanted);
    }
    const auto bytes = read_file(plan, ErrorKind::kArtifact, "The plan");
    s.verify(bytes.data(), bytes.size());
    auto engine =
        std::make_shared<Engine>(std::move(library), bytes.data(), bytes.size(), s.expect(std::move(options)));
    if (sidecar) *sidecar = std::move(s);
    return engine;
}

}  // namespace dhead::trt
