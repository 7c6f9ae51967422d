// CUDA kernels on packed masks. A thread owns one 64-bit word of every row, so that a warp reads
// 256 consecutive bytes of each; results of size P are written by one thread per parameter. Totals
// are integers: atomic additions give the same sum in any order.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/mask_totals.cuh"
#include "merging/packed_masks.h"

namespace robustcore {

constexpr int kMaximumMaskRows = 256;

struct MaskSelectParams {
  const std::uint64_t* codes;  // [tasks, planes, words]
  std::uint64_t* masks;        // [tasks, words]
  std::int64_t words;
  int tasks;
  int planes;
  std::uint8_t ranks[kMaximumMaskRows];
};

// A column policy is told a word's parameters by their number of masks, in planes; see AtLeast.
struct MaskColumnParams {
  const std::uint64_t* masks;  // [tasks, words]
  std::int64_t words;
  std::int64_t parameters;
  int tasks;
};

template <class Value>
struct MaskExpandParams {
  const std::uint64_t* masks;  // [tasks, words]
  Value* values;               // [parameters]
  std::int64_t words;
  std::int64_t parameters;
  int tasks;
};

struct MaskOverlapParams {
  const std::uint64_t* masks;   // [tasks, words]
  unsigned long long* overlap;  // [tasks, tasks], zero before
  std::int64_t words;
  int tasks;
};

namespace packed_masks_cuda {

__global__ void __launch_bounds__(kBlock) mask_select_kernel(const MaskSelectParams p) {
  const std::int64_t blocks = (p.words + kBlock - 1) / kBlock;
  const std::int64_t task = blockIdx.x / blocks;
  const std::int64_t w = blockIdx.x % blocks * kBlock + threadIdx.x;
  if (w >= p.words) return;
  p.masks[task * p.words + w] =
      at_least(p.codes + task * p.planes * p.words + w, p.words, p.planes, p.ranks[task]);
}

// Adds up a column of words, then hands it to the policy. Threads past the end take part with
// zeros.
template <int kPlanes, class Policy>
__global__ void __launch_bounds__(kBlock)
    mask_column_kernel(const MaskColumnParams p, const Policy policy) {
  const std::int64_t w = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  std::uint64_t planes[kPlanes] = {};
#pragma unroll 4
  for (int task = 0; task < p.tasks; ++task) {
    add_row(planes, 1, kPlanes, w < p.words ? p.masks[task * p.words + w] : std::uint64_t{0});
  }
  policy.template finish<kPlanes>(p, planes, w);
}

// The words of the mask that at least `least` rows keep.
struct AtLeast {
  std::uint64_t* mask;  // [words]
  std::int64_t least;

  template <int kPlanes>
  __device__ __forceinline__ void finish(const MaskColumnParams& p, const std::uint64_t* planes,
                                         std::int64_t w) const {
    if (w < p.words) mask[w] = at_least(planes, 1, kPlanes, least);
  }
};

struct Histogram {
  unsigned long long* bins;  // [tasks + 1], zero before

  template <int kPlanes>
  __device__ __forceinline__ void finish(const MaskColumnParams& p, const std::uint64_t* planes,
                                         std::int64_t w) const {
    const std::uint64_t valid = valid_bits<std::uint64_t>(w * kWordBits, p.parameters);
    for (int number = 0; number <= p.tasks; ++number) {
      add_total(bins + number, population(equal_to(planes, 1, kPlanes, number) & valid));
    }
  }
};

template <class Value>
__global__ void __launch_bounds__(kBlock) mask_expand_kernel(const MaskExpandParams<Value> p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= p.parameters) return;
  int number = 0;
#pragma unroll 4
  for (int task = 0; task < p.tasks; ++task) {
    number += static_cast<int>(p.masks[task * p.words + i / kWordBits] >> (i % kWordBits)) & 1;
  }
  p.values[i] = static_cast<Value>(number);
}

// A block handles one pair of rows in one slice.
__global__ void __launch_bounds__(kBlock) mask_overlap_kernel(const MaskOverlapParams p) {
  const std::int64_t slices = (p.words + kSlice - 1) / kSlice;
  const std::int64_t slice = blockIdx.x % slices;
  int second = static_cast<int>(blockIdx.x / slices), first = 0;
  for (int left = p.tasks; second >= left; --left) {  // pairs in rows of the upper triangle
    second -= left;
    ++first;
  }
  second += first;
  const std::uint64_t* a = p.masks + first * p.words;
  const std::uint64_t* b = p.masks + second * p.words;
  const std::int64_t end = (slice + 1) * kSlice < p.words ? (slice + 1) * kSlice : p.words;
  unsigned total = 0;
  for (std::int64_t w = slice * kSlice + threadIdx.x; w < end; w += kBlock) {
    total += population(a[w] & b[w]);
  }
  add_total(p.overlap + first * p.tasks + second, total);
  if (first != second) add_total(p.overlap + second * p.tasks + first, total);
}

}  // namespace packed_masks_cuda

inline void launch_mask_select(const MaskSelectParams& p, cudaStream_t stream) {
  using namespace packed_masks_cuda;
  simt::launch<mask_select_kernel>(blocks_for(p.words, kBlock) * p.tasks, kBlock, stream, p);
}

// 4 planes count to 15 rows, 9 to 511.
template <class Policy>
void launch_mask_column(const MaskColumnParams& p, const Policy& policy, cudaStream_t stream) {
  using namespace packed_masks_cuda;
  const std::int64_t grid = blocks_for(p.words, kBlock);
  if (p.tasks <= 15) {
    simt::launch<mask_column_kernel<4, Policy>>(grid, kBlock, stream, p, policy);
  } else {
    simt::launch<mask_column_kernel<9, Policy>>(grid, kBlock, stream, p, policy);
  }
}

template <class Value>
void launch_mask_expand(const MaskExpandParams<Value>& p, cudaStream_t stream) {
  using namespace packed_masks_cuda;
  simt::launch<mask_expand_kernel<Value>>(blocks_for(p.parameters, kBlock), kBlock, stream, p);
}

inline void launch_mask_overlap(const MaskOverlapParams& p, cudaStream_t stream) {
  using namespace packed_masks_cuda;
  const std::int64_t pairs = std::int64_t{p.tasks} * (p.tasks + 1) / 2;
  simt::launch<mask_overlap_kernel>(blocks_for(p.words, kSlice) * pairs, kBlock, stream, p);
}

}  // namespace robustcore
