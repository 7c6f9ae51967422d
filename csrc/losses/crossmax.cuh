// CUDA kernels of crossmax. Forward: a sample belongs to one warp (few classes) or to one block,
// which finds each member's maximum and then ranks the members class by class; the second visit of
// the logits hits the caches. Backward: a member of a sample belongs to one warp or one block.
//
// Logits and gradients must start on a 16-byte boundary.
#pragma once

#include <cstdint>

#include "common/rows.cuh"
#include "common/vector.cuh"
#include "losses/crossmax.h"

namespace robustcore::crossmax_cuda {

constexpr int kBlock = 256;
// Up to so many classes one warp is enough for a sample.
constexpr std::int64_t kWarpClasses = 256;

// One warp looks for the first maximum of a member; -1 if all logits are -inf.
template <class T>
__device__ __forceinline__ std::int64_t warp_maximum(const CrossMaxProblem<T>& p,
                                                     std::int64_t row) {
  using Acc = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t offset = row * p.classes;
  // Lanes without a class lose against every class: their place is behind the last.
  Placed<Acc> best{-static_cast<Acc>(__builtin_huge_val()), p.classes};
  for_each_vector<T>(offset, p.classes, lane, kWarpSize, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> logits(p.logits + offset + c);
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      best = FirstMaximum{}(best, Placed<Acc>{logits.lanes[l], c + l});
    }
  });
  best = warp_reduce(best, FirstMaximum{});
  return is_lowest(best.value) ? -1 : best.place;
}

// Ranks the members for class c: scan r finds the one behind that of scan r - 1. Ranks are few, and
// a list of them would not fit registers.
template <class T>
__device__ __forceinline__ void rank_members(const CrossMaxProblem<T>& p, std::int64_t sample,
                                             std::int64_t c) {
  using Acc = accumulate_t<T>;
  const std::int64_t first_row = sample * p.members;
  Placed<Acc> largest{}, current{};
  for (std::int64_t rank = 0; rank < p.k; ++rank) {
    const Placed<Acc> before = current;
    bool found = false;
    for (std::int64_t i = 0; i < p.members; ++i) {
      const T* row = p.logits + (first_row + i) * p.classes;
      const std::int64_t top = p.tops[first_row + i];
      const Acc shift = top < 0 ? Acc(0) : to_accumulate(row[top]);
      const Placed<Acc> candidate{to_accumulate(row[c]) - shift, i};
      const bool later = rank == 0 || ranks_above(before.value, candidate.value) ||
                         (!ranks_above(candidate.value, before.value) && i > before.place);
      if (later && (!found || ranks_above(candidate.value, current.value))) {
        current = candidate;
        found = true;
      }
    }
    if (rank == 0) largest = current;
  }
  const std::int64_t at = sample * p.classes + c;
  const bool masked = is_lowest(largest.value);
  p.result[at] = from_accumulate<T>(current.value - maximum_or_zero(largest.value));
  p.largest[at] = static_cast<std::int16_t>(largest.place);
  p.kth[at] = static_cast<std::int16_t>(masked ? largest.place : current.place);
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kRowBlock<kThreads>, kRowResidentBlocks<T, kThreads>)
    crossmax_forward_kernel(const CrossMaxProblem<T> p) {
  constexpr int kWarps = kThreads / kWarpSize;
  for_each_row<kThreads>(p.samples, [&](std::int64_t sample, int thread) {
    for (std::int64_t i = thread / kWarpSize; i < p.members; i += kWarps) {
      const std::int64_t top = warp_maximum(p, sample * p.members + i);
      if (thread % kWarpSize == 0) p.tops[sample * p.members + i] = top;
    }
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    for (std::int64_t c = thread; c < p.classes; c += kThreads) rank_members(p, sample, c);
  });
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kRowBlock<kThreads>, kRowResidentBlocks<T, kThreads>)
    crossmax_backward_kernel(const CrossMaxProblem<T> p) {
  using Acc = accumulate_t<T>;
  for_each_row<kThreads>(p.samples * p.members, [&](std::int64_t row, int thread) {
    const std::int64_t sample = row / p.members;
    const auto member = static_cast<std::int16_t>(row % p.members);
    const std::int64_t shared = sample * p.classes, offset = row * p.classes;
    const auto part = [&](std::int64_t c) {
      const Acc g = to_accumulate(p.grad_result[shared + c]);
      return (p.kth[shared + c] == member ? g : Acc(0)) -
             (p.largest[shared + c] == member ? g : Acc(0));
    };
    Acc total = Acc(0);
    for (std::int64_t c = thread; c < p.classes; c += kThreads) total += part(c);
    total = reduce_row<kThreads>(total, Sum{});
    const std::int64_t top = p.tops[row];
    for_each_vector<T>(offset, p.classes, thread, kThreads, [&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      Acc gradient[kWidth];
#pragma unroll
      for (int l = 0; l < kWidth; ++l) {
        // All classes of a member lose what its maximum gains.
        gradient[l] = part(c + l) - (c + l == top ? total : Acc(0));
      }
      store_narrowed<T>(p.grad + offset + c, gradient);
    });
  });
}

template <class T>
void launch_forward(const CrossMaxProblem<T>& p, cudaStream_t stream) {
  if (p.classes <= kWarpClasses) {
    simt::launch<crossmax_forward_kernel<T, kWarpSize>>(row_blocks<kWarpSize>(p.samples),
                                                        kRowBlock<kWarpSize>, stream, p);
  } else {
    simt::launch<crossmax_forward_kernel<T, kBlock>>(row_blocks<kBlock>(p.samples), kBlock, stream,
                                                     p);
  }
}

template <class T>
void launch_backward(const CrossMaxProblem<T>& p, cudaStream_t stream) {
  const std::int64_t rows = p.samples * p.members;
  with_row_threads(p.classes * static_cast<std::int64_t>(sizeof(T)), [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    simt::launch<crossmax_backward_kernel<T, kThreads>>(row_blocks<kThreads>(rows),
                                                        kRowBlock<kThreads>, stream, p);
  });
}

}  // namespace robustcore::crossmax_cuda
