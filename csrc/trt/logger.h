// TensorRT's log: forwarded to the user's function, and the errors kept, since they say why a call returned null.
#pragma once

#include <NvInfer.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "types.h"

namespace dhead::trt {

class Logger final : public nvinfer1::ILogger {
  public:
    using Sink = std::function<void(LogLevel, const std::string&)>;

    // For another owner: forgets what the last one was told.
    void start(Sink sink) {
        const std::lock_guard<std::mutex> lock(mutex_);
        sink_ = std::move(sink);
        errors_.clear();
        warnings_.clear();
    }

    void log(nvinfer1::ILogger::Severity severity, nvinfer1::AsciiChar const* text) noexcept override {
        try {
            const std::string message = text ? text : "";
            Sink sink;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                if (severity <= nvinfer1::ILogger::Severity::kERROR) keep(errors_, message);
                if (severity == nvinfer1::ILogger::Severity::kWARNING) keep(warnings_, message);
                sink = sink_;
            }
            if (sink) sink(static_cast<LogLevel>(severity), message);
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

// A logger for one builder or engine. TensorRT goes on using the first logger it was given for what belongs to neither
// (plugin libraries), whether its owner is still there or not: loggers are never freed, but handed on.
class LoggerOwner {
  public:
    explicit LoggerOwner(Logger::Sink sink = {}) {
        {
            Idle& idle = Idle::get();
            const std::lock_guard<std::mutex> lock(idle.mutex);
            if (!idle.loggers.empty()) {
                logger_ = std::move(idle.loggers.back());
                idle.loggers.pop_back();
            }
            idle.loggers.reserve(++idle.alive);  // so that the destructor need not allocate
        }
        if (!logger_) logger_ = std::make_unique<Logger>();
        logger_->start(std::move(sink));
    }
    ~LoggerOwner() {
        logger_->start({});
        Idle& idle = Idle::get();
        const std::lock_guard<std::mutex> lock(idle.mutex);
        --idle.alive;
        idle.loggers.push_back(std::move(logger_));
    }
    LoggerOwner(const LoggerOwner&) = delete;
    LoggerOwner& operator=(const LoggerOwner&) = delete;
    Logger& operator*() const { return *logger_; }

  private:
    struct Idle {
        static Idle& get() {
            static Idle& idle = *new Idle;
            return idle;
        }
        std::mutex mutex;
        std::size_t alive = 0;
        std::vector<std::unique_ptr<Logger>> loggers;
    };
    std::unique_ptr<Logger> logger_;
};

class Library;
// Registers the plugins of each library once per process. Throws Error(kind).
void load_plugin_libraries(const Library& library, const std::vector<std::string>& paths, ErrorKind kind,
                           Logger& logger);

}  // namespace dhead::trt
