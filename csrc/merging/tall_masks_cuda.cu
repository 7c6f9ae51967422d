#include "common/cuda.h"
#include "merging/count_codes.cuh"
#include "merging/tall_masks.cuh"
#include "merging/tall_masks_op.h"

namespace robustcore {
namespace {

// Launches for the run of non-empty tensors `run`, all of dtype T.
template <class T>
void launch_run(const TallMasksArguments& a, const std::vector<int64_t>& run, bool is_last,
                const Tensor& codes, cudaStream_t stream) {
  TallMasksParams<T> p{};
  p.tensors = static_cast<int>(run.size());
  p.tasks = static_cast<int>(a.tasks);
  p.has_merged = !a.merged.empty();
  p.strict = a.strict;
  p.lambdas = lambda_table<accumulate_t<T>>(a.lambdas.data(), static_cast<int>(a.lambdas.size()));
  p.codes = static_cast<uint32_t*>(codes.mutable_data_ptr());
  p.row_words = 2 * a.words;
  const void** to = p.pointers;
  for (int i = 0; i < p.tensors; ++i) {
    const int64_t tensor = run[i];
    p.starts[i] = a.order.start(tensor);
    *to++ = a.base[tensor].const_data_ptr();
    *to++ = p.has_merged ? a.merged[tensor].const_data_ptr() : nullptr;
    for (int64_t task = 0; task < a.tasks; ++task) {
      *to++ = a.finetuned[task * a.order.tensors() + tensor].const_data_ptr();
    }
  }
  const int64_t end = a.order.start(run.back()) + a.order.size(run.back());
  p.starts[p.tensors] = end;
  p.last_word = is_last ? p.row_words : (end + 31) / 32;
  launch_tall_masks(p, stream);
}

// Runs follow each other on the stream: a word that two runs share is begun by the first and completed by
// the second.
void launch_runs(const TallMasksArguments& a, const Tensor& codes, cudaStream_t stream) {
  const size_t capacity =
      std::min<size_t>(kRunTensors, static_cast<size_t>(kRunPointers / (a.tasks + 2)));
  std::vector<int64_t> run;
  const auto flush = [&](bool is_last) {
    if (run.empty()) return;
    dispatch_floating(a.base[run[0]].scalar_type(), [&](auto tag) {
      launch_run<typename decltype(tag)::type>(a, run, is_last, codes, stream);
    });
    run.clear();
  };
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    if (a.order.size(tensor) == 0) continue;
    const bool fits = run.empty() || (run.size() < capacity &&
                                      a.base[run[0]].scalar_type() == a.base[tensor].scalar_type());
    if (!fits) flush(false);
    run.push_back(tensor);
  }
  flush(true);
}

std::tuple<Tensor, Tensor> tall_masks(std::vector<Tensor> base, std::vector<Tensor> finetuned,
                                      std::vector<Tensor> merged, int64_t tasks,
                                      std::vector<double> lambdas, bool strict) {
  RC_CHECK(tasks <= kMaximumCudaTasks, "tall_masks: tasks must be at most ", kMaximumCudaTasks,
           " on CUDA, got ", tasks);
  const TallMasksArguments a =
      tall_masks_arguments(std::move(base), std::move(finetuned), std::move(merged), tasks,
                           std::move(lambdas), strict);
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
