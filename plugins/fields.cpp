#include "fields.h"

#include <cmath>
#include <cstring>
#include <sstream>

#include "dhead/params.h"

namespace dhead::plugins {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int32_t kMostDetections = 1 << 20;

struct IntField {
    const char* name;
    int32_t Fields::* member;
    int32_t low, high;
    bool required;
};
constexpr IntField kHeadInts[] = {
    {"num_classes", &Fields::num_classes, 1, 1 << 24, true},
    {"bins", &Fields::bins, 1, kMaxBins, true},
    {"pixel_distance", &Fields::pixel_distance, 0, 1, false},
    {"objectness", &Fields::objectness, 0, 1, false},
};
constexpr IntField kDetectInts[] = {
    {"max_candidates", &Fields::max_candidates, 1, kMostDetections, false},
    {"max_det", &Fields::max_det, 1, kMostDetections, false},
    {"class_agnostic", &Fields::class_agnostic, 0, 1, false},
    {"multi_label", &Fields::multi_label, 0, 1, false},
};

struct FloatField {
    const char* name;
    float Fields::* member;
};
constexpr FloatField kDetectFloats[] = {{"conf", &Fields::conf}, {"iou", &Fields::iou}};

// Calls on_int, on_float and on_strides for every field of the op, in one fixed order.
template <class OnInt, class OnFloat, class OnStrides>
void for_each_field(Op op, OnInt on_int, OnFloat on_float, OnStrides on_strides) {
    for (const IntField& f : kHeadInts) on_int(f);
    on_strides("strides");
    if (op != Op::kDetect) return;
    for (const FloatField& f : kDetectFloats) on_float(f);
    for (const IntField& f : kDetectInts) on_int(f);
}

const char* op_name(Op op) { return op == Op::kDecode ? "DHeadDecode" : "DHeadDetect"; }

[[noreturn]] void refuse(Op op, const std::string& text) { throw BadPlugin(std::string(op_name(op)) + ": " + text); }

const PluginField& typed(Op op, const PluginField& f, PluginFieldType type, const char* what, bool single) {
    if (f.type != type || f.data == nullptr || f.length < 1 || (single && f.length != 1))
        refuse(op, std::string("field '") + f.name + "' must be " + what + "; received type " +
                       std::to_string(static_cast<int>(f.type)) + ", length " + std::to_string(f.length));
    return f;
}

template <class T>
T value_at(const PluginField& f, int32_t index) {
    T value;
    std::memcpy(&value, static_cast<const unsigned char*>(f.data) + sizeof(T) * static_cast<std::size_t>(index),
                sizeof(T));
    return value;
}

}  // namespace

std::vector<PluginField> field_names(Op op) {
    std::vector<PluginField> names;
    for_each_field(
        op, [&](const IntField& f) { names.emplace_back(f.name, nullptr, PluginFieldType::kINT32, 1); },
        [&](const FloatField& f) { names.emplace_back(f.name, nullptr, PluginFieldType::kFLOAT32, 1); },
        [&](const char* name) { names.emplace_back(name, nullptr, PluginFieldType::kINT32, kMaxLevels); });
    return names;
}

Fields read_fields(Op op, const nvinfer1::PluginFieldCollection* collection) {
    if (collection == nullptr || collection->nbFields < 0 ||
        (collection->nbFields > 0 && collection->fields == nullptr))
        refuse(op, "no fields were given");
    Fields result;
    std::vector<bool> used(static_cast<std::size_t>(collection->nbFields), false);
    const auto find = [&](const char* name) -> const PluginField* {
        const PluginField* found = nullptr;
        for (int32_t i = 0; i < collection->nbFields; ++i) {
            const PluginField& f = collection->fields[i];
            if (f.name == nullptr || std::strcmp(f.name, name) != 0) continue;
            if (found != nullptr) refuse(op, std::string("field '") + name + "' was given twice");
            used[static_cast<std::size_t>(i)] = true;
            found = &f;
        }
        return found;
    };
    for_each_field(
        op,
        [&](const IntField& f) {
            const PluginField* given = find(f.name);
            if (given == nullptr) {
                if (f.required) refuse(op, std::string("field '") + f.name + "' is missing");
                return;
            }
            const auto v = value_at<int32_t>(typed(op, *given, PluginFieldType::kINT32, "one int32", true), 0);
            if (v < f.low || v > f.high)
                refuse(op, std::string("field '") + f.name + "' is " + std::to_string(v) + "; it must be from " +
                               std::to_string(f.low) + " to " + std::to_string(f.high));
            result.*f.member = v;
        },
        [&](const FloatField& f) {
            const PluginField* given = find(f.name);
            if (given == nullptr) return;
            const auto v = value_at<float>(typed(op, *given, PluginFieldType::kFLOAT32, "one float32", true), 0);
            if (!(v >= 0.F && v <= 1.F))
                refuse(op, std::string("field '") + f.name + "' is " + std::to_string(v) + "; it must be from 0 to 1");
            result.*f.member = v;
        },
        [&](const char* name) {
            const PluginField* given = find(name);
            if (given == nullptr) refuse(op, "field 'strides' is missing");
            typed(op, *given, PluginFieldType::kINT32, "int32, one per level", false);
            if (given->length > kMaxLevels)
                refuse(op, "field 'strides' has " + std::to_string(given->length) + " values; at most " +
                               std::to_string(kMaxLevels) + " levels are supported");
            for (int32_t i = 0; i < given->length; ++i) {
                const auto v = value_at<int32_t>(*given, i);
                if (v < 1 || v > 1 << 24)
                    refuse(op, "field 'strides' holds " + std::to_string(v) + "; it must be positive");
                result.strides.push_back(v);
            }
        });
    (void)find("plugin_version");
    (void)find("plugin_namespace");
    for (std::size_t i = 0; i < used.size(); ++i) {
        const char* name = collection->fields[i].name;
        if (!used[i]) refuse(op, std::string("field '") + (name != nullptr ? name : "(null)") + "' is not known");
    }
    return result;
}

std::vector<PluginField> write_fields(Op op, const Fields& fields) {
    std::vector<PluginField> out;
    for_each_field(
        op, [&](const IntField& f) { out.emplace_back(f.name, &(fields.*f.member), PluginFieldType::kINT32, 1); },
        [&](const FloatField& f) { out.emplace_back(f.name, &(fields.*f.member), PluginFieldType::kFLOAT32, 1); },
        [&](const char* name) {
            out.emplace_back(name, fields.strides.data(), PluginFieldType::kINT32, fields.num_levels());
        });
    return out;
}

std::string to_text(Op op, const Fields& fields) {
    std::ostringstream out;
    out.precision(9);
    for_each_field(
        op, [&](const IntField& f) { out << f.name << '=' << fields.*f.member << ' '; },
        [&](const FloatField& f) { out << f.name << '=' << fields.*f.member << ' '; },
        [&](const char* name) {
            out << name << '=';
            for (int32_t s : fields.strides) out << s << ',';
            out << ' ';
        });
    return out.str();
}

}  // namespace dhead::plugins
