// Checks shared by the CPU and the CUDA registration of compare_weights.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "merging/compare_weights.h"
#include "merging/model_pieces.h"

namespace robustcore {

// The sums, [blocks, kCompareSums], to be filled. `second` may be empty: zeros.
inline Tensor compare_result(const std::vector<Tensor>& first, const std::vector<Tensor>& second) {
  constexpr const char* kOp = "compare_weights";
  RC_CHECK(!first.empty(), kOp, ": first must hold at least one tensor");
  check_pieces(kOp, "first", first, first, 1);
  if (!second.empty()) check_pieces(kOp, "second", second, first, 1);
  int64_t blocks = 0;
  for (const Tensor& tensor : first) blocks += merge_blocks(tensor.numel());
  return fresh(first[0], {blocks, kCompareSums}, ScalarType::Double);
}

}  // namespace robustcore
