// CUDA backend of the row losses.
#pragma once

#include "common/cuda.h"
#include "losses/row_loss.cuh"
#include "losses/row_loss_op.h"

namespace robustcore {

struct RowLossCuda {
  using Scope = DeviceScope;

  // The drivers load 16 bytes at a time. Targets are checked on the device, as PyTorch does.
  static RowLossArguments prepare(const char*, RowLossArguments a) {
    a.logits = vector_aligned(a.logits);
    if (a.second) a.second = vector_aligned(*a.second);
    return a;
  }

  template <class Program, RowMode kMode, class T>
  static void run(const RowProblem<T>& p, const Scope& scope) {
    row_cuda::launch_row_loss<Program, kMode>(p, scope.stream());
  }
};

}  // namespace robustcore
