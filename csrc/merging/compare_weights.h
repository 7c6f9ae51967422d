// Sums over two lists of weights, d = a - b. Host and device, no torch.
//
// A block of kMergeBlock parameters gives one row of sums in float64. Parameter i of the block
// belongs to lane i % kLanes; a lane adds its parameters in order, then halves of the lanes are
// added until one is left. So rows have the same bits on every device and for any cut into blocks.
#pragma once

#include "merging/magnitudes.h"
#include "merging/storage.h"
#include "merging/tall_masks.h"

namespace robustcore {

constexpr int kCompareLanes = 256;

enum CompareSum : int {
  kDifferenceL1,
  kDifferenceSquares,
  kFirstSquares,
  kSecondSquares,
  kProducts,
  kDifferentCount,     // parameters with d != 0
  kLargestDifference,  // max |d|
  kNonfiniteCount,     // parameters of which a or b is not finite
  kFirstL1,
  kSecondL1,
  kCompareSums,
};

// One parameter's term of a sum. Squares and products of float32 are exact in float64.
RC_INLINE double compare_term(int which, double a, double b) {
  const double d = a - b;
  switch (which) {
    case kDifferenceL1:
    case kLargestDifference:
      return magnitude(d);
    case kDifferenceSquares:
      return rounded_product(d, d);
    case kFirstSquares:
      return rounded_product(a, a);
    case kSecondSquares:
      return rounded_product(b, b);
    case kProducts:
      return rounded_product(a, b);
    case kDifferentCount:
      return d == 0 ? 0 : 1;
    case kNonfiniteCount:
      return d - d == 0 ? 0 : 1;
    case kFirstL1:
      return magnitude(a);
    default:
      return magnitude(b);
  }
}

RC_INLINE double join_sums(int which, double first, double second) {
  // A NaN stays, as it does in the sums.
  if (which == kLargestDifference) return first > second || first != first ? first : second;
  return first + second;
}

}  // namespace robustcore
