// TensorRT's log: forwarded to the user's function, and the errors kept, since they say why a call returned null.
#pragma once

#include <NvInfer.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "error.h"
#include "types.h"

namespace dhead::trt {

class Logger final : public nvinfer1::ILogger {
  public:
    using Sink = std::function<void(LogLevel, const std::string&)>;
    explicit Logger(Sink sink = {}) : sink_(std::move(sink)) {}

    void log(nvinfer1::ILogger::Severity severity, nvinfer1::AsciiChar const* text) noexcept override {
        try {
            const std::string message = text ? text : "";
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                if (severity <= nvinfer1::ILogger::Severity::kERROR) keep(errors_, message);
                if (severity == nvinfer1::ILogger::Severity::kWARNING) keep(warnings_, message);
            }
            if (sink_) sink_(static_cast<LogLevel>(severity), message);
        } catch (...) {  // a log line is not worth more
        }
    }

    // The errors since the last call, in one line each.
    std::string take_errors() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string all;
        for (const auto& e : errors_) all += (all.empty() ? "" : "; ") + e;
        errors_.clear();
        return all;
    }
    std::vector<std::string> warnings() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return warnings_;
    }

  private:
    static void keep(std::vector<std::string>& list, const std::string& message) {
        if (list.size() < 64 && std::find(list.begin(), list.end(), message) == list.end()) list.push_back(message);
    }

    Sink sink_;
    std::mutex mutex_;
    std::vector<std::string> errors_, warnings_;
};

class Library;
// Registers the plugins of each library once per process. Throws Error(kind).
void load_plugin_libraries(const Library& library, const std::vector<std::string>& paths, ErrorKind kind,
                           Logger& logger);

}  // namespace dhead::trt
