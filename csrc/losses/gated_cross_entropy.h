// Pi-DUAL's gated cross-entropy (arXiv 2310.06600) as a policy of the two-logit drivers: the
// mathematics of one element and one row. Host and device, no torch.
//
//   h = (1 - g) f + g e,  g = sigmoid(gate),  loss = cross_entropy(h, target)
//   dh = A p - hard onehot(y) - soft w,  A = hard + soft sum(w)
//   df = (1 - g) dh,  de = g dh,  dgate = g (1 - g) <dh, e - f>
//
// f: logits of the prediction head, e: logits of the noise head, p = softmax(h).
#pragma once

#include "common/exp.h"
#include "common/macros.h"

namespace robustcore {

template <class Acc>
struct GatedCrossEntropy {
  static constexpr const char* kName = "gated_cross_entropy";

  Acc gate;        // g
  Acc complement;  // 1 - g
  Acc mix_first;   // the same, kept above zero: see begin()
  Acc mix_second;

  static RC_INLINE GatedCrossEntropy begin(const LogisticPair<Acc>& opened) {
    // A class masked with -inf in one head is masked in the mixture, because 0 < g < 1 in exact
    // arithmetic. A gate that underflows to 0 would make it 0 * -inf = NaN; the smallest positive
    // number keeps the mask, and moves even the largest finite logit by less than 1e-6 (NaN fails
    // the comparison and stays).
    const Acc tiny = sizeof(Acc) == 8 ? Acc(4.9406564584124654e-324) : Acc(1.40129846e-45);
    GatedCrossEntropy row;
    row.gate = opened.value;
    row.complement = opened.complement;
    row.mix_first = row.complement < tiny ? tiny : row.complement;
    row.mix_second = row.gate < tiny ? tiny : row.gate;
    return row;
  }

  // The logit whose softmax the loss is about.
  RC_INLINE Acc mix(Acc first, Acc second) const {
    return mix_first * first + mix_second * second;
  }

  // dh/dg of one class.
  static RC_INLINE Acc direction(Acc first, Acc second) { return second - first; }

  RC_INLINE Acc gate_slope() const { return gate * complement; }

  RC_INLINE Acc gradient_first(Acc gradient) const { return complement * gradient; }
  RC_INLINE Acc gradient_second(Acc gradient) const { return gate * gradient; }
};

}  // namespace robustcore
