// Rows shared by the threads of a warp or of a block: who walks which row, and how the threads of a
// row join their values.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/reduce.cuh"
#include "common/simt.cuh"

namespace robustcore {

// Rows up to this many bytes are walked by one warp, longer ones by a block of this many threads.
inline constexpr std::int64_t kWarpRowBytes = 4096;
inline constexpr int kLongRowThreads = 256;

// Calls f(std::integral_constant<int, kThreads>) with the threads that rows of so many bytes get.
template <class F>
void with_row_threads(std::int64_t bytes, F&& f) {
  if (bytes <= kWarpRowBytes) {
    f(std::integral_constant<int, kWarpSize>{});
  } else {
    f(std::integral_constant<int, kLongRowThreads>{});
  }
}

// Threads of a block whose rows take kThreads each: several warps of their own, or one row.
template <int kThreads>
inline constexpr int kRowBlock = kThreads == kWarpSize ? 128 : kThreads;

// Blocks that must fit on a multiprocessor, which bounds the registers of a thread. Left to itself
// the compiler may hold all kernels to 64 and spill.
template <int kThreads>
constexpr int resident_blocks(int registers) {
  return 65536 / registers / kRowBlock<kThreads>;
}

// 64 registers for float, 80 for the 16-bit types (eight elements a load), 128 for double.
template <class T, int kThreads>
inline constexpr int kRowResidentBlocks = resident_blocks<kThreads>(sizeof(T) == 4   ? 64
                                                                    : sizeof(T) == 2 ? 80
                                                                                     : 128);

// Enough blocks for everything, within what a grid can hold; the kernels loop over the rest.
inline std::int64_t blocks_for(std::int64_t count, std::int64_t per_block) {
  const std::int64_t blocks = (count + per_block - 1) / per_block;
  return blocks < (std::int64_t{1} << 30) ? blocks : std::int64_t{1} << 30;
}
template <int kThreads>
std::int64_t row_blocks(std::int64_t rows) {
  return blocks_for(rows, kRowBlock<kThreads> / kThreads);
}

// Calls f(row, thread) for the rows of this block; `thread` counts within the row.
template <int kThreads, class F>
__device__ __forceinline__ void for_each_row(std::int64_t rows, F&& f) {
  constexpr int kRowsPerBlock = kRowBlock<kThreads> / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kRowsPerBlock;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock +
                          static_cast<int>(threadIdx.x) / kThreads;
       row < rows; row += stride) {
    f(row, thread);
  }
}

// Joins the values of the threads that share a row; all of them get the result.
template <int kThreads, class Value, class Join>
__device__ __forceinline__ Value reduce_row(const Value& value, Join join) {
  if constexpr (kThreads == kWarpSize) {
    return warp_reduce(value, join);
  } else {
    return block_reduce<kThreads>(value, join);
  }
}

// A value and where it lies.
template <class Acc>
struct Placed {
  Acc value;
  std::int64_t place;
};

// Of two values with places, that which torch.argmax takes: NaN above all, the first of equals.
struct FirstMaximum {
  template <class Value>
  __device__ __forceinline__ Value operator()(const Value& a, const Value& b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool equal = a.value == b.value || (a_nan && b_nan);
    const bool take_a = equal ? a.place < b.place : (a_nan || (!b_nan && a.value > b.value));
    return take_a ? a : b;
  }
};

}  // namespace robustcore
