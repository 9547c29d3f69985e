// The one error type of the builder and the engine. It carries the parts of a Python DheadError; the bindings translate
// it.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace dhead::trt {

enum class ErrorKind {
    kRuntime,      // DheadError: the device or TensorRT failed while running
    kInput,        // InputError: an argument is not of the form asked for
    kBuild,        // BuildError: TensorRT refused to build
    kArtifact,     // ArtifactError: a plan or its sidecar is damaged, or made for something else
    kUnavailable,  // BackendUnavailable: no library, no driver, no device
};

// What is wrong; what was found; what would have been right; what to do. Empty parts are left out of what().
class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, std::string problem, std::string received = {}, std::string expected = {},
          std::string fix = {})
        : std::runtime_error(text(problem, received, expected, fix)),
          kind(kind),
          problem(std::move(problem)),
          received(std::move(received)),
          expected(std::move(expected)),
          fix(std::move(fix)) {}

    ErrorKind kind;
    std::string problem, received, expected, fix;

  private:
    static std::string text(const std::string& problem, const std::string& received, const std::string& expected,
                            const std::string& fix) {
        std::string all = problem;
        if (!received.empty()) all += ": received " + received;
        if (!expected.empty()) all += (received.empty() ? ": expected " : ", expected ") + expected;
        all += '.';
        if (!fix.empty()) all += ' ' + fix + '.';
        return all;
    }
};

// A build stopped because the progress callback asked for it.
class Cancelled : public Error {
  public:
    Cancelled() : Error(ErrorKind::kBuild, "The build was cancelled", "", "", "") {}
};

}  // namespace dhead::trt
