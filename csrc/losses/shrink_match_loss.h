// ShrinkMatch's loss (arXiv 2308.06777): which classes stay, without sorting them, and the problem
// that the CPU and CUDA kernels solve. Host and device, no torch.
//
// For a row of weak logits w with maximum m at class t, e_j = exp(w_j - m). The classes that stay
// beside t are the longest tail of the descending order whose sum fits a budget:
//
//   p_t / (p_t + sum_tail p) >= threshold   <=>   sum_tail e <= budget = (1 - threshold) /
//   threshold
//
// Sums of tails grow with the tail, and rounding keeps them in order (adding is monotone, and every
// sum here has one order). So the end of the tail can be bisected: a probe sums all classes at or
// below a pivot. About ten probes of a row in cache replace a sort of it.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/exp.h"
#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

// Everything is contiguous; a null pointer is an output that is not wanted or an input not given.
template <class T>
struct ShrinkMatchProblem {
  using Acc = accumulate_t<T>;

  const T* weak;    // [rows, classes]
  const T* strong;  // [rows, classes]
  int64_t rows;
  int64_t classes;
  double budget;
  bool reduced;  // the loss is one number: the sum, or with `mean` the mean
  bool mean;
  Acc* loss;  // [1] if reduced, [rows] otherwise; forward only

  // Per row: written by the forward pass, read by the backward pass.
  Acc* row_loss;
  Acc* row_lse;         // logsumexp of the strong logits that stay
  Acc* row_weight;      // factor of the cross-entropy: the confidence, or 0 where there is no loss
  Acc* row_cut;         // weak logit up to which classes stay
  Acc* row_confidence;  // largest weak probability
  int64_t* row_top;     // its class
  int64_t* row_tie;     // classes whose weak logit equals the cut stay from here on
  int64_t* row_removed;

  const Acc* grad_loss;  // [1] or [rows], or null for 1
  T* grad;               // [rows, classes]
};

// What decides whether a class stays.
template <class Acc>
struct KeptClasses {
  Acc cut;
  int64_t tie;
  int64_t top;

  RC_INLINE bool has(int64_t c, Acc weak) const {
    return weak < cut || (weak == cut && c >= tie) || c == top;
  }
};

// The classes at or below a pivot, the top class aside.
struct Tail {
  double sum;  // of e
  int64_t count;
};

// The end of the tail: all classes below `cut` stay, and those equal to it, or the last `ties` of
// them where that is not negative.
template <class Acc>
struct TailEnd {
  Acc cut;
  int64_t kept;
  int64_t ties;
};

// The values of a storage type as consecutive integers in the same order, -inf first.
template <class T>
struct ValueOrder {
  using Acc = accumulate_t<T>;
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  static constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));

  // The value nearest to `value` that T can hold.
  static RC_INLINE int64_t key(Acc value) {
    const Bits bits = detail::bit_cast<Bits>(from_accumulate<T>(value));
    const int64_t magnitude = static_cast<int64_t>(bits & static_cast<Bits>(~kSign));
    return (bits & kSign) != 0 ? -1 - magnitude : magnitude;
  }
  static RC_INLINE Acc value(int64_t key) {
    const Bits bits =
        key < 0 ? static_cast<Bits>(static_cast<Bits>(-1 - key) | kSign) : static_cast<Bits>(key);
    return to_accumulate(detail::bit_cast<T>(bits));
  }
};

// Finds the end of the tail of a row that is not certain. probe(pivot) returns a Tail; on the
// device all threads of a row call this together, and get the same answers.
template <class T, class Probe, class Acc = accumulate_t<T>>
RC_INLINE TailEnd<Acc> find_tail_end(Acc maximum, double budget, int64_t classes, Probe&& probe) {
  using Order = ValueOrder<T>;
  // Halving by value gets to a few classes quickly wherever they lie; halving by bits is sure to
  // end.
  constexpr int kPassesByValue = 20;
  const int64_t top = Order::key(maximum);

  // A class above this does not fit the budget even alone.
  int64_t high = Order::key(maximum + static_cast<Acc>(log(budget) + 0.01)) + 1;
  high = high < top ? high : top;
  Tail at_high = probe(Order::value(high));
  if (at_high.sum <= budget) return {Order::value(high), at_high.count, -1};

  // All classes below this fit together, unless values are so coarse that rounding spoils it.
  const int64_t lowest = Order::key(-static_cast<Acc>(__builtin_huge_val()));
  int64_t low =
      Order::key(maximum + static_cast<Acc>(log(budget / static_cast<double>(classes)) - 0.7)) - 1;
  low = low < high ? low : high - 1;
  low = low > lowest ? low : lowest;
  Tail at_low = probe(Order::value(low));
  if (at_low.sum > budget) {
    high = low;
    at_high = at_low;
    low = lowest;
    at_low = probe(Order::value(low));
  }

  // Unsigned: between a negative and a positive double lie more values than int64 counts.
  const auto apart = [&] { return static_cast<uint64_t>(high) - static_cast<uint64_t>(low); };
  for (int pass = 0; apart() > 1 && at_high.count - at_low.count > 1; ++pass) {
    int64_t middle = low + static_cast<int64_t>(apart() / 2);
    if (pass < kPassesByValue) {
      const int64_t halfway =
          Order::key(Order::value(low) * Acc(0.5) + Order::value(high) * Acc(0.5));
      middle = low < halfway && halfway < high ? halfway : middle;
    }
    const Tail tail = probe(Order::value(middle));
    if (tail.sum <= budget) {
      low = middle;
      at_low = tail;
    } else {
      high = middle;
      at_high = tail;
    }
  }

  // Classes of one value are left, of which not all fit.
  const int64_t equal = at_high.count - at_low.count;
  if (equal > 1) {
    const double each = static_cast<double>(exponential(Order::value(high) - maximum));
    const double fit = floor((budget - at_low.sum) / each);
    const int64_t ties = fit < 1.0                          ? 0
                         : fit < static_cast<double>(equal) ? static_cast<int64_t>(fit)
                                                            : equal - 1;
    if (ties > 0) return {Order::value(high), at_low.count + ties, ties};
  }
  return {Order::value(low), at_low.count, -1};
}

template <class T>
RC_INLINE accumulate_t<T> gradient_factor(const ShrinkMatchProblem<T>& p, int64_t row) {
  using Acc = accumulate_t<T>;
  const Acc incoming = p.grad_loss ? p.grad_loss[p.reduced ? 0 : row] : Acc(1);
  return p.mean ? incoming / static_cast<Acc>(p.rows) : incoming;
}

}  // namespace robustcore
