// Weights of any dtype as arguments of a case.
#pragma once

#include <string>

#include "merging/storage.h"
#include "merging/weight_quads.cuh"

#include "simt_case.h"

namespace robustcore::simt {

inline Storage storage_of(Dtype dtype) {
  Storage storage{};
  dispatch_floating(dtype, [&]<typename T>() {
    storage = std::is_same_v<T, float>      ? Storage::kFloat32
              : std::is_same_v<T, double>   ? Storage::kFloat64
              : std::is_same_v<T, bfloat16> ? Storage::kBfloat16
                                            : Storage::kFloat16;
  });
  return storage;
}

// `aligned`: as tensors that an allocator made, and not as slices that may begin anywhere.
inline StoredWeights stored_input(Arguments& arguments, const std::string& name, bool aligned) {
  const void* data = nullptr;
  dispatch_floating(arguments.dtype(name), [&]<typename T>() {
    data = arguments.input<T>(name, aligned ? kQuad * sizeof(T) : sizeof(T));
  });
  return {data, storage_of(arguments.dtype(name))};
}

inline void* stored_output(Arguments& arguments, const std::string& name, bool aligned,
                           bool keeps_values) {
  void* data = nullptr;
  dispatch_floating(arguments.dtype(name), [&]<typename T>() {
    const std::size_t alignment = aligned ? kQuad * sizeof(T) : sizeof(T);
    data =
        keeps_values ? arguments.inout<T>(name, alignment) : arguments.output<T>(name, alignment);
  });
  return data;
}

}  // namespace robustcore::simt
