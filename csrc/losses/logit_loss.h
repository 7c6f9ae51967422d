// The row program that most losses share: a sum over classes of label weights times a function of
// the class's log-probability. Host and device, no torch.
//
//   loss = sum_c t_c value(log p_c) + a lse^2,   p = softmax(h),  lse = logsumexp(h)
//   dh_k = (sum_c t_c slope(log p_c) + 2 a lse) p_k - t_k slope(log p_k),   slope = -value'
//
// Source says where h comes from (logit_source.h), t is the label with its weights (target.h), and
// Policy brings value and slope: see comp_sum_loss.h.
#pragma once

#include "losses/log_probability.h"
#include "losses/logit_source.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

template <template <class> class SourceOf, template <class> class PolicyOf>
struct LogitLoss {
  static constexpr const char* kName = PolicyOf<float>::kName;
  static constexpr bool kTakesLabels =
      true;  // class, smoothed label or probabilities; options of h
  static constexpr int kCaches = 1;
  static constexpr bool kNeedsSecond = SourceOf<float>::kMatrices > 1;
  static constexpr int kNeededRowValues = SourceOf<float>::kDirections;
  // How many of the row values, from the first on, have a derivative.
  static constexpr int kRowValueGradients = SourceOf<float>::kDirections;

  // One row, whose label is `target` where that is a class. Returns the loss; with kGradients
  // writes the gradients of factor * loss.
  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                       const Options& options) {
    using Source = SourceOf<Acc>;
    constexpr int kDirections = Source::kDirections;
    constexpr int kMatrices = Source::kMatrices;
    const Source source(p, i);
    const PolicyOf<Acc> policy(p, i);
    const LogitTransform<Acc, Options> transform(p, options);

    const auto logit = [&](auto... in)
    RC_INLINE_LAMBDA { return transform.apply(source.raw(in...)); };
    const auto direction = [&](auto... in) RC_INLINE_LAMBDA {
      Values<Acc, kDirections> along = source.direction(in...);
      if constexpr (kDirections > 0) {
        const Acc slope = transform.slope(source.raw(in...));
        for (int k = 0; k < kDirections; ++k) along.value[k] *= slope;
      }
      return along;
    };

    return Source::with_streams(p, i, [&](const auto&... streams) RC_INLINE_LAMBDA {
      const auto softmax = row.template softmax<kDirections, 0>(logit, direction, streams...);
      const bool hard = options.label() == Label::kClass;
      const LabelWeights<Acc> label(p, i);
      const Acc of_class = hard ? logit(streams.at(label.target)...) : Acc(0);  // h of the label
      const auto log_probability =
          log_probabilities(row, softmax, !hard || of_class == softmax.maximum, streams...);
      const Acc lse = log_probability.lse();
      const auto weights = row.materialized(label, !hard);

      // sum t value(log p), sum t slope(log p), and the latter times the directions.
      Acc loss, pull;
      Values<Acc, kDirections> pulled{};
      if (hard) {
        const Acc log_p = log_probability.of(of_class);
        const Acc weight = p.class_weight ? p.class_weight[label.target] : Acc(1);
        loss = weight * policy.value(log_p);
        pull = weight * policy.slope(log_p);
        if constexpr (kDirections > 0) {
          const Values<Acc, kDirections> along = direction(streams.at(label.target)...);
          for (int k = 0; k < kDirections; ++k) pulled.value[k] = pull * along.value[k];
        }
      } else {
        const auto sums = row.template sums<2 + kDirections>(
            [&](Acc t, auto... in) RC_INLINE_LAMBDA {
              const Acc log_p = log_probability.of(logit(in...));
              const Acc slope = t * policy.slope(log_p);
              Values<Acc, 2 + kDirections> terms{};
              // A class that the label gives nothing must not turn 0 * inf into NaN.
              const Acc value = t * policy.value(log_p);
              terms.value[0] = t == Acc(0) ? Acc(0) : value;
              terms.value[1] = t == Acc(0) ? Acc(0) : slope;
              if constexpr (kDirections > 0) {
                const Values<Acc, kDirections> along = direction(in...);
                for (int k = 0; k < kDirections; ++k) {
                  const Acc term = slope * along.value[k];
                  terms.value[2 + k] = t == Acc(0) ? Acc(0) : term;
                }
              }
              return terms;
            },
            weights, streams...);
        loss = sums.value[0];
        pull = sums.value[1];
        for (int k = 0; k < kDirections; ++k) pulled.value[k] = sums.value[2 + k];
      }
      loss += lse_penalty(p.lse_square, lse);
      [[maybe_unused]] const Acc lse_push = Acc(2) * p.lse_square * lse;
      [[maybe_unused]] const Acc push = pull + lse_push;

      if constexpr (kGradients) {
        const Acc inverse_total = Acc(1) / softmax.total;
        if (row.is_leader()) {
          for (int k = 0; k < kDirections; ++k) {
            if (!p.grad_row_value[k]) continue;
            const Acc along = push * (softmax.weighted.value[k] * inverse_total) - pulled.value[k];
            p.grad_row_value[k][i] = factor * source.slope_of_row_value(k) * along;
          }
        }
        T* outputs[kMatrices];
        outputs[0] = p.grad_logits ? p.grad_logits + i * p.classes : nullptr;
        if constexpr (kMatrices > 1) {
          outputs[1] = p.grad_second ? p.grad_second + i * p.classes : nullptr;
        }
        const Acc scale = factor * push * inverse_total;
        if (hard) {
          // The true class is formed in the wide type, and without the difference p - 1.
          const Acc of_target = exponential(of_class - softmax.maximum) * inverse_total;
          const Acc own = factor * (lse_push * of_target -
                                    pull * log_probability.complement(of_class, of_target));
          const Acc bend = transform.slope(source.raw(streams.at(label.target)...));
          row.write(outputs, label.target, source.gradients(own * bend),
                    [&](Acc cached, auto... in) RC_INLINE_LAMBDA {
                      const Acc gradient = scale * softmax.exponential(cached, in...);
                      return source.gradients(gradient * transform.slope(source.raw(in...)));
                    },
                    softmax.cached, streams...);
        } else {
          row.write(outputs, -1, source.gradients(Acc(0)),
                    [&](Acc cached, Acc t, auto... in) RC_INLINE_LAMBDA {
                      const Acc raw = source.raw(in...);
                      const Acc log_p = log_probability.of(transform.apply(raw));
                      const Acc own = factor * t * policy.slope(log_p);
                      const Acc gradient = scale * softmax.exponential(cached, in...) -
                                           (t == Acc(0) ? Acc(0) : own);
                      return source.gradients(gradient * transform.slope(raw));
                    },
                    softmax.cached, weights, streams...);
        }
      }
      return loss;
    });
  }
};

}  // namespace robustcore
