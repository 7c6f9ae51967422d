// Fibers: stacks that are switched by hand, so that the threads of a block can wait for each other
// within one operating-system thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace robustcore::simt::host {

#if defined(__SANITIZE_ADDRESS__)
#define RC_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RC_SIMT_ASAN 1
#endif
#endif
#ifndef RC_SIMT_ASAN
#define RC_SIMT_ASAN 0
#endif

// One suspended stack. The stack that called the executor is a fiber too (without memory of ours).
struct Fiber {
  void* context = nullptr;  // x86-64: the saved stack pointer; elsewhere a ucontext_t
  std::byte* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;
};

// A fixed number of fibers that all run the same entry function, which must never return. Their
// stacks lie in one reservation with an inaccessible page below each, and are touched only when
// used.
class FiberPool {
 public:
  using Entry = void (*)();

  FiberPool(int count, Entry entry);
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  Fiber& operator[](int index) { return fibers_[index]; }
  int size() const { return count_; }

  // Forgets whatever the fiber was doing: its next resumption starts at the entry function.
  void reset(Fiber& fiber);

  bool contains(std::uintptr_t address) const { return address - base_ < bytes_; }

 private:
  int count_;
  Entry entry_;
  Fiber* fibers_;
  std::uintptr_t base_ = 0;
  std::size_t bytes_ = 0;
};

// Suspends `from`, which must be the running fiber, and resumes `to`. `abandon` tells the sanitizer
// that `from` will never be resumed where it stands.
void switch_fiber(Fiber& from, Fiber& to, bool abandon = false);

// To be called first by an entry function.
void finish_first_switch();

// Fills in the bounds of the stack that is running, which the sanitizer wants to know when a fiber
// switches back to it.
void describe_running_stack(Fiber& caller);

}  // namespace robustcore::simt::host
