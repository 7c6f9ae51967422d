// The 16-bit storage types, free of torch and of the CUDA headers, so that one kernel source serves
// nvcc, the CPU kernels and the host executor. They only store: arithmetic happens in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace robustcore {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// The type in which a storage type is computed with: float for 16-bit types, itself otherwise.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename accumulate<T>::type;

namespace detail {

template <class To, class From>
RC_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace detail

RC_INLINE float to_accumulate(float value) {
  return value;
}
RC_INLINE double to_accumulate(double value) {
  return value;
}

RC_INLINE float to_accumulate(bfloat16 value) {
  return detail::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

RC_INLINE float to_accumulate(float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // Branch-free, so that a loop over it vectorises. Shifting exponent and fraction into place and
  // multiplying by 2^112 rebiases the exponent and normalises subnormals in one exact step;
  // infinities and NaNs get the largest exponent afterwards.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const float scaled = detail::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return detail::bit_cast<float>(detail::bit_cast<uint32_t>(scaled) | special | sign);
#endif
}

template <class T>
struct from_accumulate_impl;

template <>
struct from_accumulate_impl<float> {
  static RC_INLINE float convert(float value) { return value; }
};

template <>
struct from_accumulate_impl<double> {
  static RC_INLINE double convert(double value) { return value; }
};

// Round to nearest, ties to even; NaN becomes the quiet NaN that torch writes.
template <>
struct from_accumulate_impl<bfloat16> {
  static RC_INLINE bfloat16 convert(float value) {
    const uint32_t bits = detail::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded)};
  }
};

template <>
struct from_accumulate_impl<float16> {
  static RC_INLINE float16 convert(float value) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t bits = detail::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal results: rebias, round to nearest even on the 13 bits that fall away.
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal results: adding 0.5 lets the adder's own rounding place the bits.
    const uint32_t subnormal =
        detail::bit_cast<uint32_t>(detail::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? special : result;
    return {static_cast<uint16_t>(result | sign)};
#endif
  }
};

template <class T>
RC_INLINE T from_accumulate(accumulate_t<T> value) {
  return from_accumulate_impl<T>::convert(value);
}

}  // namespace robustcore
