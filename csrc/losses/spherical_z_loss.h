// Spherical Z-loss (arXiv 1604.08859): the logits standardised within the row, then a softplus of
// the label's. Masked classes (-inf) are left out of mean, variance and the number of classes K.
// Host and device, no torch.
//
//   s_k = (z_k - mean) / deviation,  loss = sum_c t_c softplus(a (b - s_c)) / a
//   dz_k = -(t_k g_k - sum_c t_c g_c / K - s_k sum_c t_c g_c s_c / K) / deviation,
//   g_c = sigmoid(a (b - s_c))
//
// A constant row is standardised to zeros, and its gradient is 0.
#pragma once

#include "common/choose.h"
#include "common/exp.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

// One row standardised. Two passes, relative to the largest logit: neither a large common offset
// nor tiny or huge deviations lose digits.
template <class Acc>
struct Standardized {
  Acc largest;
  Acc mean;               // of z - largest
  Acc inverse_deviation;  // 0 for a constant row
  Acc inverse_count;      // 1 / K

  template <class Row, class Logits>
  RC_INLINE Standardized(const Row& row, const Logits& logits) {
    largest = row.maximum([](Acc z)
    RC_INLINE_LAMBDA { return z; }, logits);
    const auto sums = row.template sums<2>(
        [&](Acc z) RC_INLINE_LAMBDA {
          const Acc below = z - largest;
          return Values<Acc, 2>{{zero_if(is_masked(z), below), zero_if(is_masked(z), Acc(1))}};
        },
        logits);
    inverse_count = Acc(1) / sums[1];
    mean = sums[0] * inverse_count;
    // The largest deviation upwards: at least 1 / K of the largest downwards, so squares in this unit
    // stay in range.
    const Acc unit = -mean;
    const Acc tiny = sizeof(Acc) == 8 ? Acc(2.2250738585072014e-308) : Acc(1.17549435e-38);
    const bool is_constant = unit < tiny * sums[1];
    const Acc inverse_unit = is_constant ? Acc(0) : Acc(1) / unit;
    const auto squares = row.template sums<1>(
        [&](Acc z) RC_INLINE_LAMBDA {
          const Acc deviation = (z - largest - mean) * inverse_unit;
          return Values<Acc, 1>{{zero_if(is_masked(z), deviation * deviation)}};
        },
        logits);
    const Acc variance = squares[0] * inverse_count;
    inverse_deviation = is_constant ? Acc(0) : inverse_unit / square_root(variance);
  }

  static RC_INLINE bool is_masked(Acc z) { return z == -static_cast<Acc>(__builtin_huge_val()); }
  RC_INLINE Acc at(Acc z) const { return (z - largest - mean) * inverse_deviation; }
};

struct SphericalZLoss {
  static constexpr const char* kName = "spherical_z_loss";
  static constexpr bool kTakesLabels = true;
  static constexpr int kMoreRegisters = 16;
  static constexpr bool kBendsLogits = false;
  static constexpr int kRowValueGradients = 0;
  static constexpr int kCaches = 0;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                           const Options& options) {
    const Acc sharpness = p.parameter[0], location = p.parameter[1];  // a, b
    const auto logits = matrix_row(p, p.logits, i);
    const Standardized<Acc> standard(row, logits);
    const bool hard = options.label() == Label::kClass;
    const LabelWeights<Acc> label(p, i);
    const auto weights = row.materialized(label, !hard);

    Acc loss, pull, pulled;  // sum t g, sum t g s
    if (hard) {
      const Acc z = logits.at(label.target);
      const Acc weight = p.class_weight ? p.class_weight[label.target] : Acc(1);
      const bool masked = Standardized<Acc>::is_masked(z);
      const Acc s = masked ? Acc(0) : standard.at(z);
      const Acc excess = sharpness * (location - s);
      loss = masked ? static_cast<Acc>(__builtin_huge_val())
                    : weight * (softplus(excess) / sharpness);
      pull = masked ? Acc(0) : weight * logistic_pair(excess).value;
      pulled = pull * s;
    } else {
      const auto sums = row.template sums<3>(
          [&](Acc t, Acc z) RC_INLINE_LAMBDA {
            const Acc s = standard.at(z), excess = sharpness * (location - s);
            const bool absent = t == Acc(0), masked = Standardized<Acc>::is_masked(z);
            const Acc cost = t * (softplus(excess) / sharpness);
            const Acc value = choose(masked, static_cast<Acc>(__builtin_huge_val()), cost);
            const Acc slope = t * logistic_pair(excess).value, moment = slope * s;
            return Values<Acc, 3>{{zero_if(absent, value), zero_if(absent | masked, slope),
                                   zero_if(absent | masked, moment)}};
          },
          weights, logits);
      loss = sums[0];
      pull = sums[1];
      pulled = sums[2];
    }
    if constexpr (kGradients) {
      T* const outputs[1] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr};
      const Acc scale = factor * standard.inverse_deviation;
      const Acc even = pull * standard.inverse_count, along = pulled * standard.inverse_count;
      if (hard) {
        const Acc z = logits.at(label.target);
        const Acc own = scale * (even + standard.at(z) * along - pull);
        row.write(outputs, label.target,
                  Values<Acc, 1>{{zero_if(Standardized<Acc>::is_masked(z), own)}},
                  [&](Acc z) RC_INLINE_LAMBDA {
                    const Acc gradient = scale * (even + standard.at(z) * along);
                    return Values<Acc, 1>{{zero_if(Standardized<Acc>::is_masked(z), gradient)}};
                  },
                  logits);
      } else {
        row.write(outputs, -1, Values<Acc, 1>{},
                  [&](Acc t, Acc z) RC_INLINE_LAMBDA {
                    const Acc s = standard.at(z);
                    const Acc own = t * logistic_pair(sharpness * (location - s)).value;
                    const Acc gradient = scale * (even + s * along - own);
                    return Values<Acc, 1>{{zero_if(Standardized<Acc>::is_masked(z), gradient)}};
                  },
                  weights, logits);
      }
    }
    return loss;
  }
};

}  // namespace robustcore
