// Turns a fault of the running kernel thread (an access to a guard page) into a SimtError.
#pragma once

#include <csignal>

namespace robustcore::simt::host {

// While one lives, SIGSEGV, SIGBUS and SIGFPE of a kernel thread end its launch. Faults elsewhere
// take the way they took before.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

 private:
  struct sigaction previous_[3];
  stack_t previous_stack_;
};

}  // namespace robustcore::simt::host
