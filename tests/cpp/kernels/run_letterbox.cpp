// The letterbox kernel's own source, on the host (shim/grid.h), against the CPU code: the same bits, every element
// written, over random sizes, formats, crops, flips, batches and canvases.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "dhead/launch.h"
#include "dhead/letterbox.h"
#include "dhead/nv12.h"
#include "grid.h"

namespace {

using Bytes = std::unique_ptr<unsigned char[]>;
std::mt19937_64 rng{7};

int between(int low, int high) { return low + static_cast<int>(rng() % static_cast<std::uint64_t>(high - low + 1)); }

Bytes random_bytes(std::size_t n) {
    Bytes b(new unsigned char[n]);
    for (std::size_t i = 0; i < n; ++i) b[i] = static_cast<unsigned char>(rng());
    return b;
}

struct Image {
    Bytes data, chroma, rgb;  // rgb: what the CPU code is given for an NV12 image
    dhead::LetterboxSource device;
    dhead::LetterboxImage host;
};

enum Format { kRgb, kBgr, kFlipped, kCropped, kPlanar, kNv12, kFormats };

Image make_image(Format format, int height, int width) {
    Image im;
    dhead::LetterboxImage& d = im.device.image;
    const auto h = static_cast<std::size_t>(height), w = static_cast<std::size_t>(width);
    if (format == kNv12) {
        const std::size_t across = (w + 1) / 2 * 2, down = (h + 1) / 2;
        im.data = random_bytes(h * w);
        im.chroma = random_bytes(across * down);
        im.rgb = random_bytes(3 * h * w);
        for (std::size_t y = 0; y < h; ++y) {
            for (std::size_t x = 0; x < w; ++x) {
                const unsigned char* uv = im.chroma.get() + y / 2 * across + x / 2 * 2;
                const dhead::Rgb rgb = dhead::nv12_to_rgb(im.data[y * w + x], uv[0], uv[1]);
                unsigned char* to = im.rgb.get() + 3 * (y * w + x);
                to[0] = rgb.r, to[1] = rgb.g, to[2] = rgb.b;
            }
        }
        d.data = im.data.get();
        d.row_stride = width;
        d.pixel_stride = 1;
        im.device.chroma = im.chroma.get();
        im.device.chroma_stride = static_cast<std::int64_t>(across);
        im.host.data = im.rgb.get();
        im.host.row_stride = 3 * width;
        im.host.pixel_stride = 3;
        return im;
    }
    const std::size_t pitch = format == kCropped ? 3 * w + 5 : 3 * w, extra = format == kCropped ? 11 : 0;
    im.data = random_bytes(pitch * h + extra);
    d.data = im.data.get() + extra;
    d.row_stride = static_cast<std::int64_t>(pitch);
    d.pixel_stride = 3;
    if (format == kBgr) d.channel_offset[0] = 2, d.channel_offset[2] = 0;
    if (format == kFlipped) {
        d.data += (h - 1) * pitch;
        d.row_stride = -d.row_stride;
    }
    if (format == kPlanar) {
        d.row_stride = width;
        d.pixel_stride = 1;
        for (int c = 0; c < 3; ++c) d.channel_offset[c] = c * static_cast<std::int64_t>(h * w);
    }
    im.host = d;
    return im;
}

bool run(int count, int height, int width, dhead::DType dtype, bool misaligned) {
    const std::size_t element = dtype == dhead::DType::kFloat32 ? 4 : 2;
    const std::size_t image = 3 * static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * element;
    const std::size_t bytes = image * static_cast<std::size_t>(count), shift = misaligned ? element : 0;
    const auto pad = static_cast<unsigned char>(between(0, 255));
    std::vector<Image> images;
    std::vector<dhead::LetterboxSource> sources;
    for (int i = 0; i < count; ++i) {
        const int h = between(1, between(1, 300)), w = between(1, between(1, 300));
        images.push_back(make_image(static_cast<Format>(between(0, kFormats - 1)), h, w));
        images.back().device.geometry = dhead::letterbox_geometry(h, w, height, width, between(0, 3) != 0, false, 32);
        sources.push_back(images.back().device);
    }
    Bytes want(new unsigned char[bytes]);
    for (int i = 0; i < count; ++i)
        dhead::letterbox_cpu(images[static_cast<std::size_t>(i)].host, sources[static_cast<std::size_t>(i)].geometry,
                             pad, dtype, want.get() + static_cast<std::size_t>(i) * image, 1);
    for (const unsigned char poison : {0xFF, 0x00}) {
        Bytes got(new unsigned char[bytes + shift]);
        std::memset(got.get(), poison, bytes + shift);
        dhead_shim::configure(rng(), poison);
        if (dhead::letterbox_cuda(sources.data(), count, pad, dtype, got.get() + shift, nullptr) != cudaSuccess ||
            std::memcmp(got.get() + shift, want.get(), bytes) != 0) {
            std::fprintf(stderr, "letterbox differs: %d images, canvas %d x %d, %zu-byte elements\n", count, height,
                         width, element);
            return false;
        }
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 60;
    int failures = 0;
    for (int i = 0; i < rounds; ++i) {
        const auto dtype = i % 2 == 0 ? dhead::DType::kFloat32 : dhead::DType::kFloat16;
        failures += run(i % 20 == 0 ? 70 : between(1, 4), between(1, 90), between(1, 300), dtype, i % 3 == 0) ? 0 : 1;
    }
    failures += run(2, 96, 320, dhead::DType::kFloat16, false) ? 0 : 1;
    std::printf("%d rounds, %llu kernel launches, %d failures\n", rounds,
                static_cast<unsigned long long>(dhead_shim::launches()), failures);
    return failures == 0 ? 0 : 1;
}
