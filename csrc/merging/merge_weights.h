// Merging of task vectors: the mathematics of one parameter. Host and device, no torch.
//
//   tau_t = theta_t - theta_0                        (or theta_t itself where it is a task vector)
//   s_t = rescale_t tau_t  where tau_t stays, else 0 (magnitude window, random drop)
//   v = sum_t w_t s_t                                over all t, or over those that agree with an
//                                                    elected sign, divided as the reduction says
//   v = v  where at least k tasks keep the parameter, else 0       (Consensus of TALL-masks)
//   out = base_factor theta_0 + scale v
//
// in this order, one task after the other, every operation rounded by itself: the bits are part of
// the contract and the same for every device, thread count and cut into slices.
#pragma once

#include <cstdint>
#include <limits>

#include "common/choose.h"
#include "common/random.h"
#include "merging/magnitudes.h"
#include "merging/storage.h"
#include "merging/tall_masks.h"

namespace robustcore {

// Whose sign the others have to agree with: that of the sum of s_t, of w_t s_t, or of their signs.
enum class Election : int { kNone, kSum, kWeightedSum, kCount };

// What becomes of the terms w_t s_t that take part (all of them where there is no election).
enum class Reduction : int {
  kSum,
  kMean,          // divided by the number of nonzero terms
  kWeightedMean,  // divided by the sum of their weights; by 1 where that is below 1e-8
  kLargest,       // the one of largest magnitude
};

// A task's part in one tensor.
struct TaskOptions {
  StoredWeights weights;
  MagnitudeWindow window;
  double rescale = 1;
  double weight = 1;
  bool is_vector = false;
  bool has_window = false;
  bool drops = false;       // at random
  uint32_t keep_below = 0;  // random words below this keep
};

// One slice of a tensor.
struct MergeSlice {
  StoredWeights base;
  void* out;
  Storage out_type;
  int64_t parameters;
  int64_t flat_start;  // flat index of its first parameter: what random drops are a function of
  const int64_t* ties_before;  // [blocks, tasks, 2], or null where no window counts ties
  double base_factor;
  double scale;
};

constexpr int kMarkCancelled = 2;

struct MergeMethod {
  Election election;
  Reduction reduction;
  // What is elected where votes cancel out: -1, 0 or 1; or kMarkCancelled: nobody yet, the result
  // is NaN where some task has a say, and the caller decides.
  int zero_sign;
  uint64_t seed;
  // Consensus: a parameter is kept by `least` masks of these lambdas; null for none.
  const double* lambdas;
  int least;
  bool strict;
};

// What a merge reports, as positions of its counters.
enum MergeCounter : int {
  kNonfiniteBase,
  kNonfiniteTask,    // differences
  kNonfiniteResult,  // as written
  kCancelled,        // parameters whose votes cancel out though some task has a say
  kPositiveVotes,    // elected signs
  kNegativeVotes,
  kMergeCounters,
};

template <class Acc>
RC_INLINE bool is_finite(Acc x) {
  return x - x == Acc(0);
}

template <class Acc>
RC_INLINE Acc sign_of(Acc x) {
  return static_cast<Acc>(x > Acc(0)) - static_cast<Acc>(x < Acc(0));
}

// The counter of random numbers for four parameters in flat order. `kDropStream` keeps it apart
// from what else draws numbers from one seed.
constexpr uint32_t kDropStream = 0x64726f70u;

RC_INLINE RandomWords drop_words(RandomKey key, int64_t quad, int task) {
  return philox<kPhiloxRounds>(
      key, {static_cast<uint32_t>(quad), static_cast<uint32_t>(static_cast<uint64_t>(quad) >> 32),
            static_cast<uint32_t>(task), kDropStream});
}

template <class Acc>
RC_INLINE Acc vote_of(Election election, Acc s, Acc weight) {
  if (election == Election::kWeightedSum) return rounded_product(weight, s);
  if (election == Election::kCount) return sign_of(s);
  return s;
}

// Of votes that add up to this. NaN, with which nobody agrees, where the caller decides.
template <class Acc>
RC_INLINE Acc elected_sign(Acc votes, bool some_say, int zero_sign) {
  const Acc mark = some_say ? std::numeric_limits<Acc>::quiet_NaN() : Acc(0);
  const Acc otherwise = zero_sign == kMarkCancelled ? mark : static_cast<Acc>(zero_sign);
  const Acc sign = sign_of(votes);
  return votes == Acc(0) ? otherwise : sign;
}

// What a parameter's terms come to, one after the other, from a total and a divisor of 0. Values in
// and out: loops over these functions vectorise, loops over an object do not.
template <class Acc>
RC_INLINE Acc next_total(Reduction reduction, Acc total, Acc s, Acc weight, bool takes_part) {
  const Acc term = choose(takes_part, rounded_product(weight, s), Acc(0));
  if (reduction != Reduction::kLargest) return total + term;
  return magnitude(term) > magnitude(total) ? term : total;
}

template <class Acc>
RC_INLINE Acc next_divisor(Reduction reduction, Acc divisor, Acc s, Acc weight, bool takes_part) {
  const Acc share = reduction == Reduction::kMean ? Acc(1) : weight;
  return divisor + choose(takes_part & (s != Acc(0)), share, Acc(0));
}

RC_INLINE bool is_divided(Reduction reduction) {
  return reduction == Reduction::kMean || reduction == Reduction::kWeightedMean;
}

template <class Acc>
RC_INLINE Acc divided(Reduction reduction, Acc total, Acc divisor) {
  const Acc least = reduction == Reduction::kMean ? Acc(1) : Acc(1e-8);
  return total / choose(magnitude(divisor) < least, Acc(1), divisor);
}

// theta_0 itself, bit for bit, where nothing is added to it.
template <class Acc>
RC_INLINE Acc merged_weight(Acc base, Acc base_factor, Acc scale, Acc v) {
  const Acc change = rounded_product(scale, v);
  if (base_factor == Acc(0)) return change;
  const Acc scaled = base_factor == Acc(1) ? base : rounded_product(base_factor, base);
  return change == Acc(0) ? scaled : scaled + change;
}

}  // namespace robustcore
