// Errors that only the computation can find (a target out of range) still reach Python as the
// exception a user expects. The stable ABI turns every C++ exception into RuntimeError;
// python/robustcore/_errors.py recognises the marker and raises the named one with the bare
// message.
#pragma once

#include <sstream>
#include <stdexcept>

namespace robustcore {

template <class... Parts>
[[noreturn]] void raise(const char* python_exception, const Parts&... parts) {
  std::ostringstream message;
  message << "[robustcore:" << python_exception << "] ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

}  // namespace robustcore
