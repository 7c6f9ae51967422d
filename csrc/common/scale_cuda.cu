#include "common/cuda.h"
#include "common/scale.cuh"

namespace robustcore {
namespace {

void scale_(std::vector<Tensor> tensors, const Tensor& factor) {
  check_numel("scale_", "factor", factor, 1);
  for (const Tensor& tensor : tensors) {
    RC_CHECK(tensor.is_contiguous() && is_vector_aligned(tensor),
             "scale_: tensors must be contiguous and start on a 16-byte boundary");
    check_same_device("scale_", "factor", factor, tensor);
    RC_CHECK(factor.scalar_type() == accumulate_type(tensor),
             "scale_: factor must have the dtype that the tensors are computed in");
    const DeviceScope device(tensor);
    dispatch_floating(tensor.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch_scale(ScaleParams<T>{write_pointer<T>(tensor), tensor.numel(),
                                  read_pointer<accumulate_t<T>>(factor)},
                   device.stream());
    });
  }
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("scale_", TORCH_BOX(&robustcore::scale_));
}
