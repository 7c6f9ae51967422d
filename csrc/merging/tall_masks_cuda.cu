#include "common/cuda.h"
#include "merging/count_codes.cuh"
#include "merging/tall_masks.cuh"
#include "merging/tall_masks_op.h"

namespace robustcore {
namespace {

void launch_runs(const TallMasksArguments& a, const Tensor& codes, cudaStream_t stream) {
  const TallMasksModel model{&a.order,
                             read_pointers(a.base),
                             read_pointers(a.finetuned),
                             read_pointers(a.merged),
                             a.lambdas,
                             a.tasks,
                             a.strict,
                             static_cast<uint32_t*>(codes.mutable_data_ptr()),
                             2 * a.words};
  const auto runs = runs_of_one_type(a.order, types_of(a.base), tall_masks_capacity(a.tasks));
  for (const std::vector<int64_t>& run : runs) {
    dispatch_floating(a.base[run[0]].scalar_type(), [&](auto tag) {
      launch_tall_masks<typename decltype(tag)::type>(model, run, &run == &runs.back(), stream);
    });
  }
}

std::tuple<Tensor, Tensor> tall_masks(std::vector<Tensor> base, std::vector<Tensor> finetuned,
                                      std::vector<Tensor> merged, int64_t tasks,
                                      std::vector<double> lambdas, bool strict) {
  RC_CHECK(tasks <= kMaximumCudaTasks, "tall_masks: tasks must be at most ", kMaximumCudaTasks,
           " on CUDA, got ", tasks);
  const TallMasksArguments a = tall_masks_arguments(
      std::move(base), std::move(finetuned), std::move(merged), tasks, std::move(lambdas), strict);
  const DeviceScope device(a.base[0]);
  const cudaStream_t stream = device.stream();
  const int64_t lambda_count = static_cast<int64_t>(a.lambdas.size());
  const Tensor codes = fresh(a.base[0], {tasks, a.planes, a.words}, ScalarType::Long);
  Tensor counts = fresh(a.base[0], {tasks, lambda_count}, ScalarType::Long);
  counts = torch::stable::zero_(counts);
  launch_runs(a, codes, stream);
  CountCodesParams p{};
  p.codes = static_cast<const uint64_t*>(codes.const_data_ptr());
  p.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  p.words = a.words;
  p.tasks = static_cast<int>(tasks);
  p.planes = static_cast<int>(a.planes);
  p.lambdas = static_cast<int>(lambda_count);
  launch_count_codes(p, stream);
  return {codes, counts};
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("tall_masks", TORCH_BOX(&robustcore::tall_masks));
}
