// Log-probabilities of a softmax without loss of digits, and the penalty on its logsumexp. Host and
// device, no torch.
//
// logsumexp(h) - h_y with the logsumexp rounded is wrong twice: a common offset of the logits takes
// the digits of log(total), and where the label has nearly all of the probability nothing is left
// of a loss that is far below 1. Hence (h - maximum) first, and log(1 + the other classes).
#pragma once

#include "common/exp.h"
#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore {

template <class Acc>
struct LogProbabilities {
  Acc maximum;
  Acc log_total;  // log sum exp(h - maximum)
  Acc others;  // probability of all classes but the one with the largest h

  RC_INLINE Acc lse() const { return maximum + log_total; }
  RC_INLINE Acc of(Acc h) const { return (h - maximum) - log_total; }
  // 1 - the probability of a class
  RC_INLINE Acc complement(Acc h, Acc probability) const {
    return h == maximum ? others : Acc(1) - probability;
  }
};

// `wanted`: whether small losses are, that is, those of the class with the largest h. The streams
// are those that the softmax was taken of.
template <class Row, class Softmax, class... Streams>
RC_INLINE auto log_probabilities(const Row& row, const Softmax& softmax, bool wanted,
                              const Streams&... streams) {
  using Acc = decltype(softmax.total);
  // Not so for NaN, and for a row of nothing but -inf. Then one class has more than half of the
  // total: the only exponential above 1/2.
  const bool is_narrow = wanted && softmax.total >= Acc(1) && softmax.total < Acc(1.5);
  if (is_narrow) {
    const auto rest = row.template sums<1>(
        [&](Acc cached, auto... in)
    RC_INLINE_LAMBDA {
          const Acc e = softmax.exponential(cached, in...);
          return Values<Acc, 1>{{e > Acc(0.5) ? Acc(0) : e}};
        },
        softmax.cached, streams...);
    return LogProbabilities<Acc>{softmax.maximum, log_one_plus(rest[0]),
                                 rest[0] / (Acc(1) + rest[0])};
  }
  return LogProbabilities<Acc>{softmax.maximum, logarithm(softmax.total),
                               Acc(1) - Acc(1) / softmax.total};
}

// a lse^2, where a = 0 switches it off also for a square that overflows.
template <class Acc>
RC_INLINE Acc lse_penalty(Acc scale, Acc lse) {
  const Acc penalty = scale * (lse * lse);
  return scale == Acc(0) ? Acc(0) : penalty;
}

}  // namespace robustcore
