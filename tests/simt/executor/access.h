// Hooks that let the recorder of memory accesses follow a launch (access.cpp).
#pragma once

#include <cstdint>

#include "fiber.h"
#include "memory.h"

namespace robustcore::simt::host {

// Whether this build records every access of kernels (see README.md, "Two builds").
bool records_accesses();

void record_launch_start(const FiberPool& stacks);
void record_block_start(std::int64_t block);
void record_barrier();                           // all threads of the block have met
void record_warp_sync(int warp, unsigned mask);  // __syncwarp of these lanes
void record_fence();                             // __threadfence of the running thread

// While one lives, the running thread's accesses are part of an atomic operation.
class AtomicAccess {
 public:
  AtomicAccess(const void* address, std::size_t bytes);
  ~AtomicAccess();
  AtomicAccess(const AtomicAccess&) = delete;
  AtomicAccess& operator=(const AtomicAccess&) = delete;
};
void begin_shared_array(const SharedSite& site);

}  // namespace robustcore::simt::host
