#include "detect.h"

#include <algorithm>
#include <string>

#include "dhead/decode_cpu.h"
#ifdef DHEAD_TRT_KERNELS
#include "dhead/launch.h"
#endif

namespace dhead::trt {
namespace {

const Array& named(const Engine& engine, const std::vector<Array>& outputs, const std::string& name) {
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (engine.outputs()[i].name == name) return outputs[i];
    }
    throw Error(ErrorKind::kArtifact, "The plan lacks an output that its sidecar promises", "", name,
                "Build the engine again (dhead-trt build)");
}

HeadParams head_of(const Engine& engine, const Sidecar& s, const std::vector<Array>& maps) {
    HeadParams head;
    head.num_levels = static_cast<int32_t>(s.strides.size());
    if (head.num_levels < 1 || head.num_levels > kMaxLevels) {
        throw Error(ErrorKind::kArtifact, "The sidecar describes no head", std::to_string(head.num_levels) + " levels",
                    "1 to " + std::to_string(kMaxLevels));
    }
    head.num_classes = s.num_classes;
    head.bins = s.bins;
    head.pixel_distance = s.pixel_distance;
    for (int i = 0; i < head.num_levels; ++i) {
        const std::string n = std::to_string(i);
        const Array &box = named(engine, maps, "box_" + n), &cls = named(engine, maps, "cls_" + n);
        const Shape wanted{box.shape.empty() ? 0 : box.shape[0], 4 * s.bins, box.shape.size() > 2 ? box.shape[2] : 0,
                           box.shape.size() > 3 ? box.shape[3] : 0};
        Shape classes = wanted;
        classes[1] = s.num_classes;
        if (box.shape != wanted || cls.shape != classes || cls.type != box.type ||
            (box.type != ElementType::kFloat32 && box.type != ElementType::kFloat16)) {
            throw Error(ErrorKind::kArtifact, "The plan's maps are not those of its sidecar",
                        "box_" + n + " " + to_string(box.shape) + ", cls_" + n + " " + to_string(cls.shape),
                        to_string(wanted) + ", " + to_string(classes));
        }
        LevelMaps& level = head.levels[i];
        level.box = box.data;
        level.cls = cls.data;
        level.obj = s.objectness ? named(engine, maps, "obj_" + n).data : nullptr;
        level.height = static_cast<int32_t>(box.shape[2]);
        level.width = static_cast<int32_t>(box.shape[3]);
        level.stride = static_cast<float>(s.strides[static_cast<std::size_t>(i)]);
        head.batch = static_cast<int32_t>(box.shape[0]);
        head.dtype = box.type == ElementType::kFloat32 ? DType::kFloat32 : DType::kFloat16;
    }
    return head;
}

Detections sized(int batch, int max_det) {
    Detections d;
    const auto b = static_cast<std::size_t>(batch), k = static_cast<std::size_t>(max_det);
    d.batch = batch;
    d.max_det = max_det;
    d.num.resize(b);
    d.boxes.resize(b * k * 4);
    d.scores.resize(b * k);
    d.classes.resize(b * k);
    return d;
}

// The outputs in host memory of their own.
std::vector<Array> run_to_host(const Engine& engine, const std::vector<Array>& inputs,
                               std::vector<std::vector<char>>* memory) {
    std::vector<Shape> shapes;
    for (const auto& a : inputs) shapes.push_back(a.shape);
    const auto out_shapes = engine.output_shapes(shapes);
    std::vector<Array> outputs;
    for (std::size_t i = 0; i < out_shapes.size(); ++i) {
        const ElementType type = engine.outputs()[i].type;
        memory->emplace_back(num_elements(out_shapes[i]) * element_size(type));
        outputs.push_back({memory->back().data(), type, out_shapes[i], false, nullptr});
    }
    engine.infer(inputs, outputs);
    return outputs;
}

Detections own_detections(const Engine& engine, const std::vector<Array>& inputs) {
    std::vector<std::vector<char>> memory;
    const auto outputs = run_to_host(engine, inputs, &memory);
    const Array &num = named(engine, outputs, "num_dets"), &boxes = named(engine, outputs, "det_boxes");
    const Array &scores = named(engine, outputs, "det_scores"), &classes = named(engine, outputs, "det_classes");
    Detections d = sized(static_cast<int>(boxes.shape.at(0)), static_cast<int>(boxes.shape.at(1)));
    std::copy_n(static_cast<const int32_t*>(num.data), d.num.size(), d.num.begin());
    std::copy_n(static_cast<const float*>(boxes.data), d.boxes.size(), d.boxes.begin());
    std::copy_n(static_cast<const float*>(scores.data), d.scores.size(), d.scores.begin());
    std::copy_n(static_cast<const int32_t*>(classes.data), d.classes.size(), d.classes.begin());
    return d;
}

#ifdef DHEAD_TRT_KERNELS
Detections on_device(const Engine& engine, const Sidecar& sidecar, const std::vector<Array>& inputs,
                     DetectOptions options) {
    struct Device {  // the launchers use the current one
        explicit Device(int device) {
            cudaGetDevice(&previous);
            cudaSetDevice(device);
        }
        ~Device() { cudaSetDevice(previous); }
        int previous = 0;
    } const device(engine.device());
    InferOptions on;  // all on the default stream, in order
    on.has_stream = true;
    std::vector<Array> maps(engine.outputs().size());
    engine.infer(inputs, maps, on);
    const HeadParams head = head_of(engine, sidecar, maps);
    Detections d = sized(head.batch, options.max_det);
    d.dropped.resize(d.num.size());
    const auto n = [&](const auto& v) { return engine.allocate(v.size() * 4, nullptr); };
    const auto num = n(d.num), boxes = n(d.boxes), scores = n(d.scores), classes = n(d.classes), dropped = n(d.dropped);
    std::shared_ptr<void> mask;
    if (options.class_mask) {
        mask = engine.allocate(static_cast<std::size_t>(head.num_classes), nullptr);
        engine.copy_to_device(mask.get(), options.class_mask, static_cast<std::size_t>(head.num_classes), nullptr);
        options.class_mask = static_cast<const uint8_t*>(mask.get());
    }
    const std::size_t bytes = detect_workspace_bytes(head, options);
    const auto workspace = engine.allocate(std::max<std::size_t>(bytes, 1), nullptr);
    const DetectOutputs out{static_cast<int32_t*>(num.get()), static_cast<float*>(boxes.get()),
                            static_cast<float*>(scores.get()), static_cast<int32_t*>(classes.get()),
                            static_cast<int32_t*>(dropped.get())};
    const cudaError_t status = detect_cuda(head, options, nullptr, out, workspace.get(), bytes, nullptr);
    if (status != cudaSuccess) {
        throw Error(status == cudaErrorInvalidValue ? ErrorKind::kInput : ErrorKind::kRuntime,
                    std::string("The detect kernels failed: ") + cudaGetErrorString(status));
    }
    const auto back = [&](auto& to, const std::shared_ptr<void>& from) {
        engine.copy_to_host(to.data(), from.get(), to.size() * 4, nullptr);
    };
    back(d.num, num);
    back(d.boxes, boxes);
    back(d.scores, scores);
    back(d.classes, classes);
    back(d.dropped, dropped);
    return d;
}
#endif

}  // namespace

Detections detect(const Engine& engine, const Sidecar& sidecar, const std::vector<Array>& inputs,
                  const DetectOptions& options) {
    if (sidecar.form == "detections") return own_detections(engine, inputs);
    if (sidecar.form != "raw") {
        throw Error(ErrorKind::kInput, "This plan gives neither raw maps nor detections", "form " + sidecar.form,
                    "form raw or detections", "Build it with --form raw");
    }
#ifdef DHEAD_TRT_KERNELS
    return on_device(engine, sidecar, inputs, options);
#else
    std::vector<std::vector<char>> memory;
    const auto maps = run_to_host(engine, inputs, &memory);
    const HeadParams head = head_of(engine, sidecar, maps);
    Detections d = sized(head.batch, options.max_det);
    d.dropped.resize(d.num.size());
    try {
        detect_cpu(head, options, {d.num.data(), d.boxes.data(), d.scores.data(), d.classes.data(), d.dropped.data()});
    } catch (const std::invalid_argument& e) {
        throw Error(ErrorKind::kInput, e.what());
    }
    return d;
#endif
}

}  // namespace dhead::trt
