// CrossMax (arXiv 2408.05446): the problem that the CPU and CUDA kernels solve, and the order in
// which members of an ensemble are ranked. Host and device, no torch.
//
//   a_ic = z_ic - max_c z_ic,  M_c = max_i a_ic,  result_c = k-th largest over i of (a_ic - M_c)
//
// The k-th largest of a_ic - M_c is the k-th largest a_ic, minus M_c: rounding keeps the order.
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

// Everything is contiguous.
template <class T>
struct CrossMaxProblem {
  using Acc = accumulate_t<T>;

  const T* logits;  // [samples, members, classes]
  int64_t samples;
  int64_t members;
  int64_t classes;
  int64_t k;
  T* result;  // [samples, classes]

  // What the backward pass needs to know: whose logit is the k-th largest and whose the largest,
  // and each member's largest class. Equal, that is without a gradient, where a class has no
  // result.
  int16_t* kth;      // [samples, classes]
  int16_t* largest;  // [samples, classes]
  int64_t* tops;     // [samples, members]; -1 where nothing is subtracted: all logits are -inf

  const T* grad_result;  // [samples, classes]
  T* grad;               // [samples, members, classes]
};

constexpr int64_t kMostMembers = 32767;

template <class Acc>
RC_INLINE bool is_lowest(Acc value) {
  return value == -static_cast<Acc>(__builtin_huge_val());
}

// What is subtracted for a maximum: a row or a column of nothing but -inf stays -inf, not NaN.
template <class Acc>
RC_INLINE Acc maximum_or_zero(Acc maximum) {
  return is_lowest(maximum) ? Acc(0) : maximum;
}

// Whether x ranks before y for being larger; NaN is above all, as in torch.sort and torch.topk.
template <class Acc>
RC_INLINE bool ranks_above(Acc x, Acc y) {
  return x > y || (x != x && y == y);
}

}  // namespace robustcore
