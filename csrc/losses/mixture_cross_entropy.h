// Cross-entropy of a mixture of two softmaxes (adaptive smoothing, arXiv 2301.12554).
//
//   loss = -sum_c t_c log m_c,   m = (1 - a) softmax(s1 z1) + a softmax(s2 z2),   a = sigmoid(gate)
//   dz1 = s1 (W1 p1 - t w1),  w1 = (1 - a) p1 / m,  W1 = sum_c t_c w1_c;  the second head likewise
//   dgate = a W1 - (1 - a) W2
//
// Row values: gate, s1, s2 per row; where a scale is not given per row it is a parameter.
#pragma once

#include "losses/mixture.h"
#include "losses/target.h"

namespace robustcore {

struct MixtureCrossEntropy {
  static constexpr const char* kName = "mixture_cross_entropy";
  static constexpr bool kTakesLabels = true;
  static constexpr bool kNeedsSecond = true;
  static constexpr int kNeededRowValues = 1;
  static constexpr bool kBendsLogits = false;
  static constexpr int kCaches = 2;
  static constexpr int kRowValueGradients = 3;
  static constexpr int kMoreRegisters = 32;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options& options) {
    const Mixture<Acc> mixture(p.row_value[0][i],
                               p.row_value[1] ? p.row_value[1][i] : p.parameter[0],
                               p.row_value[2] ? p.row_value[2][i] : p.parameter[1]);
    const auto z1 = matrix_row(p, p.logits, i), z2 = matrix_row(p, p.second, i);
    const MixtureRow mixed{row, mixture, z1, z2};
    const auto p1 = mixed.first_softmax();
    const auto p2 = mixed.second_softmax();
    const HeadLogs<Acc> logs = mixed.logs(p1, p2);
    MixtureGradients<T> out{};
    if constexpr (kGradients) {
      out = {{p.grad_logits ? p.grad_logits + i * p.classes : nullptr,
              p.grad_second ? p.grad_second + i * p.classes : nullptr},
             p.grad_row_value[0],
             {p.grad_row_value[1], p.grad_row_value[2]}};
    }
    const LabelWeights<Acc> label(p, i);
    if (options.label() == Label::kClass) {
      const Acc weight = p.class_weight ? p.class_weight[label.target] : Acc(1);
      const MixedClass<Acc> own =
          mixture.of_single(logs.first.of(mixture.scale[0] * z1.at(label.target)),
                            logs.second.of(mixture.scale[1] * z2.at(label.target)));
      if constexpr (kGradients) {
        mixed.write_class(out, i, factor, p1, p2, logs, label.target, weight, own);
      }
      return -weight * own.log_probability;
    }
    const auto weights = row.materialized(label, true);
    const Values<Acc, 3> sums = mixed.weighted(logs, weights);
    if constexpr (kGradients) {
      mixed.write_spread(out, i, factor, p1, p2, logs, sums.value[1], sums.value[2], weights);
    }
    return -sums.value[0];
  }
};

}  // namespace robustcore
