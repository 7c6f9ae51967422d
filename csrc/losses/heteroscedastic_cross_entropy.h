// Heteroscedastic classification (HET: Collier et al., arXiv 2105.10305): the problem that the
// kernels solve, and which random number belongs where. Host and device, no torch.
//
//   u_s = mean + V a_s + d * b_s,  p = mean over s of softmax(u_s / temperature),
//   loss = -log max(p_y, minimum)
//
// a_s [rank], b_s [classes] standard normal. With q_s = softmax(u_s / temperature) and
// w_s = q_s[y] / sum_s q_s[y]:
//
//   d loss / d u_s[k] = w_s (q_s[k] - [k = y]) / temperature
//
// so one pass over the samples yields the loss and the sums over s that the gradients are,
// (sum_s of this, this times a_s, this times b_s), up to the factor 1 / sum_s q_s[y].
#pragma once

#include <cstdint>

#include "common/random.h"
#include "losses/row_problem.h"

namespace robustcore {

// T: float or double, the type of everything here; noise is made in float and widened, so that both
// see the same numbers. A null pointer means "not given" or "not wanted". Everything is contiguous.
template <class T>
struct HeteroscedasticProblem {
  const T* mean;      // [rows, classes]
  const T* low_rank;  // [rows, classes, rank]
  const T* diagonal;  // [rows, classes]
  int64_t rows;
  int64_t classes;
  int64_t rank;
  int64_t samples;
  T inverse_temperature;
  uint64_t seed;
  const int64_t* device_seed;  // [1]: where it is not null it counts instead

  // The loss; target is null where only log_probability is wanted.
  const int64_t* target;   // [rows]
  const T* class_weight;   // [classes] or null
  const T* sample_weight;  // [rows] or null
  int64_t ignore_index;
  T maximum_loss;  // -log(minimum)
  Reduction reduction;
  T* loss;         // [1], or [rows] without reduction
  T* row_loss;     // [rows], before the sample weight
  T* row_slope;    // [rows], the derivative of loss (or loss[row]) for the sample weight
  T* denominator;  // [1]: what "mean" divides by, 1 otherwise

  // Gradients of loss (or of loss[row]).
  T* grad_mean;      // [rows, classes] or null: then none of the three
  T* grad_low_rank;  // [rows, classes, rank]
  T* grad_diagonal;  // [rows, classes]

  T* log_probability;  // [rows, classes]: log p
};

// Samples come in fours, one counter each. `quad` is sample / 4.
RC_INLINE NormalQuad class_noise(RandomKey key, int64_t row, uint32_t quad, int64_t c) {
  const uint64_t place = static_cast<uint64_t>(row);
  return normal_quad(key, {static_cast<uint32_t>(c), quad, static_cast<uint32_t>(place),
                           static_cast<uint32_t>(place >> 32)});
}

RC_INLINE NormalQuad rank_noise(RandomKey key, int64_t row, uint32_t quad, int64_t r) {
  return class_noise(key, row, quad | 0x80000000u, r);
}

}  // namespace robustcore
