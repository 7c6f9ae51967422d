#include <cstdint>

#include "common/tensor.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace robustcore {

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kWorthwhile = int64_t{4} << 20;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (data == nullptr || bytes < kWorthwhile) return;
  // Only whole huge pages inside the buffer: its neighbours are somebody else's.
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Advice may fail (the kernel can lack the feature); the buffer works all the same.
  if (last > first) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace robustcore
