// CUDA kernels that count magnitudes of task vectors: histograms of keys, and ties by block. All
// counts are integers: the order of additions does not matter.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/magnitudes.h"
#include "merging/weight_quads.cuh"

namespace robustcore {

// Tasks of one launch.
constexpr int kCountedTasks = 64;

struct CountedTask {
  StoredWeights weights;
  bool is_vector;
  std::uint32_t first_key;   // upper bits that are looked for, or the key `low`
  std::uint32_t second_key;  // the key `high`
};

struct MagnitudeCountParams {
  CountedTask tasks[kCountedTasks];
  int task_count;
  StoredWeights base;
  std::int64_t parameters;
  std::int64_t part;  // parameters of one block of threads
  // Histograms: [task_count, bins], added to. Ties: [blocks, task_stride, 2] from the first task
  // on.
  unsigned long long* counts;
  std::int64_t task_stride;
};
static_assert(sizeof(MagnitudeCountParams) <= 4096);

namespace magnitude_counts_cuda {

constexpr int kThreads = 256;
constexpr std::int64_t kStep = kThreads * kQuad;
// Bins that a block of threads keeps to itself: 16 octaves of 256 bins, most of them below the
// largest magnitude that its threads see first.
constexpr unsigned kNearBins = 4096;
constexpr unsigned kBinsAbove = 1024;

// Calls f(key) for a thread's parameters of [begin, end).
template <class Acc, class F>
__device__ __forceinline__ void for_each_key(const MagnitudeCountParams& p, const CountedTask& task,
                                             std::int64_t begin, std::int64_t end, const F& f) {
  for (std::int64_t i = begin + static_cast<std::int64_t>(threadIdx.x) * kQuad; i < end;
       i += kStep) {
    const int count = weight_quads::inside(i, end);
    Acc values[kQuad], base[kQuad] = {};
    AnyWeights<Acc>::read(task.weights, i, count, values);
    if (!task.is_vector) AnyWeights<Acc>::read(p.base, i, count, base);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const Acc change = task.is_vector ? values[k] : values[k] - base[k];
      if (k < count) f(magnitude_key(change));
    }
  }
}

__device__ __forceinline__ void add_warp_total(unsigned long long* to, unsigned value) {
  const unsigned total = __reduce_add_sync(kFullWarp, value);
  if (threadIdx.x % kWarpSize == 0 && total != 0) {
    atomicAdd(to, static_cast<unsigned long long>(total));
  }
}

// What of the parameters is a block's, and of which task.
struct Part {
  int task;
  std::int64_t begin, end;

  __device__ __forceinline__ explicit Part(const MagnitudeCountParams& p) {
    const std::int64_t parts = (p.parameters + p.part - 1) / p.part;
    task = static_cast<int>(blockIdx.x / parts);
    begin = blockIdx.x % parts * p.part;
    end = begin + p.part < p.parameters ? begin + p.part : p.parameters;
  }
};

template <class Acc>
__global__ void __launch_bounds__(kThreads, 4) count_upper_kernel(const MagnitudeCountParams p) {
  const Part part(p);
  const CountedTask& task = p.tasks[part.task];
  unsigned long long* const counts = p.counts + std::int64_t{part.task} * kUpperBins;
  RC_SHARED(unsigned, near, kNearBins);
  RC_SHARED(unsigned, highest, 1);
  if (threadIdx.x == 0) highest[0] = 0;
  for (unsigned bin = threadIdx.x; bin < kNearBins; bin += kThreads) near[bin] = 0;
  __syncthreads();
  unsigned seen = 0;
  const std::int64_t few = part.begin + kStep < part.end ? part.begin + kStep : part.end;
  for_each_key<Acc>(p, task, part.begin, few, [&](std::uint32_t key) {
    if (key < kInfinityKey && key >> kLowerKeyBits > seen) seen = key >> kLowerKeyBits;
  });
  seen = __reduce_max_sync(kFullWarp, seen);
  if (threadIdx.x % kWarpSize == 0) atomicMax(highest, seen);
  __syncthreads();
  const unsigned past = highest[0] + kBinsAbove, first = past > kNearBins ? past - kNearBins : 0;
  // Frozen parameters are many, and have a key of their own.
  unsigned zeros = 0;
  for_each_key<Acc>(p, task, part.begin, part.end, [&](std::uint32_t key) {
    const unsigned bin = key >> kLowerKeyBits;
    if (key == 0) {
      ++zeros;
    } else if (bin - first < kNearBins) {
      atomicAdd(&near[bin - first], 1u);
    } else {
      atomicAdd(counts + bin, 1ull);
    }
  });
  add_warp_total(counts, zeros);
  __syncthreads();
  for (unsigned bin = threadIdx.x; bin < kNearBins; bin += kThreads) {
    const unsigned found = near[bin];
    if (found != 0) atomicAdd(counts + first + bin, static_cast<unsigned long long>(found));
  }
}

// Few parameters have the upper bits that are looked for. Of differences of 16-bit weights, and of
// frozen parameters, all lower bits are 0.
template <class Acc>
__global__ void __launch_bounds__(kThreads, 4) count_lower_kernel(const MagnitudeCountParams p) {
  const Part part(p);
  const CountedTask& task = p.tasks[part.task];
  unsigned long long* const counts = p.counts + std::int64_t{part.task} * kLowerBins;
  unsigned zeros = 0;
  for_each_key<Acc>(p, task, part.begin, part.end, [&](std::uint32_t key) {
    if (key >> kLowerKeyBits != task.first_key) return;
    const unsigned bin = key % kLowerBins;
    if (bin == 0) {
      ++zeros;
    } else {
      atomicAdd(counts + bin, 1ull);
    }
  });
  add_warp_total(counts, zeros);
}

template <class Acc>
__global__ void __launch_bounds__(kThreads, 4) count_ties_kernel(const MagnitudeCountParams p) {
  const Part part(p);  // a block of parameters
  const CountedTask& task = p.tasks[part.task];
  unsigned found = 0;  // two counts of up to kMergeBlock
  static_assert(kMergeBlock < 1 << 16);
  for_each_key<Acc>(p, task, part.begin, part.end, [&](std::uint32_t key) {
    found += (key == task.first_key ? 1u : 0u) + (key == task.second_key ? 1u << 16 : 0u);
  });
  found = block_reduce<kThreads>(found, Sum());
  if (threadIdx.x == 0) {
    const std::int64_t block = part.begin / kMergeBlock;
    unsigned long long* const row = p.counts + (block * p.task_stride + part.task) * 2;
    row[0] = found & 0xffffu;
    row[1] = found >> 16;
  }
}

inline std::int64_t parts_of(const MagnitudeCountParams& p) {
  return (p.parameters + p.part - 1) / p.part;
}

}  // namespace magnitude_counts_cuda

// Adds one piece's keys to histograms: of their upper bits, or of the lower bits of those that have
// the tasks' `first_key` as upper bits.
template <class Acc>
void launch_magnitude_histogram(MagnitudeCountParams p, bool lower, cudaStream_t stream) {
  using namespace magnitude_counts_cuda;
  // Long parts make the bins of a block of threads worth their while, but all multiprocessors want
  // several.
  constexpr std::int64_t kShortest = 4 * kMergeBlock, kLongest = 64 * kMergeBlock;
  constexpr std::int64_t kBlocksWanted = 2048;
  const std::int64_t share = p.parameters * p.task_count / kBlocksWanted;
  p.part = std::clamp(share / kMergeBlock * kMergeBlock, kShortest, kLongest);
  if (lower) {
    simt::launch<count_lower_kernel<Acc>>(parts_of(p) * p.task_count, kThreads, stream, p);
  } else {
    simt::launch<count_upper_kernel<Acc>>(parts_of(p) * p.task_count, kThreads, stream, p);
  }
}

// Counts how often one piece's blocks have the tasks' two keys.
template <class Acc>
void launch_magnitude_ties(MagnitudeCountParams p, cudaStream_t stream) {
  using namespace magnitude_counts_cuda;
  p.part = kMergeBlock;
  simt::launch<count_ties_kernel<Acc>>(parts_of(p) * p.task_count, kThreads, stream, p);
}

}  // namespace robustcore
