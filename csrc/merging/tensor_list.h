// Lists of tensors that together are one model: checks shared by the operators of the merging
// family.
#pragma once

#include <utility>
#include <vector>

#include "common/tensor.h"
#include "merging/flat_order.h"

namespace robustcore {

// `list` must be `repeats` models of the sizes, the device and the dtypes of `like`; with
// `accumulated` the dtypes are those in which `like` is computed with.
inline void check_tensor_list(const char* op, const char* name, const std::vector<Tensor>& list,
                              const std::vector<Tensor>& like, int64_t repeats, bool accumulated) {
  // By division: the product of two numbers that a caller chose may overflow.
  const int64_t tensors = static_cast<int64_t>(like.size());
  const int64_t held = static_cast<int64_t>(list.size());
  RC_CHECK(tensors >= 1 && held % tensors == 0 && held / tensors == repeats, op, ": ", name,
           " must hold ", repeats, " times ", tensors, " tensors, got ", held);
  for (size_t i = 0; i < list.size(); ++i) {
    const Tensor& model = like[i % like.size()];
    check_floating(op, name, list[i]);
    check_type(op, name, list[i], accumulated ? accumulate_type(model) : model.scalar_type());
    check_numel(op, name, list[i], model.numel());
    check_same_device(op, name, list[i], like[0]);
  }
}

inline FlatOrder flat_order(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.numel());
  return FlatOrder(sizes);
}

// Copies only what is not contiguous already.
inline std::vector<Tensor> contiguous_list(std::vector<Tensor> tensors) {
  for (Tensor& tensor : tensors) {
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
  }
  return tensors;
}

inline std::vector<const void*> read_pointers(const std::vector<Tensor>& tensors) {
  std::vector<const void*> pointers;
  pointers.reserve(tensors.size());
  for (const Tensor& tensor : tensors) pointers.push_back(tensor.const_data_ptr());
  return pointers;
}

inline std::vector<ScalarType> types_of(const std::vector<Tensor>& tensors) {
  std::vector<ScalarType> types;
  types.reserve(tensors.size());
  for (const Tensor& tensor : tensors) types.push_back(tensor.scalar_type());
  return types;
}

}  // namespace robustcore
