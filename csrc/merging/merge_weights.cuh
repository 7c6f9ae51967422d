// CUDA kernel that merges one slice of a tensor. A block of threads takes one kMergeBlock of
// parameters, a thread four of them at a time; it reads the tasks one after the other, and a second
// time where they agree on a sign first (from the cache, as a rule).
#pragma once

#include <cstdint>
#include <limits>

#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/merge_weights.h"
#include "merging/weight_quads.cuh"

namespace robustcore {

// Options of tasks travel as parameters of the kernel.
constexpr int kFewMergeTasks = 16;
constexpr int kMostMergeTasks = 256;

template <int kTasks>
struct MergeParams {
  TaskOptions tasks[kTasks];
  double lambdas[kTasks];
  int task_count;
  bool has_lambdas;
  MergeMethod method;  // its pointer is the host's
  MergeSlice slice;
  unsigned long long* counters;  // [kMergeCounters], added to
};
// What CUDA 12.1 and later pass to a kernel.
static_assert(sizeof(MergeParams<kMostMergeTasks>) <= 32764);
static_assert(kMostMergeTasks <= 256);  // one thread of a block for each

namespace merge_weights_cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStep = kThreads * kQuad;
static_assert(kMergeBlock % kStep == 0);

// What the threads of a block know of ties together, in shared memory: two counts, of low and high
// keys, in one number.
template <int kTasks>
struct TieCounts {
  static_assert(kMergeBlock < 1 << 16);
  unsigned* warps;    // [2, kWarps]: of the task at hand and the one before
  unsigned* carried;  // [2, kTasks]: of the steps before this one, and up to this one
  int turn;           // which half of `warps` is the task's
};

// Sets to zero what a window that counts ties drops; `before`: how many earlier parameters of the
// tensor, outside this block, have each key. All threads of the block must call it.
template <int kTasks, class Acc>
__device__ __forceinline__ void keep_ties(MagnitudeWindow window, int task, int step, int count,
                                          const std::int64_t* before, TieCounts<kTasks>& ties,
                                          Acc (&s)[kQuad]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const unsigned earlier_lanes = (1u << lane) - 1;
  unsigned in_warp = 0, earlier = 0;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const std::uint32_t key = magnitude_key(s[k]);
    const unsigned lows = __ballot_sync(kFullWarp, k < count && key == window.low);
    const unsigned highs = __ballot_sync(kFullWarp, k < count && key == window.high);
    in_warp += static_cast<unsigned>(__popc(lows) + (__popc(highs) << 16));
    earlier +=
        static_cast<unsigned>(__popc(lows & earlier_lanes) + (__popc(highs & earlier_lanes) << 16));
  }
  // The other half may still be read for the task before; who reads this one has passed a barrier
  // since.
  ties.turn ^= 1;
  unsigned* const warps = ties.warps + ties.turn * kWarps;
  if (lane == 0) warps[warp] = in_warp;
  __syncthreads();
  const unsigned carried = ties.carried[step % 2 * kTasks + task];
  const unsigned counted = lane < kWarps ? warps[lane] : 0u;
  if (warp == 0) {
    const unsigned all = __reduce_add_sync(kFullWarp, counted);
    if (lane == 0) ties.carried[(step + 1) % 2 * kTasks + task] = carried + all;
  }
  earlier += carried + __reduce_add_sync(kFullWarp, lane < warp ? counted : 0u);
  window.low_ties -= before[0];
  window.high_ties -= before[1];
  int low_tie = static_cast<int>(earlier & 0xffffu), high_tie = static_cast<int>(earlier >> 16);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const std::uint32_t key = magnitude_key(s[k]);
    const bool kept = window.keeps(key, low_tie, high_tie);
    low_tie += key == window.low;
    high_tie += key == window.high;
    s[k] = kept ? s[k] : Acc(0);
  }
}

// Sets to zero what the random drop of a task takes.
template <class Acc>
__device__ __forceinline__ void drop_at_random(const TaskOptions& task, RandomKey key, int number,
                                               std::int64_t flat, Acc (&values)[kQuad]) {
  const int skipped = static_cast<int>(flat % kQuad);
  const RandomWords first = drop_words(key, flat / kQuad, number);
  std::uint32_t words[kQuad] = {first.x, first.y, first.z, first.w};
  if (skipped != 0) {  // the same for all threads
    const RandomWords second = drop_words(key, flat / kQuad + 1, number);
    const std::uint32_t all[2 * kQuad] = {first.x,  first.y,  first.z,  first.w,
                                          second.x, second.y, second.z, second.w};
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
#pragma unroll
      for (int shift = 1; shift < kQuad; ++shift) {
        if (skipped == shift) words[k] = all[k + shift];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k) values[k] = words[k] < task.keep_below ? values[k] : Acc(0);
}

// Four parameters of a thread and the walk over their tasks.
template <class Weights, bool kCountsTies, int kTasks>
struct ThreadParameters {
  using Acc = typename Weights::Acc;
  const MergeParams<kTasks>& p;
  int step;            // within the block
  std::int64_t first;  // in the slice
  int count;           // inside the slice
  TieCounts<kTasks>& ties;
  Acc base[kQuad];

  __device__ __forceinline__ void keep_window(const TaskOptions& task, int number,
                                              Acc (&s)[kQuad]) const {
    if constexpr (kCountsTies) {
      if (task.window.counts_ties()) {
        const std::int64_t block = blockIdx.x;
        const std::int64_t* const before =
            p.slice.ties_before + (block * p.task_count + number) * 2;
        return keep_ties(task.window, number, step, count, before, ties, s);
      }
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      s[k] = task.window.keeps(magnitude_key(s[k]), 0, 0) ? s[k] : Acc(0);
    }
  }

  // The weights of a task as read become s_t; returns how many differences are not finite.
  __device__ __forceinline__ int take(int number, Acc (&s)[kQuad]) const {
    const TaskOptions& task = p.tasks[number];
    int nonfinite = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (!task.is_vector) s[k] = s[k] - base[k];
      nonfinite += is_finite(s[k]) ? 0 : 1;
    }
    if (task.has_window) keep_window(task, number, s);
    if (task.drops) {
      drop_at_random(task, random_key(p.method.seed), number, p.slice.flat_start + first, s);
    }
    if (task.rescale != 1) {
      const Acc rescale = static_cast<Acc>(task.rescale);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) s[k] = rounded_product(rescale, s[k]);
    }
    return nonfinite;
  }

  // Calls f(task, weights as read) for all tasks; loads of several tasks are under way together.
  template <class F>
  __device__ __forceinline__ void for_each_task(const F& f) const {
    constexpr int kTogether = Weights::kTogether;
    for (int start = 0; start < p.task_count; start += kTogether) {
      Acc values[kTogether][kQuad];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        // Past the end the last task once more: cheaper than a branch around a load.
        const int task = start + j < p.task_count ? start + j : p.task_count - 1;
        Weights::read(p.tasks[task].weights, first, count, values[j]);
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (start + j < p.task_count) f(start + j, values[j]);
      }
    }
  }

  __device__ __forceinline__ void elect(int (&counts)[kMergeCounters], Acc (&sign)[kQuad]) const {
    bool some_say[kQuad] = {};
#pragma unroll
    for (int k = 0; k < kQuad; ++k) sign[k] = Acc(0);
    for_each_task([&](int task, Acc(&s)[kQuad]) {
      counts[kNonfiniteTask] += take(task, s);
      const Acc weight = static_cast<Acc>(p.tasks[task].weight);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        sign[k] += vote_of(p.method.election, s[k], weight);
        some_say[k] = some_say[k] || s[k] != Acc(0);
      }
    });
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      counts[kPositiveVotes] += sign[k] > Acc(0);
      counts[kNegativeVotes] += sign[k] < Acc(0);
      counts[kCancelled] += sign[k] == Acc(0) && some_say[k];
      sign[k] = elected_sign(sign[k], some_say[k], p.method.zero_sign);
    }
  }

  // Returns in which of the parameters nobody was elected yet, a bit for each.
  __device__ __forceinline__ unsigned reduce(int (&counts)[kMergeCounters],
                                             Acc (&merged)[kQuad]) const {
    const bool elected = p.method.election != Election::kNone;
    Acc sign[kQuad] = {};
    if (elected) elect(counts, sign);
    unsigned undecided = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) undecided |= sign[k] != sign[k] ? 1u << k : 0u;
    const Reduction reduction = p.method.reduction;
    Acc divisor[kQuad] = {};
#pragma unroll
    for (int k = 0; k < kQuad; ++k) merged[k] = Acc(0);
    for_each_task([&](int task, Acc(&s)[kQuad]) {
      const int nonfinite = take(task, s);
      if (!elected) counts[kNonfiniteTask] += nonfinite;
      const Acc weight = static_cast<Acc>(p.tasks[task].weight);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const bool takes_part = !elected || rounded_product(s[k], sign[k]) > Acc(0);
        merged[k] = next_total(reduction, merged[k], s[k], weight, takes_part);
        if (is_divided(reduction)) {
          divisor[k] = next_divisor(reduction, divisor[k], s[k], weight, takes_part);
        }
      }
    });
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (is_divided(reduction)) merged[k] = divided(reduction, merged[k], divisor[k]);
    }
    return undecided;
  }

  // Zero where fewer than `least` masks keep.
  __device__ __forceinline__ void keep_consensus(Acc (&merged)[kQuad]) const {
    int kept[kQuad] = {};
    for_each_task([&](int task, Acc(&theta)[kQuad]) {
      const Acc lambda = static_cast<Acc>(p.lambdas[task]);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const Acc weight = p.tasks[task].is_vector ? base[k] + theta[k] : theta[k];
        const Acc own = magnitude(base[k] - weight);
        const Acc other = magnitude((base[k] + merged[k]) - weight);
        kept[k] +=
            p.method.strict ? keeps<true>(own, other, lambda) : keeps<false>(own, other, lambda);
      }
    });
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      merged[k] = kept[k] >= p.method.least ? merged[k] : Acc(0);
    }
  }
};

template <class Weights, bool kCountsTies, int kTasks>
__global__ void __launch_bounds__(kThreads, kCountsTies ? 2 : 3)
    merge_weights_kernel(const MergeParams<kTasks> p) {
  using Acc = typename Weights::Acc;
  RC_SHARED(unsigned, tie_warps, kCountsTies ? 2 * kWarps : 1);
  RC_SHARED(unsigned, carried_ties, kCountsTies ? 2 * kTasks : 1);
  TieCounts<kTasks> ties{tie_warps, carried_ties, 0};
  if constexpr (kCountsTies) {
    if (static_cast<int>(threadIdx.x) < p.task_count) carried_ties[threadIdx.x] = 0;
    __syncthreads();
  }
  int counts[kMergeCounters] = {};
  const Acc base_factor = static_cast<Acc>(p.slice.base_factor);
  const Acc scale = static_cast<Acc>(p.slice.scale);
  for (int step = 0; step < kMergeBlock / kStep; ++step) {
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kMergeBlock + step * kStep +
                               static_cast<std::int64_t>(threadIdx.x) * kQuad;
    const int count = weight_quads::inside(first, p.slice.parameters);
    ThreadParameters<Weights, kCountsTies, kTasks> parameters{p, step, first, count, ties, {}};
    Weights::read(p.slice.base, first, count, parameters.base);
    Acc merged[kQuad];
    const unsigned undecided = parameters.reduce(counts, merged);
    if (p.has_lambdas) parameters.keep_consensus(merged);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      counts[kNonfiniteBase] += is_finite(parameters.base[k]) ? 0 : 1;
      if ((undecided >> k) & 1) merged[k] = std::numeric_limits<Acc>::quiet_NaN();
      merged[k] = merged_weight(parameters.base[k], base_factor, scale, merged[k]);
    }
    // Results may be the base or a task: of these this thread has read what it overwrites, and
    // nobody else reads it.
    Weights::write(p.slice.out, p.slice.out_type, first, count, merged);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      counts[kNonfiniteResult] += k < count && !is_finite(merged[k]);
    }
  }
  RC_SHARED(unsigned, totals, kMergeCounters);
  if (threadIdx.x < kMergeCounters) totals[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMergeCounters; ++i) {
    const unsigned sum = __reduce_add_sync(kFullWarp, static_cast<unsigned>(counts[i]));
    if (threadIdx.x % kWarpSize == 0 && sum != 0) atomicAdd(&totals[i], sum);
  }
  __syncthreads();
  if (threadIdx.x < kMergeCounters && totals[threadIdx.x] != 0) {
    atomicAdd(p.counters + threadIdx.x, static_cast<unsigned long long>(totals[threadIdx.x]));
  }
}

}  // namespace merge_weights_cuda

// One slice with its tasks, as the host knows them. `counters`, on the device, are added to.
struct MergeLaunch {
  const MergeMethod& method;
  const MergeSlice& slice;
  const TaskOptions* tasks;
  int task_count;  // at most kMostMergeTasks
  unsigned long long* counters;
};

namespace merge_weights_cuda {

template <class Weights, bool kCountsTies, int kTasks>
void launch(const MergeLaunch& merge, cudaStream_t stream) {
  MergeParams<kTasks> p{};
  p.task_count = merge.task_count;
  p.has_lambdas = merge.method.lambdas != nullptr;
  p.method = merge.method;
  p.method.lambdas = nullptr;
  p.slice = merge.slice;
  p.counters = merge.counters;
  for (int t = 0; t < merge.task_count; ++t) {
    p.tasks[t] = merge.tasks[t];
    if (p.has_lambdas) p.lambdas[t] = merge.method.lambdas[t];
  }
  simt::launch<merge_weights_kernel<Weights, kCountsTies, kTasks>>(
      merge_blocks(merge.slice.parameters), kThreads, stream, p);
}

template <class Weights, bool kCountsTies>
void launch(const MergeLaunch& merge, cudaStream_t stream) {
  if (merge.task_count <= kFewMergeTasks) {
    launch<Weights, kCountsTies, kFewMergeTasks>(merge, stream);
  } else {
    launch<Weights, kCountsTies, kMostMergeTasks>(merge, stream);
  }
}

inline bool counts_ties(const MergeLaunch& merge) {
  for (int t = 0; t < merge.task_count; ++t) {
    if (merge.tasks[t].has_window && merge.tasks[t].window.counts_ties()) return true;
  }
  return false;
}

template <class T>
bool all_aligned(const MergeLaunch& merge, Storage type) {
  const MergeSlice& slice = merge.slice;
  bool found = slice.base.type == type && slice.out_type == type &&
               is_quad_aligned<T>(slice.base.data) && is_quad_aligned<T>(slice.out);
  for (int t = 0; t < merge.task_count; ++t) {
    const StoredWeights weights = merge.tasks[t].weights;
    found = found && weights.type == type && is_quad_aligned<T>(weights.data);
  }
  return found;
}

}  // namespace merge_weights_cuda

template <class Acc>
void launch_merge_weights(const MergeLaunch& merge, cudaStream_t stream) {
  using namespace merge_weights_cuda;
  if (counts_ties(merge)) return launch<AnyWeights<Acc>, true>(merge, stream);
  if constexpr (sizeof(Acc) == sizeof(float)) {
    // The usual cases, with more loads under way.
    if (merge.task_count <= kFewMergeTasks) {
      if (all_aligned<float>(merge, Storage::kFloat32)) {
        return launch<AlignedWeights<float>, false, kFewMergeTasks>(merge, stream);
      }
      if (all_aligned<bfloat16>(merge, Storage::kBfloat16)) {
        return launch<AlignedWeights<bfloat16>, false, kFewMergeTasks>(merge, stream);
      }
      if (all_aligned<float16>(merge, Storage::kFloat16)) {
        return launch<AlignedWeights<float16>, false, kFewMergeTasks>(merge, stream);
      }
    }
  }
  launch<AnyWeights<Acc>, false>(merge, stream);
}

}  // namespace robustcore
