// Weights in whatever floating-point type they are stored: types known at run time, read and
// written a few hundred at a time. Host and device, no torch.
#pragma once

#include <cstdint>

#include "common/float16.h"

namespace robustcore {

enum class Storage : int { kFloat32, kFloat64, kBfloat16, kFloat16 };

// Weights of one tensor, or of a slice of it.
struct StoredWeights {
  const void* data;
  Storage type;
};

// One weight in the type of computation; float64 is only read into double.
template <class Acc>
RC_INLINE Acc stored_weight(StoredWeights weights, int64_t i) {
  switch (weights.type) {
    case Storage::kFloat32:
      return static_cast<const float*>(weights.data)[i];
    case Storage::kFloat64:
      return static_cast<Acc>(static_cast<const double*>(weights.data)[i]);
    case Storage::kBfloat16:
      return to_accumulate(static_cast<const bfloat16*>(weights.data)[i]);
    default:
      return to_accumulate(static_cast<const float16*>(weights.data)[i]);
  }
}

namespace detail {

template <class Acc, class T>
RC_INLINE void widen(const T*
RC_RESTRICT from, int64_t count, Acc* RC_RESTRICT to) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Acc>(to_accumulate(from[i]));
}

template <class Acc, class T>
RC_INLINE void narrow(const Acc* RC_RESTRICT from, int64_t count, T* RC_RESTRICT to) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) {
    to[i] = from_accumulate<T>(static_cast<accumulate_t<T>>(from[i]));
  }
}

}  // namespace detail

// Weights [first, first + count).
template <class Acc>
RC_INLINE void read_weights(StoredWeights weights, int64_t first, int64_t count, Acc* to) {
  switch (weights.type) {
    case Storage::kFloat32:
      return detail::widen(static_cast<const float*>(weights.data) + first, count, to);
    case Storage::kFloat64:
      return detail::widen(static_cast<const double*>(weights.data) + first, count, to);
    case Storage::kBfloat16:
      return detail::widen(static_cast<const bfloat16*>(weights.data) + first, count, to);
    default:
      return detail::widen(static_cast<const float16*>(weights.data) + first, count, to);
  }
}

// Rounded once, to nearest: double goes to 16 bits through float, as torch does it.
template <class Acc>
RC_INLINE void write_weight(void* data, Storage type, int64_t i, Acc value) {
  switch (type) {
    case Storage::kFloat32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      return;
    case Storage::kFloat64:
      static_cast<double*>(data)[i] = static_cast<double>(value);
      return;
    case Storage::kBfloat16:
      static_cast<bfloat16*>(data)[i] = from_accumulate<bfloat16>(static_cast<float>(value));
      return;
    default:
      static_cast<float16*>(data)[i] = from_accumulate<float16>(static_cast<float>(value));
  }
}

template <class Acc>
RC_INLINE void write_weights(const Acc* from, int64_t first, int64_t count, void* data,
                             Storage type) {
  switch (type) {
    case Storage::kFloat32:
      return detail::narrow(from, count, static_cast<float*>(data) + first);
    case Storage::kFloat64:
      return detail::narrow(from, count, static_cast<double*>(data) + first);
    case Storage::kBfloat16:
      return detail::narrow(from, count, static_cast<bfloat16*>(data) + first);
    default:
      return detail::narrow(from, count, static_cast<float16*>(data) + first);
  }
}

}  // namespace robustcore
