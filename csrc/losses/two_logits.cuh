// CUDA driver for the losses of two logit tensors and a gate. See two_logits.h for the
// problem and gated_cross_entropy.h for a policy.
//
// A row belongs to one warp (few classes) or to one block. Its statistics come from a single pass
// (online softmax); gradients need a second visit of the row, which by then lies in L2 unless rows
// are very long. Traffic in units of rows * classes elements: forward 2 reads, backward 2 reads and
// 2 writes, forward with gradients 2 reads (4 where L2 cannot hold the rows in flight) and 2
// writes.
//
// Every sum has a fixed order: same inputs, same bits. The logits must start on a 16-byte boundary.
#pragma once

#include <cstdint>

#include "common/exp.h"
#include "common/reduce.cuh"
#include "common/vector.cuh"
#include "losses/target.h"
#include "losses/two_logits.h"

namespace robustcore::two_logits_cuda {

// Rows up to this many bytes are walked by one warp.
constexpr std::int64_t kWarpRowBytes = 4096;
constexpr int kWarpBlock = 128;
constexpr int kBlock = 256;

// Threads of a block whose rows take kThreads each.
template <int kThreads>
constexpr int kBlockThreads = kThreads == kWarpSize ? kWarpBlock : kThreads;

// Blocks that must fit on a multiprocessor, which bounds the registers of a thread: 64 for float,
// 80 for the 16-bit types (eight elements a load), 128 for double. Left to itself the compiler
// holds all of them to 64 and spills.
template <class T, int kThreads>
constexpr int kResidentBlocks = 65536 /
                                (sizeof(T) == 4   ? 64
                                 : sizeof(T) == 2 ? 80
                                                  : 128) /
                                kBlockThreads<kThreads>;

template <class Acc>
__device__ __forceinline__ Acc negative_infinity() {
  return -static_cast<Acc>(__builtin_huge_val());
}

// Sums of a row relative to a running maximum, and how two parts of a row are joined.
template <class Acc>
struct RowSums {
  Acc maximum;
  Acc total;           // sum exp(h - maximum)
  Acc along;           // sum exp(h - maximum) dh/dg
  Acc weighted;        // sum w h, for label smoothing
  Acc weighted_along;  // sum w dh/dg

  static __device__ __forceinline__ RowSums empty() {
    return {negative_infinity<Acc>(), Acc(0), Acc(0), Acc(0), Acc(0)};
  }
  // What to subtract before exponentiating: a row of -inf must not yield inf - inf.
  __device__ __forceinline__ Acc shift() const {
    return maximum == negative_infinity<Acc>() ? Acc(0) : maximum;
  }
};

struct JoinRowSums {
  template <class Acc>
  __device__ __forceinline__ RowSums<Acc> operator()(const RowSums<Acc>& a,
                                                     const RowSums<Acc>& b) const {
    RowSums<Acc> joined = a.maximum > b.maximum ? a : b;
    const Acc shift = joined.shift();
    const Acc scale_a = exponential(a.maximum - shift), scale_b = exponential(b.maximum - shift);
    joined.total = a.total * scale_a + b.total * scale_b;
    joined.along = a.along * scale_a + b.along * scale_b;
    joined.weighted = a.weighted + b.weighted;
    joined.weighted_along = a.weighted_along + b.weighted_along;
    return joined;
  }
};

// The same for the scores of the first head: the maximum with its place, and its softmax's total.
template <class Acc>
struct BestClass {
  Acc value;
  Acc total;  // sum exp(f - value)
  std::int64_t place;
};

// As torch.argmax: NaN above all, the first of equals.
struct JoinBestClass {
  template <class Acc>
  __device__ __forceinline__ BestClass<Acc> operator()(const BestClass<Acc>& a,
                                                       const BestClass<Acc>& b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool equal = a.value == b.value || (a_nan && b_nan);
    const bool take_a = equal ? a.place < b.place : (a_nan || (!b_nan && a.value > b.value));
    BestClass<Acc> joined = take_a ? a : b;
    const Acc shift = joined.value == negative_infinity<Acc>() ? Acc(0) : joined.value;
    joined.total = a.total * exponential(a.value - shift) + b.total * exponential(b.value - shift);
    return joined;
  }
};

// Joins the values of the threads that share a row.
template <int kThreads, class Value, class Join>
__device__ __forceinline__ Value reduce_row(const Value& value, Join join) {
  if constexpr (kThreads == kWarpSize) {
    return warp_reduce(value, join);
  } else {
    return block_reduce<kThreads>(value, join);
  }
}

template <class Policy, class T>
__device__ __forceinline__ RowSums<accumulate_t<T>> thread_sums(const TwoLogitProblem<T>& p,
                                                                const Policy& policy,
                                                                std::int64_t offset, int thread,
                                                                int threads) {
  using Acc = accumulate_t<T>;
  RowSums<Acc> sums = RowSums<Acc>::empty();
  for_each_vector<T>(offset, p.classes, thread, threads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> first(p.first + offset + c), second(p.second + offset + c);
    Acc h[kWidth];
    Acc maximum = sums.maximum;
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      h[l] = policy.mix(first.lanes[l], second.lanes[l]);
      maximum = h[l] > maximum ? h[l] : maximum;
    }
    const Acc before = sums.maximum;
    sums.maximum = maximum;
    const Acc shift = sums.shift();
    const Acc rescale = exponential(before - shift);
    sums.total *= rescale;
    sums.along *= rescale;
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      const Acc e = exponential(h[l] - shift);
      sums.total += e;
      // A masked class has no probability; its infinite difference must not turn 0 into NaN.
      const Acc term = e * policy.direction(first.lanes[l], second.lanes[l]);
      sums.along += e == Acc(0) ? Acc(0) : term;
      if (p.label_smoothing != Acc(0)) {
        const Acc w = p.class_weight ? p.class_weight[c + l] : Acc(1);
        sums.weighted += w * h[l];
        sums.weighted_along += w * policy.direction(first.lanes[l], second.lanes[l]);
      }
    }
  });
  return sums;
}

template <class T>
__device__ __forceinline__ BestClass<accumulate_t<T>> thread_best(const TwoLogitProblem<T>& p,
                                                                  std::int64_t offset, int thread,
                                                                  int threads) {
  using Acc = accumulate_t<T>;
  // Threads without a class lose against every class: their place is behind the last.
  BestClass<Acc> best{negative_infinity<Acc>(), Acc(0), p.classes};
  for_each_vector<T>(offset, p.classes, thread, threads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> first(p.first + offset + c);
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      best = JoinBestClass{}(best, BestClass<Acc>{first.lanes[l], Acc(1), c + l});
    }
  });
  return best;
}

// Writes both gradients of a row from its logsumexp.
template <class Policy, class T>
__device__ __forceinline__ void write_gradients(const TwoLogitProblem<T>& p, const Policy& policy,
                                                std::int64_t row, std::int64_t target,
                                                accumulate_t<T> lse, accumulate_t<T> factor,
                                                int thread, int threads) {
  using Acc = accumulate_t<T>;
  const std::int64_t offset = row * p.classes;
  const TargetWeights<Acc> t = target_weights(p, target);
  const Acc scale = factor * t.scale(), soft = factor * t.soft, hard = factor * t.hard;
  for_each_vector<T>(offset, p.classes, thread, threads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> first(p.first + offset + c), second(p.second + offset + c);
    Acc for_first[kWidth], for_second[kWidth];
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      const Acc probability = exponential(policy.mix(first.lanes[l], second.lanes[l]) - lse);
      Acc gradient = scale * probability;
      if (p.label_smoothing != Acc(0)) {
        gradient -= soft * (p.class_weight ? p.class_weight[c + l] : Acc(1));
      }
      if (c + l == target) gradient -= hard;
      for_first[l] = policy.gradient_first(gradient);
      for_second[l] = policy.gradient_second(gradient);
    }
    if (p.grad_first) store_narrowed<T>(p.grad_first + offset + c, for_first);
    if (p.grad_second) store_narrowed<T>(p.grad_second + offset + c, for_second);
  });
}

// An ignored row: zeros, not products with whatever the row holds.
template <class T>
__device__ __forceinline__ void zero_gradients(const TwoLogitProblem<T>& p, std::int64_t row,
                                               int thread, int threads) {
  using Acc = accumulate_t<T>;
  if (thread == 0 && p.grad_gate) p.grad_gate[row] = Acc(0);
  if (thread == 0 && p.grad_sample_weight) p.grad_sample_weight[row] = Acc(0);
  const std::int64_t offset = row * p.classes;
  for_each_vector<T>(offset, p.classes, thread, threads, [&](std::int64_t c, auto width) {
    const Acc zeros[decltype(width)::value] = {};
    if (p.grad_first) store_narrowed<T>(p.grad_first + offset + c, zeros);
    if (p.grad_second) store_narrowed<T>(p.grad_second + offset + c, zeros);
  });
}

template <class T>
__device__ __forceinline__ accumulate_t<T> gradient_factor(const TwoLogitProblem<T>& p,
                                                           std::int64_t row) {
  using Acc = accumulate_t<T>;
  const Acc incoming = p.grad_loss ? p.grad_loss[p.grad_loss_per_row ? row : 0] : Acc(1);
  return incoming / *p.denominator;
}

template <class T>
__device__ __forceinline__ accumulate_t<T> sample_weight(const TwoLogitProblem<T>& p,
                                                         std::int64_t row) {
  return p.sample_weight ? p.sample_weight[row] : accumulate_t<T>(1);
}

template <class T>
__device__ __forceinline__ void write_row_gradients(const TwoLogitProblem<T>& p, std::int64_t row,
                                                    accumulate_t<T> factor,
                                                    accumulate_t<T> gate_gradient,
                                                    accumulate_t<T> loss) {
  if (p.grad_gate) p.grad_gate[row] = factor * sample_weight(p, row) * gate_gradient;
  if (p.grad_sample_weight) p.grad_sample_weight[row] = factor * loss;
}

// Calls f(row, thread) for the rows of this block; `thread` counts within the row.
template <int kThreads, class F>
__device__ __forceinline__ void for_each_row(std::int64_t rows, F&& f) {
  const int rows_per_block = static_cast<int>(blockDim.x) / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * rows_per_block;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block +
                          static_cast<int>(threadIdx.x) / kThreads;
       row < rows; row += stride) {
    f(row, thread);
  }
}

template <class Policy, class T, int kThreads, TwoLogitMode kMode>
__global__ void __launch_bounds__(kBlockThreads<kThreads>, kResidentBlocks<T, kThreads>)
    two_logits_forward_kernel(const TwoLogitProblem<T> p) {
  using Acc = accumulate_t<T>;
  for_each_row<kThreads>(p.rows, [&](std::int64_t row, int thread) {
    const std::int64_t target = p.target[row], offset = row * p.classes;
    const bool ignored = target == p.ignore_index;
    RC_DEVICE_ASSERT(ignored || (target >= 0 && target < p.classes));
    if constexpr (kMode == TwoLogitMode::kScores) {
      const BestClass<Acc> best =
          reduce_row<kThreads>(thread_best(p, offset, thread, kThreads), JoinBestClass{});
      if (thread == 0) {
        const Acc not_a_number = static_cast<Acc>(__builtin_nan(""));
        p.predicted[row] = best.place;
        p.log_probability[row] =
            ignored ? not_a_number
                    : to_accumulate(p.first[offset + target]) - best.value - logarithm(best.total);
        p.gate_probability[row] = logistic_pair(p.gate[row]).value;
      }
    }
    if (ignored) {
      if (thread == 0) {
        p.row_loss[row] = p.row_lse[row] = p.row_gate_gradient[row] = Acc(0);
        if (p.reduction == Reduction::kNone) p.loss[row] = Acc(0);
      }
      if constexpr (kMode == TwoLogitMode::kGradients) {
        zero_gradients(p, row, thread, kThreads);
      }
      return;
    }
    const Policy policy = Policy::begin(logistic_pair(p.gate[row]));
    const RowSums<Acc> sums =
        reduce_row<kThreads>(thread_sums(p, policy, offset, thread, kThreads), JoinRowSums{});
    const TargetWeights<Acc> t = target_weights(p, target);
    const Acc first_y = to_accumulate(p.first[offset + target]);
    const Acc second_y = to_accumulate(p.second[offset + target]);
    const Acc lse = sums.shift() + logarithm(sums.total);
    Acc loss = t.hard * (lse - policy.mix(first_y, second_y));
    Acc direction = t.scale() * (sums.along / sums.total);
    direction -= t.hard * policy.direction(first_y, second_y);
    if (p.label_smoothing != Acc(0)) {
      loss += t.soft * (t.weight_sum * lse - sums.weighted);
      direction -= t.soft * sums.weighted_along;
    }
    const Acc gate_gradient = policy.gate_slope() * direction;
    if (thread == 0) {
      p.row_loss[row] = loss;
      p.row_lse[row] = lse;
      p.row_gate_gradient[row] = gate_gradient;
      if (p.reduction == Reduction::kNone) p.loss[row] = loss * sample_weight(p, row);
    }
    if constexpr (kMode == TwoLogitMode::kGradients) {
      const Acc factor = gradient_factor(p, row);
      if (thread == 0) write_row_gradients(p, row, factor, gate_gradient, loss);
      write_gradients(p, policy, row, target, lse, factor * sample_weight(p, row), thread,
                      kThreads);
    }
  });
}

template <class Policy, class T, int kThreads>
__global__ void __launch_bounds__(kBlockThreads<kThreads>, kResidentBlocks<T, kThreads>)
    two_logits_backward_kernel(const TwoLogitProblem<T> p) {
  using Acc = accumulate_t<T>;
  for_each_row<kThreads>(p.rows, [&](std::int64_t row, int thread) {
    const std::int64_t target = p.target[row];
    if (target == p.ignore_index) {
      zero_gradients(p, row, thread, kThreads);
      return;
    }
    const Acc factor = gradient_factor(p, row);
    if (thread == 0) {
      write_row_gradients(p, row, factor, p.row_gate_gradient[row], p.row_loss[row]);
    }
    if (!p.grad_first && !p.grad_second) return;
    write_gradients(p, Policy::begin(logistic_pair(p.gate[row])), row, target, p.row_lse[row],
                    factor * sample_weight(p, row), thread, kThreads);
  });
}

// One block: what "mean" divides by, summed in double.
template <class T>
__global__ void __launch_bounds__(kBlock)
    two_logits_denominator_kernel(const TwoLogitProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBlock) {
    const std::int64_t target = p.target[row];
    if (target == p.ignore_index) continue;
    RC_DEVICE_ASSERT(target >= 0 && target < p.classes);
    total += p.class_weight ? static_cast<double>(p.class_weight[target]) : 1.0;
  }
  total = block_reduce<kBlock>(total, Sum{});
  if (threadIdx.x == 0) {
    *p.denominator =
        p.reduction == Reduction::kMean ? static_cast<accumulate_t<T>>(total) : accumulate_t<T>(1);
  }
}

// One block: the scalar loss from the losses of the rows, summed in double.
template <class T>
__global__ void __launch_bounds__(kBlock) two_logits_reduce_kernel(const TwoLogitProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBlock) {
    if (p.target[row] == p.ignore_index) continue;
    total += static_cast<double>(p.row_loss[row]) * static_cast<double>(sample_weight(p, row));
  }
  total = block_reduce<kBlock>(total, Sum{});
  if (threadIdx.x == 0) {
    *p.loss = static_cast<accumulate_t<T>>(total / static_cast<double>(*p.denominator));
  }
}

template <class T>
bool row_fits_warp(const TwoLogitProblem<T>& p) {
  return p.classes * static_cast<std::int64_t>(sizeof(T)) <= kWarpRowBytes;
}

// Enough blocks for every row, within what a grid can hold; the kernels loop over the rest.
inline std::int64_t row_blocks(std::int64_t rows, std::int64_t rows_per_block) {
  const std::int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  return blocks < (std::int64_t{1} << 30) ? blocks : std::int64_t{1} << 30;
}

// The forward pass with everything around it: denominator, rows, scalar loss.
template <class Policy, TwoLogitMode kMode, class T>
void launch_forward(const TwoLogitProblem<T>& p, cudaStream_t stream) {
  constexpr int kRowsPerBlock = kWarpBlock / kWarpSize;
  simt::launch<two_logits_denominator_kernel<T>>(1, kBlock, stream, p);
  if (row_fits_warp(p)) {
    simt::launch<two_logits_forward_kernel<Policy, T, kWarpSize, kMode>>(
        row_blocks(p.rows, kRowsPerBlock), kWarpBlock, stream, p);
  } else {
    simt::launch<two_logits_forward_kernel<Policy, T, kBlock, kMode>>(row_blocks(p.rows, 1), kBlock,
                                                                      stream, p);
  }
  if (p.reduction != Reduction::kNone) {
    simt::launch<two_logits_reduce_kernel<T>>(1, kBlock, stream, p);
  }
}

template <class Policy, class T>
void launch_backward(const TwoLogitProblem<T>& p, cudaStream_t stream) {
  constexpr int kRowsPerBlock = kWarpBlock / kWarpSize;
  if (row_fits_warp(p)) {
    simt::launch<two_logits_backward_kernel<Policy, T, kWarpSize>>(
        row_blocks(p.rows, kRowsPerBlock), kWarpBlock, stream, p);
  } else {
    simt::launch<two_logits_backward_kernel<Policy, T, kBlock>>(row_blocks(p.rows, 1), kBlock,
                                                                stream, p);
  }
}

}  // namespace robustcore::two_logits_cuda
