// CUDA kernels of shrink_match_loss. A row belongs to one warp (few classes) or to one block, whose
// threads search it together; the passes over it after the first hit the caches. See
// shrink_match_loss.h for the method.
//
// Every sum has a fixed order: same inputs, same bits. The logits must start on a 16-byte boundary.
#pragma once

#include <cstdint>

#include "common/exp.h"
#include "common/rows.cuh"
#include "common/vector.cuh"
#include "losses/row_cuda.cuh"
#include "losses/shrink_match_loss.h"

namespace robustcore::shrink_match_cuda {

constexpr int kBlock = 256;

template <class Acc>
__device__ __forceinline__ Acc infinity() {
  return static_cast<Acc>(__builtin_huge_val());
}

struct JoinTails {
  __device__ __forceinline__ Tail operator()(const Tail& a, const Tail& b) const {
    return {a.sum + b.sum, a.count + b.count};
  }
};

// One row's weak logits and the threads that share it. All of them must make the same calls.
template <class T, int kThreads>
class WeakRow {
 public:
  using Acc = accumulate_t<T>;

  const T* logits;
  std::int64_t offset;  // of the row in the matrix
  std::int64_t classes;
  int thread;
  Acc maximum;
  std::int64_t top;

  __device__ __forceinline__ WeakRow(const ShrinkMatchProblem<T>& p, std::int64_t row, int lane)
      : logits(p.weak + row * p.classes),
        offset(row * p.classes),
        classes(p.classes),
        thread(lane) {
    // Threads without a class lose against every class: their place is behind the last.
    Placed<Acc> best{-infinity<Acc>(), classes};
    for_each([&](std::int64_t c, Acc weak) { best = FirstMaximum{}(best, Placed<Acc>{weak, c}); });
    best = reduce_row<kThreads>(best, FirstMaximum{});
    maximum = best.value;
    top = best.place;
  }

  // The classes at or below a pivot, the top class aside.
  __device__ __forceinline__ Tail tail(Acc pivot) const {
    Tail part{0.0, 0};
    for_each([&](std::int64_t c, Acc weak) {
      const bool below = weak <= pivot && c != top;
      part.sum += below ? static_cast<double>(exponential(weak - maximum)) : 0.0;
      part.count += below ? 1 : 0;
    });
    return reduce_row<kThreads>(part, JoinTails{});
  }

  // The class from which on the last `ties` classes equal to `cut` lie.
  __device__ __forceinline__ std::int64_t first_tie(Acc cut, std::int64_t ties) const {
    std::int64_t enough = 0, too_few = classes;  // the number from here on
    while (too_few - enough > 1) {
      const std::int64_t middle = enough + (too_few - enough) / 2;
      std::int64_t count = 0;
      for_each([&](std::int64_t c, Acc weak) {
        count += weak == cut && c >= middle && c != top ? 1 : 0;
      });
      (reduce_row<kThreads>(count, Sum{}) >= ties ? enough : too_few) = middle;
    }
    return enough;
  }

  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    for_each_vector<T>(offset, classes, thread, kThreads, [&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      const Widened<T, kWidth> weak(logits + c);
#pragma unroll
      for (int l = 0; l < kWidth; ++l) f(c + l, weak.lanes[l]);
    });
  }
};

// What the weak logits of a row decide.
template <class Acc>
struct Decision {
  KeptClasses<Acc> kept;
  Acc confidence;
  Acc weight;
  std::int64_t removed;
};

template <class T, int kThreads>
__device__ __forceinline__ Decision<accumulate_t<T>> decide(const ShrinkMatchProblem<T>& p,
                                                            const WeakRow<T, kThreads>& row) {
  using Acc = accumulate_t<T>;
  Decision<Acc> decision{{infinity<Acc>(), 0, row.top}, Acc(0), Acc(0), 0};
  // A NaN, +inf, or nothing but -inf has no softmax; that of the maximum tells.
  const Acc own = exponential(row.maximum - row.maximum);
  if (own != own) {
    decision.confidence = decision.weight = own;
    decision.removed = -1;
    return decision;
  }
  const Tail rest = row.tail(infinity<Acc>());
  decision.confidence = static_cast<Acc>(1.0 / (1.0 + rest.sum));
  if (rest.sum <= p.budget) return decision;
  const TailEnd<Acc> end = find_tail_end<T>(row.maximum, p.budget, p.classes,
                                            [&](Acc pivot) { return row.tail(pivot); });
  decision.removed = p.classes - 1 - end.kept;
  if (end.kept == 0) return decision;
  decision.weight = decision.confidence;
  decision.kept.cut = end.cut;
  if (end.ties > 0) decision.kept.tie = row.first_tie(end.cut, end.ties);
  return decision;
}

// The logsumexp of the strong logits of the classes that stay.
template <class T, int kThreads>
__device__ __forceinline__ accumulate_t<T> kept_lse(const ShrinkMatchProblem<T>& p,
                                                    std::int64_t offset,
                                                    const KeptClasses<accumulate_t<T>>& kept,
                                                    int thread) {
  using Acc = accumulate_t<T>;
  auto sums = row_cuda::SoftmaxSums<Acc, 0>::empty();
  for_each_vector<T>(offset, p.classes, thread, kThreads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Widened<T, kWidth> weak(p.weak + offset + c), strong(p.strong + offset + c);
    Acc logits[kWidth];
    Acc maximum = sums.maximum;
#pragma unroll
    for (int l = 0; l < kWidth; ++l) {
      logits[l] = kept.has(c + l, weak.lanes[l]) ? strong.lanes[l] : -infinity<Acc>();
      maximum = logits[l] > maximum ? logits[l] : maximum;
    }
    const Acc before = sums.maximum;
    sums.maximum = maximum;
    const Acc shift = sums.shift();
    Acc& total = sums.sum.value[0];
    total *= exponential(before - shift);
#pragma unroll
    for (int l = 0; l < kWidth; ++l) total += exponential(logits[l] - shift);
  });
  sums = reduce_row<kThreads>(sums, row_cuda::JoinSoftmaxSums{});
  return sums.maximum + logarithm(sums.sum.value[0]);
}

template <class T, int kThreads>
__device__ __forceinline__ void write_gradient(const ShrinkMatchProblem<T>& p, std::int64_t row,
                                               const KeptClasses<accumulate_t<T>>& kept,
                                               accumulate_t<T> lse, accumulate_t<T> weight,
                                               int thread) {
  using Acc = accumulate_t<T>;
  const std::int64_t offset = row * p.classes;
  const bool active = weight > Acc(0);
  const Acc scale = gradient_factor(p, row) * weight;
  for_each_vector<T>(offset, p.classes, thread, kThreads, [&](std::int64_t c, auto width) {
    constexpr int kWidth = decltype(width)::value;
    Acc gradient[kWidth];
    if (active) {
      const Widened<T, kWidth> weak(p.weak + offset + c), strong(p.strong + offset + c);
#pragma unroll
      for (int l = 0; l < kWidth; ++l) {
        const Acc probability = exponential(strong.lanes[l] - lse);
        const Acc difference = c + l == kept.top ? probability - Acc(1) : probability;
        gradient[l] = kept.has(c + l, weak.lanes[l]) ? scale * difference : Acc(0);
      }
    } else {
      // Zeros, not products with whatever the row holds; or NaN.
#pragma unroll
      for (int l = 0; l < kWidth; ++l) gradient[l] = weight;
    }
    store_narrowed<T>(p.grad + offset + c, gradient);
  });
}

template <class T, int kThreads, bool kGradients>
__global__ void __launch_bounds__(kRowBlock<kThreads>, kRowResidentBlocks<T, kThreads>)
    shrink_match_forward_kernel(const ShrinkMatchProblem<T> p) {
  using Acc = accumulate_t<T>;
  for_each_row<kThreads>(p.rows, [&](std::int64_t i, int thread) {
    const Decision<Acc> decision = decide(p, WeakRow<T, kThreads>(p, i, thread));
    const std::int64_t offset = i * p.classes;
    Acc loss = decision.weight, lse = Acc(0);
    if (decision.weight > Acc(0)) {
      lse = kept_lse<T, kThreads>(p, offset, decision.kept, thread);
      loss = decision.weight * (lse - to_accumulate(p.strong[offset + decision.kept.top]));
    }
    if (thread == 0) {
      p.row_loss[i] = loss;
      p.row_lse[i] = lse;
      p.row_weight[i] = decision.weight;
      p.row_cut[i] = decision.kept.cut;
      p.row_confidence[i] = decision.confidence;
      p.row_top[i] = decision.kept.top;
      p.row_tie[i] = decision.kept.tie;
      p.row_removed[i] = decision.removed;
      if (!p.reduced) p.loss[i] = loss;
    }
    if constexpr (kGradients) {
      write_gradient<T, kThreads>(p, i, decision.kept, lse, decision.weight, thread);
    }
  });
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kRowBlock<kThreads>, kRowResidentBlocks<T, kThreads>)
    shrink_match_backward_kernel(const ShrinkMatchProblem<T> p) {
  for_each_row<kThreads>(p.rows, [&](std::int64_t i, int thread) {
    const KeptClasses<accumulate_t<T>> kept{p.row_cut[i], p.row_tie[i], p.row_top[i]};
    write_gradient<T, kThreads>(p, i, kept, p.row_lse[i], p.row_weight[i], thread);
  });
}

// One block: the scalar loss from the losses of the rows, summed in double.
template <class T>
__global__ void __launch_bounds__(kBlock)
    shrink_match_reduce_kernel(const ShrinkMatchProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBlock) {
    total += static_cast<double>(p.row_loss[row]);
  }
  total = block_reduce<kBlock>(total, Sum{});
  if (threadIdx.x == 0) {
    *p.loss = static_cast<accumulate_t<T>>(p.mean ? total / static_cast<double>(p.rows) : total);
  }
}

template <bool kGradients, class T>
void launch_forward(const ShrinkMatchProblem<T>& p, cudaStream_t stream) {
  with_row_threads(p.classes * static_cast<std::int64_t>(sizeof(T)), [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    simt::launch<shrink_match_forward_kernel<T, kThreads, kGradients>>(
        row_blocks<kThreads>(p.rows), kRowBlock<kThreads>, stream, p);
  });
  if (p.reduced) simt::launch<shrink_match_reduce_kernel<T>>(1, kBlock, stream, p);
}

template <class T>
void launch_backward(const ShrinkMatchProblem<T>& p, cudaStream_t stream) {
  with_row_threads(p.classes * static_cast<std::int64_t>(sizeof(T)), [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    simt::launch<shrink_match_backward_kernel<T, kThreads>>(row_blocks<kThreads>(p.rows),
                                                            kRowBlock<kThreads>, stream, p);
  });
}

}  // namespace robustcore::shrink_match_cuda
