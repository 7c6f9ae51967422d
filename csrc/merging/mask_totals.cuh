// How kernels on packed masks cut rows into slices and add up what they counted. Totals are
// integers: atomic additions give the same sum in any order.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "common/simt.cuh"

namespace robustcore::packed_masks_cuda {

constexpr int kBlock = 256;
// Words of a row that one block of a totalling kernel visits: few atomic additions, many blocks.
constexpr std::int64_t kSlice = kBlock * 16;

__device__ __forceinline__ void add_total(unsigned long long* to, unsigned value) {
  const unsigned total = block_reduce<kBlock>(value, Sum());
  if (threadIdx.x == 0 && total != 0) atomicAdd(to, static_cast<unsigned long long>(total));
}

inline std::int64_t blocks_for(std::int64_t items, std::int64_t per_block) {
  return (items + per_block - 1) / per_block;
}

}  // namespace robustcore::packed_masks_cuda
