// CUDA backend of the operators over row_map drivers.
#pragma once

#include "common/cuda.h"
#include "losses/row_map.cuh"

namespace robustcore {

struct RowMapCuda {
  using Scope = DeviceScope;

  // The drivers load 16 bytes at a time.
  static Tensor prepare(Tensor matrix) { return vector_aligned(matrix); }
  template <class Program, class Problem>
  static void run(const Problem& p, const Scope& scope) {
    row_cuda::launch_row_map<Program>(p, scope.stream());
  }
};

}  // namespace robustcore
