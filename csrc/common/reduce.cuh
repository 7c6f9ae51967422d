// Reductions over a warp and over a block, with any associative functor.
//
// The order of combination is fixed by the lane and warp numbers alone, and the value of the lower
// lane is always the left operand. So the result has the same bits in every thread and in every
// run, also for functors that are not commutative or that round (floating-point sums, online
// softmax statistics).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simt.cuh"

namespace robustcore {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

struct Sum {
  template <typename T>
  __host__ __device__ __forceinline__ T operator()(const T& left, const T& right) const {
    return left + right;
  }
};

// Keeps NaN, as torch.max does: fmaxf would drop it.
struct Maximum {
  template <typename T>
  __host__ __device__ __forceinline__ T operator()(const T& left, const T& right) const {
    return (left > right || left != left) ? left : right;
  }
};

// __shfl_xor_sync for any trivially copyable type whose size is a multiple of 4 bytes (statistics
// of a row, pairs).
template <typename T>
__device__ __forceinline__ T shuffle_xor(const T& value, int lane_mask,
                                         unsigned members = kFullWarp, int width = kWarpSize) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0);
  constexpr int kWords = sizeof(T) / 4;
  std::uint32_t words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    words[word] = __shfl_xor_sync(members, words[word], lane_mask, width);
  }
  T result;
  memcpy(&result, words, sizeof(T));
  return result;
}

// Combines the values of each group of `Width` consecutive lanes (a power of two); every lane of
// the group gets the result. All 32 lanes of the warp must call it.
template <int Width = kWarpSize, typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
  static_assert(Width >= 1 && Width <= kWarpSize && (Width & (Width - 1)) == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int offset = 1; offset < Width; offset *= 2) {
    const T other = shuffle_xor(value, offset);
    value = (lane & offset) != 0 ? combine(other, value) : combine(value, other);
  }
  return value;
}

// Combines one value per thread of a block of exactly `Threads` threads (a power of two, at least
// 32); every thread gets the result. All threads of the block must call it. It may be called again
// at once: it ends with a barrier.
template <int Threads, typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T value, Combine combine) {
  static_assert(Threads >= kWarpSize && Threads <= 1024 && (Threads & (Threads - 1)) == 0);
  static_assert(std::is_trivially_default_constructible_v<T>,
                "shared memory cannot run constructors");
  constexpr int kWarps = Threads / kWarpSize;
  value = warp_reduce(value, combine);
  if constexpr (kWarps > 1) {
    RC_SHARED(T, partial, kWarps);
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    // Every warp combines the partial results itself: no second barrier before the result is
    // everywhere.
    value = warp_reduce<kWarps>(partial[lane % kWarps], combine);
    __syncthreads();
  }
  return value;
}

}  // namespace robustcore
