// Checks shared by the CPU and the CUDA registration of mask_apply, mask_apply_ and mask_multiply.
#pragma once

#include <optional>
#include <vector>

#include "merging/packed_masks_op.h"
#include "merging/tensor_list.h"

namespace robustcore {

struct MaskApplyArguments {
  std::vector<Tensor> values;  // [tensors]: the base, or what is multiplied
  std::vector<Tensor> merged;  // [tensors], or empty
  std::vector<Tensor> result;  // [tensors]
  Tensor mask;
  FlatOrder order;
};

inline MaskApplyArguments mask_apply_arguments(const char* op, std::vector<Tensor> values,
                                               std::vector<Tensor> merged, const Tensor& mask,
                                               bool has_merged, bool in_place) {
  RC_CHECK(!values.empty(), op, ": the list must hold at least one tensor");
  const Tensor words = packed_words(op, "mask", mask, 1);
  check_tensor_list(op, "tensors", values, values, 1, false);
  if (has_merged) check_tensor_list(op, "merged", merged, values, 1, true);
  check_same_device(op, "mask", words, values[0]);
  FlatOrder order = flat_order(values);
  check_parameters(op, words, order.parameters());
  std::vector<Tensor> result;
  result.reserve(values.size());
  for (Tensor& value : values) {
    if (in_place) {
      RC_CHECK(value.is_contiguous(), op, ": tensors must be contiguous");
      result.push_back(value);
      continue;
    }
    value = torch::stable::contiguous(value);
    Tensor fresh_tensor = torch::stable::new_empty(value, value.sizes());
    if (fresh_tensor.is_cpu()) {
      advise_huge_pages(fresh_tensor.mutable_data_ptr(),
                        fresh_tensor.numel() * static_cast<int64_t>(fresh_tensor.element_size()));
    }
    result.push_back(std::move(fresh_tensor));
  }
  return {std::move(values), contiguous_list(std::move(merged)), std::move(result), words,
          std::move(order)};
}

}  // namespace robustcore
