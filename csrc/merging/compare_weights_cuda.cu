#include "common/cuda.h"
#include "merging/compare_weights.cuh"
#include "merging/compare_weights_op.h"

namespace robustcore {
namespace {

Tensor compare_weights(std::vector<Tensor> first, std::vector<Tensor> second) {
  const Tensor result = compare_result(first, second);
  const DeviceScope device(first[0]);
  CompareParams p{};
  p.has_second = !second.empty();
  p.rows = static_cast<double*>(result.mutable_data_ptr());
  for (size_t piece = 0; piece < first.size(); ++piece) {
    p.first = stored(first[piece]);
    if (p.has_second) p.second = stored(second[piece]);
    p.parameters = first[piece].numel();
    launch_compare_weights(p, device.stream());
    p.rows += merge_blocks(p.parameters) * kCompareSums;
  }
  return result;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("compare_weights", TORCH_BOX(&robustcore::compare_weights));
}
