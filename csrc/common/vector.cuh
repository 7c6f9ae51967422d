// 16-byte loads and stores of consecutive elements, and walks over rows that use them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/float16.h"
#include "common/simt.cuh"

namespace robustcore {

template <class T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Vector {
  T lanes[kVectorWidth<T>];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* source) {
  return *reinterpret_cast<const Vector<T>*>(source);
}

template <class T>
__device__ __forceinline__ void store_vector(T* destination, const Vector<T>& vector) {
  *reinterpret_cast<Vector<T>*>(destination) = vector;
}

// Splits a row of `count` elements that starts `offset` elements after a 16-byte boundary among
// `threads` threads: single elements up to the boundary, whole vectors, single elements at the end.
// Calls f(c, integral_constant<int, width>) with width kVectorWidth<T> or 1.
template <class T, class F>
__device__ __forceinline__ void for_each_vector(std::int64_t offset, std::int64_t count, int thread,
                                                int threads, F&& f) {
  constexpr int kWidth = kVectorWidth<T>;
  const int misaligned = static_cast<int>(offset % kWidth);
  std::int64_t head = misaligned == 0 ? 0 : kWidth - misaligned;
  if (head > count) head = count;
  if (thread < head) f(static_cast<std::int64_t>(thread), std::integral_constant<int, 1>{});
  const std::int64_t tail = head + (count - head) / kWidth * kWidth;
  for (std::int64_t c = head + static_cast<std::int64_t>(thread) * kWidth; c < tail;
       c += static_cast<std::int64_t>(threads) * kWidth) {
    f(c, std::integral_constant<int, kWidth>{});
  }
  if (thread < count - tail) f(tail + thread, std::integral_constant<int, 1>{});
}

// `Width` consecutive elements, widened.
template <class T, int Width>
struct Widened {
  accumulate_t<T> lanes[Width];

  __device__ __forceinline__ explicit Widened(const T* source) {
    if constexpr (Width == 1) {
      lanes[0] = to_accumulate(*source);
    } else {
      const Vector<T> vector = load_vector(source);
#pragma unroll
      for (int l = 0; l < Width; ++l) lanes[l] = to_accumulate(vector.lanes[l]);
    }
  }
};

template <class T, int Width>
__device__ __forceinline__ void store_narrowed(T* destination,
                                               const accumulate_t<T> (&lanes)[Width]) {
  if constexpr (Width == 1) {
    *destination = from_accumulate<T>(lanes[0]);
  } else {
    Vector<T> vector;
#pragma unroll
    for (int l = 0; l < Width; ++l) vector.lanes[l] = from_accumulate<T>(lanes[l]);
    store_vector(destination, vector);
  }
}

}  // namespace robustcore
