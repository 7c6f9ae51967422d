// CUDA kernels of the heteroscedastic loss: a block per row, threads over the classes, four samples
// at a time (what one counter makes). Where the classes and the rank fit, each thread keeps its
// classes' parameters and sums in registers; the kernels for longer rows are in
// heteroscedastic_cross_entropy_long.cuh. The classes' softmax takes two block reductions per four
// samples; nothing of size [rows, samples, classes] exists.
#pragma once

#include "common/exp.h"
#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "losses/heteroscedastic_cross_entropy.h"

namespace robustcore::heteroscedastic_cuda {

enum class Mode { kLoss, kGradients, kProbabilities };

constexpr int kBatchBlock = 256;  // of the kernels that walk over the rows

template <class T>
__device__ __forceinline__ T infinity() {
  return static_cast<T>(__builtin_inf());
}

// One value for each of the four samples of a counter.
template <class T>
struct Quad {
  T values[4];
};

template <class Combine>
struct PerSample {
  template <class T>
  __device__ __forceinline__ Quad<T> operator()(const Quad<T>& left, const Quad<T>& right) const {
    Quad<T> result;
#pragma unroll
    for (int j = 0; j < 4; ++j) result.values[j] = Combine{}(left.values[j], right.values[j]);
    return result;
  }
};

template <class T>
__device__ __forceinline__ RandomKey problem_key(const HeteroscedasticProblem<T>& p) {
  return random_key(p.device_seed ? static_cast<std::uint64_t>(*p.device_seed) : p.seed);
}

// The label's probability over the samples so far: weight * exp(shift) / samples. Probabilities are
// kept relative to the largest seen, so that none underflows.
template <class T>
struct LabelProbability {
  T weight = T(0);
  T shift = -infinity<T>();

  // Takes in four samples: `own` is the label's logit minus the maximum, `total` the sum of the
  // exponentials. Returns what earlier sums have to be multiplied by, and leaves in `w` the label's
  // probability per sample.
  __device__ __forceinline__ T add(const Quad<T>& own, const Quad<T>& total, Quad<T>& w) {
    T largest = shift;
#pragma unroll
    for (int j = 0; j < 4; ++j) largest = own.values[j] > largest ? own.values[j] : largest;
    T rescale = T(1);
    if (largest > shift) {
      rescale = exponential(shift - largest);
      weight *= rescale;
      shift = largest;
    }
    const T origin = shift == -infinity<T>() ? T(0) : shift;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w.values[j] = exponential(own.values[j] - origin) / total.values[j];
    }
    weight += (w.values[0] + w.values[1]) + (w.values[2] + w.values[3]);
    return rescale;
  }
};

// What is left of a row once the label's probability is known. Returns the factor of its gradients:
// 0 where the loss is at its maximum.
template <class T>
__device__ __forceinline__ T finish_row(const HeteroscedasticProblem<T>& p, std::int64_t row,
                                        const LabelProbability<T>& q, bool& floored) {
  const T own = p.class_weight ? p.class_weight[p.target[row]] : T(1);
  const T sample_weight = p.sample_weight ? p.sample_weight[row] : T(1);
  const T incoming = T(1) / *p.denominator;
  T loss = -(q.shift + logarithm(q.weight / static_cast<T>(p.samples)));
  floored = loss > p.maximum_loss;
  loss = floored ? p.maximum_loss : loss;
  if (threadIdx.x == 0) {
    p.row_loss[row] = own * loss;
    p.row_slope[row] = own * loss * incoming;
    if (p.reduction == Reduction::kNone) p.loss[row] = own * loss * sample_weight;
  }
  return floored ? T(0) : own * sample_weight * incoming * p.inverse_temperature / q.weight;
}

template <class T>
__device__ __forceinline__ void ignore_row(const HeteroscedasticProblem<T>& p, std::int64_t row) {
  if (threadIdx.x == 0) {
    p.row_loss[row] = p.row_slope[row] = T(0);
    if (p.reduction == Reduction::kNone) p.loss[row] = T(0);
  }
}

// The gradients of an ignored row, or of one whose loss is at its maximum.
template <class T>
__device__ __forceinline__ void zero_gradients(const HeteroscedasticProblem<T>& p,
                                               std::int64_t row) {
  for (std::int64_t c = threadIdx.x; c < p.classes; c += blockDim.x) {
    p.grad_mean[row * p.classes + c] = T(0);
    p.grad_diagonal[row * p.classes + c] = T(0);
  }
  const std::int64_t count = p.classes * p.rank;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    p.grad_low_rank[row * count + i] = T(0);
  }
}

// A class as its thread keeps it: parameters over the temperature, and sums over the samples. V is
// read again for every four samples where a thread has too many classes to keep it.
template <class T, int kRank, Mode kMode, bool kKeepLowRank>
struct Class {
  T mean, diagonal, low_rank[kKeepLowRank ? kRank : 1];
  T sum_mean = T(0), sum_diagonal = T(0);  // log-probabilities: the sum relative to shift
  T shift = -infinity<T>();
  T sum_low_rank[kMode == Mode::kGradients ? kRank : 1] = {};

  __device__ __forceinline__ void load(const HeteroscedasticProblem<T>& p, std::int64_t place) {
    mean = p.mean[place] * p.inverse_temperature;
    diagonal = p.diagonal[place] * p.inverse_temperature;
    if constexpr (kKeepLowRank) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) low_rank[r] = low_rank_at(p, place, r);
    }
  }

  static __device__ __forceinline__ T low_rank_at(const HeteroscedasticProblem<T>& p,
                                                  std::int64_t place, int r) {
    return r < p.rank ? p.low_rank[place * p.rank + r] * p.inverse_temperature : T(0);
  }

  __device__ __forceinline__ Quad<T> logits(const HeteroscedasticProblem<T>& p, std::int64_t place,
                                            const NormalQuad& own, const float* shared) const {
    Quad<T> u;
#pragma unroll
    for (int j = 0; j < 4; ++j) u.values[j] = mean + diagonal * static_cast<T>(own.values[j]);
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      T v;
      if constexpr (kKeepLowRank) {
        v = low_rank[r];
      } else {
        v = low_rank_at(p, place, r);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) u.values[j] += v * static_cast<T>(shared[4 * r + j]);
    }
    return u;
  }

  __device__ __forceinline__ void add_gradient(const Quad<T>& t, const NormalQuad& own,
                                               const float* shared, T rescale) {
    sum_mean = sum_mean * rescale + ((t.values[0] + t.values[1]) + (t.values[2] + t.values[3]));
    T along = T(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) along += t.values[j] * static_cast<T>(own.values[j]);
    sum_diagonal = sum_diagonal * rescale + along;
    if constexpr (kMode == Mode::kGradients) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        along = T(0);
#pragma unroll
        for (int j = 0; j < 4; ++j) along += t.values[j] * static_cast<T>(shared[4 * r + j]);
        sum_low_rank[r] = sum_low_rank[r] * rescale + along;
      }
    }
  }

  __device__ __forceinline__ void add_log_probability(const Quad<T>& log_p) {
    T largest = shift;
#pragma unroll
    for (int j = 0; j < 4; ++j) largest = log_p.values[j] > largest ? log_p.values[j] : largest;
    if (largest > shift) {
      sum_mean *= exponential(shift - largest);
      shift = largest;
    }
    const T origin = shift == -infinity<T>() ? T(0) : shift;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum_mean += exponential(log_p.values[j] - origin);
  }

  __device__ __forceinline__ void store_gradient(const HeteroscedasticProblem<T>& p,
                                                 std::int64_t place, T scale) const {
    p.grad_mean[place] = scale * sum_mean;
    p.grad_diagonal[place] = scale * sum_diagonal;
    if constexpr (kMode == Mode::kGradients) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        if (r < p.rank) p.grad_low_rank[place * p.rank + r] = scale * sum_low_rank[r];
      }
    }
  }
};

// kClasses per thread, a rank of at most kRank.
template <class T, int kThreads, int kClasses, int kRank, Mode kMode>
__global__ void __launch_bounds__(kThreads)
    heteroscedastic_kernel(const HeteroscedasticProblem<T> p) {
  // Twice: threads that are still at four samples read the one while others fill the other.
  RC_SHARED(float, rank_numbers, 2 * 4 * kRank);
  RC_SHARED(T, label_logits, 4);
  const int thread = static_cast<int>(threadIdx.x);
  const RandomKey key = problem_key(p);
  const std::uint32_t quads = static_cast<std::uint32_t>((p.samples + 3) / 4);
  for (std::int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    std::int64_t target = -1;
    if constexpr (kMode != Mode::kProbabilities) {
      target = p.target[row];
      if (target == p.ignore_index) {
        ignore_row(p, row);
        if constexpr (kMode == Mode::kGradients) zero_gradients(p, row);
        continue;
      }
      RC_DEVICE_ASSERT(target >= 0 && target < p.classes);
    }
    Class<T, kRank, kMode, kClasses == 1> classes[kClasses];
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      const int c = thread + i * kThreads;
      if (c < p.classes) classes[i].load(p, row * p.classes + c);
    }
    LabelProbability<T> label;
    for (std::uint32_t quad = 0; quad < quads; ++quad) {
      float* shared = rank_numbers + (quad % 2) * 4 * kRank;
      for (int r = thread; r < kRank; r += kThreads) {
        const NormalQuad numbers =
            r < p.rank ? rank_noise(key, row, quad, r) : NormalQuad{{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (int j = 0; j < 4; ++j) shared[4 * r + j] = numbers.values[j];
      }
      __syncthreads();

      NormalQuad own_noise[kClasses];
      Quad<T> u[kClasses];
      Quad<T> maximum{{-infinity<T>(), -infinity<T>(), -infinity<T>(), -infinity<T>()}};
#pragma unroll
      for (int i = 0; i < kClasses; ++i) {
        const int c = thread + i * kThreads;
        if (c >= p.classes) continue;
        own_noise[i] = class_noise(key, row, quad, c);
        u[i] = classes[i].logits(p, row * p.classes + c, own_noise[i], shared);
        maximum = PerSample<Maximum>{}(maximum, u[i]);
        if (c == target) {
#pragma unroll
          for (int j = 0; j < 4; ++j) label_logits[j] = u[i].values[j];
        }
      }
      maximum = block_reduce<kThreads>(maximum, PerSample<Maximum>{});
      if constexpr (kThreads == kWarpSize) __syncthreads();  // the reduction of a warp has none

      Quad<T> total{{T(0), T(0), T(0), T(0)}};
      Quad<T> e[kClasses];
#pragma unroll
      for (int i = 0; i < kClasses; ++i) {
        if (thread + i * kThreads >= p.classes) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          e[i].values[j] = exponential(u[i].values[j] - maximum.values[j]);
          total.values[j] += e[i].values[j];
        }
      }
      total = block_reduce<kThreads>(total, PerSample<Sum>{});

      const int valid = static_cast<int>(p.samples - std::int64_t{4} * quad);
      if constexpr (kMode == Mode::kProbabilities) {
        Quad<T> lse;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          lse.values[j] =
              j < valid ? maximum.values[j] + logarithm(total.values[j]) : infinity<T>();
        }
#pragma unroll
        for (int i = 0; i < kClasses; ++i) {
          if (thread + i * kThreads >= p.classes) continue;
#pragma unroll
          for (int j = 0; j < 4; ++j) u[i].values[j] -= lse.values[j];
          classes[i].add_log_probability(u[i]);
        }
      } else {
        Quad<T> own, w;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          own.values[j] = j < valid ? label_logits[j] - maximum.values[j] : -infinity<T>();
        }
        const T rescale = label.add(own, total, w);
        if constexpr (kMode == Mode::kGradients) {
#pragma unroll
          for (int i = 0; i < kClasses; ++i) {
            const int c = thread + i * kThreads;
            if (c >= p.classes) continue;
            Quad<T> t;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              t.values[j] = e[i].values[j] * (w.values[j] / total.values[j]) -
                            (c == target ? w.values[j] : T(0));
            }
            classes[i].add_gradient(t, own_noise[i], shared, rescale);
          }
        }
      }
    }

    if constexpr (kMode == Mode::kProbabilities) {
#pragma unroll
      for (int i = 0; i < kClasses; ++i) {
        const int c = thread + i * kThreads;
        if (c >= p.classes) continue;
        const T shift = classes[i].shift == -infinity<T>() ? T(0) : classes[i].shift;
        p.log_probability[row * p.classes + c] =
            shift + logarithm(classes[i].sum_mean / static_cast<T>(p.samples));
      }
    } else {
      bool floored;
      const T scale = finish_row(p, row, label, floored);
      if constexpr (kMode == Mode::kGradients) {
        if (floored) {
          zero_gradients(p, row);
        } else {
#pragma unroll
          for (int i = 0; i < kClasses; ++i) {
            const int c = thread + i * kThreads;
            if (c < p.classes) classes[i].store_gradient(p, row * p.classes + c, scale);
          }
        }
      }
    }
    __syncthreads();  // before the next row's numbers
  }
}

// One block: what "mean" divides by, summed in double.
template <class T>
__global__ void __launch_bounds__(kBatchBlock)
    heteroscedastic_denominator_kernel(const HeteroscedasticProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBatchBlock) {
    const std::int64_t target = p.target[row];
    if (target == p.ignore_index) continue;
    RC_DEVICE_ASSERT(target >= 0 && target < p.classes);
    total += p.class_weight ? static_cast<double>(p.class_weight[target]) : 1.0;
  }
  total = block_reduce<kBatchBlock>(total, Sum{});
  if (threadIdx.x == 0) {
    *p.denominator = p.reduction == Reduction::kMean ? static_cast<T>(total) : T(1);
  }
}

// One block: the scalar loss from the losses of the rows, summed in double.
template <class T>
__global__ void __launch_bounds__(kBatchBlock)
    heteroscedastic_reduce_kernel(const HeteroscedasticProblem<T> p) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kBatchBlock) {
    if (p.target[row] == p.ignore_index) continue;
    const T weight = p.sample_weight ? p.sample_weight[row] : T(1);
    total += static_cast<double>(p.row_loss[row] * weight);
  }
  total = block_reduce<kBatchBlock>(total, Sum{});
  if (threadIdx.x == 0) *p.loss = static_cast<T>(total / static_cast<double>(*p.denominator));
}

}  // namespace robustcore::heteroscedastic_cuda
