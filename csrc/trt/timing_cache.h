// TensorRT's timing cache as a file that several processes may use at once.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <string>

namespace dhead::trt {

class TimingCache {
  public:
    // Gives the builder the cache in `path`, or a new one where the file is missing, empty or unreadable by this
    // version (a stale cache is no reason to fail; it is replaced). An empty path: none.
    TimingCache(nvinfer1::IBuilderConfig& config, std::string path);

    // Merges what this build measured with what other processes have written since, and replaces the file.
    void save(nvinfer1::IBuilderConfig& config) const;
    bool had_entries() const { return had_entries_; }

  private:
    std::string path_;
    std::unique_ptr<nvinfer1::ITimingCache> cache_;
    bool had_entries_ = false;
};

}  // namespace dhead::trt
