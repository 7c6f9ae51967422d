// Checks shared by the CPU and the CUDA registration of magnitude_histogram_ and magnitude_ties.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "merging/magnitudes.h"
#include "merging/model_pieces.h"

namespace robustcore {

struct HistogramArguments {
  int64_t tasks, pieces, bins;
  int64_t parameters = 0;
  std::vector<bool> is_double;  // by piece

  HistogramArguments(const char* op, const Tensor& counts, const std::vector<Tensor>& base,
                     const std::vector<Tensor>& finetuned, const std::vector<int64_t>& vectors,
                     const std::vector<int64_t>& upper)
      : tasks(static_cast<int64_t>(vectors.size())),
        pieces(static_cast<int64_t>(base.size())),
        bins(upper.empty() ? kUpperBins : kLowerBins) {
    check_pieces(op, "base", base, base, 1);
    check_pieces(op, "finetuned", finetuned, base, tasks);
    RC_CHECK(upper.empty() || static_cast<int64_t>(upper.size()) == tasks, op,
             ": upper must be empty or hold one number per task");
    check_type(op, "counts", counts, ScalarType::Long);
    check_numel(op, "counts", counts, tasks * bins);
    RC_CHECK(counts.is_contiguous(), op, ": counts must be contiguous");
    if (pieces) check_same_device(op, "counts", counts, base[0]);
    for (size_t piece = 0; piece < base.size(); ++piece) {
      parameters += base[piece].numel();
      is_double.push_back(is_double_piece(base, finetuned, piece));
    }
  }
};

struct TieArguments {
  int64_t tasks, pieces;
  int64_t blocks = 0;
  std::vector<bool> is_double;  // by piece
  const int64_t* windows;

  TieArguments(const char* op, const std::vector<Tensor>& base,
               const std::vector<Tensor>& finetuned, const std::vector<int64_t>& vectors,
               const Tensor& given)
      : tasks(static_cast<int64_t>(vectors.size())), pieces(static_cast<int64_t>(base.size())) {
    RC_CHECK(pieces >= 1, op, ": base must hold at least one tensor");
    check_pieces(op, "base", base, base, 1);
    check_pieces(op, "finetuned", finetuned, base, tasks);
    windows =
        table<int64_t>(op, "windows", given, ScalarType::Long, pieces * tasks * kWindowColumns);
    for (size_t piece = 0; piece < base.size(); ++piece) {
      blocks += merge_blocks(base[piece].numel());
      is_double.push_back(is_double_piece(base, finetuned, piece));
    }
  }
  MagnitudeWindow window(int64_t piece, int64_t task) const {
    return window_at(windows + (piece * tasks + task) * kWindowColumns);
  }
};

}  // namespace robustcore
