// The comp-sum family (arXiv 2304.07288): value = -expm1((tau - 1) log p) / (tau - 1), slope =
// p^(tau - 1). tau = 0: sum-exponential, 1: cross-entropy, 1..2: generalised cross-entropy, 2: mean
// absolute error. tau may differ per row.
#pragma once

#include "losses/logit_loss.h"

namespace robustcore {

template <class Acc>
struct CompSumPolicy {
  static constexpr const char* kName = "comp_sum_loss";

  Acc power;  // tau - 1

  template <class T>
  RC_INLINE CompSumPolicy(const RowProblem<T>& p, int64_t row)
      : power((p.row_value[0] ? p.row_value[0][row] : p.parameter[0]) - Acc(1)) {}

  RC_INLINE Acc value(Acc log_probability) const {
    // The limit at tau = 1.
    if (power == Acc(0)) return -log_probability;
    return -exponential_minus_one(power * log_probability) / power;
  }
  RC_INLINE Acc slope(Acc log_probability) const {
    if (power == Acc(0)) return Acc(1);
    return exponential(power * log_probability);
  }
};

using CompSumLoss = LogitLoss<SingleSource, CompSumPolicy>;

}  // namespace robustcore
