#include "timing_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "builder.h"

namespace dhead::trt {
namespace {

// Holds an exclusive lock on `path`.lock for a scope. The lock file stays: removing it would let two processes in.
class FileLock {
  public:
    explicit FileLock(const std::string& path)
        : fd_(::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
        if (fd_ < 0) {
            throw Error(ErrorKind::kInput, "The timing cache cannot be locked: " + path + ".lock", std::strerror(errno),
                        "a writable folder");
        }
        while (flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
        }
    }
    ~FileLock() { ::close(fd_); }
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;

  private:
    int fd_;
};

std::vector<char> contents(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

TimingCache::TimingCache(nvinfer1::IBuilderConfig& config, std::string path) : path_(std::move(path)) {
    if (path_.empty()) return;
    std::vector<char> bytes;
    {
        const FileLock lock(path_);
        bytes = contents(path_);
    }
    if (!bytes.empty()) cache_.reset(config.createTimingCache(bytes.data(), bytes.size()));
    had_entries_ = cache_ && config.setTimingCache(*cache_, false);
    if (had_entries_) return;
    cache_.reset(config.createTimingCache(nullptr, 0));
    if (cache_) config.setTimingCache(*cache_, true);
}

void TimingCache::save(nvinfer1::IBuilderConfig& config) const {
    if (path_.empty()) return;
    const nvinfer1::ITimingCache* used = config.getTimingCache();
    if (!used) return;
    const FileLock lock(path_);
    // Another process may have written since: start from its entries and add ours.
    const std::vector<char> bytes = contents(path_);
    std::unique_ptr<nvinfer1::ITimingCache> merged;
    if (!bytes.empty()) merged.reset(config.createTimingCache(bytes.data(), bytes.size()));
    if (merged && !merged->combine(*used, false)) merged.reset();
    const std::unique_ptr<nvinfer1::IHostMemory> blob((merged ? merged.get() : used)->serialize());
    if (blob && blob->size() > 0) write_file(path_, blob->data(), blob->size());
}

}  // namespace dhead::trt
