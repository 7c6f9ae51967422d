// The operator counter_normal, the same for CPU and CUDA. Backend: Scope and launch(params, scope).
#pragma once

#include "common/counter_normal.h"
#include "common/tensor.h"

namespace robustcore {

template <class Backend>
Tensor counter_normal(const Tensor& first, const Tensor& second, const Tensor& seed,
                      int64_t count) {
  const char* op = "counter_normal";
  check_type(op, "first", first, ScalarType::Long);
  check_type(op, "second", second, ScalarType::Long);
  check_type(op, "seed", seed, ScalarType::Long);
  check_numel(op, "second", second, first.numel());
  check_numel(op, "seed", seed, 1);
  check_same_device(op, "second", second, first);
  RC_CHECK(seed.is_cpu() || seed.get_device_index() == first.get_device_index(), op,
           ": seed must be on the CPU or on the device of first");
  RC_CHECK(count >= 0, op, ": count must not be negative, got ", count);
  const typename Backend::Scope scope(first);
  const Tensor one = made_contiguous(first), two = made_contiguous(second);
  const Tensor values = fresh(first, {first.numel(), count}, ScalarType::Float);
  CounterNormalParams p{};
  p.first = read_pointer<int64_t>(one);
  p.second = read_pointer<int64_t>(two);
  p.rows = first.numel();
  p.count = count;
  if (seed.is_cpu()) {
    p.seed = static_cast<uint64_t>(*read_pointer<int64_t>(seed));
  } else {
    p.device_seed = read_pointer<int64_t>(seed);
  }
  p.values = write_pointer<float>(values);
  Backend::launch(p, scope);
  return values;
}

}  // namespace robustcore
