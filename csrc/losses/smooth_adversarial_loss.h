// Smooth adversarial comp-sum loss (arXiv 2304.07288): the comp-sum loss of the natural logits z,
// and how far the margins of all classes move from there to the adversarial logits z'.
//
//   loss = comp_sum(z, y) + nu n,   n = || margins(z') - margins(z) ||_2,   margins_k = z_y - z_k
//
// With g = z' - z the difference of the margins is g_y - g_k: one number per class once g_y is
// known, so that nothing cancels as it would in the closed form sum g^2 - 2 g_y sum g + C g_y^2.
//   dn/dg_k = (g_k - g_y) / n,   dn/dg_y = -sum_k (g_k - g_y) / n,   all 0 where n = 0
#pragma once

#include "losses/comp_sum_loss.h"
#include "losses/log_probability.h"
#include "losses/row_problem.h"

namespace robustcore {

struct SmoothAdversarialLoss {
  static constexpr const char* kName = "smooth_adversarial_loss";
  static constexpr bool kNeedsSecond = true;
  static constexpr bool kTakesLabels = false;  // a class, never spread
  static constexpr int kCaches = 1;
  static constexpr int kRowValueGradients = 0;

  // Row value: tau per row; parameters: tau, nu.
  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options&) {
    constexpr Acc kMasked = -static_cast<Acc>(__builtin_huge_val());
    const Acc inverse_temperature = p.inverse_temperature, nu = p.parameter[1];
    const CompSumPolicy<Acc> policy(p, i);
    const int64_t target = p.target[i];
    const Acc weight = p.class_weight ? p.class_weight[target] : Acc(1);
    const auto natural = matrix_row(p, p.logits, i), adversarial = matrix_row(p, p.second, i);

    const auto logit = [=](Acc z)
    RC_INLINE_LAMBDA { return z * inverse_temperature; };
    const auto softmax = row.template softmax<0, 0>(
        logit, [](Acc) RC_INLINE_LAMBDA { return Values<Acc, 0>{}; }, natural);
    const Acc own = logit(natural.at(target));
    const auto log_probabilities_of_row =
        log_probabilities(row, softmax, own == softmax.maximum, natural);
    const Acc log_probability = log_probabilities_of_row.of(own);

    const Acc moved = adversarial.at(target) - natural.at(target);
    const auto margin = [=](Acc before, Acc after) RC_INLINE_LAMBDA {
      const Acc change = (after - before) - moved;
      // A class that is masked in both does not move.
      return before == kMasked && after == kMasked ? Acc(0) : change;
    };
    // Relative to the largest, so that no square overflows or underflows.
    const Acc largest = row.maximum(
        [=](Acc before, Acc after) RC_INLINE_LAMBDA {
          const Acc change = margin(before, after);
          return change < Acc(0) ? -change : change;
        },
        natural, adversarial);
    const Acc divisor = largest > Acc(0) ? largest : Acc(1);
    const Values<Acc, 2> sums = row.template sums<2>(
        [=](Acc before, Acc after) RC_INLINE_LAMBDA {
          const Acc relative = margin(before, after) / divisor;
          return Values<Acc, 2>{{relative * relative, relative}};
        },
        natural, adversarial);
    const Acc root = square_root(sums.value[0]);
    const Acc loss = weight * (policy.value(log_probability) + nu * (divisor * root));

    if constexpr (kGradients) {
      T* const outputs[2] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr,
                             p.grad_second ? p.grad_second + i * p.classes : nullptr};
      const Acc pull = factor * weight * policy.slope(log_probability) * inverse_temperature;
      const Acc push = pull / softmax.total;
      // The norm has no derivative at 0; this one is the smallest of its subgradients.
      const Acc inverse_root = root == Acc(0) ? Acc(0) : Acc(1) / root;
      const Acc slope = factor * weight * nu * inverse_root;
      const Acc own_margin = -slope * sums.value[1];
      const Acc probability = exponential(own - softmax.maximum) / softmax.total;
      const Acc rest = log_probabilities_of_row.complement(own, probability);
      const Values<Acc, 2> patch{{-pull * rest - own_margin, own_margin}};
      row.write(outputs, target, patch,
                [&](Acc cached, Acc before, Acc after) RC_INLINE_LAMBDA {
                  const Acc along = slope * (margin(before, after) / divisor);
                  return Values<Acc, 2>{{push * softmax.exponential(cached, before) - along, along}};
                },
                softmax.cached, natural, adversarial);
    }
    return loss;
  }

 private:
  static RC_INLINE float square_root(float x) { return sqrtf(x); }
  static RC_INLINE double square_root(double x) { return sqrt(x); }
};

}  // namespace robustcore
