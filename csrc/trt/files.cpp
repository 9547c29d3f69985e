#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "builder.h"

namespace dhead::trt {

void write_file(const std::string& path, const void* data, std::size_t size) {
    static std::atomic<unsigned> counter{0};
    std::string temporary;
    int fd = -1;
    do {  // a name nobody else uses, with the permissions that the user's umask gives
        temporary = path + "." + std::to_string(getpid()) + "-" + std::to_string(counter++) + ".tmp";
        fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd < 0 && errno == EEXIST);
    if (fd < 0) {
        throw Error(ErrorKind::kInput, "The file cannot be written: " + path, std::strerror(errno),
                    "a writable folder");
    }
    const char* at = static_cast<const char*>(data);
    int error = 0;
    for (std::size_t left = size; left > 0 && !error;) {
        const ssize_t n = ::write(fd, at, left);
        if (n < 0) {
            if (errno != EINTR) error = errno;
        } else {
            at += n;
            left -= static_cast<std::size_t>(n);
        }
    }
    if (!error && fsync(fd) != 0) error = errno;
    if (close(fd) != 0 && !error) error = errno;
    if (!error && std::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
    if (error) {
        std::remove(temporary.c_str());
        throw Error(ErrorKind::kInput, "The file cannot be written: " + path, std::strerror(error),
                    "space and permission");
    }
}

std::vector<char> read_file(const std::string& path, ErrorKind kind, const char* what) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) throw Error(kind, std::string(what) + " cannot be read: " + path, std::strerror(errno), "a readable file");
    const std::streamoff size = in.tellg();
    struct stat st{};
    if (size < 0 || stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) {
        throw Error(kind, std::string(what) + " cannot be read: " + path, "not a regular file", "a file");
    }
    std::vector<char> bytes(static_cast<std::size_t>(size));
    in.seekg(0);
    if (size > 0 && !in.read(bytes.data(), size)) {
        throw Error(kind, std::string(what) + " cannot be read: " + path, std::strerror(errno), "a readable file");
    }
    return bytes;
}

}  // namespace dhead::trt
