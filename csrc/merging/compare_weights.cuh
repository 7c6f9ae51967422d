// CUDA kernel that sums over two lists of weights, one row of sums per block of parameters: a
// thread is one of compare_weights.h's lanes.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/compare_weights.h"

namespace robustcore {

struct CompareParams {
  StoredWeights first;
  StoredWeights second;  // read where `has_second`, else zeros
  bool has_second;
  std::int64_t parameters;
  double* rows;  // [blocks, kCompareSums]
};

namespace compare_weights_cuda {

constexpr int kPerLane = kMergeBlock / kCompareLanes;
static_assert(kMergeBlock % kCompareLanes == 0 && kCompareLanes % kWarpSize == 0);

__global__ void __launch_bounds__(kCompareLanes, 4) compare_weights_kernel(const CompareParams p) {
  const std::int64_t begin = blockIdx.x * kMergeBlock + threadIdx.x;
  double sums[kCompareSums] = {};
#pragma unroll 4
  for (int j = 0; j < kPerLane; ++j) {
    const std::int64_t i = begin + j * kCompareLanes;
    if (i >= p.parameters) break;
    const double a = stored_weight<double>(p.first, i);
    const double b = p.has_second ? stored_weight<double>(p.second, i) : 0.0;
#pragma unroll
    for (int k = 0; k < kCompareSums; ++k) sums[k] = join_sums(k, sums[k], compare_term(k, a, b));
  }
  RC_SHARED(double, lanes, kCompareSums* kCompareLanes);
#pragma unroll
  for (int k = 0; k < kCompareSums; ++k) lanes[k * kCompareLanes + threadIdx.x] = sums[k];
  __syncthreads();
  // A warp adds the lanes of one sum.
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kWarps = kCompareLanes / kWarpSize;
  for (int k = static_cast<int>(threadIdx.x) / kWarpSize; k < kCompareSums; k += kWarps) {
    double part[kWarps];
#pragma unroll
    for (int j = 0; j < kWarps; ++j) part[j] = lanes[k * kCompareLanes + j * kWarpSize + lane];
#pragma unroll
    for (int half = kWarps / 2; half > 0; half /= 2) {
#pragma unroll
      for (int j = 0; j < half; ++j) part[j] = join_sums(k, part[j], part[j + half]);
    }
    double sum = part[0];
#pragma unroll
    for (int half = kWarpSize / 2; half > 0; half /= 2) {
      // Only what the lower half gets is looked at again.
      sum = join_sums(k, sum, __shfl_xor_sync(kFullWarp, sum, half));
    }
    if (lane == 0) p.rows[blockIdx.x * kCompareSums + k] = sum;
  }
}

}  // namespace compare_weights_cuda

inline void launch_compare_weights(const CompareParams& p, cudaStream_t stream) {
  simt::launch<compare_weights_cuda::compare_weights_kernel>(merge_blocks(p.parameters),
                                                             kCompareLanes, stream, p);
}

}  // namespace robustcore
