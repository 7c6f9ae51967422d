// CUDA driver of programs that compute something for every row and reduce nothing; see
// row_map_cpu.h. A row belongs to one warp (few classes) or to one block, as in row_loss.cuh.
#pragma once

#include "losses/row_loss.cuh"

namespace robustcore::row_cuda {

template <class Program, class Problem, int kThreads>
__global__ void __launch_bounds__(kRowBlock<kThreads>,
                                  kResidentBlocks<typename Problem::Storage, kThreads, true>)
    row_map_kernel(const Problem p) {
  for_each_row<kThreads>(p.rows, [&](std::int64_t i, int thread) {
    const Row<typename Problem::Storage, kThreads> row(p.classes, i * p.classes, thread);
    Program::run(row, p, i);
  });
}

template <class Program, class Problem>
void launch_row_map(const Problem& p, cudaStream_t stream) {
  using T = typename Problem::Storage;
  with_row_threads(p.classes * static_cast<std::int64_t>(sizeof(T)), [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    simt::launch<row_map_kernel<Program, Problem, kThreads>>(row_blocks<kThreads>(p.rows),
                                                             kRowBlock<kThreads>, stream, p);
  });
}

}  // namespace robustcore::row_cuda
