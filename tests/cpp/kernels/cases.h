// The shared case table as tests/cases.py --dump writes it, for programs without Python.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dhead/params.h"

namespace dhead_test {

using Bytes = std::vector<unsigned char>;

struct Case {
    std::string name;
    dhead::HeadParams params;  // without pointers
    bool objectness = false;
    dhead::DetectOptions options;
    bool some_classes = false;
    std::vector<uint8_t> class_mask;
    Bytes maps[dhead::kMaxLevels][3];  // box, cls, obj

    std::size_t anchors() const { return static_cast<std::size_t>(params.num_anchors()); }
    std::size_t batch() const { return static_cast<std::size_t>(params.batch); }
};

inline Bytes read_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error("cannot read " + path.string());
    return Bytes(std::istreambuf_iterator<char>(in), {});
}

inline void write_file(const std::filesystem::path& path, const void* data, std::size_t bytes) {
    std::ofstream out(path, std::ios::binary);
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    if (!out) throw std::runtime_error("cannot write " + path.string());
}

inline Case read_case(const std::filesystem::path& directory, const std::string& line) {
    Case c;
    std::istringstream in(line);
    int pixel = 0, objectness = 0, half = 0, agnostic = 0, multi = 0, wanted = 0;
    in >> c.name >> c.params.batch >> c.params.num_classes >> c.params.bins >> pixel >> objectness >> half >>
        c.params.num_levels;
    c.params.pixel_distance = pixel != 0;
    c.params.dtype = half != 0 ? dhead::DType::kFloat16 : dhead::DType::kFloat32;
    c.objectness = objectness != 0;
    for (int i = 0; i < c.params.num_levels; ++i)
        in >> c.params.levels[i].stride >> c.params.levels[i].height >> c.params.levels[i].width;
    in >> c.options.conf >> c.options.iou >> c.options.max_candidates >> c.options.max_det >> agnostic >> multi >>
        wanted;
    c.options.class_agnostic = agnostic != 0;
    c.options.multi_label = multi != 0;
    if (wanted >= 0) {
        c.some_classes = true;
        c.class_mask.assign(static_cast<std::size_t>(c.params.num_classes), 0);
        for (int i = 0, index = 0; i < wanted; ++i) {
            in >> index;
            c.class_mask.at(static_cast<std::size_t>(index)) = 1;
        }
    }
    if (!in) throw std::runtime_error("cannot parse: " + line);
    const char* kinds[] = {"box_", "cls_", "obj_"};
    for (int i = 0; i < c.params.num_levels; ++i)
        for (int k = 0; k < (c.objectness ? 3 : 2); ++k)
            c.maps[i][k] = read_file(directory / c.name / (kinds[k] + std::to_string(i) + ".bin"));
    return c;
}

inline std::vector<std::string> read_table(const std::filesystem::path& directory) {
    std::ifstream in(directory / "cases.txt");
    if (!in) throw std::runtime_error("no cases.txt in " + directory.string());
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);)
        if (!line.empty()) lines.push_back(line);
    return lines;
}

}  // namespace dhead_test
