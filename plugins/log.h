// What the plugins have to say goes to TensorRT's own logger.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace dhead::plugins {

// The finder that TensorRT gave to setLoggerFinder; null: standard error.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

void log_error(const std::string& text) noexcept;

}  // namespace dhead::plugins
