#include "common/cuda.h"
#include "merging/mask_apply.cuh"
#include "merging/mask_apply_op.h"

namespace robustcore {
namespace {

template <class Policy>
std::vector<Tensor> run_all(MaskApplyArguments a) {
  const DeviceScope device(a.values[0]);
  MaskApplyModel model{&a.order,
                       read_pointers(a.values),
                       read_pointers(a.merged),
                       {},
                       static_cast<const uint64_t*>(a.mask.const_data_ptr())};
  for (const Tensor& tensor : a.result) model.results.push_back(tensor.mutable_data_ptr());
  for (const std::vector<int64_t>& run :
       runs_of_one_type(a.order, types_of(a.values), kApplyTensors)) {
    dispatch_floating(a.values[run[0]].scalar_type(), [&](auto tag) {
      launch_mask_apply<Policy, typename decltype(tag)::type>(model, run, device.stream());
    });
  }
  return std::move(a.result);
}

std::vector<Tensor> mask_apply(std::vector<Tensor> base, std::vector<Tensor> merged,
                               const Tensor& mask) {
  return run_all<AddWhereKept>(
      mask_apply_arguments("mask_apply", std::move(base), std::move(merged), mask, true, false));
}

void mask_apply_(std::vector<Tensor> base, std::vector<Tensor> merged, const Tensor& mask) {
  run_all<AddWhereKept>(
      mask_apply_arguments("mask_apply_", std::move(base), std::move(merged), mask, true, true));
}

std::vector<Tensor> mask_multiply(std::vector<Tensor> tensors, const Tensor& mask) {
  return run_all<ZeroWhereDropped>(
      mask_apply_arguments("mask_multiply", std::move(tensors), {}, mask, false, false));
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("mask_apply", TORCH_BOX(&robustcore::mask_apply));
  m.impl("mask_apply_", TORCH_BOX(&robustcore::mask_apply_));
  m.impl("mask_multiply", TORCH_BOX(&robustcore::mask_multiply));
}
