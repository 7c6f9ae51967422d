#include "common/cuda.h"
#include "merging/magnitude_counts.cuh"
#include "merging/magnitude_counts_op.h"

namespace robustcore {
namespace {

// Calls run(params, first task) for the tasks of a piece, kCountedTasks at a time. `keys(task)`
// gives the task's two keys.
template <class Keys, class F>
void for_each_run(const std::vector<Tensor>& base, const std::vector<Tensor>& finetuned,
                  const std::vector<int64_t>& vectors, int64_t piece, const Keys& keys,
                  const F& run) {
  const int64_t pieces = static_cast<int64_t>(base.size());
  const int64_t tasks = static_cast<int64_t>(vectors.size());
  if (base[piece].numel() == 0) return;
  for (int64_t first = 0; first < tasks; first += kCountedTasks) {
    MagnitudeCountParams p{};
    p.task_count = static_cast<int>(std::min<int64_t>(kCountedTasks, tasks - first));
    p.base = stored(base[piece]);
    p.parameters = base[piece].numel();
    p.task_stride = tasks;
    for (int64_t i = 0; i < p.task_count; ++i) {
      const int64_t task = first + i;
      const std::pair<uint32_t, uint32_t> both = keys(task);
      p.tasks[i] = {stored(finetuned[task * pieces + piece]), vectors[task] != 0, both.first,
                    both.second};
    }
    run(p, first);
  }
}

void count_magnitudes(const Tensor& counts, std::vector<Tensor> base, std::vector<Tensor> finetuned,
                      std::vector<int64_t> vectors, std::vector<int64_t> upper) {
  const HistogramArguments a("magnitude_histogram_", counts, base, finetuned, vectors, upper);
  if (base.empty()) return;
  const DeviceScope device(counts);
  auto* const rows = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  const auto keys = [&](int64_t task) {
    return std::pair<uint32_t, uint32_t>(upper.empty() ? 0 : static_cast<uint32_t>(upper[task]), 0);
  };
  for (int64_t piece = 0; piece < a.pieces; ++piece) {
    const auto run = [&](MagnitudeCountParams& p, int64_t first) {
      p.counts = rows + first * a.bins;
      if (a.is_double[piece]) {
        launch_magnitude_histogram<double>(p, !upper.empty(), device.stream());
      } else {
        launch_magnitude_histogram<float>(p, !upper.empty(), device.stream());
      }
    };
    for_each_run(base, finetuned, vectors, piece, keys, run);
  }
}

Tensor count_ties(std::vector<Tensor> base, std::vector<Tensor> finetuned,
                  std::vector<int64_t> vectors, const Tensor& windows) {
  const TieArguments a("magnitude_ties", base, finetuned, vectors, windows);
  const DeviceScope device(base[0]);
  Tensor ties = fresh(base[0], {a.blocks, a.tasks, 2}, ScalarType::Long);
  auto* row = static_cast<unsigned long long*>(ties.mutable_data_ptr());
  for (int64_t piece = 0; piece < a.pieces; ++piece) {
    const auto keys = [&](int64_t task) {
      const MagnitudeWindow window = a.window(piece, task);
      return std::pair<uint32_t, uint32_t>(window.low, window.high);
    };
    const auto run = [&](MagnitudeCountParams& p, int64_t first) {
      p.counts = row + first * 2;
      if (a.is_double[piece]) {
        launch_magnitude_ties<double>(p, device.stream());
      } else {
        launch_magnitude_ties<float>(p, device.stream());
      }
    };
    for_each_run(base, finetuned, vectors, piece, keys, run);
    row += merge_blocks(base[piece].numel()) * a.tasks * 2;
  }
  return ties;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("magnitude_histogram_", TORCH_BOX(&robustcore::count_magnitudes));
  m.impl("magnitude_ties", TORCH_BOX(&robustcore::count_ties));
}
