// The recorder of memory accesses: sees every load and store of kernels, and so finds races,
// unwritten memory and accesses out of bounds exactly, whatever the schedule.
//
// It hangs on the calls that compilers insert under -fsanitize=thread; access.cpp defines those
// calls instead of the sanitizer's library. In a build without them (SIMT_SANITIZE) it is idle.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fiber.h"
#include "memory.h"

namespace robustcore::simt::host {

bool records_accesses();            // whether this build can, and it is not turned off
void record_accesses(bool wanted);  // on from the start where the build can

void record_launch_start(const FiberPool& stacks, std::int64_t blocks);
void record_block_start();
void record_block_end();
void record_barrier();                           // all threads of the block have met
void record_warp_sync(int warp, unsigned mask);  // __syncwarp of these lanes
void record_fence();                             // __threadfence of the running thread
void record_switch();                            // another thread goes on
void begin_shared_array(const SharedSite& site);

// While one lives, the running thread's accesses are part of an atomic operation.
class AtomicAccess {
 public:
  AtomicAccess();
  ~AtomicAccess();
  AtomicAccess(const AtomicAccess&) = delete;
  AtomicAccess& operator=(const AtomicAccess&) = delete;
};

}  // namespace robustcore::simt::host
