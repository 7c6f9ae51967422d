// What every operator's registration needs from torch: the stable tensor, checks, fresh outputs and
// the step from a run-time dtype to a compile-time type. Kernels themselves never include this.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/errors.h"
#include "common/float16.h"

namespace robustcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A failed check of a raw operator. The public Python functions validate first and raise ValueError
// or TypeError; what can only be found while computing goes through the markers of common/errors.h.
#define RC_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

inline void check_floating(const std::string& op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  RC_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
               type == ScalarType::BFloat16 || type == ScalarType::Half,
           op, ": ", name, " must be float32, float64, bfloat16 or float16");
}

inline void check_type(const std::string& op, const char* name, const Tensor& tensor,
                       ScalarType type) {
  RC_CHECK(tensor.scalar_type() == type, op, ": ", name, " has the wrong dtype");
}

inline void check_numel(const std::string& op, const char* name, const Tensor& tensor,
                        int64_t expected) {
  RC_CHECK(tensor.numel() == expected, op, ": ", name, " must have ", expected, " elements, got ",
           tensor.numel());
}

inline void check_same_device(const std::string& op, const char* name, const Tensor& tensor,
                              const Tensor& like) {
  RC_CHECK(
      tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      op, ": ", name, " must be on the device of the first argument");
}

// The dtype in which a tensor is computed with.
inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Asks for huge pages below a large fresh buffer, before its first touch: page faults otherwise
// cost several times what writing it does. A no-op off Linux and for small buffers.
void advise_huge_pages(void* data, int64_t bytes);

// The shim keeps the allocator's message to itself, and trainers catch torch.OutOfMemoryError.
[[noreturn]] inline void raise_allocation_failed(const Tensor& like, int64_t count,
                                                 size_t element_size) {
  raise(like.is_cuda() ? "OutOfMemoryError" : "RuntimeError", "robustcore: could not allocate ",
        count, " elements of ", element_size, " bytes");
}

// A contiguous uninitialised tensor on the device of `like`. Through the C shim rather than the
// dispatcher, which costs twice as much: small calls consist of little else.
inline Tensor fresh(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    ScalarType type) {
  constexpr size_t kMaxDimensions = 64;  // torch's own limit
  RC_CHECK(sizes.size() <= kMaxDimensions, "robustcore: fresh() takes up to 64 dimensions");
  int64_t strides[kMaxDimensions];
  int64_t count = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = count;
    count *= std::max<int64_t>(1, sizes[d]);
  }
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  const auto status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides, dtype,
                               device_type, like.get_device_index(), &handle);
  if (status != 0) raise_allocation_failed(like, count, aoti_torch_dtype_element_size(dtype));
  Tensor result(handle);
  if (result.is_cpu()) {
    advise_huge_pages(result.mutable_data_ptr(),
                      result.numel() * static_cast<int64_t>(result.element_size()));
  }
  return result;
}

inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return fresh(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

// The tensor itself where it is contiguous: aten::contiguous would find that out more slowly.
inline Tensor made_contiguous(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::runtime_error&) {  // nothing else can fail in a copy of a valid tensor
    raise_allocation_failed(tensor, tensor.numel(), tensor.element_size());
  }
}

inline std::optional<Tensor> made_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(made_contiguous(*tensor)) : std::nullopt;
}

// Whether 16-byte loads may begin at the first element.
inline bool is_vector_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline Tensor vector_aligned(const Tensor& tensor) {
  return is_vector_aligned(tensor) ? tensor : torch::stable::clone(tensor);
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
