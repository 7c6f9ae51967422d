#include "common/cuda.h"
#include "merging/mask_switch.cuh"
#include "merging/mask_switch_op.h"

namespace robustcore {
namespace {

void mask_switch_(std::vector<Tensor> weights, std::vector<Tensor> base, std::vector<Tensor> merged,
                  const Tensor& before, const Tensor& after) {
  const MaskSwitchArguments a =
      mask_switch_arguments(std::move(weights), std::move(base), std::move(merged), before, after);
  const DeviceScope device(a.weights[0]);
  MaskApplyModel model{&a.order,
                       read_pointers(a.base),
                       read_pointers(a.merged),
                       {},
                       static_cast<const uint64_t*>(a.after.const_data_ptr())};
  for (const Tensor& tensor : a.weights) model.results.push_back(tensor.mutable_data_ptr());
  const uint64_t* words_before = static_cast<const uint64_t*>(a.before.const_data_ptr());
  for (const std::vector<int64_t>& run :
       runs_of_one_type(a.order, types_of(a.weights), kApplyTensors)) {
    dispatch_floating(a.weights[run[0]].scalar_type(), [&](auto tag) {
      launch_mask_switch<typename decltype(tag)::type>(model, words_before, run, device.stream());
    });
  }
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("mask_switch_", TORCH_BOX(&robustcore::mask_switch_));
}
