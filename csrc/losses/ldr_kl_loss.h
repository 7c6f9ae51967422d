// The label-distributionally robust losses LDR-KL and ALDR-KL (arXiv 2112.14869). Host and device,
// no torch.
//
// Scores s_k of the K classes that are not masked with -inf are brought to a common size, s = K b /
// B, B = the sum of the sizes of b; what b is and its size, the Scores say. With a margin c that
// the label itself does not have, and a temperature per row or for all,
//
//   loss(y) = temperature log mean_k exp((c [k != y] + s_k - s_y) / temperature)
//   ds_k = u_k / (U v_y) for k != y, -(U - u_y) / (U v_y) for k = y,
//   u_k = exp((s_k - max s) / temperature), U = sum u,
//   v_y = ((U - u_y) + u_y exp(-c / temperature)) / U
//   db_k = K / B (ds_k - <ds, b> dsize_k / B)
//
// and the sum over labels with their weights. U - u_y is never formed as a difference where y is
// the one largest score: gradients keep their digits when the label dominates. Since sum_k ds_k =
// 0, <ds, b> may be taken of b - max b.
#pragma once

#include "common/choose.h"
#include "common/exp.h"
#include "losses/row_problem.h"
#include "losses/target.h"

namespace robustcore {

template <class Acc>
RC_INLINE bool is_masked_logit(Acc z) {
  return z == -static_cast<Acc>(__builtin_huge_val());
}

// b = softplus(z), all of it times e^-m where the largest logit m is negative (sizes are relative):
// a row of large negative logits does not underflow.
template <class Acc>
struct SoftplusScores {
  static constexpr const char* kName = "ldr_kl_loss";
  static constexpr int kKept = 2;        // b and db/dz are worth keeping between walks
  static constexpr bool kFinite = true;  // b of a masked class

  Acc shift;  // min(m, 0)
  Acc scale;  // e^shift

  RC_INLINE explicit SoftplusScores(Acc largest)
      : shift(largest < Acc(0) ? largest : Acc(0)), scale(exponential(shift)) {}

  // b and its derivative.
  RC_INLINE Values<Acc, 2> both(Acc z) const {
    const Acc magnitude = magnitude_of(z);
    const Acc scaled =
        exponential_of_nonpositive(-magnitude - shift);  // z >= 0 only where shift is 0
    const SoftplusParts<Acc> parts = softplus_parts(scaled * scale);
    const Acc b = (z > Acc(0) ? z : Acc(0)) + scaled * parts.ratio;
    return {{b, parts.inverse * choose(z < Acc(0), scaled, Acc(1))}};
  }
  RC_INLINE Acc b(Acc z) const { return both(z)[0]; }
  RC_INLINE Acc slope(Acc z) const { return both(z)[1]; }
  static RC_INLINE Acc size(Acc b) { return b; }
  // ds db/dz - pull dsize/dz, given db/dz
  static RC_INLINE Acc pulled(Acc ds, Acc slope, Acc, Acc pull) { return slope * (ds - pull); }
  template <class T>
  static RC_INLINE Acc penalty(const RowProblem<T>&, Acc, Acc) {
    return Acc(0);
  }
};

// b = z, its size |z|.
template <class Acc>
struct AbsoluteScores {
  static constexpr const char* kName = "aldr_kl_loss";
  static constexpr int kKept = 0;
  static constexpr bool kFinite = false;

  RC_INLINE explicit AbsoluteScores(Acc) {}
  RC_INLINE Values<Acc, 2> both(Acc z) const { return {{z, Acc(1)}}; }
  RC_INLINE Acc b(Acc z) const { return z; }
  RC_INLINE Acc slope(Acc) const { return Acc(1); }
  static RC_INLINE Acc size(Acc b) { return magnitude_of(b); }
  static RC_INLINE Acc pulled(Acc ds, Acc, Acc z, Acc pull) {
    const Acc signed_pull = z < Acc(0) ? -pull : pull;
    return ds - zero_if((z == Acc(0)) | is_masked_logit(z), signed_pull);
  }
  // What keeps the temperature from leaving its centre l0: -(a log K / 2 l0) (temperature - l0)^2.
  template <class T>
  static RC_INLINE Acc penalty(const RowProblem<T>& p, Acc temperature, Acc count) {
    const Acc strength = p.parameter[2], centre = p.parameter[3];
    const Acc away = temperature - centre;
    return -(strength * logarithm(count) / (Acc(2) * centre)) * (away * away);
  }
};

// Scores of a row, and how many there are.
template <class Acc, template <class> class ScoresOf>
struct NormalizedScores {
  using Scores = ScoresOf<Acc>;

  Acc largest;  // logit
  Scores scores;
  Acc inverse_size;  // 1 / B
  Acc count;         // K; NaN where a logit is +inf, and with it everything else
  Acc factor;        // K / B; 0 where all scores are 0
  Acc top;           // b of the largest logit

  // On the CPU b and its derivative stay in caches 0 and 1 where they are costly.
  template <class Row, class Logits>
  RC_INLINE NormalizedScores(const Row& row, const Logits& logits)
      : largest(row.maximum([](Acc z)
  RC_INLINE_LAMBDA { return z; }, logits)), scores(largest) {
    const auto sums = row.template sums_keeping<2, Scores::kKept, 0>(
        [&](Acc z) RC_INLINE_LAMBDA {
          const Values<Acc, 2> both = scores.both(z);
          Values<Acc, 2 + Scores::kKept> terms{};
          const Acc size = Scores::size(both[0]);
          terms.value[0] = Scores::kFinite ? size : zero_if(is_masked_logit(z), size);
          terms.value[1] = zero_if(is_masked_logit(z), Acc(1));
          for (int k = 0; k < Scores::kKept; ++k) terms.value[2 + k] = both[k];
          return terms;
        },
        logits);
    // Scores of +inf have no common size.
    const bool unbounded = largest == static_cast<Acc>(__builtin_huge_val());
    count = unbounded ? static_cast<Acc>(__builtin_nan("")) : sums[1];
    const Acc tiny = sizeof(Acc) == 8 ? Acc(2.2250738585072014e-308) : Acc(1.17549435e-38);
    inverse_size = sums[0] < tiny * count ? Acc(0) : Acc(1) / sums[0];
    factor = count * inverse_size;
    top = scores.b(largest);
  }

  // log2(e) times the size of scores over that of b and the temperature; finite, so that 0 stays 0.
  RC_INLINE Acc steepness(Acc inverse_temperature) const {
    constexpr Acc kMost = sizeof(Acc) == 8 ? Acc(1.7976931348623157e308) : Acc(3.4028234663852886e38);
    const Acc steep = factor * inverse_temperature * Acc(1.4426950408889634);
    return steep > kMost ? kMost : steep;
  }
  // exp((s - max s) / temperature) for all but the largest logit, and for that alone.
  RC_INLINE Acc other_exponential(Acc steepness, Acc b, Acc z) const {
    const Acc below = b - top;
    const Acc e = power_of_two_of_nonpositive(steepness * (below > Acc(0) ? Acc(0) : below));
    return zero_if((z == largest) | is_masked_logit(z), e);
  }
  RC_INLINE Acc top_exponential(Acc z) const { return zero_if(!(z == largest), Acc(1)); }
  // b - top, not positive, and exactly 0 for the largest logit.
  RC_INLINE Acc below_top(Acc b, Acc z) const {
    const Acc below = b - top;
    return zero_if((below > Acc(0)) | (z == largest), below);
  }
  template <bool kKeeps>
  RC_INLINE Acc b(Acc kept, Acc z) const {
    return kKeeps && Scores::kKept > 0 ? kept : scores.b(z);
  }
  template <bool kKeeps>
  RC_INLINE Acc slope(Acc kept, Acc z) const {
    return kKeeps && Scores::kKept > 0 ? kept : scores.slope(z);
  }
};

template <template <class> class ScoresOf>
struct LabelDistributionLoss {
  static constexpr const char* kName = ScoresOf<float>::kName;
  static constexpr bool kTakesLabels = true;
  static constexpr int kRowValueGradients = 0;
  static constexpr bool kBendsLogits = false;
  static constexpr int kMoreRegisters = 16;
  // b, db/dz where they are worth it, and exponentials.
  static constexpr int kExponentials = ScoresOf<float>::kKept;
  static constexpr int kCaches = kExponentials + 1;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                           const Options& options) {
    const Acc temperature = p.row_value[0] ? p.row_value[0][i] : p.parameter[0];
    const NormalizedScores<Acc, ScoresOf> scores(row, matrix_row(p, p.logits, i));
    return run<kGradients>(row, p, i, factor, options, scores, temperature);
  }

  // The scores and the temperature given.
  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                           const Options& options, const NormalizedScores<Acc, ScoresOf>& scores,
                           Acc temperature) {
    using Scores = ScoresOf<Acc>;
    constexpr bool kKeeps = Row::kKeeps;
    const Acc inverse_temperature = Acc(1) / temperature;
    const Acc margin = p.parameter[1];
    const auto logits = matrix_row(p, p.logits, i);
    // Where nothing is kept, these are read and not used.
    const auto kept_b = row.template kept<0>();
    const auto kept_slope = row.template kept<Scores::kKept == 2 ? 1 : 0>();
    const auto kept_exponential = row.template kept<kExponentials>();

    const Acc steepness = scores.steepness(inverse_temperature);
    // exp((s - max s) / temperature)
    const auto exponential_of = [&](Acc b, Acc z) RC_INLINE_LAMBDA {
      return scores.other_exponential(steepness, b, z) + scores.top_exponential(z);
    };
    const auto sums = row.template sums_keeping<3, 1, kExponentials>(
        [&](Acc kept, Acc z) RC_INLINE_LAMBDA {
          const Acc b = scores.template b<kKeeps>(kept, z);
          const Acc other = scores.other_exponential(steepness, b, z);
          const Acc top = scores.top_exponential(z), along = other * (b - scores.top);
          return Values<Acc, 4>{
              {other, top, Scores::kFinite ? along : zero_if(is_masked_logit(z), along),
               other + top}};
        },
        kept_b, logits);
    const Acc inverse_total = Acc(1) / (sums[0] + sums[1]);
    const Acc others = sums[0] * inverse_total;  // probability of all but the largest
    const bool one_top = sums[1] == Acc(1);
    const Acc along = sums[2] * inverse_total;  // <u, b - top> / U
    const Acc log_mean = logarithm((sums[0] + sums[1]) / scores.count);
    const Acc penalty = Scores::penalty(p, temperature, scores.count);
    const Acc relief = exponential(-margin * inverse_temperature);

    // Of a label: 1 - u / U, v, and the loss.
    const auto complement = [&](Acc probability, Acc z) RC_INLINE_LAMBDA {
      return choose(one_top & (z == scores.largest), others, Acc(1) - probability);
    };
    const auto relieved = [&](Acc probability, Acc rest) RC_INLINE_LAMBDA {
      return rest + probability * relief;
    };
    const auto loss_of = [&](Acc below, Acc v, Acc log_v) RC_INLINE_LAMBDA {
      // Margins that are many temperatures high: only the label itself is left of v.
      const Acc log_relieved = choose(v > smallest<Acc>(), log_v, -margin * inverse_temperature);
      return margin - scores.factor * below + temperature * (log_mean + log_relieved) + penalty;
    };

    const bool hard = options.label() == Label::kClass;
    const LabelWeights<Acc> label(p, i);
    const auto weights = row.materialized(label, !hard);
    constexpr Acc kInfinite = static_cast<Acc>(__builtin_huge_val());
    T* const outputs[1] = {p.grad_logits ? p.grad_logits + i * p.classes : nullptr};
    const Acc scale = factor * scores.factor;
    // From ds_k and <ds, b> / B, both times `scale`, db/dz and z.
    const auto gradient = [&](Acc ds, Acc slope, Acc z, Acc pull) RC_INLINE_LAMBDA {
      return Values<Acc, 1>{{Scores::pulled(ds, slope, z, pull)}};
    };

    if (hard) {
      const Acc z = logits.at(label.target);
      Acc b = scores.scores.b(z), own_exponential = 0;
      if constexpr (kKeeps) {
        if (Scores::kKept > 0) b = stream_at(kept_b, label.target);
        own_exponential = stream_at(kept_exponential, label.target);
      } else {
        own_exponential = exponential_of(b, z);
      }
      const Acc weight = p.class_weight ? p.class_weight[label.target] : Acc(1);
      const Acc probability = own_exponential * inverse_total;
      const Acc rest = complement(probability, z), v = relieved(probability, rest);
      const Acc below = is_masked_logit(z) ? -scores.top : scores.below_top(b, z);
      const Acc value = loss_of(below, v, logarithm(v));
      if constexpr (kGradients) {
        const Acc inverse = v == Acc(0) ? Acc(0) : scale * (weight / v);
        const Acc pull = inverse * (along - below) * scores.inverse_size;
        const Acc each = inverse * inverse_total;
        row.write(outputs, label.target,
                  gradient(-inverse * rest, scores.scores.slope(z), z, pull),
                  [&](Acc kept, Acc slope, Acc z) RC_INLINE_LAMBDA {
                    const Acc e = kKeeps ? kept : exponential_of(scores.scores.b(z), z);
                    return gradient(each * e, scores.template slope<kKeeps>(slope, z), z, pull);
                  },
                  kept_exponential, kept_slope, logits);
      }
      return is_masked_logit(z) ? kInfinite : weight * value;
    }

    const auto labels = row.template sums<3>(
        [&](Acc t, Acc kept, Acc kept_e, Acc z) RC_INLINE_LAMBDA {
          const Acc b = scores.template b<kKeeps>(kept, z);
          const Acc probability = (kKeeps ? kept_e : exponential_of(b, z)) * inverse_total;
          const Acc v = relieved(probability, complement(probability, z));
          const Acc below = scores.below_top(b, z);
          const Acc cost = loss_of(below, v, logarithm_of_normal(v));
          const Acc value = t * choose(is_masked_logit(z), kInfinite, cost);
          const bool absent = t == Acc(0);
          const Acc pull = zero_if(absent | (v == Acc(0)), t / v), moment = pull * below;
          return Values<Acc, 3>{
              {zero_if(absent, value), pull, zero_if(is_masked_logit(z), moment)}};
        },
        weights, kept_b, kept_exponential, logits);
    if constexpr (kGradients) {
      const Acc pull = scale * ((labels[1] * along - labels[2]) * scores.inverse_size);
      row.write(outputs, -1, Values<Acc, 1>{},
                [&](Acc t, Acc kept, Acc slope, Acc z) RC_INLINE_LAMBDA {
                  const Acc e = kKeeps ? kept : exponential_of(scores.scores.b(z), z);
                  const Acc probability = e * inverse_total;
                  const Acc rest = complement(probability, z), v = relieved(probability, rest);
                  const Acc own = zero_if((v == Acc(0)) | (t == Acc(0)), t / v);
                  const Acc ds = scale * (probability * (labels[1] - own) - own * rest);
                  return gradient(ds, scores.template slope<kKeeps>(slope, z), z, pull);
                },
                weights, kept_exponential, kept_slope, logits);
    }
    return labels[0];
  }

 private:
  template <class Acc>
  static RC_INLINE constexpr Acc smallest() {
    return sizeof(Acc) == 8 ? Acc(2.2250738585072014e-308) : Acc(1.17549435e-38);
  }
  // A dependent call: on CUDA there is nothing to look at.
  template <class Stream>
  static RC_INLINE auto stream_at(const Stream& stream, int64_t c) {
    return stream.at(c);
  }
};

using LdrKlLoss = LabelDistributionLoss<SoftplusScores>;
using AldrKlLoss = LabelDistributionLoss<AbsoluteScores>;

// ALDR-KL's step of the temperature: l0 (1 - KL(q || uniform) / (a log K)), where q is the softmax of
// scores / temperature plus 1e-5, normalised again. Uses the first cache.
template <class Row, class Logits, class Acc>
RC_INLINE Acc stepped_temperature(const Row& row, const Logits& logits,
                                  const NormalizedScores<Acc, AbsoluteScores>& scores,
                                  Acc temperature, Acc strength, Acc centre) {
  constexpr Acc kFloor = Acc(1e-5);
  const Acc steepness = scores.steepness(Acc(1) / temperature);
  const auto exponential_of = [&](Acc z) RC_INLINE_LAMBDA {
    return scores.other_exponential(steepness, z, z) + scores.top_exponential(z);
  };
  const auto total = row.template sums_keeping<1, 1, 0>(
      [&](Acc z) RC_INLINE_LAMBDA {
        const Acc e = exponential_of(z);
        return Values<Acc, 2>{{e, e}};
      },
      logits);
  const Acc inverse_total = Acc(1) / total[0];
  const auto entropy = row.template sums<1>(
      [&](Acc kept, Acc z) RC_INLINE_LAMBDA {
        const Acc q = (Row::kKeeps ? kept : exponential_of(z)) * inverse_total + kFloor;
        return Values<Acc, 1>{{zero_if(is_masked_logit(z), q * logarithm_of_normal(q))}};
      },
      row.template kept<0>(), logits);
  const Acc mass = Acc(1) + scores.count * kFloor;
  const Acc log_count = logarithm(scores.count);
  const Acc divergence = log_count + entropy[0] / mass - logarithm(mass);
  return scores.count == Acc(1) ? centre : centre * (Acc(1) - divergence / (strength * log_count));
}

// The step alone. The "loss" of a row is its new temperature.
struct AldrKlTemperature {
  static constexpr const char* kName = "aldr_kl_temperature";
  static constexpr int kMoreRegisters = 16;
  static constexpr int kNeededRowValues = 1;
  static constexpr bool kTakesLabels = false;
  static constexpr int kRowValueGradients = 0;
  static constexpr int kCaches = 1;

  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc,
                           const Options&) {
    const auto logits = matrix_row(p, p.logits, i);
    const NormalizedScores<Acc, AbsoluteScores> scores(row, logits);
    return stepped_temperature(row, logits, scores, p.row_value[0][i], p.parameter[0],
                               p.parameter[1]);
  }
};

// ALDR-KL with the temperature of each example as its state (indexed_state.h): in training the step,
// then the loss with the new temperature.
struct AldrKlIndexedLoss {
  static constexpr const char* kName = "aldr_kl_indexed_loss";
  static constexpr bool kTakesLabels = true;
  static constexpr int kRowValueGradients = 0;
  static constexpr bool kBendsLogits = false;
  static constexpr int kMoreRegisters = 32;
  static constexpr int kCaches = AldrKlLoss::kCaches;
  static constexpr bool kUsesState = true;
  static constexpr int64_t kStateWidth = 1;

  // The parameters are those of AldrKlLoss; the first is not read.
  template <bool kGradients, class Row, class T, class Options, class Acc = accumulate_t<T>>
  static RC_INLINE Acc run(const Row& row, const RowProblem<T>& p, int64_t i, Acc factor,
                           const Options& options) {
    const auto logits = matrix_row(p, p.logits, i);
    const NormalizedScores<Acc, AbsoluteScores> scores(row, logits);
    Acc temperature = *p.state.source(i);
    if (p.state.updates()) {
      const Acc stepped =
          stepped_temperature(row, logits, scores, temperature, p.parameter[2], p.parameter[3]);
      // A row that is not finite (an overflow that the trainer skips) must not spoil the state.
      temperature = stepped == stepped ? stepped : temperature;
    }
    row.synchronize();  // what is written next, all threads of the row have read
    Acc* const destination = p.state.destination(i);
    if (destination && row.is_leader()) *destination = temperature;
    return AldrKlLoss::run<kGradients>(row, p, i, factor, options, scores, temperature);
  }
};

}  // namespace robustcore
