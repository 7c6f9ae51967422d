// CUDA kernels of TALL-masks: codes of all tasks and lambdas in one pass over the weights.
//
// A warp owns some consecutive 32-bit words of the flat order, whichever tensors they cross, and
// writes them with plain stores: lane i of a step is bit i of a word, a ballot makes the word.
// Weights are read once where all tasks of a parameter fit into registers, else twice, the second
// time from cache. One launch handles a run of tensors of one dtype; the table of their pointers is
// passed by value, so that nothing is copied, synchronised or allocated and the launch can be
// captured in a graph.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/float16.h"
#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/flat_order.h"
#include "merging/tall_masks.h"

namespace robustcore {

// The parameters of a kernel may take 4 KB.
constexpr int kMaximumCudaTasks = 256;
constexpr int kRunPointers = 320;
constexpr int kRunTensors = 64;

// A run of tensors of one dtype that follow each other in the flat order. None is empty.
template <class T>
struct TallMasksParams {
  using Acc = accumulate_t<T>;

  const void* pointers[kRunPointers];    // per tensor: base, merged (or null), one per task
  std::int64_t starts[kRunTensors + 1];  // flat index of each tensor's first parameter, and the end
  LambdaTable<Acc> lambdas;
  std::uint32_t* codes;    // [tasks, planes, row_words]
  std::int64_t row_words;  // 32-bit words
  std::int64_t last_word;  // up to here words are written, with zeros after the last parameter
  int tensors;
  int tasks;
  bool has_merged;
  bool strict;

  __host__ __device__ __forceinline__ int stride() const { return tasks + 2; }
};
static_assert(sizeof(TallMasksParams<double>) <= 4096);
static_assert(kRunPointers >= kMaximumCudaTasks + 2);

namespace tall_masks_cuda {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarpSize;
// With 8 words a warp's store to one row is a whole 32-byte sector.
constexpr int kWords = 8;
// Tasks whose values are held at a time by the kernel for many tasks.
constexpr int kGroup = 4;

// Where a parameter's weights are.
template <class T>
struct Location {
  const void* const* row;  // the tensor's pointers
  std::int64_t index;      // in the tensor
  bool valid;

  __device__ __forceinline__ accumulate_t<T> weight(int position) const {
    return valid ? to_accumulate(static_cast<const T*>(row[position])[index]) : accumulate_t<T>(0);
  }
  __device__ __forceinline__ accumulate_t<T> merged() const {
    using Acc = accumulate_t<T>;
    return valid ? static_cast<const Acc*>(row[1])[index] : Acc(0);
  }
};

template <class T>
__device__ __forceinline__ int find_tensor(const TallMasksParams<T>& p, std::int64_t parameter) {
  int low = 0, high = p.tensors;  // starts[low] <= parameter < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.starts[middle] <= parameter) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The tensors that a warp's words cross: almost always one.
template <class T>
struct Finder {
  const TallMasksParams<T>& p;
  int tensor;
  bool single;

  __device__ __forceinline__ Finder(const TallMasksParams<T>& params, std::int64_t first_word)
      : p(params) {
    const std::int64_t first = first_word * 32;
    tensor = find_tensor(p, first < p.starts[0] ? p.starts[0] : first);
    single = first + kWords * 32 <= p.starts[tensor + 1];
  }

  __device__ __forceinline__ Location<T> at(std::int64_t parameter) const {
    const bool valid = parameter >= p.starts[0] && parameter < p.starts[p.tensors];
    const int k = single || !valid ? tensor : find_tensor(p, parameter);
    return {p.pointers + k * p.stride(), parameter - p.starts[k], valid};
  }
};

// The lambda that the next step of the bisection compares with, out of compile-time choices:
// `passed[b]` is bit b of the code, known down to bit kBit + 1.
template <int kBit, int kUndecided, class Acc>
__device__ __forceinline__ Acc choose_lambda(const Acc* lambdas, const bool* passed, int code) {
  if constexpr (kUndecided == kBit) {
    return lambdas[code | (1 << kBit)];
  } else {
    const Acc with = choose_lambda<kBit, kUndecided - 1>(lambdas, passed, code | (1 << kUndecided));
    const Acc without = choose_lambda<kBit, kUndecided - 1>(lambdas, passed, code);
    return passed[kUndecided] ? with : without;
  }
}

template <int kPlanes, int kBit, class T>
__device__ __forceinline__ void bisect(const TallMasksParams<T>& p, accumulate_t<T> own,
                                       accumulate_t<T> merged, bool* passed, int code) {
  using Acc = accumulate_t<T>;
  Acc lambda;
  if constexpr (kPlanes <= 3) {
    lambda = choose_lambda<kBit, kPlanes - 1>(p.lambdas.value, passed, 0);
  } else {
    lambda = p.lambdas.value[code | (1 << kBit)];
  }
  passed[kBit] =
      keeps<true>(own, merged, lambda) || (!p.strict && keeps<false>(own, merged, lambda));
  if constexpr (kBit > 0) {
    bisect<kPlanes, kBit - 1>(p, own, merged, passed, passed[kBit] ? code | (1 << kBit) : code);
  }
}

// The code of one parameter and task, as bits. Planes past those in use come out as 0.
template <int kPlanes, class T>
__device__ __forceinline__ void code_bits(const TallMasksParams<T>& p, accumulate_t<T> base,
                                          accumulate_t<T> target, accumulate_t<T> value, bool valid,
                                          bool* bits) {
  bisect<kPlanes, kPlanes - 1>(p, magnitude(base - value), magnitude(target - value), bits, 0);
#pragma unroll
  for (int b = 0; b < kPlanes; ++b) bits[b] = bits[b] && valid;
}

// Lane i < kWords holds word first_word + i of `row`. The first word of the run may begin with
// parameters of the run before: an earlier launch on the same stream wrote them.
template <class T>
__device__ __forceinline__ void store_word(const TallMasksParams<T>& p, std::int64_t row,
                                           std::int64_t first_word, int lane, std::uint32_t word) {
  const std::int64_t w = first_word + lane;
  if (lane >= kWords || w * 32 + 32 <= p.starts[0] || w >= p.last_word) return;
  std::uint32_t* to = p.codes + row * p.row_words + w;
  *to = w * 32 < p.starts[0] ? *to | word : word;
}

template <class T>
__device__ __forceinline__ std::int64_t warp_first_word(const TallMasksParams<T>& p) {
  const std::int64_t warp = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  return (p.starts[0] / (32 * kWords) + warp) * kWords;
}

// Up to kTasks tasks and 7 lambdas: every weight is read once and stays in a register.
template <class T, int kTasks>
__global__ void __launch_bounds__(kBlock) tall_masks_kernel(const TallMasksParams<T> p) {
  using Acc = accumulate_t<T>;
  constexpr int kPlanes = 3;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t first_word = warp_first_word(p);
  if (first_word >= p.last_word) return;
  const Finder<T> finder(p, first_word);
  std::uint32_t kept[kTasks][kPlanes];
#pragma unroll
  for (int t = 0; t < kTasks; ++t) {
#pragma unroll
    for (int b = 0; b < kPlanes; ++b) kept[t][b] = 0;
  }
#pragma unroll 2
  for (int step = 0; step < kWords; ++step) {
    const Location<T> at = finder.at((first_word + step) * 32 + lane);
    const Acc base = at.weight(0);
    Acc value[kTasks];
#pragma unroll
    for (int t = 0; t < kTasks; ++t) value[t] = t < p.tasks ? at.weight(2 + t) : Acc(0);
    Acc merged;
    if (p.has_merged) {
      merged = at.merged();
    } else {
      merged = value[0] - base;
#pragma unroll
      for (int t = 1; t < kTasks; ++t) {
        if (t < p.tasks) merged = merged + (value[t] - base);
      }
    }
    const Acc target = base + merged;
#pragma unroll
    for (int t = 0; t < kTasks; ++t) {
      bool bits[kPlanes];
      code_bits<kPlanes>(p, base, target, value[t], at.valid, bits);
#pragma unroll
      for (int b = 0; b < kPlanes; ++b) {
        const std::uint32_t word = __ballot_sync(kFullWarp, bits[b]);
        kept[t][b] = lane == step ? word : kept[t][b];
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTasks; ++t) {
#pragma unroll
    for (int b = 0; b < kPlanes; ++b) {
      if (t < p.tasks && b < p.lambdas.planes) {
        store_word(p, t * p.lambdas.planes + b, first_word, lane, kept[t][b]);
      }
    }
  }
}

// Any number of tasks: one sweep over them sums, a second one compares.
template <class T, int kPlanes>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 8 ? 1 : 2)
    tall_masks_many_kernel(const TallMasksParams<T> p) {
  using Acc = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t first_word = warp_first_word(p);
  if (first_word >= p.last_word) return;
  const Finder<T> finder(p, first_word);
  Acc base[kWords], target[kWords];
#pragma unroll
  for (int step = 0; step < kWords; ++step) {
    const Location<T> at = finder.at((first_word + step) * 32 + lane);
    base[step] = at.weight(0);
    target[step] = p.has_merged ? at.merged() : at.weight(2) - base[step];
  }
  for (int t = 1; t < p.tasks && !p.has_merged; ++t) {
#pragma unroll
    for (int step = 0; step < kWords; ++step) {
      const Location<T> at = finder.at((first_word + step) * 32 + lane);
      target[step] = target[step] + (at.weight(2 + t) - base[step]);
    }
  }
#pragma unroll
  for (int step = 0; step < kWords; ++step) target[step] = base[step] + target[step];
  for (int first = 0; first < p.tasks; first += kGroup) {
    std::uint32_t kept[kGroup][kPlanes] = {};
#pragma unroll
    for (int step = 0; step < kWords; ++step) {
      const Location<T> at = finder.at((first_word + step) * 32 + lane);
#pragma unroll
      for (int t = 0; t < kGroup; ++t) {
        const Acc value = first + t < p.tasks ? at.weight(2 + first + t) : Acc(0);
        bool bits[kPlanes];
        code_bits<kPlanes>(p, base[step], target[step], value, at.valid, bits);
#pragma unroll
        for (int b = 0; b < kPlanes; ++b) {
          const std::uint32_t word = __ballot_sync(kFullWarp, bits[b]);
          kept[t][b] = lane == step ? word : kept[t][b];
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
#pragma unroll
      for (int b = 0; b < kPlanes; ++b) {
        if (first + t < p.tasks && b < p.lambdas.planes) {
          store_word(p, (first + t) * p.lambdas.planes + b, first_word, lane, kept[t][b]);
        }
      }
    }
  }
}

}  // namespace tall_masks_cuda

// The models and where their codes go.
struct TallMasksModel {
  const FlatOrder* order;
  std::vector<const void*> base;       // [tensors]
  std::vector<const void*> finetuned;  // [tasks * tensors]
  std::vector<const void*> merged;     // [tensors], or empty
  std::vector<double> lambdas;         // ascending
  std::int64_t tasks;
  bool strict;
  std::uint32_t* codes;
  std::int64_t row_words;  // 32-bit words, an even number
};

// How many tensors one launch can take.
inline std::int64_t tall_masks_capacity(std::int64_t tasks) {
  return std::min<std::int64_t>(kRunTensors, kRunPointers / (tasks + 2));
}

// Launches one run of the models' tensors. Runs must be launched in order on one stream: a word
// that two runs share is begun by the first and completed by the second.
template <class T>
void launch_tall_masks(const TallMasksModel& model, const std::vector<std::int64_t>& run,
                       bool is_last, cudaStream_t stream) {
  using namespace tall_masks_cuda;
  TallMasksParams<T> p{};
  p.tensors = static_cast<int>(run.size());
  p.tasks = static_cast<int>(model.tasks);
  p.has_merged = !model.merged.empty();
  p.strict = model.strict;
  p.lambdas =
      lambda_table<accumulate_t<T>>(model.lambdas.data(), static_cast<int>(model.lambdas.size()));
  p.codes = model.codes;
  p.row_words = model.row_words;
  const void** to = p.pointers;
  for (int i = 0; i < p.tensors; ++i) {
    const std::int64_t tensor = run[i];
    p.starts[i] = model.order->start(tensor);
    *to++ = model.base[tensor];
    *to++ = p.has_merged ? model.merged[tensor] : nullptr;
    for (std::int64_t task = 0; task < model.tasks; ++task) {
      *to++ = model.finetuned[task * model.order->tensors() + tensor];
    }
  }
  const std::int64_t end = model.order->start(run.back()) + model.order->size(run.back());
  p.starts[p.tensors] = end;
  p.last_word = is_last ? p.row_words : (end + 31) / 32;
  const std::int64_t tiles = (p.last_word + kWords - 1) / kWords - p.starts[0] / (32 * kWords);
  const std::int64_t grid = (tiles + kWarps - 1) / kWarps;
  if (p.lambdas.planes > 3) {
    simt::launch<tall_masks_many_kernel<T, kMaximumPlanes>>(grid, kBlock, stream, p);
  } else if (p.tasks > 16) {
    simt::launch<tall_masks_many_kernel<T, 3>>(grid, kBlock, stream, p);
  } else if (p.tasks > 8) {
    simt::launch<tall_masks_kernel<T, 16>>(grid, kBlock, stream, p);
  } else if (p.tasks > 4) {
    simt::launch<tall_masks_kernel<T, 8>>(grid, kBlock, stream, p);
  } else {
    simt::launch<tall_masks_kernel<T, 4>>(grid, kBlock, stream, p);
  }
}

}  // namespace robustcore
