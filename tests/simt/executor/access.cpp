#include "access.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

#include "cuda_vectors.h"
#include "executor.h"

extern uint3 blockIdx;

namespace robustcore::simt::host {
namespace {

constexpr int kWarpLanes = 32;
constexpr std::uint64_t kMaximumAccesses = 50'000'000;  // of one thread without waiting once

// Who touched an element, and when: `interval` counts the stretches between the barriers of a
// block over all blocks and launches, `clock` the warp synchronisations of the lane within it.
struct Touch {
  std::uint32_t interval = 0;  // 0: never
  std::uint32_t thread : 11 = 0;
  std::uint32_t clock : 20 = 0;
  std::uint32_t atomic : 1 = 0;
};

// The last write, and two reads that later writes are compared with. A third reader that is ordered
// with neither is forgotten: a race with only that one goes unseen.
struct Cell {
  Touch write;
  Touch reads[2];
};

struct Region {
  const char* kind = nullptr;  // of the error for an access beyond it; null: not device memory
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
  std::size_t element_bytes = 1;
  std::size_t cell_bytes = 1;
  Cell* cells = nullptr;  // null where nothing can go wrong: inputs
  bool written = false;   // before the launch
  const GuardedBuffer* buffer = nullptr;
};

class Recorder {
 public:
  bool active = false;
  int atomic_depth = 0;

  void start_launch(const FiberPool& stacks, std::int64_t blocks) {
    stacks_ = &stacks;
    first_interval_ = interval_ + 1;
    interval_block_.clear();
    fence_interval_.assign(static_cast<std::size_t>(blocks), 0);
    last_ = {};
    if (shared_cells_.empty()) shared_cells_.resize(shared_memory().capacity());
  }

  void start_interval() {
    ++interval_;
    interval_block_.push_back(blockIdx.x);
    for (auto& lanes : clocks_) lanes = {};
    for (std::size_t thread = 0; thread < clocks_.size(); ++thread) {
      clocks_[thread][thread % kWarpLanes] = 1;
    }
    accesses_ = 0;
  }

  void start_block() {
    used_atomics_ = false;
    start_interval();
  }

  void sync_warp(int warp, unsigned mask) {
    std::array<std::uint32_t, kWarpLanes> joined{};
    auto* lanes = &clocks_[static_cast<std::size_t>(warp * kWarpLanes)];
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      for (int other = 0; other < kWarpLanes; ++other) {
        joined[other] = std::max(joined[other], lanes[lane][other]);
      }
    }
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      lanes[lane] = joined;
      ++lanes[lane][lane];
    }
  }

  void fence() { fence_interval_[blockIdx.x] = interval_; }
  void reset_budget() { accesses_ = 0; }

  void clear_shared(std::uintptr_t address, std::size_t bytes) {
    const auto start =
        shared_cells_.begin() + static_cast<std::ptrdiff_t>(shared_memory().offset(address));
    std::fill(start, start + static_cast<std::ptrdiff_t>(bytes), Cell{});
  }

  void access(std::uintptr_t address, std::size_t bytes, bool is_write) {
    if (stacks_->contains(address)) return;
    if (++accesses_ > kMaximumAccesses) fail("deadlock", "the thread runs without end");
    const Region region = find(address);
    if (region.kind == nullptr) return;
    const std::size_t offset = address - region.begin;
    if (offset >= region.bytes || bytes > region.bytes - offset) {
      // Where the start is inside, name the first byte that is not.
      const auto outside = offset < region.bytes ? region.begin + region.bytes : address;
      fail(region.kind, (is_write ? "writes " : "reads ") + describe(region, outside));
    }
    if (region.buffer != nullptr && region.buffer->read_only() && is_write) {
      fail("write to an input", "writes " + describe(region, address));
    }
    if (region.cells == nullptr) return;
    const Touch now = touch();
    const std::size_t last = (offset + bytes - 1) / region.cell_bytes;
    for (std::size_t index = offset / region.cell_bytes; index <= last; ++index) {
      Cell& cell = region.cells[index];
      if (is_write) {
        write(region, index, cell, now);
      } else {
        read(region, index, cell, now);
      }
    }
  }

  void require_alignment(std::uintptr_t address, std::size_t bytes) {
    if (address % bytes == 0 || stacks_->contains(address)) return;
    const Region region = find(address);
    if (region.kind == nullptr) return;
    fail("misaligned access", "accesses " + std::to_string(bytes) + " bytes at once from " +
                                  describe(region, address) + ", which is not aligned to that");
  }

 private:
  static std::string describe(const Region& region, std::uintptr_t address) {
    return region.buffer != nullptr ? region.buffer->describe(address)
                                    : shared_memory().describe(address);
  }

  Touch touch() const {
    const int thread = running_thread();
    Touch now;
    now.interval = interval_;
    now.thread = static_cast<unsigned>(thread);
    now.clock = clocks_[static_cast<std::size_t>(thread)][thread % kWarpLanes];
    now.atomic = atomic_depth > 0;
    return now;
  }

  Region find(std::uintptr_t address) {
    if (address - last_.begin < last_.bytes) return last_;
    Region region;
    if (shared_memory().near(address)) {
      region.kind = "shared array overrun";
      const SharedArray* array = shared_memory().find(address);
      if (array == nullptr) return region;
      region.begin = reinterpret_cast<std::uintptr_t>(array->data);
      region.bytes = array->site->bytes;
      region.element_bytes = array->site->element_bytes;
      region.cells = &shared_cells_[shared_memory().offset(region.begin)];
    } else if (GuardedBuffer* buffer = find_buffer(address)) {
      region.kind = "out-of-bounds access";
      region.buffer = buffer;
      region.begin = reinterpret_cast<std::uintptr_t>(buffer->data());
      region.bytes = buffer->bytes();
      region.element_bytes = buffer->element_bytes();
      region.written = buffer->written();
    } else {
      return region;
    }
    const bool words = region.element_bytes % 4 == 0;
    region.cell_bytes = words ? 4 : region.element_bytes % 2 == 0 ? 2 : 1;
    if (region.buffer != nullptr && !region.buffer->read_only()) {
      auto* buffer = const_cast<GuardedBuffer*>(region.buffer);
      if (buffer->shadow == nullptr) {
        buffer->shadow = std::calloc(region.bytes / region.cell_bytes + 1, sizeof(Cell));
      }
      region.cells = static_cast<Cell*>(buffer->shadow);
    }
    last_ = region;
    return region;
  }

  // Whether everything that thread did up to `before` is ordered before what the running thread
  // does `now`.
  bool ordered(const Touch& before, const Touch& now) const {
    if (before.interval < first_interval_) return true;  // an earlier launch, or never
    if (before.interval == now.interval) {
      if (before.thread == now.thread) return true;
      if (before.thread / kWarpLanes != now.thread / kWarpLanes) return false;
      return clocks_[now.thread][before.thread % kWarpLanes] >= before.clock;
    }
    const std::uint32_t block = block_of(before);
    if (block == blockIdx.x) return true;  // a barrier lies between
    // Another block: only a fence there after the access, and an atomic here before this one, can
    // order the two. Whether that atomic met the other block's is not followed.
    return fence_interval_[block] >= before.interval && used_atomics_;
  }

  std::uint32_t block_of(const Touch& touch) const {
    return interval_block_[touch.interval - first_interval_];
  }

  void require_order(const Region& region, std::size_t index, const Touch& before, const Touch& now,
                     const char* what, const char* what_before) {
    if (before.interval == 0 || (before.atomic && now.atomic) || ordered(before, now)) return;
    std::string other = "thread " + std::to_string(before.thread);
    if (block_of(before) != blockIdx.x) other += " of block " + std::to_string(block_of(before));
    fail("data race", std::string(what) + " " +
                          describe(region, region.begin + index * region.cell_bytes) + ", which " +
                          other + " " + what_before + " with nothing to order the two");
  }

  void write(const Region& region, std::size_t index, Cell& cell, const Touch& now) {
    require_order(region, index, cell.write, now, "writes", "wrote");
    for (const Touch& before : cell.reads) {
      require_order(region, index, before, now, "writes", "read");
    }
    cell.write = now;
  }

  void read(const Region& region, std::size_t index, Cell& cell, const Touch& now) {
    if (cell.write.interval == 0 && !region.written && !element_touched(region, index)) {
      fail("unwritten memory", "reads " +
                                   describe(region, region.begin + index * region.cell_bytes) +
                                   ", which nobody has written");
    }
    require_order(region, index, cell.write, now, "reads", "wrote");
    Touch* slot = &cell.reads[0];
    if (!ordered(*slot, now)) slot = &cell.reads[1];
    *slot = now;
  }

  // Copying a struct reads its padding too: one written part makes the element count as written.
  static bool element_touched(const Region& region, std::size_t index) {
    const std::size_t cells = region.element_bytes / region.cell_bytes;
    const std::size_t first = index / cells * cells;
    return std::any_of(region.cells + first, region.cells + first + cells,
                       [](const Cell& cell) { return cell.write.interval != 0; });
  }

  friend class robustcore::simt::host::AtomicAccess;
  const FiberPool* stacks_ = nullptr;
  std::uint32_t interval_ = 0;
  std::uint32_t first_interval_ = 1;
  std::uint64_t accesses_ = 0;
  bool used_atomics_ = false;
  Region last_;
  std::vector<std::uint32_t> interval_block_;  // from first_interval_ on
  std::vector<std::uint32_t> fence_interval_;  // of each block
  std::array<std::array<std::uint32_t, kWarpLanes>, kMaximumBlock> clocks_{};
  std::vector<Cell> shared_cells_;
};

Recorder& recorder() {
  static Recorder instance;
  return instance;
}

bool recorder_linked = false;  // set by the instrumented code
bool recorder_wanted = true;

}  // namespace

bool records_accesses() { return recorder_linked && recorder_wanted; }
void record_accesses(bool wanted) { recorder_wanted = wanted; }

void record_launch_start(const FiberPool& stacks, std::int64_t blocks) {
  if (records_accesses()) recorder().start_launch(stacks, blocks);
}
void record_block_start() {
  if (!records_accesses()) return;
  recorder().start_block();
  recorder().atomic_depth = 0;
  recorder().active = true;
}
void record_block_end() { recorder().active = false; }
void record_barrier() {
  if (records_accesses()) recorder().start_interval();
}
void record_warp_sync(int warp, unsigned mask) {
  if (records_accesses()) recorder().sync_warp(warp, mask);
}
void record_fence() {
  if (records_accesses()) recorder().fence();
}
void record_switch() { recorder().reset_budget(); }
void begin_shared_array(const SharedSite& site) {
  if (!records_accesses()) return;
  recorder().clear_shared(reinterpret_cast<std::uintptr_t>(site.data), site.bytes);
}

AtomicAccess::AtomicAccess() {
  ++recorder().atomic_depth;
  recorder().used_atomics_ = true;
}
AtomicAccess::~AtomicAccess() { --recorder().atomic_depth; }

namespace {

inline void record(void* address, std::size_t bytes, bool is_write) {
  Recorder& instance = recorder();
  if (!instance.active) return;
  instance.access(reinterpret_cast<std::uintptr_t>(address), bytes, is_write);
}

inline void record_aligned(void* address, std::size_t bytes, bool is_write) {
  Recorder& instance = recorder();
  if (!instance.active) return;
  instance.require_alignment(reinterpret_cast<std::uintptr_t>(address), bytes);
  instance.access(reinterpret_cast<std::uintptr_t>(address), bytes, is_write);
}

}  // namespace
}  // namespace robustcore::simt::host

// What the compiler calls.
extern "C" {

using robustcore::simt::host::record;
using robustcore::simt::host::record_aligned;

void __tsan_init() { robustcore::simt::host::recorder_linked = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define RC_SIMT_SIZE(bytes)                                                                  \
  void __tsan_read##bytes(void* address) { record_aligned(address, bytes, false); }          \
  void __tsan_write##bytes(void* address) { record_aligned(address, bytes, true); }          \
  void __tsan_unaligned_read##bytes(void* address) { record(address, bytes, false); }        \
  void __tsan_unaligned_write##bytes(void* address) { record(address, bytes, true); }        \
  void __tsan_volatile_read##bytes(void* address) { record_aligned(address, bytes, false); } \
  void __tsan_volatile_write##bytes(void* address) { record_aligned(address, bytes, true); }
RC_SIMT_SIZE(1)
RC_SIMT_SIZE(2)
RC_SIMT_SIZE(4)
RC_SIMT_SIZE(8)
RC_SIMT_SIZE(16)
#undef RC_SIMT_SIZE

void __tsan_read_range(void* address, std::size_t bytes) {
  if (bytes > 0) record(address, bytes, false);
}
void __tsan_write_range(void* address, std::size_t bytes) {
  if (bytes > 0) record(address, bytes, true);
}

}  // extern "C"
