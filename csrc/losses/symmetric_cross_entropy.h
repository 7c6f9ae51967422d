// Symmetric cross-entropy (arXiv 1908.06112): cross-entropy and the reverse one, in which log 0 of
// a one-hot label is a constant A < 0:  -sum_k p_k log q_k = -A (1 - p_y) = A expm1(log p_y).
//   value = -alpha log p + beta A expm1(log p),  slope = alpha - beta A p
#pragma once

#include "losses/logit_loss.h"

namespace robustcore {

template <class Acc>
struct SymmetricCrossEntropyPolicy {
  static constexpr const char* kName = "symmetric_cross_entropy";

  Acc forward;  // alpha
  Acc reverse;  // -beta A, not negative

  template <class T>
  RC_INLINE SymmetricCrossEntropyPolicy(const RowProblem<T>& p, int64_t)
      : forward(p.parameter[0]), reverse(-p.parameter[1] * p.parameter[2]) {}

  RC_INLINE Acc value(Acc log_probability) const {
    const Acc bounded = reverse * exponential_minus_one(log_probability);
    // The reverse part alone is finite where p is 0.
    return (forward == Acc(0) ? Acc(0) : -forward * log_probability) - bounded;
  }
  RC_INLINE Acc slope(Acc log_probability) const {
    return forward + reverse * exponential(log_probability);
  }
};

using SymmetricCrossEntropy = LogitLoss<SingleSource, SymmetricCrossEntropyPolicy>;

}  // namespace robustcore
