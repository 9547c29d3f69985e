// Errors of the C++ API.
#pragma once

#include <stdexcept>
#include <string>

namespace dhead {

// An argument is not of the form asked for.
class InvalidArgument : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

}  // namespace dhead

// Throws InvalidArgument with `message` (a string, or an expression that makes one) unless `condition` holds.
#define DHEAD_CHECK(condition, message)                              \
    do {                                                             \
        if (!(condition)) throw ::dhead::InvalidArgument((message)); \
    } while (false)
