#include "common/cuda.h"
#include "merging/mask_apply.cuh"
#include "merging/mask_apply_op.h"

namespace robustcore {
namespace {

template <class Policy, class T>
void launch_run(const MaskApplyArguments& a, const std::vector<int64_t>& run, cudaStream_t stream) {
  MaskApplyParams<T> p{};
  p.tensors = static_cast<int>(run.size());
  p.mask = static_cast<const uint64_t*>(a.mask.const_data_ptr());
  for (int i = 0; i < p.tensors; ++i) {
    const int64_t tensor = run[i];
    p.values[i] = read_pointer<T>(a.values[tensor]);
    p.merged[i] = Policy::kReadsBase ? read_pointer<accumulate_t<T>>(a.merged[tensor]) : nullptr;
    p.results[i] = write_pointer<T>(a.result[tensor]);
    p.starts[i] = a.order.start(tensor);
    p.sizes[i] = a.order.size(tensor);
  }
  launch_mask_apply<Policy>(p, stream);
}

template <class Policy>
std::vector<Tensor> run_all(MaskApplyArguments a) {
  const DeviceScope device(a.values[0]);
  std::vector<int64_t> run;
  const auto flush = [&] {
    if (run.empty()) return;
    dispatch_floating(a.values[run[0]].scalar_type(), [&](auto tag) {
      launch_run<Policy, typename decltype(tag)::type>(a, run, device.stream());
    });
    run.clear();
  };
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    if (a.order.size(tensor) == 0) continue;
    const bool fits =
        run.empty() || (run.size() < kApplyTensors &&
                        a.values[run[0]].scalar_type() == a.values[tensor].scalar_type());
    if (!fits) flush();
    run.push_back(tensor);
  }
  flush();
  return std::move(a.result);
}

std::vector<Tensor> mask_apply(std::vector<Tensor> base, std::vector<Tensor> merged,
                               const Tensor& mask) {
  return run_all<AddWhereKept>(mask_apply_arguments("mask_apply", std::move(base),
                                                    std::move(merged), mask, true, false));
}

void mask_apply_(std::vector<Tensor> base, std::vector<Tensor> merged, const Tensor& mask) {
  run_all<AddWhereKept>(mask_apply_arguments("mask_apply_", std::move(base), std::move(merged),
                                             mask, true, true));
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
