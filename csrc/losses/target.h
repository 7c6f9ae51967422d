// What a label with class weights and label smoothing asks of a row, shared by every loss that is a
// sum over classes of a label's weight times a function of the class. Host and device, no torch.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore {

// Compile-time or run-time knowledge of a call. The CPU kernels are compiled for each combination;
// on CUDA one kernel serves all, the conditions being the same for every thread.
template <Label kLabel, bool kCapped>
struct KnownOptions {
  static RC_INLINE constexpr Label label() { return kLabel; }
  static RC_INLINE constexpr bool capped() { return kCapped; }
};
template <class Acc>
struct GivenOptions {
  Label given_label;
  Acc softcap;

  RC_INLINE Label label() const { return given_label; }
  RC_INLINE bool capped() const { return softcap != Acc(0); }
};

// A stream: the weight t_c of each class,  t = w ((1 - s) q + s / C)  with the class weights w, the
// label smoothing s and the label q, one-hot or probabilities. The loss of a row is then
// sum_c t_c loss(class c): torch.nn.functional.cross_entropy's definition.
template <class Acc>
struct LabelWeights {
  static constexpr bool kAligned = false;
  const Acc* probabilities;  // of this row, or null
  const Acc* class_weight;   // or null
  int64_t target;
  Acc own;    // 1 - s
  Acc share;  // s / C

  template <class T>
  RC_INLINE LabelWeights(const RowProblem<T>& p, int64_t row)
      : probabilities(p.soft_target ? p.soft_target + row * p.classes : nullptr),
        class_weight(p.class_weight),
        target(p.soft_target ? -1 : p.target[row]),
        own(Acc(1) - p.label_smoothing),
        share(p.label_smoothing / static_cast<Acc>(p.classes)) {}

  RC_INLINE Acc at(int64_t c) const {
    const Acc label = probabilities ? probabilities[c] : c == target ? Acc(1) : Acc(0);
    return (class_weight ? class_weight[c] : Acc(1)) * (own * label + share);
  }

  // All of them, in loops without conditions.
  RC_INLINE void fill(Acc* out, int64_t classes) const {
    if (probabilities) {
    RC_SIMD for (int64_t c = 0; c < classes; ++c) out[c] = own * probabilities[c] + share;
    } else {
      RC_SIMD for (int64_t c = 0; c < classes; ++c) out[c] = share;
      out[target] = own + share;
    }
    if (class_weight) {
      RC_SIMD for (int64_t c = 0; c < classes; ++c) out[c] *= class_weight[c];
    }
  }
};

}  // namespace robustcore
