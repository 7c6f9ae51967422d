// Four consecutive weights per thread, of a storage type known at run time (uniform over a block)
// or at compile time.
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/simt.cuh"
#include "merging/storage.h"

namespace robustcore {

constexpr int kQuad = 4;

template <class T>
struct alignas(kQuad * sizeof(T)) WeightQuad {
  T lanes[kQuad];
};

template <class T>
inline bool is_quad_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(WeightQuad<T>) == 0;
}

namespace weight_quads {

// How many of four parameters from i on a slice has.
__device__ __forceinline__ int inside(std::int64_t i, std::int64_t parameters) {
  const std::int64_t left = parameters - i;
  return left >= kQuad ? kQuad : left > 0 ? static_cast<int>(left) : 0;
}

template <class T, class Acc>
__device__ __forceinline__ void read_aligned(const T* from, Acc (&to)[kQuad]) {
  const WeightQuad<T> quad = *reinterpret_cast<const WeightQuad<T>*>(from);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) to[k] = static_cast<Acc>(to_accumulate(quad.lanes[k]));
}

// Zeros past the `count` that are inside.
template <class T, class Acc>
__device__ __forceinline__ void read_some(const T* from, int count, Acc (&to)[kQuad]) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    to[k] = k < count ? static_cast<Acc>(to_accumulate(from[k])) : Acc(0);
  }
}

template <class T, class Acc>
__device__ __forceinline__ void read(const void* data, std::int64_t i, int count,
                                     Acc (&to)[kQuad]) {
  const T* const from = static_cast<const T*>(data) + i;
  // The first address decides for all threads: i is a multiple of kQuad.
  if (count == kQuad && reinterpret_cast<std::uintptr_t>(data) % sizeof(WeightQuad<T>) == 0) {
    read_aligned(from, to);
  } else {
    read_some(from, count, to);
  }
}

// Writes what is inside and puts what was written into `values`.
template <class T, class Acc>
__device__ __forceinline__ void write(void* data, std::int64_t i, int count, Acc (&values)[kQuad]) {
  T* const to = static_cast<T*>(data) + i;
  WeightQuad<T> quad;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    quad.lanes[k] = from_accumulate<T>(static_cast<accumulate_t<T>>(values[k]));
    values[k] = static_cast<Acc>(to_accumulate(quad.lanes[k]));
  }
  if (count == kQuad && reinterpret_cast<std::uintptr_t>(data) % sizeof(WeightQuad<T>) == 0) {
    *reinterpret_cast<WeightQuad<T>*>(to) = quad;
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k < count) to[k] = quad.lanes[k];
    }
  }
}

}  // namespace weight_quads

// Weights of whatever types, computed with as `Compute`.
template <class Compute>
struct AnyWeights {
  using Acc = Compute;
  // Tasks whose loads are issued together: branches on the type keep the compiler from that.
  static constexpr int kTogether = 1;

  static __device__ __forceinline__ void read(StoredWeights from, std::int64_t i, int count,
                                              Acc (&to)[kQuad]) {
    switch (from.type) {
      case Storage::kFloat32:
        return weight_quads::read<float>(from.data, i, count, to);
      case Storage::kFloat64:
        return weight_quads::read<double>(from.data, i, count, to);
      case Storage::kBfloat16:
        return weight_quads::read<bfloat16>(from.data, i, count, to);
      default:
        return weight_quads::read<float16>(from.data, i, count, to);
    }
  }
  static __device__ __forceinline__ void write(void* to, Storage type, std::int64_t i, int count,
                                               Acc (&values)[kQuad]) {
    switch (type) {
      case Storage::kFloat32:
        return weight_quads::write<float>(to, i, count, values);
      case Storage::kFloat64:
        return weight_quads::write<double>(to, i, count, values);
      case Storage::kBfloat16:
        return weight_quads::write<bfloat16>(to, i, count, values);
      default:
        return weight_quads::write<float16>(to, i, count, values);
    }
  }
};

// Weights that are all of type T and all aligned to four of them.
template <class T>
struct AlignedWeights {
  using Acc = accumulate_t<T>;
  static constexpr int kTogether = 4;

  static __device__ __forceinline__ void read(StoredWeights from, std::int64_t i, int count,
                                              Acc (&to)[kQuad]) {
    const T* const data = static_cast<const T*>(from.data) + i;
    if (count == kQuad) {
      weight_quads::read_aligned(data, to);
    } else {
      weight_quads::read_some(data, count, to);
    }
  }
  static __device__ __forceinline__ void write(void* to, Storage, std::int64_t i, int count,
                                               Acc (&values)[kQuad]) {
    weight_quads::write<T>(to, i, count, values);
  }
};

}  // namespace robustcore
