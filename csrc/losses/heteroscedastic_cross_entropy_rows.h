// CPU kernel of the heteroscedastic loss: one row at a time, 64 samples of all classes at a time.
// The vector lanes are samples, so that a softmax over the classes needs no sum across lanes, and
// the number of classes wastes none.
//
// Per class and sample: a quarter of a Philox call, half of a Box-Muller pair, one exponential, and
// 2 (rank + 3) multiplications and additions. Scratch: classes * (128 + 16 (rank + 2)) numbers per
// thread, so [rows, samples, classes] never exists.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/exp.h"
#include "common/macros.h"
#include "losses/heteroscedastic_cross_entropy.h"

namespace robustcore::heteroscedastic_cpu {

constexpr int kLanes = 16;
constexpr int kTile = 4 * kLanes;  // samples; one counter makes four

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// What a thread needs for a row; the same memory serves all its rows.
template <class T>
struct Scratch {
  std::vector<T> logits;          // [classes, kTile]; later their exponentials, then gradients
  std::vector<float> noise;       // [classes, kTile]
  std::vector<float> rank_noise;  // [rank, kTile]
  std::vector<T> sums;            // [classes, rank + 2, kLanes]: for V, mean, d
  std::vector<T> shift;           // [classes], log-probabilities only

  Scratch(const HeteroscedasticProblem<T>& p)
      : logits(p.classes * kTile), noise(p.classes * kTile), rank_noise(p.rank * kTile) {
    if (p.grad_mean) sums.resize(p.classes * (p.rank + 2) * kLanes);
    if (p.log_probability) {
      sums.resize(p.classes * kLanes);
      shift.resize(p.classes);
    }
  }
};

template <class T>
RC_INLINE T fold_lanes(const T* lanes) {
  T folded[kLanes];
  RC_SIMD for (int l = 0; l < kLanes; ++l) folded[l] = lanes[l];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    RC_SIMD for (int l = 0; l < width; ++l) folded[l] = folded[l] + folded[l + width];
  }
  return folded[0];
}

// u[lane] += sum over kCount columns of V of v * noise.
template <int kCount, class T>
RC_INLINE void add_columns(T* RC_RESTRICT u, const T* RC_RESTRICT v, T scale,
                           const float* RC_RESTRICT noise) {
  T factor[kCount];
  for (int r = 0; r < kCount; ++r) factor[r] = v[r] * scale;
  RC_SIMD for (int l = 0; l < kTile; ++l) {
    T sum = u[l];
    for (int r = 0; r < kCount; ++r) sum += factor[r] * static_cast<T>(noise[r * kTile + l]);
    u[l] = sum;
  }
}

// sums[r] += sum over the four samples of a lane of t * noise, for kCount columns of V.
template <int kCount, class T>
RC_INLINE void add_column_gradients(T* RC_RESTRICT sums, const T* RC_RESTRICT t,
                                    const float* RC_RESTRICT noise) {
  RC_SIMD for (int l = 0; l < kLanes; ++l) {
    const T t0 = t[l], t1 = t[kLanes + l], t2 = t[2 * kLanes + l], t3 = t[3 * kLanes + l];
    for (int r = 0; r < kCount; ++r) {
      const float* e = noise + r * kTile + l;
      sums[r * kLanes + l] += (t0 * e[0] + t1 * e[kLanes]) + (t2 * e[2 * kLanes] + t3 * e[3 * kLanes]);
    }
  }
}

// Calls f(first column, count as a constant) until all columns are done.
template <class F>
RC_INLINE void for_each_column_group(int64_t rank, F&& f) {
  int64_t r = 0;
  for (; r + 4 <= rank; r += 4) f(r, std::integral_constant<int, 4>{});
  if (rank - r == 3) return f(r, std::integral_constant<int, 3>{});
  if (rank - r == 2) return f(r, std::integral_constant<int, 2>{});
  if (rank - r == 1) return f(r, std::integral_constant<int, 1>{});
}

// The logits of 64 samples, divided by the temperature, in scratch.logits; their maxima over the
// classes in `maximum`.
template <class T>
RC_INLINE void sample_logits(const HeteroscedasticProblem<T>& p, RandomKey key, int64_t row,
                             uint32_t quad, Scratch<T>& scratch, T* maximum) {
  for (int64_t r = 0; r < p.rank; ++r) {
    float* e = scratch.rank_noise.data() + r * kTile;
    RC_SIMD for (int l = 0; l < kLanes; ++l) {
      const NormalQuad n = rank_noise(key, row, quad + l, r);
      e[l] = n.values[0];
      e[kLanes + l] = n.values[1];
      e[2 * kLanes + l] = n.values[2];
      e[3 * kLanes + l] = n.values[3];
    }
  }
  RC_SIMD for (int l = 0; l < kTile; ++l) maximum[l] = -kInfinity<T>;
  for (int64_t c = 0; c < p.classes; ++c) {
    float* RC_RESTRICT e = scratch.noise.data() + c * kTile;
    T* RC_RESTRICT u = scratch.logits.data() + c * kTile;
    const T mean = p.mean[row * p.classes + c] * p.inverse_temperature;
    const T scale = p.diagonal[row * p.classes + c] * p.inverse_temperature;
    RC_SIMD for (int l = 0; l < kLanes; ++l) {
      const NormalQuad n = class_noise(key, row, quad + l, c);
      e[l] = n.values[0];
      e[kLanes + l] = n.values[1];
      e[2 * kLanes + l] = n.values[2];
      e[3 * kLanes + l] = n.values[3];
      u[l] = mean + scale * static_cast<T>(n.values[0]);
      u[kLanes + l] = mean + scale * static_cast<T>(n.values[1]);
      u[2 * kLanes + l] = mean + scale * static_cast<T>(n.values[2]);
      u[3 * kLanes + l] = mean + scale * static_cast<T>(n.values[3]);
    }
    const T* v = p.low_rank + (row * p.classes + c) * p.rank;
    for_each_column_group(p.rank, [&](int64_t r, auto count) RC_INLINE_LAMBDA {
      add_columns<decltype(count)::value>(u, v + r, p.inverse_temperature,
                                          scratch.rank_noise.data() + r * kTile);
    });
    RC_SIMD for (int l = 0; l < kTile; ++l) maximum[l] = u[l] > maximum[l] ? u[l] : maximum[l];
  }
}

// Replaces the logits by exp(logit - maximum) and sums them over the classes.
template <class T>
RC_INLINE void exponentiate(const HeteroscedasticProblem<T>& p, Scratch<T>& scratch,
                            const T* RC_RESTRICT maximum, T* RC_RESTRICT total, bool keep) {
  RC_SIMD for (int l = 0; l < kTile; ++l) total[l] = T(0);
  for (int64_t c = 0; c < p.classes; ++c) {
    T* RC_RESTRICT u = scratch.logits.data() + c * kTile;
    if (keep) {
      RC_SIMD for (int l = 0; l < kTile; ++l) total[l] += exponential(u[l] - maximum[l]);
    } else {
      RC_SIMD for (int l = 0; l < kTile; ++l) {
        const T e = exponential(u[l] - maximum[l]);
        u[l] = e;
        total[l] += e;
      }
    }
  }
}

// A lane's four samples are consecutive: lane l of part j is sample 4 (quad + l) + j.
RC_INLINE int64_t sample_of(int64_t first, int lane) {
  return first + 4 * (lane % kLanes) + lane / kLanes;
}

// The probability of the label over all samples, as weight * exp(shift) / samples, and with
// kGradients the sums of the gradients, in scratch.sums, in the unit weight has.
template <class T>
struct LabelProbability {
  T weight;
  T shift;
};

template <bool kGradients, class T>
RC_INLINE LabelProbability<T> label_probability(const HeteroscedasticProblem<T>& p, RandomKey key,
                                                int64_t row, int64_t target, Scratch<T>& scratch) {
  const int64_t stride = (p.rank + 2) * kLanes;
  T shift = -kInfinity<T>;
  T weight[kLanes] = {};
  if (kGradients) std::fill(scratch.sums.begin(), scratch.sums.end(), T(0));
  for (int64_t first = 0; first < p.samples; first += kTile) {
    T maximum[kTile], total[kTile], own[kTile], w[kTile], factor[kTile];
    sample_logits(p, key, row, static_cast<uint32_t>(first / 4), scratch, maximum);
    const T* label = scratch.logits.data() + target * kTile;
    RC_SIMD for (int l = 0; l < kTile; ++l) own[l] = label[l] - maximum[l];
    if (first + kTile > p.samples) {
      for (int l = 0; l < kTile; ++l) {
        if (sample_of(first, l) >= p.samples) own[l] = -kInfinity<T>;
      }
    }
    exponentiate(p, scratch, maximum, total, false);

    // Probabilities of the label are kept relative to the largest seen, so that none underflows.
    T largest = shift;
    for (int l = 0; l < kTile; ++l) largest = own[l] > largest ? own[l] : largest;
    if (largest > shift) {
      const T rescale = exponential(shift - largest);
      for (int l = 0; l < kLanes; ++l) weight[l] *= rescale;
      if (kGradients) {
        T* RC_RESTRICT sums = scratch.sums.data();
        const int64_t count = p.classes * stride;
        RC_SIMD for (int64_t i = 0; i < count; ++i) sums[i] *= rescale;
      }
      shift = largest;
    }
    const T origin = shift == -kInfinity<T> ? T(0) : shift;
    RC_SIMD for (int l = 0; l < kTile; ++l) {
      const T inverse = T(1) / total[l];
      w[l] = exponential(own[l] - origin) * inverse;
      factor[l] = w[l] * inverse;
    }
    RC_SIMD for (int l = 0; l < kLanes; ++l) {
      weight[l] += (w[l] + w[kLanes + l]) + (w[2 * kLanes + l] + w[3 * kLanes + l]);
    }
    if constexpr (!kGradients) continue;
    for (int64_t c = 0; c < p.classes; ++c) {
      T* RC_RESTRICT t = scratch.logits.data() + c * kTile;
      const float* RC_RESTRICT e = scratch.noise.data() + c * kTile;
      T* RC_RESTRICT sums = scratch.sums.data() + c * stride;
      if (c == target) {
        RC_SIMD for (int l = 0; l < kTile; ++l) t[l] = factor[l] * t[l] - w[l];
      } else {
        RC_SIMD for (int l = 0; l < kTile; ++l) t[l] *= factor[l];
      }
      RC_SIMD for (int l = 0; l < kLanes; ++l) {
        const T t0 = t[l], t1 = t[kLanes + l], t2 = t[2 * kLanes + l], t3 = t[3 * kLanes + l];
        sums[l] += (t0 + t1) + (t2 + t3);
        sums[kLanes + l] += (t0 * e[l] + t1 * e[kLanes + l]) +
                            (t2 * e[2 * kLanes + l] + t3 * e[3 * kLanes + l]);
      }
      for_each_column_group(p.rank, [&](int64_t r, auto count) RC_INLINE_LAMBDA {
        add_column_gradients<decltype(count)::value>(sums + (r + 2) * kLanes, t,
                                                     scratch.rank_noise.data() + r * kTile);
      });
    }
  }
  return {fold_lanes(weight), shift};
}

template <class T>
RC_INLINE void zero_gradients(const HeteroscedasticProblem<T>& p, int64_t row) {
  std::fill_n(p.grad_mean + row * p.classes, p.classes, T(0));
  std::fill_n(p.grad_diagonal + row * p.classes, p.classes, T(0));
  std::fill_n(p.grad_low_rank + row * p.classes * p.rank, p.classes * p.rank, T(0));
}

template <bool kGradients, class T>
RC_TARGET_CLONES void loss_rows(const HeteroscedasticProblem<T>& p, int64_t begin, int64_t end) {
  Scratch<T> scratch(p);
  const RandomKey key = random_key(p.seed);
  const T incoming = T(1) / *p.denominator;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t target = p.target[row];
    if (target == p.ignore_index) {
      p.row_loss[row] = p.row_slope[row] = T(0);
      if (kGradients) zero_gradients(p, row);
      continue;
    }
    const LabelProbability<T> q = label_probability<kGradients>(p, key, row, target, scratch);
    const T own = p.class_weight ? p.class_weight[target] : T(1);
    T loss = -(q.shift + logarithm(q.weight / static_cast<T>(p.samples)));
    const bool floored = loss > p.maximum_loss;
    loss = floored ? p.maximum_loss : loss;
    p.row_loss[row] = own * loss;
    p.row_slope[row] = p.row_loss[row] * incoming;
    if constexpr (!kGradients) continue;
    if (floored) {
      zero_gradients(p, row);
      continue;
    }
    const T scale = own * (p.sample_weight ? p.sample_weight[row] : T(1)) * incoming *
                    p.inverse_temperature / q.weight;
    for (int64_t c = 0; c < p.classes; ++c) {
      const T* sums = scratch.sums.data() + c * (p.rank + 2) * kLanes;
      const int64_t place = row * p.classes + c;
      p.grad_mean[place] = scale * fold_lanes(sums);
      p.grad_diagonal[place] = scale * fold_lanes(sums + kLanes);
      for (int64_t r = 0; r < p.rank; ++r) {
        p.grad_low_rank[place * p.rank + r] = scale * fold_lanes(sums + (r + 2) * kLanes);
      }
    }
  }
}

// log of the mean probability of every class, each relative to its own largest sample.
template <class T>
RC_TARGET_CLONES void log_probability_rows(const HeteroscedasticProblem<T>& p, int64_t begin,
                                           int64_t end) {
  Scratch<T> scratch(p);
  const RandomKey key = random_key(p.seed);
  for (int64_t row = begin; row < end; ++row) {
    std::fill(scratch.sums.begin(), scratch.sums.end(), T(0));
    std::fill(scratch.shift.begin(), scratch.shift.end(), -kInfinity<T>);
    for (int64_t first = 0; first < p.samples; first += kTile) {
      T lse[kTile], total[kTile];
      sample_logits(p, key, row, static_cast<uint32_t>(first / 4), scratch, lse);
      exponentiate(p, scratch, lse, total, true);
      for (int l = 0; l < kTile; ++l) {
        lse[l] = sample_of(first, l) < p.samples ? lse[l] + logarithm(total[l]) : kInfinity<T>;
      }
      for (int64_t c = 0; c < p.classes; ++c) {
        T* RC_RESTRICT u = scratch.logits.data() + c * kTile;
        T* RC_RESTRICT sums = scratch.sums.data() + c * kLanes;
        T best[kLanes];
        RC_SIMD for (int l = 0; l < kTile; ++l) u[l] -= lse[l];
        RC_SIMD for (int l = 0; l < kLanes; ++l) {
          const T a = u[l] > u[kLanes + l] ? u[l] : u[kLanes + l];
          const T b = u[2 * kLanes + l] > u[3 * kLanes + l] ? u[2 * kLanes + l] : u[3 * kLanes + l];
          best[l] = a > b ? a : b;
        }
        T largest = scratch.shift[c];
        for (int l = 0; l < kLanes; ++l) largest = best[l] > largest ? best[l] : largest;
        if (largest > scratch.shift[c]) {
          const T rescale = exponential(scratch.shift[c] - largest);
          RC_SIMD for (int l = 0; l < kLanes; ++l) sums[l] *= rescale;
          scratch.shift[c] = largest;
        }
        const T origin = largest == -kInfinity<T> ? T(0) : largest;
        RC_SIMD for (int l = 0; l < kLanes; ++l) {
          sums[l] += (exponential(u[l] - origin) + exponential(u[kLanes + l] - origin)) +
                     (exponential(u[2 * kLanes + l] - origin) +
                      exponential(u[3 * kLanes + l] - origin));
        }
      }
    }
    for (int64_t c = 0; c < p.classes; ++c) {
      const T total = fold_lanes(scratch.sums.data() + c * kLanes) / static_cast<T>(p.samples);
      const T shift = scratch.shift[c] == -kInfinity<T> ? T(0) : scratch.shift[c];
      p.log_probability[row * p.classes + c] = shift + logarithm(total);
    }
  }
}

}  // namespace robustcore::heteroscedastic_cpu
