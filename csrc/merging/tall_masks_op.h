// What the CPU and the CUDA registration of tall_masks share: checking and arranging the arguments.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "merging/flat_order.h"
#include "merging/tall_masks.h"
#include "merging/tensor_list.h"

namespace robustcore {

struct TallMasksArguments {
  std::vector<Tensor> base;       // [tensors]
  std::vector<Tensor> finetuned;  // [tasks * tensors], task by task
  std::vector<Tensor> merged;     // [tensors], or empty: the sum of the task vectors
  std::vector<double> lambdas;    // ascending
  FlatOrder order;
  int64_t tasks;
  int64_t planes;
  int64_t words;
  bool strict;
};

inline TallMasksArguments tall_masks_arguments(std::vector<Tensor> base,
                                               std::vector<Tensor> finetuned,
                                               std::vector<Tensor> merged, int64_t tasks,
                                               std::vector<double> lambdas, bool strict) {
  constexpr const char* kOp = "tall_masks";
  const int64_t tensors = static_cast<int64_t>(base.size());
  const int64_t lambda_count = static_cast<int64_t>(lambdas.size());
  RC_CHECK(tensors >= 1, kOp, ": base must hold at least one tensor");
  RC_CHECK(tasks >= 1, kOp, ": tasks must be at least 1, got ", tasks);
  RC_CHECK(lambda_count >= 1 && lambda_count <= kMaximumLambdas, kOp, ": lambdas must hold 1 to ",
           kMaximumLambdas, " values, got ", lambda_count);
  for (int64_t n = 0; n < lambda_count; ++n) {
    RC_CHECK(lambdas[n] > (n ? lambdas[n - 1] : 0), kOp,
             ": lambdas must be positive and ascending");
  }
  check_tensor_list(kOp, "base", base, base, 1, false);
  check_tensor_list(kOp, "finetuned", finetuned, base, tasks, false);
  if (!merged.empty()) check_tensor_list(kOp, "merged", merged, base, 1, true);
  FlatOrder order = flat_order(base);
  const int64_t words = word_count(order.parameters());
  return {contiguous_list(std::move(base)),
          contiguous_list(std::move(finetuned)),
          contiguous_list(std::move(merged)),
          std::move(lambdas),
          std::move(order),
          tasks,
          bits_for(lambda_count),
          words,
          strict};
}

}  // namespace robustcore
