#include "common/cuda.h"
#include "merging/merge_weights.cuh"
#include "merging/merge_weights_op.h"

namespace robustcore {
namespace {

Tensor merge_weights(std::vector<Tensor> out, std::vector<Tensor> base,
                     std::vector<Tensor> finetuned, const Tensor& rescale, const Tensor& weights,
                     const Tensor& scales, std::vector<int64_t> vectors,
                     const std::optional<Tensor>& windows, const std::optional<Tensor>& ties_before,
                     std::vector<double> densities, int64_t seed, std::vector<int64_t> flat_starts,
                     int64_t election, int64_t reduction, int64_t zero_sign,
                     std::vector<double> lambdas, int64_t least, bool strict) {
  const MergeArguments a(out, base, finetuned, rescale, weights, scales, vectors, windows,
                         ties_before, densities, seed, flat_starts, election, reduction, zero_sign,
                         lambdas, least, strict);
  RC_CHECK(!base.empty(), "merge_weights_: base must hold at least one tensor");
  RC_CHECK(a.task_count() <= kMostMergeTasks, "merge_weights_: there must be at most ",
           kMostMergeTasks, " tasks on CUDA, got ", a.task_count());
  const DeviceScope device(base[0]);
  Tensor counters = fresh(base[0], {a.pieces(), kMergeCounters}, ScalarType::Long);
  counters = torch::stable::zero_(counters);
  auto* row = static_cast<unsigned long long*>(counters.mutable_data_ptr());
  const MergeMethod method = a.method();
  for (int64_t piece = 0; piece < a.pieces(); ++piece, row += kMergeCounters) {
    const MergeLaunch merge{method, a.slice(piece), a.tasks(piece),
                            static_cast<int>(a.task_count()), row};
    if (a.is_double(piece)) {
      launch_merge_weights<double>(merge, device.stream());
    } else {
      launch_merge_weights<float>(merge, device.stream());
    }
  }
  return counters;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("merge_weights_", TORCH_BOX(&robustcore::merge_weights));
}
