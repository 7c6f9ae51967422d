// Early-learning regularisation (ELR, arXiv 2007.00151):
//   q = clamp(p, 1e-4, 1 - 1e-4),  t <- beta t + (1 - beta) q / sum q  (a constant for gradients)
//   loss = sum_c w_c (-log p_c) + a lse^2 + strength log(1 - <t, q>)
//   dh = (sum_c w_c + 2 a lse) p - w + p (r - <p, r>),  r = -strength t / (1 - <t, q>) where q is p
// with the label's weights w of target.h. t is the example's state.
#pragma once

#include "losses/log_probability.h"
#include "losses/logit_source.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

struct EarlyLearningLoss {
  static constexpr const char* kName = "early_learning_loss";
  static constexpr bool kTakesLabels = true;
  static constexpr int kCaches = 1;
  static constexpr int kRowValueGradients = 0;
  static constexpr bool kUsesState = true;

  // parameter[0]: beta; parameter[1]: strength.
  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options& options) {
    const LogitTransform<Acc, Options> transform(p, options);
    const auto z = matrix_row(p, p.logits, i);
    const auto logit = [&](Acc in)
    RC_INLINE_LAMBDA { return transform.apply(in); };
    const auto softmax = row.template softmax<0, 0>(
        logit, [](Acc) RC_INLINE_LAMBDA { return Values<Acc, 0>{}; }, z);
    const Acc inverse_total = Acc(1) / softmax.total;
    const Acc least = Acc(1e-4), most = Acc(1) - Acc(1e-4);
    const auto clamped = [=](Acc probability) RC_INLINE_LAMBDA {
      const Acc raised = probability < least ? least : probability;
      return raised > most ? most : raised;
    };

    // A row that is not finite (an overflow that the trainer skips) must not spoil the state.
    const bool updates = p.state.updates() && softmax.total > Acc(0) &&
                         softmax.total < static_cast<Acc>(__builtin_huge_val());
    Acc take = 0;
    if (updates) {
      const auto mass = row.template sums<1>(
          [&](Acc cached, Acc in) RC_INLINE_LAMBDA {
            return Values<Acc, 1>{{clamped(softmax.exponential(cached, in) * inverse_total)}};
          },
          softmax.cached, z);
      take = (Acc(1) - p.parameter[0]) / mass[0];
    }
    const Acc keep = p.parameter[0];
    Acc* const destination = p.state.destination(i);
    const ScatteredRow<Acc> before{p.state.source(i)};
    const ScatteredRow<Acc> used{destination ? destination : before.data};
    // <t, q>, and <t, p> where q is p.
    const auto agreement = row.template sums_with_update<2>(
        destination,
        [&](Acc cached, Acc t, Acc in) RC_INLINE_LAMBDA {
          const Acc probability = softmax.exponential(cached, in) * inverse_total;
          const Acc q = clamped(probability);
          const Acc moved = keep * t + take * q;
          const Acc now = updates ? moved : t;
          const Acc product = now * q;
          return Values<Acc, 3>{{now, product, q == probability ? product : Acc(0)}};
        },
        softmax.cached, before, z);
    const Acc gap = Acc(1) - agreement[0];
    const Acc strength = p.parameter[1];

    const bool hard = options.label() == Label::kClass;
    const LabelWeights<Acc> label(p, i);
    const auto weights = row.materialized(label, !hard);
    const Acc of_class = hard ? transform.apply(z.at(label.target)) : Acc(0);  // h of the label
    const auto log_probability =
        log_probabilities(row, softmax, !hard || of_class == softmax.maximum, z);
    const Acc lse = log_probability.lse();
    Acc loss, mass;
    if (hard) {
      mass = p.class_weight ? p.class_weight[label.target] : Acc(1);
      loss = -mass * log_probability.of(of_class);
    } else {
      const auto sums = row.template sums<2>(
          [&](Acc w, Acc in) RC_INLINE_LAMBDA {
            const Acc term = -w * log_probability.of(transform.apply(in));
            return Values<Acc, 2>{{w == Acc(0) ? Acc(0) : term, w}};
          },
          weights, z);
      loss = sums[0];
      mass = sums[1];
    }
    loss += lse_penalty(p.lse_square, lse) + strength * logarithm(gap);

    if constexpr (kGradients) {
      T* const outputs[1] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr};
      const Acc pull = -strength / gap;
      const Acc beside = Acc(2) * p.lse_square * lse - pull * agreement[1];
      // d loss / dh of a class, but for what the label takes away; push: mass + beside.
      const auto pushed = [&](Acc push, Acc probability, Acc t) RC_INLINE_LAMBDA {
        const Acc regularised = push + pull * t;
        return probability * (clamped(probability) == probability ? regularised : push);
      };
      const Acc push = mass + beside;
      if (hard) {
        // The true class is formed in the wide type, and without the difference p - 1.
        const Acc of_target = exponential(of_class - softmax.maximum) * inverse_total;
        const Acc own = pushed(beside, of_target, used.at(label.target)) -
                        mass * log_probability.complement(of_class, of_target);
        const Acc bend = transform.slope(z.at(label.target));
        row.synchronize();  // the gradient may take the place of what was read above
        row.write(outputs, label.target, Values<Acc, 1>{{factor * own * bend}},
                  [&](Acc cached, Acc t, Acc in) RC_INLINE_LAMBDA {
                    const Acc probability = softmax.exponential(cached, in) * inverse_total;
                    return Values<Acc, 1>{{factor * pushed(push, probability, t) * transform.slope(in)}};
                  },
                  softmax.cached, used, z);
      } else {
        row.write(outputs, -1, Values<Acc, 1>{},
                  [&](Acc cached, Acc w, Acc t, Acc in) RC_INLINE_LAMBDA {
                    const Acc probability = softmax.exponential(cached, in) * inverse_total;
                    const Acc gradient = pushed(push, probability, t) - w;
                    return Values<Acc, 1>{{factor * gradient * transform.slope(in)}};
                  },
                  softmax.cached, weights, used, z);
      }
    }
    return loss;
  }
};

}  // namespace robustcore
