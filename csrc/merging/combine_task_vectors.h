// Task vectors with one coefficient per task and parameter block (aTLAS, arXiv 2407.02880), and the
// derivative for the coefficients. Host and device, no torch.
//
//   result_j = base_j + (c_1b tau_1j + c_2b tau_2j + ...)        b: the block of tensor j
//   product_tb = sum over the tensors j of block b of <grad_j, tau_tj>
//
// Terms are added one task after the other in the type of computation, the base last: it is large
// against them. Products are summed in float64 in an order that depends on nothing but the shapes:
//   - kMergeBlock parameters give one partial sum; parameter i of them belongs to lane
//     i % kProductLanes, a lane adds its parameters in order;
//   - partial sum k of a tensor belongs to lane k % kProductLanes, in the same way;
//   - lanes are added as neighbours, then pairs of them, and so on;
//   - the tensors of a block are added in their order.
#pragma once

#include "merging/magnitudes.h"
#include "merging/tall_masks.h"

namespace robustcore {

constexpr int kProductLanes = 256;

template <class Acc>
RC_INLINE Acc with_term(Acc total, Acc coefficient, Acc vector) {
  return total + rounded_product(coefficient, vector);
}

// Products of float32 are exact in float64.
RC_INLINE double with_product(double total, double grad, double vector) {
  return total + rounded_product(grad, vector);
}

}  // namespace robustcore
