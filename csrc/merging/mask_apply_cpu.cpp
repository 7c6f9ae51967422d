#include "common/parallel.h"
#include "merging/mask_apply.h"
#include "merging/mask_apply_op.h"

namespace robustcore {
namespace {

constexpr int64_t kChunk = 8192;  // parameters of one tensor

// Parameters [begin, end) of one tensor, whose first parameter is bit `start` of the mask.
template <class Policy, class T>
RC_TARGET_CLONES void apply_range(const T* values, const accumulate_t<T>* merged, T* result,
                                  const uint64_t* mask, int64_t words, int64_t start, int64_t begin,
                                  int64_t end) {
  using Acc = accumulate_t<T>;
  for (int64_t first = begin; first < end; first += kWordBits) {
    const uint64_t bits = bits_from(mask, words, start + first);
    const int64_t count = end - first < kWordBits ? end - first : kWordBits;
    uint8_t kept[kWordBits];
    RC_SIMD for (int64_t i = 0; i < kWordBits; ++i) kept[i] = (bits >> i) & 1;
    RC_SIMD for (int64_t i = 0; i < count; ++i) {
      const Acc addend = Policy::kReadsBase ? merged[first + i] : Acc(0);
      result[first + i] = Policy::template apply<T>(values[first + i], addend, kept[i] != 0);
    }
  }
}

template <class Policy>
std::vector<Tensor> run(MaskApplyArguments a) {
  const uint64_t* mask = static_cast<const uint64_t*>(a.mask.const_data_ptr());
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    dispatch_floating(a.values[tensor].scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using Acc = accumulate_t<T>;
      const T* values = read_pointer<T>(a.values[tensor]);
      const Acc* merged = Policy::kReadsBase ? read_pointer<Acc>(a.merged[tensor]) : nullptr;
      T* result = write_pointer<T>(a.result[tensor]);
      const int64_t size = a.order.size(tensor), words = a.mask.size(0);
      const int64_t start = a.order.start(tensor);
      parallel_rows((size + kChunk - 1) / kChunk, kChunk, [&](int64_t begin, int64_t end) {
        apply_range<Policy, T>(values, merged, result, mask, words, start, begin * kChunk,
                               std::min(size, end * kChunk));
      });
    });
  }
  return std::move(a.result);
}

std::vector<Tensor> mask_apply(std::vector<Tensor> base, std::vector<Tensor> merged,
                               const Tensor& mask) {
  return run<AddWhereKept>(
      mask_apply_arguments("mask_apply", std::move(base), std::move(merged), mask, true, false));
}

void mask_apply_(std::vector<Tensor> base, std::vector<Tensor> merged, const Tensor& mask) {
  run<AddWhereKept>(
      mask_apply_arguments("mask_apply_", std::move(base), std::move(merged), mask, true, true));
}

std::vector<Tensor> mask_multiply(std::vector<Tensor> tensors, const Tensor& mask) {
  return run<ZeroWhereDropped>(
      mask_apply_arguments("mask_multiply", std::move(tensors), {}, mask, false, false));
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("mask_apply", TORCH_BOX(&robustcore::mask_apply));
  m.impl("mask_apply_", TORCH_BOX(&robustcore::mask_apply_));
  m.impl("mask_multiply", TORCH_BOX(&robustcore::mask_multiply));
}
