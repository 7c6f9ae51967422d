// What every operator's registration needs from torch: the stable tensor, checks, fresh outputs and the
// step from a run-time dtype to a compile-time type. Kernels themselves never include this.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "common/float16.h"

namespace robustcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A failed check of a raw operator. The public Python functions validate first and raise ValueError or
// TypeError; what can only be found while computing goes through the markers of common/errors.h.
#define RC_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  RC_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
               type == ScalarType::BFloat16 || type == ScalarType::Half,
           op, ": ", name, " must be float32, float64, bfloat16 or float16");
}

inline void check_type(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
  RC_CHECK(tensor.scalar_type() == type, op, ": ", name, " has the wrong dtype");
}

inline void check_numel(const char* op, const char* name, const Tensor& tensor, int64_t expected) {
  RC_CHECK(tensor.numel() == expected, op, ": ", name, " must have ", expected, " elements, got ",
           tensor.numel());
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor,
                              const Tensor& like) {
  RC_CHECK(tensor.is_cuda() == like.is_cuda() &&
               tensor.get_device_index() == like.get_device_index(),
           op, ": ", name, " must be on the device of the first argument");
}

// The dtype in which a tensor is computed with.
inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Asks for huge pages below a large fresh buffer, before its first touch: page faults otherwise cost
// several times what writing it does. A no-op off Linux and for small buffers.
void advise_huge_pages(void* data, int64_t bytes);

// A contiguous uninitialised tensor on the device of `like`.
inline Tensor fresh(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    ScalarType type) {
  Tensor result = torch::stable::new_empty(like, sizes, type);
  if (result.is_cpu()) {
    advise_huge_pages(result.mutable_data_ptr(),
                      result.numel() * static_cast<int64_t>(result.element_size()));
  }
  return result;
}

inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return fresh(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

template <class T>
const T* read_pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* read_pointer(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* write_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
struct type_tag {
  using type = T;
};

// Calls f(type_tag<T>{}) with the storage type of `type`.
template <class F>
void dispatch_floating(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(type_tag<float>{});
    case ScalarType::Double:
      return f(type_tag<double>{});
    case ScalarType::BFloat16:
      return f(type_tag<bfloat16>{});
    case ScalarType::Half:
      return f(type_tag<float16>{});
    default:
      RC_CHECK(false, "robustcore: the dtype must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace robustcore
