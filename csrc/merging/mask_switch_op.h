// Checks shared by the CPU and the CUDA registration of mask_switch_.
#pragma once

#include <utility>
#include <vector>

#include "merging/packed_masks_op.h"
#include "merging/tensor_list.h"

namespace robustcore {

struct MaskSwitchArguments {
  std::vector<Tensor> weights;  // [tensors], written where the masks differ
  std::vector<Tensor> base;
  std::vector<Tensor> merged;
  Tensor before;
  Tensor after;
  FlatOrder order;
};

inline MaskSwitchArguments mask_switch_arguments(std::vector<Tensor> weights,
                                                 std::vector<Tensor> base,
                                                 std::vector<Tensor> merged, const Tensor& before,
                                                 const Tensor& after) {
  constexpr const char* kOp = "mask_switch_";
  RC_CHECK(!weights.empty(), kOp, ": weights must hold at least one tensor");
  check_tensor_list(kOp, "weights", weights, weights, 1, false);
  check_tensor_list(kOp, "base", base, weights, 1, false);
  check_tensor_list(kOp, "merged", merged, weights, 1, true);
  for (const Tensor& tensor : weights) {
    RC_CHECK(tensor.is_contiguous(), kOp, ": weights must be contiguous");
  }
  FlatOrder order = flat_order(weights);
  Tensor words[2];
  for (int which = 0; which < 2; ++which) {
    const char* name = which == 0 ? "before" : "after";
    words[which] = packed_words(kOp, name, which == 0 ? before : after, 1);
    check_same_device(kOp, name, words[which], weights[0]);
    check_parameters(kOp, words[which], order.parameters());
  }
  return {std::move(weights),
          contiguous_list(std::move(base)),
          contiguous_list(std::move(merged)),
          words[0],
          words[1],
          std::move(order)};
}

}  // namespace robustcore
