// Pi-DUAL's gated cross-entropy (arXiv 2310.06600): cross-entropy of the logits that a gate mixes.
#pragma once

#include "losses/logit_loss.h"

namespace robustcore {

template <class Acc>
struct GatedCrossEntropyPolicy {
  static constexpr const char* kName = "gated_cross_entropy";

  template <class T>
  RC_INLINE GatedCrossEntropyPolicy(const RowProblem<T>&, int64_t) {}

  RC_INLINE Acc value(Acc log_probability) const { return -log_probability; }
  RC_INLINE Acc slope(Acc) const { return Acc(1); }
};

using GatedCrossEntropy = LogitLoss<GatedSource, GatedCrossEntropyPolicy>;

}  // namespace robustcore
