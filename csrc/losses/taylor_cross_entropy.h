// Cross-entropy as the first terms of its Taylor series around p_y = 1 (Feng et al., IJCAI 2020):
// value = sum_{k=1..t} (1 - p)^k / k, slope = 1 - (1 - p)^t. One term: mean absolute error; all of
// them: cross-entropy.
#pragma once

#include "losses/logit_loss.h"

namespace robustcore {

template <class Acc>
struct TaylorPolicy {
  static constexpr const char* kName = "taylor_cross_entropy";

  int terms;

  template <class T>
  RC_INLINE TaylorPolicy(const RowProblem<T>& p, int64_t) : terms(static_cast<int>(p.parameter[0])) {}

  RC_INLINE Acc value(Acc log_probability) const {
    const Acc rest = -exponential_minus_one(log_probability);  // 1 - p
    // Horner's rule from the last term on.
    Acc sum = 0;
    for (int k = terms; k > 0; --k) sum = rest * (sum + Acc(1) / static_cast<Acc>(k));
    return sum;
  }
  RC_INLINE Acc slope(Acc log_probability) const {
    // 1 - rest^t without the difference.
    const Acc rest = -exponential_minus_one(log_probability);
    Acc sum = 0;
    for (int k = 0; k < terms; ++k) sum = sum * rest + Acc(1);
    return exponential(log_probability) * sum;
  }
};

using TaylorCrossEntropy = LogitLoss<SingleSource, TaylorPolicy>;

}  // namespace robustcore
