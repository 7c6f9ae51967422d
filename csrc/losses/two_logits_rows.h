// CPU kernels for the losses of two logit tensors and a gate: walk rows, vectorised over the
// classes. A row is read from memory once and revisited in cache. See two_logits.h for the problem
// and gated_cross_entropy.h for a policy.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/exp.h"
#include "common/macros.h"
#include "losses/target.h"
#include "losses/two_logits.h"

namespace robustcore::two_logits_cpu {

// Elements that are handled together. Sums are kept per lane and added in a fixed order at the end,
// so that they do not depend on the instruction set's width.
template <class Acc>
constexpr int kLanes = sizeof(Acc) == 8 ? 8 : 16;

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

// Folds the lanes pairwise: a fixed order, and a short chain of dependent operations.
template <class Acc, class Fold>
RC_INLINE Acc fold_lanes(const Acc* lanes, Fold&& fold) {
  Acc folded[kLanes<Acc>];
  RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) folded[l] = lanes[l];
  for (int width = kLanes<Acc> / 2; width > 0; width /= 2) {
    RC_SIMD for (int l = 0; l < width; ++l) folded[l] = fold(folded[l], folded[l + width]);
  }
  return folded[0];
}

template <class Acc>
RC_INLINE Acc sum_lanes(const Acc* lanes) {
  return fold_lanes(lanes, [](Acc a, Acc b) RC_INLINE_LAMBDA { return a + b; });
}

template <class Acc>
RC_INLINE Acc max_lanes(const Acc* lanes) {
  return fold_lanes(lanes, [](Acc a, Acc b) RC_INLINE_LAMBDA { return a > b ? a : b; });
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
    for (int l = 0; l < kLanes<Acc>; ++l) first[l] = second[l] = -kInfinity<Acc>;
    for (int64_t l = 0; l < count; ++l) first[l] = to_accumulate(a[l]);
    for (int64_t l = 0; l < count; ++l) second[l] = to_accumulate(b[l]);
  }
};

template <class Acc>
using LaneBits = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// kLanes zeros, then kLanes times all ones: a window of it keeps the lanes from some lane on.
template <class Acc>
inline constexpr auto kLaneBits = [] {
  std::array<LaneBits<Acc>, 2 * kLanes<Acc>> bits{};
  for (int l = kLanes<Acc>; l < 2 * kLanes<Acc>; ++l) bits[l] = -1;
  return bits;
}();

// Which lanes of a group count: all of them, or those whose bits a mask keeps. Bits rather than a
// condition: from a condition the compiler makes branches, and scalar code.
template <class Acc>
struct EveryLane {
  RC_INLINE Acc keep(int, Acc value) const { return value; }
  RC_INLINE constexpr bool has(int) const { return true; }
};

template <class Acc>
struct LanesFrom {
  const LaneBits<Acc>* bits;

  RC_INLINE explicit LanesFrom(int lane) : bits(kLaneBits<Acc>.data() + kLanes<Acc> - lane) {}
  RC_INLINE Acc keep(int lane, Acc value) const {
    return detail::bit_cast<Acc>(detail::bit_cast<LaneBits<Acc>>(value) & bits[lane]);
  }
  RC_INLINE bool has(int lane) const { return bits[lane] != 0; }
};

// Both logit rows. Where the classes do not fill the last group, that group ends at the last class and
// begins with lanes that the group before it counted already: visiting a class twice costs less than
// handling the rest one by one. A row shorter than a group is padded instead, and has `count` classes.
template <class T, class Acc>
struct Row {
  static constexpr int kWhole = kLanes<Acc>;

  const T* first;
  const T* second;
  int64_t whole;  // classes in complete groups
  int64_t tail_offset;
  int skip;
  int count;
  bool has_tail;
  Group<T, Acc> tail;

  RC_INLINE Row(const T* first_row, const T* second_row, int64_t classes)
      : first(first_row), second(second_row), whole(classes - classes % kWhole) {
    has_tail = whole < classes;
    if (!has_tail) return;
    tail_offset = whole > 0 ? classes - kWhole : 0;
    skip = static_cast<int>(whole - tail_offset);
    count = whole > 0 ? kWhole : static_cast<int>(classes);
    if (whole > 0) {
      tail.load(first + tail_offset, second + tail_offset);
    } else {
      tail.load(first, second, classes);
    }
  }

  // Calls f(offset, group, lanes, count) for each group: `lanes` keeps those that no other group
  // counts, and the first `count` lanes are classes.
  template <class F>
  RC_INLINE void for_each_group(F&& f) const {
    for_each_whole_group([&](int64_t c, const Group<T, Acc>& group) RC_INLINE_LAMBDA {
      f(c, group, EveryLane<Acc>{}, std::integral_constant<int, kWhole>{});
    });
    if (has_tail) f(tail_offset, tail, LanesFrom<Acc>(skip), count);
  }

  template <class F>
  RC_INLINE void for_each_whole_group(F&& f) const {
    for (int64_t c = 0; c < whole; c += kWhole) {
      Group<T, Acc> group;
      group.load(first + c, second + c);
      f(c, group);
    }
  }
};

// Writes `count` of the lanes that value(l) gives.
template <class Acc, class Out, class Value>
RC_INLINE void store_lanes(Out* out, int count, Value&& value) {
  if (count == kLanes<Acc>) {
    RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) out[l] = value(l);
  } else {
    for (int l = 0; l < count; ++l) out[l] = value(l);
  }
}

// What a forward row finds out; gradients are formed from it.
template <class Acc>
struct RowStatistics {
  Acc lse;
  Acc loss;
  Acc direction;      // <dloss/dh, dh/dgate>
  Acc maximum;
  Acc inverse_total;  // turns exp(h - maximum) into probabilities
};

// One row of the forward pass. Leaves exp(h - max h) in `exponentials` where that is given.
template <class Policy, bool kSmoothing, class T, class Acc = accumulate_t<T>>
RC_INLINE RowStatistics<Acc> row_statistics(const TwoLogitProblem<T>& p, const Policy& policy,
                                            const Row<T, Acc>& row, int64_t target,
                                            Acc* exponentials) {
  constexpr int L = kLanes<Acc>;
  Acc largest[L];
  for (int l = 0; l < L; ++l) largest[l] = -kInfinity<Acc>;
  row.for_each_group([&](int64_t, const Group<T, Acc>& g, const auto&, auto) RC_INLINE_LAMBDA {
    RC_SIMD for (int l = 0; l < L; ++l) {
      const Acc h = policy.mix(g.first[l], g.second[l]);
      largest[l] = h > largest[l] ? h : largest[l];
    }
  });
  const Acc maximum = max_lanes(largest);

  Acc sum[L] = {}, along[L] = {}, weighted[L] = {}, weighted_along[L] = {};
  row.for_each_group(
      [&](int64_t c, const Group<T, Acc>& g, const auto& lanes, auto count) RC_INLINE_LAMBDA {
        Acc e[L];
        RC_SIMD for (int l = 0; l < L; ++l) {
          e[l] = exponential(policy.mix(g.first[l], g.second[l]) - maximum);
          const Acc counted = lanes.keep(l, e[l]);
          sum[l] += counted;
          // A masked class has no probability; its infinite difference must not turn 0 into NaN.
          const Acc term = counted * policy.direction(g.first[l], g.second[l]);
          along[l] += counted == Acc(0) ? Acc(0) : term;
        }
        if (exponentials) {
          store_lanes<Acc>(exponentials + c, count, [&](int l) RC_INLINE_LAMBDA { return e[l]; });
        }
        if constexpr (kSmoothing) {
          for (int l = 0; l < count; ++l) {
            if (!lanes.has(l)) continue;
            const Acc w = p.class_weight ? p.class_weight[c + l] : Acc(1);
            weighted[l] += w * policy.mix(g.first[l], g.second[l]);
            weighted_along[l] += w * policy.direction(g.first[l], g.second[l]);
          }
        }
      });
  const Acc total = sum_lanes(sum);
  const TargetWeights<Acc> t = target_weights(p, target);
  const Acc first_y = to_accumulate(row.first[target]);
  const Acc second_y = to_accumulate(row.second[target]);
  RowStatistics<Acc> result;
  result.inverse_total = Acc(1) / total;
  result.maximum = maximum;
  result.lse = maximum + logarithm(total);
  result.loss = t.hard * (result.lse - policy.mix(first_y, second_y));
  Acc subtract = t.hard * policy.direction(first_y, second_y);
  if constexpr (kSmoothing) {
    result.loss += t.soft * (t.weight_sum * result.lse - sum_lanes(weighted));
    subtract += t.soft * sum_lanes(weighted_along);
  }
  result.direction = t.scale() * (sum_lanes(along) * result.inverse_total) - subtract;
  return result;
}

// Writes both gradients of a row. `probability(c, group, count, q)` fills q with softmax(h) of a group,
// and `target_probability` is that of the label.
template <class Policy, bool kSmoothing, class T, class Probability, class Acc = accumulate_t<T>>
RC_INLINE void write_gradients(const TwoLogitProblem<T>& p, const Policy& policy,
                               const Row<T, Acc>& row, int64_t target, Acc target_probability,
                               Acc factor, T* grad_first, T* grad_second,
                               Probability&& probability) {
  constexpr int L = kLanes<Acc>;
  const TargetWeights<Acc> t = target_weights(p, target);
  const Acc scale = factor * t.scale();
  const Acc soft = factor * t.soft;
  const auto gradient_at = [&](int64_t c, Acc probability_c) RC_INLINE_LAMBDA {
    Acc gradient = scale * probability_c;
    if constexpr (kSmoothing) gradient -= soft * (p.class_weight ? p.class_weight[c] : Acc(1));
    return gradient;
  };
  const auto write = [&](int64_t c, int count, const Acc* q) RC_INLINE_LAMBDA {
    if (grad_first) {
      store_lanes<Acc>(grad_first + c, count, [&](int l) RC_INLINE_LAMBDA {
        return from_accumulate<T>(policy.gradient_first(gradient_at(c + l, q[l])));
      });
    }
    if (grad_second) {
      store_lanes<Acc>(grad_second + c, count, [&](int l) RC_INLINE_LAMBDA {
        return from_accumulate<T>(policy.gradient_second(gradient_at(c + l, q[l])));
      });
    }
  };
  // The last group's probabilities first: they may lie where the gradients of the groups before it go.
  Acc tail[L];
  if (row.has_tail) probability(row.tail_offset, row.tail, row.count, tail);
  row.for_each_whole_group([&](int64_t c, const Group<T, Acc>& g) RC_INLINE_LAMBDA {
    Acc q[L];
    probability(c, g, L, q);
    write(c, L, q);
  });
  if (row.has_tail) write(row.tail_offset, row.count, tail);
  // The true class, formed in the wide type: p - 1 loses everything in a 16-bit one.
  const Acc own = gradient_at(target, target_probability) - factor * t.hard;
  if (grad_first) grad_first[target] = from_accumulate<T>(policy.gradient_first(own));
  if (grad_second) grad_second[target] = from_accumulate<T>(policy.gradient_second(own));
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

// An ignored row: zeros, not products with whatever the row holds.
template <class T>
RC_INLINE void zero_gradients(const TwoLogitProblem<T>& p, int64_t i, T* grad_first,
                              T* grad_second) {
  zero_row(grad_first, p.classes);
  zero_row(grad_second, p.classes);
  if (p.grad_gate) p.grad_gate[i] = 0;
  if (p.grad_sample_weight) p.grad_sample_weight[i] = 0;
}

template <class T>
RC_INLINE accumulate_t<T> gradient_factor(const TwoLogitProblem<T>& p, int64_t i) {
  using Acc = accumulate_t<T>;
  const Acc incoming = p.grad_loss ? p.grad_loss[p.grad_loss_per_row ? i : 0] : Acc(1);
  return incoming / *p.denominator;
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
  const Row<T, Acc> row(first, first, p.classes);
  row.for_each_group([&](int64_t, const Group<T, Acc>& g, const auto& lanes, auto) RC_INLINE_LAMBDA {
    RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) {
      const Acc e = exponential(g.first[l] - best);
      sum[l] += lanes.keep(l, e);
    }
  });
  const bool ignored = p.target[i] == p.ignore_index;
  const Acc lse = best + logarithm(sum_lanes(sum));
  p.predicted[i] = arg;
  p.log_probability[i] = ignored ? std::numeric_limits<Acc>::quiet_NaN()
                                 : to_accumulate(first[p.target[i]]) - lse;
  p.gate_probability[i] = logistic_pair(p.gate[i]).value;
}

// Calls f(row, policy) for the rows [begin, end). Gates are opened a group of rows at a time, since one
// exponential costs as much as sixteen.
template <class Policy, class T, class F>
RC_INLINE void for_each_row(const TwoLogitProblem<T>& p, int64_t begin, int64_t end, F&& f) {
  using Acc = accumulate_t<T>;
  constexpr int L = kLanes<Acc>;
  for (int64_t block = begin; block < end; block += L) {
    const int count = end - block < L ? static_cast<int>(end - block) : L;
    Acc logits[L] = {}, value[L], complement[L];
    for (int l = 0; l < count; ++l) logits[l] = p.gate[block + l];
    RC_SIMD for (int l = 0; l < L; ++l) {
      const LogisticPair<Acc> gate = logistic_pair(logits[l]);
      value[l] = gate.value;
      complement[l] = gate.complement;
    }
    for (int l = 0; l < count; ++l) f(block + l, Policy::begin({value[l], complement[l]}));
  }
}

// Rows [begin, end): statistics, and with kGradients the gradients in the same visit of the row.
template <class Policy, bool kSmoothing, bool kGradients, class T>
RC_TARGET_CLONES void forward_rows(const TwoLogitProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  std::vector<Acc> scratch;  // 16-bit gradients cannot hold the exponentials meanwhile
  if (kGradients && sizeof(T) != sizeof(Acc)) scratch.resize(p.classes);
  for_each_row<Policy>(p, begin, end, [&](int64_t i, const Policy& policy) RC_INLINE_LAMBDA {
    T* grad_first = p.grad_first ? p.grad_first + i * p.classes : nullptr;
    T* grad_second = p.grad_second ? p.grad_second + i * p.classes : nullptr;
    const int64_t target = p.target[i];
    if (p.log_probability) row_scores<T, Acc>(p, i, p.first + i * p.classes);
    if (target == p.ignore_index) {
      p.row_loss[i] = p.row_lse[i] = p.row_gate_gradient[i] = Acc(0);
      if constexpr (kGradients) zero_gradients(p, i, grad_first, grad_second);
      return;
    }
    const Row<T, Acc> row(p.first + i * p.classes, p.second + i * p.classes, p.classes);
    Acc* exponentials = nullptr;
    if constexpr (kGradients && sizeof(T) == sizeof(Acc)) {
      exponentials = grad_first ? grad_first : grad_second;
    } else if constexpr (kGradients) {
      exponentials = scratch.data();
    }
    const RowStatistics<Acc> s =
        row_statistics<Policy, kSmoothing>(p, policy, row, target, exponentials);
    p.row_loss[i] = s.loss;
    p.row_lse[i] = s.lse;
    p.row_gate_gradient[i] = policy.gate_slope() * s.direction;
    if constexpr (kGradients) {
      const Acc factor = gradient_factor(p, i);
      write_row_gradients(p, i, factor);
      if (!grad_first && !grad_second) return;
      const Acc of_target = exponentials[target] * s.inverse_total;
      write_gradients<Policy, kSmoothing>(
          p, policy, row, target, of_target, factor * sample_weight(p, i), grad_first, grad_second,
          [&](int64_t c, const Group<T, Acc>&, int count, Acc* q) RC_INLINE_LAMBDA {
            store_lanes<Acc>(q, count, [&](int l) RC_INLINE_LAMBDA {
              return exponentials[c + l] * s.inverse_total;
            });
          });
    }
  });
}

// Rows [begin, end) of the backward pass: the probabilities once more, from the saved logsumexp.
template <class Policy, bool kSmoothing, class T>
RC_TARGET_CLONES void backward_rows(const TwoLogitProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  for_each_row<Policy>(p, begin, end, [&](int64_t i, const Policy& policy) RC_INLINE_LAMBDA {
    T* grad_first = p.grad_first ? p.grad_first + i * p.classes : nullptr;
    T* grad_second = p.grad_second ? p.grad_second + i * p.classes : nullptr;
    const int64_t target = p.target[i];
    if (target == p.ignore_index) {
      zero_gradients(p, i, grad_first, grad_second);
      return;
    }
    const Acc factor = gradient_factor(p, i);
    write_row_gradients(p, i, factor);
    if (!grad_first && !grad_second) return;
    const Row<T, Acc> row(p.first + i * p.classes, p.second + i * p.classes, p.classes);
    const Acc lse = p.row_lse[i];
    const auto probability = [&](Acc first, Acc second) RC_INLINE_LAMBDA {
      return exponential(policy.mix(first, second) - lse);
    };
    write_gradients<Policy, kSmoothing>(
        p, policy, row, target,
        probability(to_accumulate(row.first[target]), to_accumulate(row.second[target])),
        factor * sample_weight(p, i), grad_first, grad_second,
        [&](int64_t, const Group<T, Acc>& g, int, Acc* q) RC_INLINE_LAMBDA {
          RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) q[l] = probability(g.first[l], g.second[l]);
        });
  });
}

}  // namespace robustcore::two_logits_cpu
