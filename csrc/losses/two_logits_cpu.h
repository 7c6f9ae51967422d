// CPU driver for the losses of class 2: walks rows, vectorised over the classes. A row is read from memory
// once and revisited in cache. See two_logits.h for the problem and gated_cross_entropy.h for a policy.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/exp.h"
#include "common/macros.h"
#include "losses/target.h"
#include "losses/two_logits.h"

namespace robustcore::two_logits_cpu {

// Elements that are handled together. Sums are kept per lane and added in a fixed order at the end, so
// that they do not depend on the instruction set's width.
template <class Acc>
constexpr int kLanes = sizeof(Acc) == 8 ? 8 : 16;

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

template <class Acc>
RC_INLINE Acc sum_lanes(const Acc* lanes) {
  Acc total[kLanes<Acc>];
  for (int l = 0; l < kLanes<Acc>; ++l) total[l] = lanes[l];
  for (int width = kLanes<Acc> / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) total[l] += total[l + width];
  }
  return total[0];
}

template <class Acc>
RC_INLINE Acc max_lanes(const Acc* lanes) {
  Acc best = lanes[0];
  for (int l = 1; l < kLanes<Acc>; ++l) best = lanes[l] > best ? lanes[l] : best;
  return best;
}

// One group of lanes of both logit rows, widened. Lanes past the end hold -inf, which no maximum and no
// sum of exponentials notices.
template <class T, class Acc>
struct Group {
  Acc first[kLanes<Acc>];
  Acc second[kLanes<Acc>];

  RC_INLINE void load(const T* RC_RESTRICT a, const T* RC_RESTRICT b) {
    RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) first[l] = to_accumulate(a[l]);
    RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) second[l] = to_accumulate(b[l]);
  }
  RC_INLINE void load(const T* RC_RESTRICT a, const T* RC_RESTRICT b, int64_t count) {
    for (int l = 0; l < kLanes<Acc>; ++l) {
      first[l] = l < count ? to_accumulate(a[l]) : -kInfinity<Acc>;
      second[l] = l < count ? to_accumulate(b[l]) : -kInfinity<Acc>;
    }
  }
};

// Calls f(offset, count, group) over a row; count is a compile-time constant except at the end.
template <class T, class Acc, class F>
RC_INLINE void for_each_group(const T* first, const T* second, int64_t classes, F&& f) {
  Group<T, Acc> group;
  int64_t c = 0;
  for (; c + kLanes<Acc> <= classes; c += kLanes<Acc>) {
    group.load(first + c, second + c);
    f(c, int64_t{kLanes<Acc>}, group);
  }
  if (c < classes) {
    group.load(first + c, second + c, classes - c);
    f(c, classes - c, group);
  }
}

// What a forward row finds out; gradients are formed from it.
template <class Acc>
struct RowStatistics {
  Acc lse;
  Acc loss;
  Acc direction;      // <dloss/dh, dh/dgate>
  Acc inverse_total;  // turns the exponentials of the row into probabilities
};

// One row of the forward pass. Leaves exp(h - max h) in `exponentials` where that is given.
template <class Policy, bool kSmoothing, class T, class Acc = accumulate_t<T>>
RC_INLINE RowStatistics<Acc> row_statistics(const TwoLogitProblem<T>& p, const Policy& row,
                                            const T* first, const T* second, int64_t target,
                                            Acc* exponentials) {
  constexpr int L = kLanes<Acc>;
  Acc lanes[L];
  for (int l = 0; l < L; ++l) lanes[l] = -kInfinity<Acc>;
  for_each_group<T, Acc>(first, second, p.classes, [&](int64_t, int64_t, const Group<T, Acc>& g) {
    RC_SIMD for (int l = 0; l < L; ++l) {
      const Acc h = row.mix(g.first[l], g.second[l]);
      lanes[l] = h > lanes[l] ? h : lanes[l];
    }
  });
  const Acc maximum = max_lanes(lanes);

  Acc sum[L] = {}, along[L] = {}, weighted[L] = {}, weighted_along[L] = {};
  for_each_group<T, Acc>(
      first, second, p.classes, [&](int64_t c, int64_t count, const Group<T, Acc>& g) {
        Acc e[L];
        RC_SIMD for (int l = 0; l < L; ++l) {
          e[l] = exponential(row.mix(g.first[l], g.second[l]) - maximum);
          sum[l] += e[l];
          // A masked class has no probability; its infinite difference must not turn 0 into NaN.
          const Acc term = e[l] * row.direction(g.first[l], g.second[l]);
          along[l] += e[l] == Acc(0) ? Acc(0) : term;
        }
        if (exponentials) {
          if (count == L) {
            RC_SIMD for (int l = 0; l < L; ++l) exponentials[c + l] = e[l];
          } else {
            for (int64_t l = 0; l < count; ++l) exponentials[c + l] = e[l];
          }
        }
        if constexpr (kSmoothing) {
          for (int64_t l = 0; l < count; ++l) {
            const Acc w = p.class_weight ? p.class_weight[c + l] : Acc(1);
            weighted[l] += w * row.mix(g.first[l], g.second[l]);
            weighted_along[l] += w * row.direction(g.first[l], g.second[l]);
          }
        }
      });
  const Acc total = sum_lanes(sum);
  const TargetWeights<Acc> t = target_weights(p, target);
  const Acc first_y = to_accumulate(first[target]), second_y = to_accumulate(second[target]);
  RowStatistics<Acc> result;
  result.inverse_total = Acc(1) / total;
  result.lse = maximum + logarithm(total);
  result.loss = t.hard * (result.lse - row.mix(first_y, second_y));
  Acc subtract = t.hard * row.direction(first_y, second_y);
  if constexpr (kSmoothing) {
    result.loss += t.soft * (t.weight_sum * result.lse - sum_lanes(weighted));
    subtract += t.soft * sum_lanes(weighted_along);
  }
  result.direction = t.scale() * (sum_lanes(along) * result.inverse_total) - subtract;
  return result;
}

// Writes both gradients of a row. `probability(c, group, p)` fills p with softmax(h) of a group.
template <class Policy, bool kSmoothing, class T, class Probability, class Acc = accumulate_t<T>>
RC_INLINE void write_gradients(const TwoLogitProblem<T>& p, const Policy& row, const T* first,
                               const T* second, int64_t target, Acc factor, T* grad_first,
                               T* grad_second, Probability&& probability) {
  constexpr int L = kLanes<Acc>;
  const TargetWeights<Acc> t = target_weights(p, target);
  const Acc scale = factor * t.scale();
  const Acc soft = factor * t.soft;
  const auto gradient_at = [&](int64_t c, Acc probability_c) {
    Acc gradient = scale * probability_c;
    if constexpr (kSmoothing) gradient -= soft * (p.class_weight ? p.class_weight[c] : Acc(1));
    return gradient;
  };
  Acc target_probability = 0;
  for_each_group<T, Acc>(
      first, second, p.classes, [&](int64_t c, int64_t count, const Group<T, Acc>& g) {
        Acc q[L], d[L];
        probability(c, count, g, q);
        if (target >= c && target < c + count) target_probability = q[target - c];
        if (count == L) {
          RC_SIMD for (int l = 0; l < L; ++l) d[l] = gradient_at(c + l, q[l]);
          if (grad_first) {
            RC_SIMD for (int l = 0; l < L; ++l) {
              grad_first[c + l] = from_accumulate<T>(row.gradient_first(d[l]));
            }
          }
          if (grad_second) {
            RC_SIMD for (int l = 0; l < L; ++l) {
              grad_second[c + l] = from_accumulate<T>(row.gradient_second(d[l]));
            }
          }
        } else {
          for (int64_t l = 0; l < count; ++l) {
            d[l] = gradient_at(c + l, q[l]);
            if (grad_first) grad_first[c + l] = from_accumulate<T>(row.gradient_first(d[l]));
            if (grad_second) grad_second[c + l] = from_accumulate<T>(row.gradient_second(d[l]));
          }
        }
      });
  // The true class, formed in the wide type: p - 1 loses everything in a 16-bit one.
  const Acc own = gradient_at(target, target_probability) - factor * t.hard;
  if (grad_first) grad_first[target] = from_accumulate<T>(row.gradient_first(own));
  if (grad_second) grad_second[target] = from_accumulate<T>(row.gradient_second(own));
}

template <class T>
RC_INLINE accumulate_t<T> sample_weight(const TwoLogitProblem<T>& p, int64_t i) {
  return p.sample_weight ? p.sample_weight[i] : accumulate_t<T>(1);
}

template <class T>
RC_INLINE void zero_row(T* row, int64_t classes) {
  if (!row) return;
  for (int64_t c = 0; c < classes; ++c) row[c] = from_accumulate<T>(accumulate_t<T>(0));
}

template <class T>
RC_INLINE accumulate_t<T> gradient_factor(const TwoLogitProblem<T>& p, int64_t i) {
  using Acc = accumulate_t<T>;
  const Acc incoming = p.grad_loss ? p.grad_loss[p.grad_loss_per_row ? i : 0] : Acc(1);
  return p.denominator ? incoming / *p.denominator : incoming;
}

template <class T>
RC_INLINE void write_row_gradients(const TwoLogitProblem<T>& p, int64_t i, accumulate_t<T> factor) {
  if (p.grad_gate) p.grad_gate[i] = factor * sample_weight(p, i) * p.row_gate_gradient[i];
  if (p.grad_sample_weight) p.grad_sample_weight[i] = factor * p.row_loss[i];
}

// log softmax(first)[target] and argmax(first); as torch.argmax, the first of equals, NaN above all.
template <class T, class Acc>
RC_INLINE void row_scores(const TwoLogitProblem<T>& p, int64_t i, const T* first) {
  Acc best = to_accumulate(first[0]);
  int64_t arg = 0;
  for (int64_t c = 1; c < p.classes; ++c) {
    const Acc value = to_accumulate(first[c]);
    const bool better = value > best || (value != value && best == best);
    arg = better ? c : arg;
    best = better ? value : best;
  }
  Acc sum[kLanes<Acc>] = {};
  for_each_group<T, Acc>(first, first, p.classes, [&](int64_t, int64_t, const Group<T, Acc>& g) {
    RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) sum[l] += exponential(g.first[l] - best);
  });
  const bool ignored = p.target[i] == p.ignore_index;
  const Acc lse = best + logarithm(sum_lanes(sum));
  p.predicted[i] = arg;
  p.log_probability[i] = ignored ? std::numeric_limits<Acc>::quiet_NaN()
                                 : to_accumulate(first[p.target[i]]) - lse;
  p.gate_probability[i] = sigmoid(p.gate[i]);
}

// Rows [begin, end): statistics, and with kGradients the gradients in the same visit of the row.
template <class Policy, bool kSmoothing, bool kGradients, class T>
RC_TARGET_CLONES void forward_rows(const TwoLogitProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  constexpr int L = kLanes<Acc>;
  std::vector<Acc> scratch;  // 16-bit gradients cannot hold the exponentials meanwhile
  if (kGradients && sizeof(T) != sizeof(Acc)) scratch.resize(p.classes);
  for (int64_t i = begin; i < end; ++i) {
    const T* first = p.first + i * p.classes;
    const T* second = p.second + i * p.classes;
    T* grad_first = p.grad_first ? p.grad_first + i * p.classes : nullptr;
    T* grad_second = p.grad_second ? p.grad_second + i * p.classes : nullptr;
    const int64_t target = p.target[i];
    if (p.log_probability) row_scores<T, Acc>(p, i, first);
    if (target == p.ignore_index) {
      p.row_loss[i] = p.row_lse[i] = p.row_gate_gradient[i] = Acc(0);
      if constexpr (kGradients) {
        zero_row(grad_first, p.classes);
        zero_row(grad_second, p.classes);
        write_row_gradients(p, i, Acc(0));
      }
      continue;
    }
    const Policy row = Policy::begin(p.gate[i]);
    Acc* exponentials = nullptr;
    if constexpr (kGradients && sizeof(T) == sizeof(Acc)) {
      exponentials = grad_first ? grad_first : grad_second;
    } else if constexpr (kGradients) {
      exponentials = scratch.data();
    }
    const RowStatistics<Acc> s =
        row_statistics<Policy, kSmoothing>(p, row, first, second, target, exponentials);
    p.row_loss[i] = s.loss;
    p.row_lse[i] = s.lse;
    p.row_gate_gradient[i] = row.gate_slope() * s.direction;
    if constexpr (kGradients) {
      const Acc factor = gradient_factor(p, i);
      write_row_gradients(p, i, factor);
      if (!grad_first && !grad_second) continue;
      const auto probability = [&](int64_t c, int64_t count, const Group<T, Acc>&, Acc* q) {
        if (count == L) {
          RC_SIMD for (int l = 0; l < L; ++l) q[l] = exponentials[c + l] * s.inverse_total;
        } else {
          for (int64_t l = 0; l < count; ++l) q[l] = exponentials[c + l] * s.inverse_total;
        }
      };
      write_gradients<Policy, kSmoothing>(p, row, first, second, target,
                                          factor * sample_weight(p, i), grad_first, grad_second,
                                          probability);
    }
  }
}

// Rows [begin, end) of the backward pass: the probabilities once more, from the saved logsumexp.
template <class Policy, bool kSmoothing, class T>
RC_TARGET_CLONES void backward_rows(const TwoLogitProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    T* grad_first = p.grad_first ? p.grad_first + i * p.classes : nullptr;
    T* grad_second = p.grad_second ? p.grad_second + i * p.classes : nullptr;
    const int64_t target = p.target[i];
    if (target == p.ignore_index) {
      zero_row(grad_first, p.classes);
      zero_row(grad_second, p.classes);
      write_row_gradients(p, i, Acc(0));
      continue;
    }
    const Acc factor = gradient_factor(p, i);
    write_row_gradients(p, i, factor);
    if (!grad_first && !grad_second) continue;
    const Policy row = Policy::begin(p.gate[i]);
    const Acc lse = p.row_lse[i];
    const auto probability = [&](int64_t, int64_t, const Group<T, Acc>& g, Acc* q) {
      RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) {
        q[l] = exponential(row.mix(g.first[l], g.second[l]) - lse);
      }
    };
    write_gradients<Policy, kSmoothing>(p, row, p.first + i * p.classes, p.second + i * p.classes,
                                        target, factor * sample_weight(p, i), grad_first,
                                        grad_second, probability);
  }
}

}  // namespace robustcore::two_logits_cpu
