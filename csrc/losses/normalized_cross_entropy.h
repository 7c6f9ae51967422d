// Normalised cross-entropy (arXiv 2006.13554): the cross-entropy of the label divided by the sum of
// those of all K classes that are not masked with -inf. Host and device, no torch.
//
//   loss = n / D + a lse^2,  n = -sum_c t_c log p_c,  D = -sum_k log p_k
//   dh_k = (T p_k - t_k) / D - n (K p_k - 1) / D^2 + 2 a lse p_k,  T = sum_c t_c
//
// With a single class D is 0, and so is the loss; with none (all masked) it is NaN.
#pragma once

#include "losses/log_probability.h"
#include "losses/logit_source.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

struct NormalizedCrossEntropy {
  static constexpr const char* kName = "normalized_cross_entropy";
  static constexpr bool kTakesLabels = true;
  static constexpr int kRowValueGradients = 0;
  static constexpr int kCaches = 1;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options& options) {
    constexpr Acc kMasked = -static_cast<Acc>(__builtin_huge_val());
    const LogitTransform<Acc, Options> transform(p, options);
    const auto logits = matrix_row(p, p.logits, i);
    const auto logit = [&](Acc z)
    RC_INLINE_LAMBDA { return transform.apply(z); };
    const auto softmax = row.template softmax<0, 0>(
        logit, [](Acc) RC_INLINE_LAMBDA { return Values<Acc, 0>{}; }, logits);
    const bool hard = options.label() == Label::kClass;
    const LabelWeights<Acc> label(p, i);
    const Acc of_class = hard ? logit(logits.at(label.target)) : Acc(0);  // h of the label
    const auto log_probability =
        log_probabilities(row, softmax, !hard || of_class == softmax.maximum, logits);
    const Acc lse = log_probability.lse();
    const auto weights = row.materialized(label, !hard);

    Acc all, count, own, pull;  // D, K, n, T
    if (hard) {
      const auto sums = row.template sums<2>(
          [&](Acc z) RC_INLINE_LAMBDA {
            const Acc h = logit(z), cost = -log_probability.of(h);
            return Values<Acc, 2>{{h == kMasked ? Acc(0) : cost, h == kMasked ? Acc(0) : Acc(1)}};
          },
          logits);
      all = sums[0];
      count = sums[1];
      pull = p.class_weight ? p.class_weight[label.target] : Acc(1);
      own = -pull * log_probability.of(of_class);
    } else {
      const auto sums = row.template sums<4>(
          [&](Acc t, Acc z) RC_INLINE_LAMBDA {
            const Acc h = logit(z), cost = -log_probability.of(h), part = t * cost;
            return Values<Acc, 4>{{h == kMasked ? Acc(0) : cost, h == kMasked ? Acc(0) : Acc(1),
                                   t == Acc(0) ? Acc(0) : part, t}};
          },
          weights, logits);
      all = sums[0];
      count = sums[1];
      own = sums[2];
      pull = sums[3];
    }
    const bool alone = all == Acc(0) && count > Acc(0);
    const Acc inverse = alone ? Acc(0) : Acc(1) / all;
    const Acc ratio = alone ? Acc(0) : own * inverse;
    if constexpr (kGradients) {
      T* const outputs[1] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr};
      const Acc inverse_total = Acc(1) / softmax.total;
      const Acc even = factor * (ratio * inverse);  // of -D, per class
      const Acc lse_push = Acc(2) * factor * p.lse_square * lse;
      const Acc push = factor * (pull * inverse) - count * even + lse_push;
      if (hard) {
        const Acc z = logits.at(label.target);
        const Acc probability = exponential(of_class - softmax.maximum) * inverse_total;
        // The true class is formed in the wide type, and without the difference p - 1.
        const Acc rest = log_probability.complement(of_class, probability);
        const Acc gradient = even * (Acc(1) - count * probability) + lse_push * probability -
                             factor * (pull * inverse) * rest;
        row.write(outputs, label.target, Values<Acc, 1>{{gradient * transform.slope(z)}},
                  [&](Acc cached, Acc z) RC_INLINE_LAMBDA {
                    const Acc probability = softmax.exponential(cached, z) * inverse_total;
                    const Acc rest = z == kMasked ? Acc(0) : even;
                    return Values<Acc, 1>{{(push * probability + rest) * transform.slope(z)}};
                  },
                  softmax.cached, logits);
      } else {
        row.write(outputs, -1, Values<Acc, 1>{},
                  [&](Acc cached, Acc t, Acc z) RC_INLINE_LAMBDA {
                    const Acc probability = softmax.exponential(cached, z) * inverse_total;
                    const Acc rest = (z == kMasked ? Acc(0) : even) - factor * (t * inverse);
                    return Values<Acc, 1>{{(push * probability + rest) * transform.slope(z)}};
                  },
                  softmax.cached, weights, logits);
      }
    }
    return ratio + lse_penalty(p.lse_square, lse);
  }
};

}  // namespace robustcore
