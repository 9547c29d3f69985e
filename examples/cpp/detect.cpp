// detect <engine.plan> <image.ppm> [confidence]: prints class, score and box of every detection, one per line.
//
// The engine is one that dhead_trt built (plan and sidecar) for images, form raw or detections. Convert an image with
// e.g. `magick photo.jpg photo.ppm`.
#include <dhead/letterbox.h>
#include <dhead/trt/detect.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Image {
    int width = 0, height = 0;
    std::vector<uint8_t> rgb;
};

Image read_ppm(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::string magic;
    int most = 0;
    Image image;
    in >> magic >> image.width >> image.height >> most;
    if (!in || magic != "P6" || most != 255 || image.width < 1 || image.height < 1) {
        throw std::runtime_error(path + " is not a binary PPM image (P6, 255)");
    }
    in.get();
    image.rgb.resize(static_cast<std::size_t>(image.width) * image.height * 3);
    if (!in.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()))) {
        throw std::runtime_error(path + " is truncated");
    }
    return image;
}

int run(const std::string& plan, const std::string& image_path, double confidence) {
    namespace trt = dhead::trt;
    // TensorRT is found like any library, or in $DHEAD_TENSORRT_LIBRARY_DIR; the CUDA runtime may be named, too.
    trt::LibraryOptions where;
    if (const char* cudart = std::getenv("DHEAD_CUDART_LIBRARY")) where.cudart = cudart;
    trt::Sidecar sidecar;
    const auto engine = trt::load_engine(trt::Library::open(where), plan, &sidecar);
    const trt::TensorInfo& input = engine->inputs().at(0);
    const trt::Shape& opt = input.profiles.at(0).opt;
    if (engine->inputs().size() != 1 || opt.size() != 4 || opt[1] != 3 || input.type != trt::ElementType::kFloat32) {
        throw std::runtime_error("the engine does not take one float32 image [1, 3, H, W]");
    }
    const Image image = read_ppm(image_path);
    const auto g = dhead::letterbox_geometry(image.height, image.width, static_cast<int>(opt[2]),
                                             static_cast<int>(opt[3]), true, false, 32);
    std::vector<float> pixels(3 * static_cast<std::size_t>(g.height) * g.width);
    const dhead::LetterboxImage source{image.rgb.data(), 3 * int64_t{image.width}, 3, {0, 1, 2}};
    dhead::letterbox_cpu(source, g, 114, dhead::DType::kFloat32, pixels.data(),
                         static_cast<int>(std::thread::hardware_concurrency()));

    dhead::DetectOptions options;
    options.conf = confidence;
    const auto found =
        trt::detect(*engine, sidecar,
                    {{pixels.data(), trt::ElementType::kFloat32, {1, 3, g.height, g.width}, false, nullptr}}, options);
    for (int i = 0; i < found.num[0]; ++i) {
        const float* box = &found.boxes[static_cast<std::size_t>(i) * 4];
        const auto x = [&](float v) {
            return std::clamp((v - g.left) * image.width / g.resized_width, 0.F, static_cast<float>(image.width));
        };
        const auto y = [&](float v) {
            return std::clamp((v - g.top) * image.height / g.resized_height, 0.F, static_cast<float>(image.height));
        };
        const auto id = static_cast<std::size_t>(found.classes[static_cast<std::size_t>(i)]);
        const std::string name = id < sidecar.names.size() ? sidecar.names[id] : std::to_string(id);
        std::printf("%s %.3f %.1f %.1f %.1f %.1f\n", name.c_str(), found.scores[static_cast<std::size_t>(i)], x(box[0]),
                    y(box[1]), x(box[2]), y(box[3]));
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        std::fprintf(stderr, "usage: %s <engine.plan> <image.ppm> [confidence]\n", argv[0]);
        return 2;
    }
    try {
        return run(argv[1], argv[2], argc > 3 ? std::atof(argv[3]) : 0.25);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 2;
    }
}
