#include <utility>

#include "common/parallel.h"
#include "merging/compare_weights_op.h"

namespace robustcore {
namespace {

using Sums = double[kCompareSums][kCompareLanes];

// Adds a parameter to its lane's sums. Spelled out, as loops over lanes vectorise only without a
// loop inside.
template <int... kSums>
RC_INLINE void add_terms(std::integer_sequence<int, kSums...>, double a, double b, int64_t lane,
                      Sums& sums) {
  ((sums[kSums][lane] = join_sums(kSums, sums[kSums][lane], compare_term(kSums, a, b))), ...);
}

RC_TARGET_CLONES void compare_block(StoredWeights first, const StoredWeights* second, int64_t begin,
                                    int64_t end, double* row) {
  Sums sums = {};
  double a[kCompareLanes], b[kCompareLanes] = {};
  for (int64_t start = begin; start < end; start += kCompareLanes) {
    const int64_t count = std::min<int64_t>(kCompareLanes, end - start);
    read_weights(first, start, count, a);
    if (second) read_weights(*second, start, count, b);
    RC_SIMD for (int64_t lane = 0; lane < count; ++lane) {
      add_terms(std::make_integer_sequence<int, kCompareSums>(), a[lane], b[lane], lane, sums);
    }
  }
  for (int k = 0; k < kCompareSums; ++k) {
    for (int half = kCompareLanes / 2; half > 0; half /= 2) {
      RC_SIMD for (int lane = 0; lane < half; ++lane) {
        sums[k][lane] = join_sums(k, sums[k][lane], sums[k][lane + half]);
      }
    }
    row[k] = sums[k][0];
  }
}

Tensor compare_weights(std::vector<Tensor> first, std::vector<Tensor> second) {
  Tensor result = compare_result(first, second);
  double* rows = write_pointer<double>(result);
  for (size_t piece = 0; piece < first.size(); ++piece) {
    const int64_t size = first[piece].numel(), blocks = merge_blocks(size);
    const StoredWeights a = stored(first[piece]);
    const StoredWeights b = second.empty() ? a : stored(second[piece]);
    const StoredWeights* const other = second.empty() ? nullptr : &b;
    parallel_rows(blocks, kMergeBlock, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        compare_block(a, other, block * kMergeBlock,
                      std::min(size, (block + 1) * kMergeBlock), rows + block * kCompareSums);
      }
    });
    rows += blocks * kCompareSums;
  }
  return result;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("compare_weights", TORCH_BOX(&robustcore::compare_weights));
}
