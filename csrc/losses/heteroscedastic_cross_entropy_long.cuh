// CUDA kernel of the heteroscedastic loss for rows with many classes or a large rank, and for
// float64: parameters and sums stay in memory, each class with the thread that owns it, and the
// numbers of the samples are made twice, for the softmax and for the gradients. Also the choice
// between the kernels.
#pragma once

#include "losses/heteroscedastic_cross_entropy.cuh"

namespace robustcore::heteroscedastic_cuda {

constexpr int kLongBlock = 256;
constexpr int kLongRank = 1024;

// Maximum over the classes and sum of exponentials relative to it, for four samples.
template <class T>
struct OnlineSoftmax {
  Quad<T> maximum, total;
};

struct JoinOnlineSoftmax {
  template <class T>
  __device__ __forceinline__ OnlineSoftmax<T> operator()(const OnlineSoftmax<T>& a,
                                                         const OnlineSoftmax<T>& b) const {
    OnlineSoftmax<T> joined;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T maximum = Maximum{}(a.maximum.values[j], b.maximum.values[j]);
      const T shift = maximum == -infinity<T>() ? T(0) : maximum;
      joined.maximum.values[j] = maximum;
      joined.total.values[j] = a.total.values[j] * exponential(a.maximum.values[j] - shift) +
                               b.total.values[j] * exponential(b.maximum.values[j] - shift);
    }
    return joined;
  }
};

// The logits of class c for four samples.
template <class T>
__device__ __forceinline__ Quad<T> long_logits(const HeteroscedasticProblem<T>& p,
                                               std::int64_t place, const NormalQuad& own,
                                               const float* shared) {
  Quad<T> u;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    u.values[j] = p.mean[place] + p.diagonal[place] * static_cast<T>(own.values[j]);
  }
  for (std::int64_t r = 0; r < p.rank; ++r) {
    const T v = p.low_rank[place * p.rank + r];
#pragma unroll
    for (int j = 0; j < 4; ++j) u.values[j] += v * static_cast<T>(shared[4 * r + j]);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) u.values[j] *= p.inverse_temperature;
  return u;
}

template <class T, Mode kMode>
__global__ void __launch_bounds__(kLongBlock, 1)
    heteroscedastic_long_kernel(const HeteroscedasticProblem<T> p) {
  RC_SHARED(float, rank_numbers, 4 * kLongRank);
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
    LabelProbability<T> label;
    for (std::uint32_t quad = 0; quad < quads; ++quad) {
      for (int r = thread; r < p.rank; r += kLongBlock) {
        const NormalQuad numbers = rank_noise(key, row, quad, r);
#pragma unroll
        for (int j = 0; j < 4; ++j) rank_numbers[4 * r + j] = numbers.values[j];
      }
      __syncthreads();

      OnlineSoftmax<T> softmax;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        softmax.maximum.values[j] = -infinity<T>();
        softmax.total.values[j] = T(0);
      }
      for (std::int64_t c = thread; c < p.classes; c += kLongBlock) {
        const Quad<T> u =
            long_logits(p, row * p.classes + c, class_noise(key, row, quad, c), rank_numbers);
        softmax = JoinOnlineSoftmax{}(softmax, OnlineSoftmax<T>{u, {{T(1), T(1), T(1), T(1)}}});
        if (c == target) {
#pragma unroll
          for (int j = 0; j < 4; ++j) label_logits[j] = u.values[j];
        }
      }
      softmax = block_reduce<kLongBlock>(softmax, JoinOnlineSoftmax{});

      const int valid = static_cast<int>(p.samples - std::int64_t{4} * quad);
      Quad<T> w;
      T rescale = T(1);
      if constexpr (kMode != Mode::kProbabilities) {
        Quad<T> own;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          own.values[j] = j < valid ? label_logits[j] - softmax.maximum.values[j] : -infinity<T>();
        }
        rescale = label.add(own, softmax.total, w);
      }
      if constexpr (kMode != Mode::kLoss) {
        for (std::int64_t c = thread; c < p.classes; c += kLongBlock) {
          const std::int64_t place = row * p.classes + c;
          const NormalQuad own_noise = class_noise(key, row, quad, c);
          const Quad<T> u = long_logits(p, place, own_noise, rank_numbers);
          if constexpr (kMode == Mode::kProbabilities) {
            // log(sum of exp) of what came before and these four.
            T logs[5], largest = -infinity<T>(), total = T(0);
            logs[4] = quad == 0 ? -infinity<T>() : p.log_probability[place];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              logs[j] = j < valid ? u.values[j] - softmax.maximum.values[j] -
                                        logarithm(softmax.total.values[j])
                                  : -infinity<T>();
            }
#pragma unroll
            for (int j = 0; j < 5; ++j) largest = Maximum{}(largest, logs[j]);
            const T origin = largest == -infinity<T>() ? T(0) : largest;
#pragma unroll
            for (int j = 0; j < 5; ++j) total += exponential(logs[j] - origin);
            const T sum = origin + logarithm(total);
            p.log_probability[place] =
                quad + 1 == quads ? sum - logarithm(static_cast<T>(p.samples)) : sum;
          } else {
            Quad<T> t;
            T sum = T(0), along = T(0);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const T e = exponential(u.values[j] - softmax.maximum.values[j]);
              t.values[j] =
                  e * (w.values[j] / softmax.total.values[j]) - (c == target ? w.values[j] : T(0));
              sum += t.values[j];
              along += t.values[j] * static_cast<T>(own_noise.values[j]);
            }
            const bool fresh = quad == 0;
            p.grad_mean[place] = (fresh ? T(0) : p.grad_mean[place] * rescale) + sum;
            p.grad_diagonal[place] = (fresh ? T(0) : p.grad_diagonal[place] * rescale) + along;
            for (std::int64_t r = 0; r < p.rank; ++r) {
              along = T(0);
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                along += t.values[j] * static_cast<T>(rank_numbers[4 * r + j]);
              }
              T& sum_r = p.grad_low_rank[place * p.rank + r];
              sum_r = (fresh ? T(0) : sum_r * rescale) + along;
            }
          }
        }
      }
      __syncthreads();  // before the next numbers
    }

    if constexpr (kMode != Mode::kProbabilities) {
      bool floored;
      const T scale = finish_row(p, row, label, floored);
      if constexpr (kMode == Mode::kGradients) {
        for (std::int64_t c = thread; c < p.classes; c += kLongBlock) {
          const std::int64_t place = row * p.classes + c;
          p.grad_mean[place] = floored ? T(0) : p.grad_mean[place] * scale;
          p.grad_diagonal[place] = floored ? T(0) : p.grad_diagonal[place] * scale;
          for (std::int64_t r = 0; r < p.rank; ++r) {
            T& sum_r = p.grad_low_rank[place * p.rank + r];
            sum_r = floored ? T(0) : sum_r * scale;
          }
        }
      }
    }
  }
}

template <Mode kMode, class T>
void launch_rows(const HeteroscedasticProblem<T>& p, cudaStream_t stream) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t grid = p.rows < kMost ? p.rows : kMost;
  if constexpr (sizeof(T) == 4) {
    if (p.rank <= 16 && p.classes <= 1024) {
      if (p.classes <= 32 && p.rank <= 8) {
        return simt::launch<heteroscedastic_kernel<T, 32, 1, 8, kMode>>(grid, 32, stream, p);
      }
      if (p.classes <= 128) {
        if (p.rank <= 8) {
          return simt::launch<heteroscedastic_kernel<T, 128, 1, 8, kMode>>(grid, 128, stream, p);
        }
        return simt::launch<heteroscedastic_kernel<T, 128, 1, 16, kMode>>(grid, 128, stream, p);
      }
      return simt::launch<heteroscedastic_kernel<T, 256, 4, 16, kMode>>(grid, 256, stream, p);
    }
  }
  simt::launch<heteroscedastic_long_kernel<T, kMode>>(grid, kLongBlock, stream, p);
}

}  // namespace robustcore::heteroscedastic_cuda

namespace robustcore {

// The whole problem: log-probabilities where they are wanted, the loss otherwise.
template <class T>
void launch_heteroscedastic(const HeteroscedasticProblem<T>& p, cudaStream_t stream) {
  using namespace heteroscedastic_cuda;
  if (p.log_probability) return launch_rows<Mode::kProbabilities>(p, stream);
  simt::launch<heteroscedastic_denominator_kernel<T>>(1, kBatchBlock, stream, p);
  if (p.grad_mean) {
    launch_rows<Mode::kGradients>(p, stream);
  } else {
    launch_rows<Mode::kLoss>(p, stream);
  }
  if (p.reduction != Reduction::kNone) {
    simt::launch<heteroscedastic_reduce_kernel<T>>(1, kBatchBlock, stream, p);
  }
}

}  // namespace robustcore
