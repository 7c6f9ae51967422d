#include "common/parallel.h"
#include "common/tensor.h"

namespace robustcore {
namespace {

template <class T>
RC_TARGET_CLONES void scale_range(T* data, accumulate_t<T> factor, int64_t begin, int64_t end) {
  RC_SIMD for (int64_t i = begin; i < end; ++i) {
    data[i] = from_accumulate<T>(to_accumulate(data[i]) * factor);
  }
}

void scale_(std::vector<Tensor> tensors, const Tensor& factor) {
  check_numel("scale_", "factor", factor, 1);
  for (const Tensor& tensor : tensors) {
    RC_CHECK(tensor.is_contiguous(), "scale_: tensors must be contiguous");
    check_same_device("scale_", "factor", factor, tensor);
    RC_CHECK(factor.scalar_type() == accumulate_type(tensor),
             "scale_: factor must have the dtype that the tensors are computed in");
    dispatch_floating(tensor.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      const accumulate_t<T> value = *read_pointer<accumulate_t<T>>(factor);
      if (value == accumulate_t<T>(1)) return;
      T* data = write_pointer<T>(tensor);
      parallel_rows(tensor.numel(), 1, [&](int64_t begin, int64_t end) {
        scale_range(data, value, begin, end);
      });
    });
  }
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("scale_", TORCH_BOX(&robustcore::scale_));
}
