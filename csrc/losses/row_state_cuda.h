// CUDA backend of the row losses with an indexed state.
#pragma once

#include "losses/row_loss_cuda.h"
#include "losses/row_state.cuh"
#include "losses/row_state_op.h"

namespace robustcore {

struct RowStateCuda : RowLossCuda {
  // On the device, as PyTorch does.
  static void check_index(const char*, const RowLossArguments&, const StateArguments&) {}

  static void find_keepers(const KeeperProblem& p, const Tensor& like, const Scope& scope) {
    const int64_t slots = row_cuda::keeper_slots(p.rows);
    const Tensor table = fresh(like, {2, slots}, ScalarType::Long);
    auto* words = static_cast<unsigned long long*>(table.mutable_data_ptr());
    row_cuda::launch_keepers(
        {p.index, p.target, p.ignore_index, p.rows, p.keeper, words, words + slots, slots},
        scope.stream());
  }

  static void write_state(const StateWrite& w, const Scope& scope) {
    row_cuda::launch_state_rows(
        {static_cast<const std::uint32_t*>(w.rows), static_cast<std::uint32_t*>(w.examples),
         w.index, w.keeper, w.count_of_rows, w.first, w.count, w.width},
        scope.stream());
  }
};

}  // namespace robustcore
