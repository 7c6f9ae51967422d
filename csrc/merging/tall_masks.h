// TALL-masks (arXiv 2405.07813): the mathematics of one parameter. Host and device, no torch.
//
//   kept(task t, lambda)  =  |base - finetuned_t|  >  |(base + merged) - finetuned_t| * lambda
//
// evaluated in weight space, in this order of operations, each one rounded: the bits are part of
// the contract. Rounding is monotone, so a larger lambda never keeps a parameter that a smaller one
// drops (a NaN on either side drops it for all). The number of lambdas passed is therefore the
// whole answer, and it can be found by bisection.
#pragma once

#include <cstdint>
#include <limits>

#include "common/macros.h"
#include "merging/mask_words.h"

namespace robustcore {

// More lambdas than this have no use, and kernels pass the table by value.
constexpr int kMaximumPlanes = 6;
constexpr int kMaximumLambdas = (1 << kMaximumPlanes) - 1;

// The lambdas in ascending order: entry n is the one that a parameter must pass to have passed n
// (entry 0 is not used). Filled up with NaN, which no parameter passes, to the next power of two.
template <class Acc>
struct LambdaTable {
  Acc value[kMaximumLambdas + 1];
  int count;
  int planes;
};

template <class Acc>
LambdaTable<Acc> lambda_table(const double* ascending, int count) {
  LambdaTable<Acc> table;
  for (Acc& value : table.value) value = std::numeric_limits<Acc>::quiet_NaN();
  for (int n = 0; n < count; ++n) table.value[n + 1] = static_cast<Acc>(ascending[n]);
  table.count = count;
  table.planes = bits_for(count);
  return table;
}

// One rounding each, whatever the compiler would like to fuse.
RC_INLINE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

RC_INLINE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

RC_INLINE float magnitude(float a) {
  return __builtin_fabsf(a);
}
RC_INLINE double magnitude(double a) {
  return __builtin_fabs(a);
}

// own = |base - finetuned|, merged = |(base + merged) - finetuned|.
template <bool kStrict, class Acc>
RC_INLINE bool keeps(Acc own, Acc merged, Acc lambda) {
  const Acc bound = rounded_product(merged, lambda);
  return kStrict ? own > bound : own >= bound;
}

}  // namespace robustcore
