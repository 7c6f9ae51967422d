// CUDA driver of programs that compute something for every row and reduce nothing; see
// row_map_cpu.h. A row belongs to one warp (few classes) or to one block, as in row_loss.cuh.
#pragma once

#include "losses/row_loss.cuh"

namespace robustcore::row_cuda {

template <class Program, class Problem, int kThreads>
__global__ void __launch_bounds__(kBlockThreads<kThreads>,
                                  kResidentBlocks<typename Problem::Storage, kThreads, true>)
    row_map_kernel(const Problem p) {
  const int rows_per_block = static_cast<int>(blockDim.x) / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * rows_per_block;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * rows_per_block +
                        static_cast<int>(threadIdx.x) / kThreads;
       i < p.rows; i += stride) {
    const Row<typename Problem::Storage, kThreads> row(p.classes, i * p.classes, thread);
    Program::run(row, p, i);
  }
}

template <class Program, class Problem>
void launch_row_map(const Problem& p, cudaStream_t stream) {
  constexpr int kRowsPerBlock = kWarpBlock / kWarpSize;
  using T = typename Problem::Storage;
  if (p.classes * static_cast<std::int64_t>(sizeof(T)) <= kWarpRowBytes) {
    simt::launch<row_map_kernel<Program, Problem, kWarpSize>>(row_blocks(p.rows, kRowsPerBlock),
                                                              kWarpBlock, stream, p);
  } else {
    simt::launch<row_map_kernel<Program, Problem, kBlock>>(row_blocks(p.rows, 1), kBlock, stream,
                                                           p);
  }
}

}  // namespace robustcore::row_cuda
