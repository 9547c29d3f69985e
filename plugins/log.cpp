#include "log.h"

#include <atomic>
#include <cstdio>

namespace dhead::plugins {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(const std::string& text) noexcept {
    try {
        nvinfer1::ILoggerFinder* finder = logger_finder;
        nvinfer1::ILogger* logger = finder != nullptr ? finder->findLogger() : nullptr;
        if (logger != nullptr)
            logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
        else
            std::fprintf(stderr, "[dhead_trt] %s\n", text.c_str());
    } catch (...) {  // a logger must not bring the engine down
    }
}

}  // namespace dhead::plugins
