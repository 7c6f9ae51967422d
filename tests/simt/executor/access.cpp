#include "access.h"

namespace robustcore::simt::host {

bool records_accesses() { return false; }
void record_launch_start(const FiberPool&) {}
void record_block_start(std::int64_t) {}
void record_barrier() {}
void record_warp_sync(int, unsigned) {}
void record_fence() {}
AtomicAccess::AtomicAccess(const void*, std::size_t) {}
AtomicAccess::~AtomicAccess() {}
void begin_shared_array(const SharedSite&) {}

}  // namespace robustcore::simt::host
