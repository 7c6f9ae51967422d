// CUDA kernels around the indexed state of a row loss: which row updates which example, found
// without sorting and without the host, and the write of updated rows.
#pragma once

#include <cstdint>

#include "losses/row_loss.cuh"

namespace robustcore::row_cuda {

// The kernels are templates so that several files may include them.

// A table of the indices in a batch, by open addressing. Which slot an index gets depends on the
// order of the threads; the last row of an index does not.
struct KeeperTable {
  const std::int64_t* index;   // [rows]
  const std::int64_t* target;  // [rows], or null: no row is ignored
  std::int64_t ignore_index;
  std::int64_t rows;
  std::int64_t* keeper;      // [rows]
  unsigned long long* keys;  // [slots] the index, or kFree
  unsigned long long* last;  // [slots] the last row with it, plus one
  std::int64_t slots;        // a power of two, at least twice `rows`

  static constexpr unsigned long long kFree = ~0ull;

  __device__ __forceinline__ bool is_ignored(std::int64_t i) const {
    return target && target[i] == ignore_index;
  }
  __device__ __forceinline__ std::int64_t home(unsigned long long key) const {
    return static_cast<std::int64_t>((key * 0x9e3779b97f4a7c15ull >> 20) &
                                     static_cast<unsigned long long>(slots - 1));
  }
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) keeper_clear_kernel(const KeeperTable t) {
  for (std::int64_t s = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; s < t.slots;
       s += std::int64_t{gridDim.x} * kThreads) {
    t.keys[s] = KeeperTable::kFree;
    t.last[s] = 0;
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) keeper_claim_kernel(const KeeperTable t) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < t.rows;
       i += std::int64_t{gridDim.x} * kThreads) {
    if (t.is_ignored(i)) continue;
    RC_DEVICE_ASSERT(t.index[i] >= 0);
    const auto key = static_cast<unsigned long long>(t.index[i]);
    for (std::int64_t s = t.home(key);; s = (s + 1) & (t.slots - 1)) {
      const unsigned long long found = atomicCAS(&t.keys[s], KeeperTable::kFree, key);
      if (found != KeeperTable::kFree && found != key) continue;
      atomicMax(&t.last[s], static_cast<unsigned long long>(i + 1));
      break;
    }
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) keeper_resolve_kernel(const KeeperTable t) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < t.rows;
       i += std::int64_t{gridDim.x} * kThreads) {
    if (t.is_ignored(i)) {
      t.keeper[i] = -1;
      continue;
    }
    const auto key = static_cast<unsigned long long>(t.index[i]);
    std::int64_t s = t.home(key);
    while (t.keys[s] != key) s = (s + 1) & (t.slots - 1);
    t.keeper[i] = static_cast<std::int64_t>(t.last[s]) - 1;
  }
}

inline std::int64_t keeper_slots(std::int64_t rows) {
  std::int64_t slots = 2;
  while (slots < 2 * rows) slots *= 2;
  return slots;
}

inline void launch_keepers(const KeeperTable& t, cudaStream_t stream) {
  simt::launch<keeper_clear_kernel<kBlock>>(blocks_for(t.slots, kBlock), kBlock, stream, t);
  simt::launch<keeper_claim_kernel<kBlock>>(blocks_for(t.rows, kBlock), kBlock, stream, t);
  simt::launch<keeper_resolve_kernel<kBlock>>(blocks_for(t.rows, kBlock), kBlock, stream, t);
}

// Copies rows of the batch to the examples they belong to, in words of 4 bytes.
struct StateRows {
  const std::uint32_t* rows;  // [count_of_rows, width]
  std::uint32_t* examples;    // [count, width]
  const std::int64_t* index;
  const std::int64_t* keeper;
  std::int64_t count_of_rows, first, count, width;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) state_rows_kernel(const StateRows w) {
  for (std::int64_t i = blockIdx.x; i < w.count_of_rows; i += gridDim.x) {
    if (w.keeper[i] != i) continue;
    const std::int64_t example = w.index[i] - w.first;
    RC_DEVICE_ASSERT(example >= 0 && example < w.count);
    for (std::int64_t c = threadIdx.x; c < w.width; c += kThreads) {
      w.examples[example * w.width + c] = w.rows[i * w.width + c];
    }
  }
}

inline void launch_state_rows(const StateRows& w, cudaStream_t stream) {
  simt::launch<state_rows_kernel<kBlock>>(blocks_for(w.count_of_rows, 1), kBlock, stream, w);
}

}  // namespace robustcore::row_cuda
