// KL(p || q) of the softmaxes of two logit matrices, p = softmax(first), q = softmax(second): the
// pair loss of TRADES and of energy-weighted adversarial training.
//
//   dsecond = q - p,   dfirst = p (log(p / q) - KL)
//
// Sums of p log(p / q) cancel where p and q are close. Since both sum to one, KL is also the sum of
//   p (d - 1) + q,   d = log(p / q),
// whose terms are never negative; for small d it is p (d - 1 + exp(-d)) = p d^2 (1/2 - d/6 + ...).
#pragma once

#include "common/exp.h"
#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore {

// d - 1 + exp(-d) for |d| < 1/2, relative error below 1e-7 in float and 1e-12 in double.
RC_INLINE float exponential_remainder(float d) {
  float q = 2.4801587e-5f;
  q = q * -d + 1.9841270e-4f;
  q = q * -d + 1.3888889e-3f;
  q = q * -d + 8.3333333e-3f;
  q = q * -d + 4.1666667e-2f;
  q = q * -d + 1.6666667e-1f;
  q = q * -d + 0.5f;
  return d * d * q;
}
RC_INLINE double exponential_remainder(double d) {
  double q = 1.0;
  for (int k = 16; k > 2; --k) q = 1.0 - q * d * (1.0 / k);
  return 0.5 * d * d * q;
}

struct PairKlDivergence {
  static constexpr const char* kName = "pair_kl_divergence";
  static constexpr bool kNeedsSecond = true;
  static constexpr bool kTakesLabels = false;
  static constexpr bool kNeedsTarget = false;  // where it is given, it says which rows to ignore
  static constexpr int kCaches = 2;
  static constexpr int kRowValueGradients = 0;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options&) {
    const Acc inverse_temperature = p.inverse_temperature;
    const auto z1 = matrix_row(p, p.logits, i), z2 = matrix_row(p, p.second, i);
    const auto logit = [=](Acc z)
    RC_INLINE_LAMBDA { return z * inverse_temperature; };
    const auto none = [](Acc) RC_INLINE_LAMBDA { return Values<Acc, 0>{}; };
    const auto first = row.template softmax<0, 0>(logit, none, z1);
    const auto second = row.template softmax<0, 1>(logit, none, z2);
    const Acc inverse1 = Acc(1) / first.total, inverse2 = Acc(1) / second.total;
    // The maxima first: a shift that both heads share must not cost digits.
    const Acc maximum1 = first.maximum, maximum2 = second.maximum;
    const Acc shift = logarithm(first.total) - logarithm(second.total);
    const auto log_ratio = [=](Acc a, Acc b) RC_INLINE_LAMBDA {
      return (logit(a) - maximum1) - (logit(b) - maximum2) - shift;
    };
    const Values<Acc, 1> divergence = row.template sums<1>(
        [&](Acc e1, Acc e2, Acc a, Acc b) RC_INLINE_LAMBDA {
          const Acc of1 = first.exponential(e1, a) * inverse1;
          const Acc of2 = second.exponential(e2, b) * inverse2;
          const Acc d = log_ratio(a, b);
          const Acc near = of1 * exponential_remainder(d);
          const Acc away = of1 * (d - Acc(1)) + of2;
          const Acc term = (d < Acc(0) ? -d : d) < Acc(0.5) ? near : away;
          // A class that the first distribution does not have.
          return Values<Acc, 1>{{of1 == Acc(0) ? of2 : term}};
        },
        first.cached, second.cached, z1, z2);
    const Acc loss = divergence.value[0];
    if constexpr (kGradients) {
      T* const outputs[2] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr,
                             p.grad_second ? p.grad_second + i * p.classes : nullptr};
      const Acc slope = factor * inverse_temperature;
      row.write(outputs, -1, Values<Acc, 2>{},
                [&](Acc e1, Acc e2, Acc a, Acc b) RC_INLINE_LAMBDA {
                  const Acc of1 = first.exponential(e1, a) * inverse1;
                  const Acc of2 = second.exponential(e2, b) * inverse2;
                  const Acc d = log_ratio(a, b);
                  const Acc pulled = of1 * (d - loss);
                  // q - p: not as a difference where the two are close.
                  const Acc near = of1 * exponential_minus_one(-d);
                  const Acc pushed = (d < Acc(0) ? -d : d) < Acc(0.5) ? near : of2 - of1;
                  return Values<Acc, 2>{
                      {slope * (of1 == Acc(0) ? Acc(0) : pulled), slope * pushed}};
                },
                first.cached, second.cached, z1, z2);
    }
    return loss;
  }
};

}  // namespace robustcore
