// Rows shared by the threads of a warp or of a block: who walks which row, and how the threads of a
// row join their values.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "common/simt.cuh"

namespace robustcore {

// Rows up to this many bytes are walked by one warp.
inline constexpr std::int64_t kWarpRowBytes = 4096;

// Threads of a block whose rows take kThreads each: several warps of their own, or one row.
template <int kThreads>
inline constexpr int kRowBlock = kThreads == kWarpSize ? 128 : kThreads;

// Blocks that must fit on a multiprocessor, which bounds the registers of a thread: 64 for float,
// 80 for the 16-bit types (eight elements a load), 128 for double. Left to itself the compiler may
// hold all of them to 64 and spill.
template <class T, int kThreads>
inline constexpr int kRowResidentBlocks = 65536 /
                                          (sizeof(T) == 4   ? 64
                                           : sizeof(T) == 2 ? 80
                                                            : 128) /
                                          kRowBlock<kThreads>;

// Enough blocks for every row, within what a grid can hold; the kernels loop over the rest.
template <int kThreads>
std::int64_t row_blocks(std::int64_t rows) {
  constexpr std::int64_t kRowsPerBlock = kRowBlock<kThreads> / kThreads;
  const std::int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  return blocks < (std::int64_t{1} << 30) ? blocks : std::int64_t{1} << 30;
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

// As torch.argmax: NaN above all, the first of equals.
struct FirstMaximum {
  template <class Acc>
  __device__ __forceinline__ Placed<Acc> operator()(const Placed<Acc>& a,
                                                    const Placed<Acc>& b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool equal = a.value == b.value || (a_nan && b_nan);
    const bool take_a = equal ? a.place < b.place : (a_nan || (!b_nan && a.value > b.value));
    return take_a ? a : b;
  }
};

}  // namespace robustcore
