// What a hard label with class weights and label smoothing asks of a row, shared by every loss that
// is a cross-entropy of some log-probabilities. Host and device, no torch.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace robustcore {

// The loss of a row is  hard * (-log p_y) + soft * sum_c w_c (-log p_c)  with hard = (1 - s) w_y
// and soft = s / C for label smoothing s: torch.nn.functional.cross_entropy's definition. Its
// gradient for the logits behind p is  scale * p - hard * onehot(y) - soft * w.
template <class Acc>
struct TargetWeights {
  Acc hard;
  Acc soft;
  Acc weight_sum;  // sum of the class weights

  RC_INLINE Acc scale() const { return hard + soft * weight_sum; }
};

// Problem: any of the structs with class_weight, class_weight_sum, classes and label_smoothing.
template <class Problem>
RC_INLINE TargetWeights<typename Problem::Acc> target_weights(const Problem& p, int64_t target) {
  using Acc = typename Problem::Acc;
  const Acc classes = static_cast<Acc>(p.classes);
  const Acc own = p.class_weight ? p.class_weight[target] : Acc(1);
  return {(Acc(1) - p.label_smoothing) * own, p.label_smoothing / classes,
          p.class_weight_sum ? *p.class_weight_sum : classes};
}

}  // namespace robustcore
