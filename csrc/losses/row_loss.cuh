// CUDA driver of the row losses: calls a loss's program for every row. See row_problem.h.
//
// A row belongs to one warp (few classes) or to one block. Softmax statistics come from a single
// pass; gradients need a second visit of the row, which by then lies in cache unless rows are very
// long. Traffic of a one-matrix loss in units of rows * classes elements: forward 1 read, backward
// 1 read and 1 write (2 reads where L2 cannot hold the rows in flight), forward with gradients
// likewise.
//
// Matrices must start on a 16-byte boundary. A gradient may take the place of its matrix where the
// program reads nothing of a class after it has written it: all of them visit a row element by
// element.
#pragma once

#include <cstdint>

#include "common/rows.cuh"
#include "losses/row_cuda.cuh"
#include "losses/target.h"

namespace robustcore::row_cuda {

// Threads of the kernels that no row belongs to.
constexpr int kBlock = 256;

// More registers than kRowResidentBlocks allows: gradients keep the row's coefficients beside the
// elements.
template <class T, int kThreads, bool kGradients, int kMoreRegisters = 0>
constexpr int kResidentBlocks =
    resident_blocks<kThreads>((sizeof(T) == 8 || (sizeof(T) == 2 && kGradients) ? 128
                               : sizeof(T) == 2 || kGradients                   ? 80
                                                                                : 64) +
                              kMoreRegisters);

// An ignored row: zeros, not products with whatever the row holds.
template <class T>
__device__ __forceinline__ void zero_gradients(const RowProblem<T>& p, std::int64_t row, int thread,
                                               int threads) {
  using Acc = accumulate_t<T>;
  if (thread == 0) {
    for (int k = 0; k < kRowValues; ++k) {
      if (p.grad_row_value[k]) p.grad_row_value[k][row] = Acc(0);
    }
    if (p.grad_sample_weight) p.grad_sample_weight[row] = Acc(0);
  }
  const std::int64_t offset = row * p.classes;
  for_each_vector<T>(offset, p.classes, thread, threads, [&](std::int64_t c, auto width) {
    const Acc zeros[decltype(width)::value] = {};
    if (p.grad_logits) store_narrowed<T>(p.grad_logits + offset + c, zeros);
    if (p.grad_second) store_narrowed<T>(p.grad_second + offset + c, zeros);
  });
}

// An ignored row uses no state; what stands for it in the batch is zero.
template <class T>
__device__ __forceinline__ void zero_state(const RowProblem<T>& p, std::int64_t row, int thread,
                                           int threads) {
  if (p.state.updated || !p.state.index || !p.state.of_rows) return;
  accumulate_t<T>* const of_row = p.state.of_rows + row * p.state.width;
  for (std::int64_t c = thread; c < p.state.width; c += threads) of_row[c] = 0;
}

// The maximum with its place, and the softmax's total.
template <class Acc>
struct BestClass {
  Acc value;
  Acc total;  // sum exp(z - value)
  std::int64_t place;
};

struct JoinBestClass {
  template <class Acc>
  __device__ __forceinline__ BestClass<Acc> operator()(const BestClass<Acc>& a,
                                                       const BestClass<Acc>& b) const {
    BestClass<Acc> joined = FirstMaximum{}(a, b);
    const Acc shift = joined.value == negative_infinity<Acc>() ? Acc(0) : joined.value;
    joined.total = a.total * exponential(a.value - shift) + b.total * exponential(b.value - shift);
    return joined;
  }
};

template <class T, int kThreads>
__device__ __forceinline__ void row_scores(const RowProblem<T>& p, std::int64_t row, int thread) {
  using Acc = accumulate_t<T>;
  const std::int64_t offset = row * p.classes;
  // Threads without a class lose against every class: their place is behind the last.
  BestClass<Acc> best{negative_infinity<Acc>(), Acc(0), p.classes};
  for_each_vector<T>(offset, p.classes, thread, kThreads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> logits(p.logits + offset + c);
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      best = JoinBestClass{}(best, BestClass<Acc>{logits.lanes[l], Acc(1), c + l});
    }
  });
  best = reduce_row<kThreads>(best, JoinBestClass{});
  if (thread != 0) return;
  p.predicted[row] = best.place;
  const Acc not_a_number = static_cast<Acc>(__builtin_nan(""));
  p.log_probability[row] = p.is_ignored(row) ? not_a_number
                                             : to_accumulate(p.logits[offset + p.target[row]]) -
                                                   best.value - logarithm(best.total);
}

template <class Program, class T, int kThreads, RowMode kMode>
__global__ void __launch_bounds__(
    kRowBlock<kThreads>,
    kResidentBlocks<T, kThreads, kMode == RowMode::kGradients, more_registers<Program>()>)
    row_loss_kernel(const RowProblem<T> p) {
  using Acc = accumulate_t<T>;
  constexpr bool kGradients = kMode == RowMode::kGradients;
  for_each_row<kThreads>(p.rows, [&](std::int64_t i, int thread) {
    if constexpr (kHasState<Program>) {
      if (!p.state.is_of_this_round(i)) return;
    }
    const bool ignored = p.is_ignored(i);
    RC_DEVICE_ASSERT(ignored || !p.target || (p.target[i] >= 0 && p.target[i] < p.classes));
    if constexpr (kMode == RowMode::kScores) row_scores<T, kThreads>(p, i, thread);
    Acc loss = Acc(0);
    if (ignored) {
      if constexpr (kGradients) zero_gradients(p, i, thread, kThreads);
      if constexpr (kHasState<Program>) zero_state(p, i, thread, kThreads);
    } else {
      if constexpr (kHasState<Program>) RC_DEVICE_ASSERT(p.state.is_in_range(i));  // index
      const Acc weight = p.weight_of_row(i);
      const Acc incoming = kGradients ? p.incoming(i) : Acc(0);
      const Row<T, kThreads> row(p.classes, i * p.classes, thread);
      loss = Program::template run<kGradients>(row, p, i, incoming * weight,
                                               GivenOptions<Acc>{p.label(), p.softcap});
      if (kGradients && thread == 0 && p.grad_sample_weight) {
        p.grad_sample_weight[i] = incoming * loss;
      }
      loss *= weight;
    }
    if (thread == 0 && p.loss) {
      (p.reduction == Reduction::kNone ? p.loss : p.row_loss)[i] = loss;
    }
  });
}

// One block: what "mean" divides by, summed in double.
template <class T>
__global__ void __launch_bounds__(kBlock) row_loss_denominator_kernel(const RowProblem<T> p) {
  double total = 0;
  if (p.reduction == Reduction::kMean && p.target) {
    for (std::int64_t row = threadIdx.x; row < p.rows; row += kBlock) {
      if (p.is_ignored(row)) continue;
      const std::int64_t target = p.target[row];
      RC_DEVICE_ASSERT(target >= 0 && target < p.classes);
      total += p.class_weight ? static_cast<double>(p.class_weight[target]) : 1.0;
    }
    total = block_reduce<kBlock>(total, Sum{});
  } else {
    total = p.reduction == Reduction::kMean ? static_cast<double>(p.rows) : 1.0;
  }
  if (threadIdx.x == 0) *p.denominator = static_cast<accumulate_t<T>>(total);
}

// One block: the scalar loss from the losses of the rows, summed in double.
template <class T>
__global__ void __launch_bounds__(kBlock) row_loss_reduce_kernel(const RowProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBlock) {
    total += static_cast<double>(p.row_loss[row]);
  }
  total = block_reduce<kBlock>(total, Sum{});
  if (threadIdx.x == 0) {
    *p.loss = static_cast<accumulate_t<T>>(total / static_cast<double>(*p.denominator));
  }
}

template <class Program, RowMode kMode, class T>
void launch_rows(const RowProblem<T>& p, cudaStream_t stream) {
  with_row_threads(p.classes * static_cast<std::int64_t>(sizeof(T)), [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    simt::launch<row_loss_kernel<Program, T, kThreads, kMode>>(row_blocks<kThreads>(p.rows),
                                                               kRowBlock<kThreads>, stream, p);
  });
}

// A pass with everything around it: denominator, rows, scalar loss.
template <class Program, RowMode kMode, class T>
void launch_row_loss(const RowProblem<T>& p, cudaStream_t stream) {
  simt::launch<row_loss_denominator_kernel<T>>(1, kBlock, stream, p);
  launch_rows<Program, kMode>(p, stream);
  if constexpr (kHasState<Program>) {
    // Whether a row is left for it, only the device knows.
    if (p.state.keeper) {
      RowProblem<T> rest = p;
      rest.state.second_round = true;
      launch_rows<Program, kMode>(rest, stream);
    }
  }
  if (p.loss && p.reduction != Reduction::kNone) {
    simt::launch<row_loss_reduce_kernel<T>>(1, kBlock, stream, p);
  }
}

}  // namespace robustcore::row_cuda
