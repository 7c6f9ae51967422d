// CUDA kernel that counts how many parameters pass each lambda, from the packed codes.
#pragma once

#include <cstdint>

#include "merging/mask_totals.cuh"
#include "merging/mask_words.h"

namespace robustcore {

struct CountCodesParams {
  const std::uint64_t* codes;  // [tasks, planes, words]
  unsigned long long* counts;  // [tasks, lambdas], zero before
  std::int64_t words;
  int tasks;
  int planes;
  int lambdas;
};

namespace packed_masks_cuda {

constexpr int kRanks = 8;

// A block counts kRanks lambdas of one task in one slice.
template <int kPlanes>
__global__ void __launch_bounds__(kBlock) count_codes_kernel(const CountCodesParams p) {
  const std::int64_t slices = (p.words + kSlice - 1) / kSlice;
  const int groups = (p.lambdas + kRanks - 1) / kRanks;
  const std::int64_t slice = blockIdx.x % slices;
  const int group = static_cast<int>(blockIdx.x / slices) % groups;
  const int task = static_cast<int>(blockIdx.x / slices) / groups;
  const std::uint64_t* row = p.codes + std::int64_t{task} * p.planes * p.words;
  const std::int64_t end = (slice + 1) * kSlice < p.words ? (slice + 1) * kSlice : p.words;
  unsigned totals[kRanks] = {};
  for (std::int64_t w = slice * kSlice + threadIdx.x; w < end; w += kBlock) {
    std::uint64_t planes[kPlanes];
#pragma unroll
    for (int b = 0; b < kPlanes; ++b) planes[b] = b < p.planes ? row[b * p.words + w] : 0;
#pragma unroll
    for (int n = 0; n < kRanks; ++n) {
      // With 3 planes there is a single group, and the comparisons are with constants.
      const int rank = (kPlanes <= 3 ? 0 : group * kRanks) + n + 1;
      totals[n] += population(at_least(planes, 1, kPlanes, rank));
    }
  }
#pragma unroll
  for (int n = 0; n < kRanks; ++n) {
    const int lambda = group * kRanks + n;
    if (lambda < p.lambdas) add_total(p.counts + task * p.lambdas + lambda, totals[n]);
  }
}

}  // namespace packed_masks_cuda

inline void launch_count_codes(const CountCodesParams& p, cudaStream_t stream) {
  using namespace packed_masks_cuda;
  const std::int64_t groups = blocks_for(p.lambdas, kRanks);
  const std::int64_t grid = blocks_for(p.words, kSlice) * groups * p.tasks;
  if (p.planes <= 3) {
    simt::launch<count_codes_kernel<3>>(grid, kBlock, stream, p);
  } else {
    simt::launch<count_codes_kernel<6>>(grid, kBlock, stream, p);
  }
}

}  // namespace robustcore
