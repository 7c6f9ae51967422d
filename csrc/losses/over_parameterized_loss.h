// Sparse over-parameterisation (SOP, arXiv 2202.14026). With the label y (one-hot, smoothed or
// probabilities), o = onehot(argmax z), U = min(u^2 y, 1), V = min(v^2 (1 - y), 1), eps = 1e-4:
//   m = max(p + U - V, eps),  n = sum m,  q = max(m / n, eps)
//   loss = -sum y log q + |o + U - V - y|^2 + a lse^2
// V is a constant in the first term and p in the second:
//   g_k = dm_k = (Y - y_k / q_k) / n where neither maximum cuts, Y = sum of y where q is not cut
//   dh = p (g - <p, g>) + 2 a lse p
//   du = 2 u sum y (g + 2 r),  dv = -4 v (1 - y) r,  r = o + U - V - y, zero where U or V is cut
#pragma once

#include "losses/log_probability.h"
#include "losses/logit_source.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

// `second` holds v, the first row value u.
struct OverParameterizedLoss {
  static constexpr const char* kName = "over_parameterized_loss";
  static constexpr bool kTakesLabels = true;
  static constexpr bool kNeedsSecond = true;
  static constexpr int kNeededRowValues = 1;
  static constexpr int kCaches = 1;
  static constexpr int kRowValueGradients = 1;
  static constexpr int kMoreRegisters = 16;
  // The label takes part class by class, also where it is one class.
  static constexpr bool kWritesLabelsDown = true;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options& options) {
    const LogitTransform<Acc, Options> transform(p, options);
    const auto z = matrix_row(p, p.logits, i);
    const auto second = matrix_row(p, p.second, i);
    const auto logit = [&](Acc in)
    RC_INLINE_LAMBDA { return transform.apply(in); };
    const auto softmax = row.template softmax<0, 0>(
        logit, [](Acc) RC_INLINE_LAMBDA { return Values<Acc, 0>{}; }, z);
    const Acc lse = softmax.lse();
    const Acc inverse_total = Acc(1) / softmax.total;
    const LabelWeights<Acc> label(p, i);
    const auto labels = row.materialized(label, true);
    const Acc u = p.row_value[0][i];
    const Acc u_square = u * u;
    const Acc least = Acc(1e-4);

    // Of a class: U, V, p + U - V, and r without o.
    struct Parts {
      Acc gain, loss, shifted, residual;
      bool gain_is_cut, loss_is_cut;
    };
    const auto parts = [=](Acc probability, Acc y, Acc v) RC_INLINE_LAMBDA {
      Parts of;
      const Acc gain = u_square * y, loss = v * v * (Acc(1) - y);
      of.gain_is_cut = gain > Acc(1);
      of.loss_is_cut = loss > Acc(1);
      of.gain = of.gain_is_cut ? Acc(1) : gain;
      of.loss = of.loss_is_cut ? Acc(1) : loss;
      of.shifted = probability + of.gain - of.loss;
      of.residual = of.gain - of.loss - y;
      return of;
    };
    // NaN is not cut: it must stay.
    const auto raised = [=](Acc value) RC_INLINE_LAMBDA { return value < least ? least : value; };

    // n, the sum of p where m is not cut, and |r|^2 without o.
    const auto sums = row.template sums<3>(
        [&](Acc cached, Acc y, Acc v, Acc in) RC_INLINE_LAMBDA {
          const Acc probability = softmax.exponential(cached, in) * inverse_total;
          const Parts of = parts(probability, y, v);
          return Values<Acc, 3>{{raised(of.shifted),
                                 of.shifted < least ? Acc(0) : probability,
                                 of.residual * of.residual}};
        },
        softmax.cached, labels, second, z);
    const Acc inverse_norm = Acc(1) / sums[0];

    // What a class adds by its label: -y log q; y where q is not cut, and that / q times p where m is
    // not cut either; and to du / 2u: y, and y * y / q, where m is not cut, and 2 y r.
    constexpr int kTerms = kGradients ? 6 : 1;
    const auto by_label = [&](Acc probability, Acc y, Acc v) RC_INLINE_LAMBDA {
      const Parts of = parts(probability, y, v);
      const Acc relative = raised(of.shifted) * inverse_norm;
      const Acc q = raised(relative);
      const Acc seen = relative < least ? Acc(0) : y;
      const Acc passed = of.shifted < least ? Acc(0) : Acc(1);
      const Acc reaching = of.gain_is_cut ? Acc(0) : y;
      const Acc slope = passed * seen / q;
      Values<Acc, kTerms> terms{};
      terms.value[0] = -y * logarithm(q);
      if constexpr (kGradients) {
        terms.value[1] = seen;
        terms.value[2] = slope * probability;
        terms.value[3] = reaching * passed;
        terms.value[4] = reaching * slope;
        terms.value[5] = Acc(2) * reaching * of.residual;
      }
      if (y == Acc(0)) terms.value[0] = Acc(0);
      return terms;
    };
    const bool hard = options.label() == Label::kClass;
    Values<Acc, kTerms> own;
    if (hard) {
      const Acc h = transform.apply(z.at(label.target));
      own = by_label(exponential(h - softmax.maximum) * inverse_total, Acc(1),
                     second.at(label.target));
    } else {
      own = row.template sums<kTerms>(
          [&](Acc cached, Acc y, Acc v, Acc in) RC_INLINE_LAMBDA {
            return by_label(softmax.exponential(cached, in) * inverse_total, y, v);
          },
          softmax.cached, labels, second, z);
    }

    const Acc highest = softmax.maximum;
    const int64_t best = row.first(
        [&](Acc in) RC_INLINE_LAMBDA { return transform.apply(in) == highest; }, z);
    const bool has_best = best < p.classes;
    Acc best_label = 0, best_probability = 0, best_v = 0;
    Acc squares = sums[2];
    Parts of_best{};
    if (has_best) {
      best_label = label.at(best);
      best_v = second.at(best);
      best_probability = exponential(transform.apply(z.at(best)) - softmax.maximum) * inverse_total;
      of_best = parts(best_probability, best_label, best_v);
      squares += Acc(1) + Acc(2) * of_best.residual;
    }
    const Acc loss = own[0] + squares + lse_penalty(p.lse_square, lse);

    if constexpr (kGradients) {
      if (row.is_leader() && p.grad_row_value[0]) {
        const Acc of_best_class =
            has_best && !of_best.gain_is_cut ? Acc(2) * best_label : Acc(0);
        const Acc along =
            (own[1] * own[3] - own[4]) * inverse_norm + own[5] + of_best_class;
        p.grad_row_value[0][i] = factor * Acc(2) * u * along;
      }
      const Acc mean = (own[1] * sums[1] - own[2]) * inverse_norm;
      const Acc base = Acc(2) * p.lse_square * lse - mean;
      const auto gradients = [&](Acc probability, Acc y, Acc v, Acc in,
                                 Acc chosen) RC_INLINE_LAMBDA {
        const Parts of = parts(probability, y, v);
        const Acc relative = raised(of.shifted) * inverse_norm;
        const Acc slope = relative < least ? Acc(0) : y / relative;
        const Acc through = (own[1] - slope) * inverse_norm;
        const Acc g = of.shifted < least ? Acc(0) : through;
        const Acc for_v = Acc(-4) * v * (Acc(1) - y) * (chosen + of.residual);
        return Values<Acc, 2>{{factor * probability * (g + base) * transform.slope(in),
                               factor * (of.loss_is_cut ? Acc(0) : for_v)}};
      };
      T* const outputs[2] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr,
                             p.grad_second ? p.grad_second + i * p.classes : nullptr};
      Values<Acc, 2> of_best_class{};
      if (has_best) {
        of_best_class =
            gradients(best_probability, best_label, best_v, z.at(best), Acc(1));
      }
      row.synchronize();  // a gradient may take the place of what was read above
      row.write(outputs, has_best ? best : int64_t{-1}, of_best_class,
                [&](Acc cached, Acc y, Acc v, Acc in) RC_INLINE_LAMBDA {
                  const Acc probability = softmax.exponential(cached, in) * inverse_total;
                  return gradients(probability, y, v, in, Acc(0));
                },
                softmax.cached, labels, second, z);
    }
    return loss;
  }
};

}  // namespace robustcore
