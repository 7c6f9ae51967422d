// CPU kernels of shrink_match_loss: a row is read from memory once, widened into scratch that stays
// in cache, and searched there. See shrink_match_loss.h for the method.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "losses/shrink_match_loss.h"

namespace robustcore::shrink_match_cpu {

// Sums are kept per lane and added in a fixed order, whatever the instruction set's width; lanes of
// float are emptied into double after kGroups groups, so that long rows lose nothing.
template <class Acc>
constexpr int kLanes = sizeof(Acc) == 8 ? 8 : 32;
constexpr int kGroups = 32;

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

template <class Acc>
using LaneCount = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

template <class Acc>
int64_t padded(int64_t classes) {
  return (classes + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
}

// Folds the lanes pairwise: a fixed order, and a short chain of dependent operations.
template <int kCount, class Value, class Fold>
RC_INLINE Value fold_lanes(const Value* lanes, Fold&& fold) {
  Value folded[kCount];
  RC_SIMD for (int l = 0; l < kCount; ++l) folded[l] = lanes[l];
  for (int width = kCount / 2; width > 0; width /= 2) {
    RC_SIMD for (int l = 0; l < width; ++l) folded[l] = fold(folded[l], folded[l + width]);
  }
  return folded[0];
}

template <int kCount, class Value>
RC_INLINE Value sum_of(const Value* lanes) {
  return fold_lanes<kCount>(lanes, [](Value a, Value b) RC_INLINE_LAMBDA { return a + b; });
}

// Values of a padded row. Both arrays have a length that the lanes divide.
template <class Acc>
struct Scratch {
  std::vector<Acc> weak, terms;
  int64_t size;

  explicit Scratch(int64_t classes)
      : weak(padded<Acc>(classes)), terms(weak.size()), size(padded<Acc>(classes)) {}
};

// The maximum of a padded row; NaN does not count.
template <class Acc>
RC_INLINE Acc maximum_of(const Acc* row, int64_t size) {
  constexpr int L = kLanes<Acc>;
  Acc largest[L];
  for (int l = 0; l < L; ++l) largest[l] = -kInfinity<Acc>;
  for (int64_t c = 0; c < size; c += L) {
    RC_SIMD for (int l = 0; l < L; ++l) {
      largest[l] = row[c + l] > largest[l] ? row[c + l] : largest[l];
    }
  }
  return fold_lanes<L>(largest, [](Acc a, Acc b) RC_INLINE_LAMBDA { return a > b ? a : b; });
}

// exp(row - maximum) into `terms`, and their sum.
template <class Acc>
RC_INLINE double exponentials(const Acc* row, Acc maximum, int64_t size, Acc* terms) {
  constexpr int L = kLanes<Acc>;
  double sum[L] = {};
  for (int64_t block = 0; block < size; block += kGroups * L) {
    const int64_t end = block + kGroups * L < size ? block + kGroups * L : size;
    Acc part[L] = {};
    for (int64_t c = block; c < end; c += L) {
      RC_SIMD for (int l = 0; l < L; ++l) {
        const Acc term = exponential(row[c + l] - maximum);
        terms[c + l] = term;
        part[l] += term;
      }
    }
    RC_SIMD for (int l = 0; l < L; ++l) sum[l] += static_cast<double>(part[l]);
  }
  return sum_of<L>(sum);
}

// The terms of all classes at or below the pivot. With an infinite pivot: of every class.
template <class Acc>
RC_INLINE Tail probe(const Acc* RC_RESTRICT weak, const Acc* RC_RESTRICT terms, int64_t size,
                     Acc pivot) {
  constexpr int L = kLanes<Acc>;
  double sum[L] = {};
  LaneCount<Acc> count[L] = {};
  for (int64_t block = 0; block < size; block += kGroups * L) {
    const int64_t end = block + kGroups * L < size ? block + kGroups * L : size;
    Acc part[L] = {};
    for (int64_t c = block; c < end; c += L) {
      RC_SIMD for (int l = 0; l < L; ++l) {
        const bool below = weak[c + l] <= pivot;
        part[l] += below ? terms[c + l] : Acc(0);
        count[l] += below ? 1 : 0;
      }
    }
    RC_SIMD for (int l = 0; l < L; ++l) sum[l] += static_cast<double>(part[l]);
  }
  return {sum_of<L>(sum), static_cast<int64_t>(sum_of<L>(count))};
}

// As torch.argmax: the first NaN, or else the first of equal maxima.
template <class Acc>
RC_INLINE int64_t first_maximum(const Acc* row, Acc maximum, int64_t classes, bool has_nan) {
  if (has_nan) {
    for (int64_t c = 0; c < classes; ++c) {
      if (row[c] != row[c]) return c;
    }
  }
  constexpr int64_t kBlock = 64;
  for (int64_t block = 0; block < classes; block += kBlock) {
    const int64_t end = block + kBlock < classes ? block + kBlock : classes;
    int32_t found = 0;
    RC_SIMD for (int64_t c = block; c < end; ++c) found |= row[c] == maximum ? 1 : 0;
    if (!found) continue;
    for (int64_t c = block; c < end; ++c) {
      if (row[c] == maximum) return c;
    }
  }
  return 0;
}

// The class from which on the last `ties` classes equal to `cut` lie.
template <class Acc>
RC_INLINE int64_t first_tie(const Acc* row, int64_t classes, Acc cut, int64_t ties) {
  int64_t c = classes;
  while (ties > 0 && c > 0) ties -= row[--c] == cut ? 1 : 0;
  return c;
}

template <class T>
RC_INLINE void fill_row(T* row, int64_t classes, accumulate_t<T> value) {
  const T stored = from_accumulate<T>(value);
  RC_SIMD for (int64_t c = 0; c < classes; ++c) row[c] = stored;
}

// What the weak logits say about row i. Leaves -inf in the scratch's weak logits of the classes that
// stay and are not below the cut, +inf in those that equal the cut and do not stay.
template <class T, class Acc>
RC_INLINE void search_row(const ShrinkMatchProblem<T>& p, int64_t i, Scratch<Acc>& scratch) {
  Acc* weak = scratch.weak.data();
  Acc* terms = scratch.terms.data();
  const T* source = p.weak + i * p.classes;
  RC_SIMD for (int64_t c = 0; c < p.classes; ++c) weak[c] = to_accumulate(source[c]);
  for (int64_t c = p.classes; c < scratch.size; ++c) weak[c] = -kInfinity<Acc>;
  const Acc maximum = maximum_of(weak, scratch.size);
  const double total = exponentials(weak, maximum, scratch.size, terms);
  const bool has_nan = total != total;
  const int64_t top = first_maximum(weak, maximum, p.classes, has_nan);
  p.row_top[i] = top;
  p.row_tie[i] = 0;
  p.row_lse[i] = 0;
  p.row_cut[i] = kInfinity<Acc>;
  if (has_nan) {
    p.row_weight[i] = p.row_confidence[i] = std::numeric_limits<Acc>::quiet_NaN();
    p.row_removed[i] = -1;
    return;
  }
  // From here on the top class and the padding are above every pivot and add nothing.
  weak[top] = kInfinity<Acc>;
  terms[top] = 0;
  for (int64_t c = p.classes; c < scratch.size; ++c) weak[c] = kInfinity<Acc>;
  const Tail rest = probe(weak, terms, scratch.size, kInfinity<Acc>);
  const Acc confidence = static_cast<Acc>(1.0 / (1.0 + rest.sum));
  p.row_confidence[i] = confidence;
  p.row_weight[i] = 0;
  p.row_removed[i] = 0;
  if (rest.sum <= p.budget) return;
  const TailEnd<Acc> end =
      find_tail_end<T>(maximum, p.budget, p.classes, [&](Acc pivot) RC_INLINE_LAMBDA {
        return probe(weak, terms, scratch.size, pivot);
      });
  p.row_removed[i] = p.classes - 1 - end.kept;
  if (end.kept == 0) return;
  p.row_weight[i] = confidence;
  p.row_cut[i] = end.cut;
  if (end.ties > 0) {
    const int64_t tie = first_tie(weak, p.classes, end.cut, end.ties);
    p.row_tie[i] = tie;
    RC_SIMD for (int64_t c = 0; c < tie; ++c) {
      weak[c] = weak[c] == end.cut ? kInfinity<Acc> : weak[c];
    }
  }
  weak[top] = -kInfinity<Acc>;
}

// Rows [begin, end): loss and statistics, and with kGradients the gradient for the strong logits.
template <bool kGradients, class T>
RC_TARGET_CLONES void forward_rows(const ShrinkMatchProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  Scratch<Acc> scratch(p.classes);
  const Acc* weak = scratch.weak.data();
  Acc* terms = scratch.terms.data();
  for (int64_t i = begin; i < end; ++i) {
    search_row(p, i, scratch);
    const Acc weight = p.row_weight[i];
    if (!(weight > Acc(0))) {  // nothing to learn, or NaN
      p.row_loss[i] = weight;
      if constexpr (kGradients) fill_row(p.grad + i * p.classes, p.classes, weight);
      continue;
    }
    const T* strong = p.strong + i * p.classes;
    const Acc cut = p.row_cut[i];
    RC_SIMD for (int64_t c = 0; c < p.classes; ++c) {
      terms[c] = weak[c] <= cut ? to_accumulate(strong[c]) : -kInfinity<Acc>;
    }
    for (int64_t c = p.classes; c < scratch.size; ++c) terms[c] = -kInfinity<Acc>;
    const Acc maximum = maximum_of(terms, scratch.size);
    // The exponentials take the place of the logits that they are made of.
    const double total = exponentials(terms, maximum, scratch.size, terms);
    const int64_t top = p.row_top[i];
    const Acc own = to_accumulate(strong[top]);
    const Acc lse = maximum + static_cast<Acc>(log(total));
    p.row_lse[i] = lse;
    p.row_loss[i] = weight * (lse - own);
    if constexpr (kGradients) {
      T* grad = p.grad + i * p.classes;
      const Acc scale = gradient_factor(p, i) * weight;
      const Acc inverse = static_cast<Acc>(1.0 / total);
      RC_SIMD for (int64_t c = 0; c < p.classes; ++c) {
        grad[c] = from_accumulate<T>(scale * (terms[c] * inverse));
      }
      // Formed in the wide type: p - 1 loses everything in a 16-bit one.
      grad[top] = from_accumulate<T>(scale * (terms[top] * inverse - Acc(1)));
    }
  }
}

template <bool kWithEqual, class T, class Acc = accumulate_t<T>>
RC_INLINE void write_gradient(const T* RC_RESTRICT weak, const T* RC_RESTRICT strong,
                              T* RC_RESTRICT grad, int64_t begin, int64_t end, Acc cut, Acc lse,
                              Acc scale) {
  RC_SIMD for (int64_t c = begin; c < end; ++c) {
    const Acc w = to_accumulate(weak[c]);
    const Acc s = to_accumulate(strong[c]);
    const Acc value = scale * exponential(s - lse);
    const bool kept = kWithEqual ? w <= cut : w < cut;
    grad[c] = from_accumulate<T>(kept ? value : Acc(0));
  }
}

// Rows [begin, end) of the backward pass, from what the forward pass saved.
template <class T>
RC_TARGET_CLONES void backward_rows(const ShrinkMatchProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    T* grad = p.grad + i * p.classes;
    const Acc weight = p.row_weight[i];
    if (!(weight > Acc(0))) {
      fill_row(grad, p.classes, weight);
      continue;
    }
    const T* weak = p.weak + i * p.classes;
    const T* strong = p.strong + i * p.classes;
    const Acc scale = gradient_factor(p, i) * weight;
    const Acc cut = p.row_cut[i], lse = p.row_lse[i];
    const int64_t tie = p.row_tie[i], top = p.row_top[i];
    write_gradient<false>(weak, strong, grad, 0, tie, cut, lse, scale);
    write_gradient<true>(weak, strong, grad, tie, p.classes, cut, lse, scale);
    const Acc probability = exponential(to_accumulate(strong[top]) - lse);
    grad[top] = from_accumulate<T>(scale * (probability - Acc(1)));
  }
}

}  // namespace robustcore::shrink_match_cpu
