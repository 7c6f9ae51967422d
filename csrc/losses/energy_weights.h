// Weights of samples from their energy (WEAT): 1 / log(1 + exp |logsumexp(z)|). Host and device, no
// torch; the drivers are row_map_cpu.h and row_map.cuh.
#pragma once

#include "common/exp.h"
#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore {

template <class T>
struct EnergyWeightsProblem {
  using Storage = T;
  using Acc = accumulate_t<T>;

  const T* logits;  // [rows, classes]
  int64_t rows;
  int64_t classes;
  Acc* weights;  // [rows]
};

struct EnergyWeights {
  static constexpr int kCaches = 0;

  template <class Row, class T>
  static RC_INLINE void run(const Row& row, const EnergyWeightsProblem<T>& p, int64_t i) {
    using Acc = accumulate_t<T>;
    const MatrixRow<T> logits{p.logits + i * p.classes};
    const Acc largest = row.maximum([](Acc z)
    RC_INLINE_LAMBDA { return z; }, logits);
    // As torch.logsumexp: infinite where the largest logit is.
    constexpr Acc kInfinity = static_cast<Acc>(__builtin_huge_val());
    const Acc shift = largest == kInfinity || largest == -kInfinity ? Acc(0) : largest;
    const Values<Acc, 1> total = row.template sums<1>(
        [=](Acc z) RC_INLINE_LAMBDA { return Values<Acc, 1>{{exponential(z - shift)}}; }, logits);
    const Acc lse = shift + logarithm(total.value[0]);
    // Written as in the formula, exp overflows from 88.7 on and the weight becomes 0.
    const Acc weight = Acc(1) / softplus(lse < Acc(0) ? -lse : lse);
    if (row.is_leader()) p.weights[i] = weight;
  }
};

}  // namespace robustcore
