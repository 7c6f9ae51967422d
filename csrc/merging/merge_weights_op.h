// What the CPU and the CUDA registration of merge_weights_ share: checking and arranging the
// arguments.
#pragma once

#include <optional>
#include <vector>

#include "common/tensor.h"
#include "merging/merge_weights.h"
#include "merging/model_pieces.h"

namespace robustcore {

class MergeArguments {
 public:
  MergeArguments(const std::vector<Tensor>& out, const std::vector<Tensor>& base,
                 const std::vector<Tensor>& finetuned, const Tensor& rescale, const Tensor& weights,
                 const Tensor& scales, const std::vector<int64_t>& vectors,
                 const std::optional<Tensor>& windows, const std::optional<Tensor>& ties_before,
                 const std::vector<double>& densities, int64_t seed,
                 const std::vector<int64_t>& flat_starts, int64_t election, int64_t reduction,
                 int64_t zero_sign, std::vector<double> lambdas, int64_t least, bool strict)
      : lambdas_(std::move(lambdas)), task_count_(static_cast<int64_t>(vectors.size())) {
    constexpr const char* kOp = "merge_weights_";
    const int64_t count = static_cast<int64_t>(base.size());
    RC_CHECK(task_count_ >= 1, kOp, ": there must be at least one task");
    check_pieces(kOp, "base", base, base, 1);
    check_pieces(kOp, "out", out, base, 1);
    check_pieces(kOp, "finetuned", finetuned, base, task_count_);
    RC_CHECK(static_cast<int64_t>(flat_starts.size()) == count, kOp,
             ": flat_starts must hold one index per tensor");
    RC_CHECK(densities.empty() || static_cast<int64_t>(densities.size()) == task_count_, kOp,
             ": densities must be empty or hold one number per task");
    RC_CHECK(lambdas_.empty() || static_cast<int64_t>(lambdas_.size()) == task_count_, kOp,
             ": lambdas must be empty or hold one number per task");
    RC_CHECK(election >= 0 && election <= 3 && reduction >= 0 && reduction <= 3, kOp,
             ": election and reduction must be from 0 to 3");
    const double* const factor =
        table<double>(kOp, "rescale", rescale, ScalarType::Double, count * task_count_);
    const double* const weight =
        table<double>(kOp, "weights", weights, ScalarType::Double, count * task_count_);
    const double* const scale = table<double>(kOp, "scales", scales, ScalarType::Double, count * 2);
    const int64_t* const window = windows
                                      ? table<int64_t>(kOp, "windows", *windows, ScalarType::Long,
                                                       count * task_count_ * kWindowColumns)
                                      : nullptr;
    const int64_t* ties = nullptr;
    if (ties_before) {
      int64_t blocks = 0;
      for (const Tensor& tensor : base) blocks += merge_blocks(tensor.numel());
      check_type(kOp, "ties_before", *ties_before, ScalarType::Long);
      check_numel(kOp, "ties_before", *ties_before, blocks * task_count_ * 2);
      RC_CHECK(ties_before->is_contiguous(), kOp, ": ties_before must be contiguous");
      if (count) check_same_device(kOp, "ties_before", *ties_before, base[0]);
      ties = read_pointer<int64_t>(*ties_before);
    }
    method_ = {static_cast<Election>(election),
               static_cast<Reduction>(reduction),
               static_cast<int>(zero_sign),
               static_cast<uint64_t>(seed),
               nullptr,
               static_cast<int>(least),
               strict};
    slices_.reserve(count);
    tasks_.reserve(count * task_count_);
    for (int64_t piece = 0; piece < count; ++piece) {
      const int64_t parameters = base[piece].numel();
      slices_.push_back({stored(base[piece]), out[piece].mutable_data_ptr(), storage_of(out[piece]),
                         parameters, flat_starts[piece], ties, scale[2 * piece],
                         scale[2 * piece + 1]});
      if (ties) ties += merge_blocks(parameters) * task_count_ * 2;
      for (int64_t t = 0; t < task_count_; ++t) {
        const Tensor& values = finetuned[t * count + piece];
        const int64_t at = piece * task_count_ + t;
        TaskOptions task;
        task.weights = stored(values);
        task.is_vector = vectors[t] != 0;
        task.rescale = factor[at];
        task.weight = weight[at];
        if (window) {
          task.window = window_at(window + at * kWindowColumns);
          task.has_window = !task.window.keeps_all();
          RC_CHECK(ties_before || !task.has_window || !task.window.counts_ties(), kOp,
                   ": ties_before must be given where windows count ties");
        }
        if (!densities.empty()) {
          RC_CHECK(densities[t] >= 0 && densities[t] <= 1, kOp, ": densities must be from 0 to 1");
          task.drops = densities[t] < 1;
          task.keep_below = task.drops ? static_cast<uint32_t>(densities[t] * 4294967296.0) : 0;
        }
        tasks_.push_back(task);
      }
      is_double_.push_back(is_double_piece(base, finetuned, piece));
    }
  }

  int64_t pieces() const { return static_cast<int64_t>(slices_.size()); }
  int64_t task_count() const { return task_count_; }
  const MergeSlice& slice(int64_t piece) const { return slices_[piece]; }
  const TaskOptions* tasks(int64_t piece) const { return tasks_.data() + piece * task_count_; }
  bool is_double(int64_t piece) const { return is_double_[piece]; }
  MergeMethod method() const {
    MergeMethod method = method_;
    method.lambdas = lambdas_.empty() ? nullptr : lambdas_.data();
    return method;
  }

 private:
  std::vector<double> lambdas_;
  int64_t task_count_;
  MergeMethod method_;
  std::vector<MergeSlice> slices_;
  std::vector<TaskOptions> tasks_;
  std::vector<bool> is_double_;
};

}  // namespace robustcore
