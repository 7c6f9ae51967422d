// Parallel loops over fixed chunks: what a chunk computes never depends on how many threads there
// are.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace robustcore {

// Below this many elements of work a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;

// Calls f(first, last) for parts of [0, rows), each with about kElementsPerThread elements at
// least. `f` may touch raw pointers only.
template <class F>
void parallel_rows(int64_t rows, int64_t elements_per_row, const F& f) {
  if (rows <= 0) return;
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_row));
  if (rows <= grain) return f(int64_t{0}, rows);
  torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace robustcore
