// The CUDA kernel of counter_normal.h: one thread makes four numbers.
#pragma once

#include "common/counter_normal.h"
#include "common/simt.cuh"

namespace robustcore {

constexpr int kCounterNormalBlock = 256;

__global__ void __launch_bounds__(kCounterNormalBlock)
    counter_normal_kernel(const CounterNormalParams p) {
  const RandomKey key =
      random_key(p.device_seed ? static_cast<std::uint64_t>(*p.device_seed) : p.seed);
  const std::int64_t quads = (p.count + 3) / 4;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kCounterNormalBlock + threadIdx.x;
       i < p.rows * quads; i += std::int64_t{gridDim.x} * kCounterNormalBlock) {
    const std::int64_t row = i / quads, quad = i % quads;
    const NormalQuad numbers = counter_normal_quad(p, key, row, quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (4 * quad + j < p.count) p.values[row * p.count + 4 * quad + j] = numbers.values[j];
    }
  }
}

inline void launch_counter_normal(const CounterNormalParams& p, cudaStream_t stream) {
  const std::int64_t blocks =
      (p.rows * ((p.count + 3) / 4) + kCounterNormalBlock - 1) / kCounterNormalBlock;
  simt::launch<counter_normal_kernel>(blocks < 65536 ? blocks : 65536, kCounterNormalBlock, stream,
                                      p);
}

}  // namespace robustcore
