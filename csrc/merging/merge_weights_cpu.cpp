#include <atomic>

#include "common/parallel.h"
#include "merging/merge_weights.h"
#include "merging/merge_weights_op.h"

namespace robustcore {
namespace {

// Parameters whose task vectors a thread has in its cache at a time.
constexpr int64_t kStrip = 512;
// Parameters whose sums stay in registers or at least in the nearest cache.
constexpr int64_t kGroup = 64;
static_assert(kMergeBlock % kStrip == 0 && kStrip % kGroup == 0 && kStrip % 4 == 0);

template <class Acc>
struct Scratch {
  std::vector<Acc> tasks;  // [tasks, kStrip]: s_t
  Acc base[kStrip];
  Acc merged[kStrip];
  Acc sign[kStrip];
  uint32_t random[kStrip + 8];

  explicit Scratch(int64_t count) : tasks(static_cast<size_t>(count * kStrip)) {}
  Acc* task(int64_t t) { return tasks.data() + t * kStrip; }
};

template <class Acc>
RC_INLINE int64_t count_nonfinite(const Acc* values, int64_t count) {
  int32_t found = 0;  // vectorises better than a wide one
  for (int64_t i = 0; i < count; ++i) found += is_finite(values[i]) ? 0 : 1;
  return found;
}

template <class Acc>
RC_INLINE void subtract(const Acc* base, int64_t count, Acc* values) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) values[i] = values[i] - base[i];
}

// `low_tie`, `high_tie` count on.
template <class Acc>
RC_INLINE void keep_ties(const MagnitudeWindow& window, int64_t& low_tie, int64_t& high_tie,
                         int64_t count, Acc* values) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = magnitude_key(values[i]);
    if (!window.keeps(key, low_tie, high_tie)) values[i] = Acc(0);
    low_tie += key == window.low;
    high_tie += key == window.high;
  }
}

template <class Acc>
RC_INLINE void keep_between(uint32_t least, uint32_t most, int64_t count, Acc* values) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = magnitude_key(values[i]);
    values[i] = (key >= least) & (key <= most) ? values[i] : Acc(0);
  }
}

template <class Acc>
RC_INLINE void keep_window(const MagnitudeWindow& window, int64_t& low_tie, int64_t& high_tie,
                           int64_t count, Acc* values) {
  if (!window.counts_ties()) {  // and no ties of `high` are skipped
    const uint32_t least = window.low_ties > 0 ? window.low : window.low + 1;
    return keep_between(least, window.high, count, values);
  }
  const uint32_t low = window.low, high = window.high;
  // Most groups have no tie.
  for (int64_t first = 0; first < count; first += kGroup) {
    Acc* const group = values + first;
    const int64_t size = std::min(kGroup, count - first);
    uint32_t ties = 0;
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t key = magnitude_key(group[i]);
      ties |= static_cast<uint32_t>(key == low) | static_cast<uint32_t>(key == high);
    }
    if (ties) {
      keep_ties(window, low_tie, high_tie, size, group);
    } else {
      keep_between(low, high, size, group);
    }
  }
}

template <class Acc>
RC_INLINE void drop_at_random(const TaskOptions& task, RandomKey key, int number, int64_t flat,
                              int64_t count, uint32_t* words, Acc* values) {
  const int64_t quad = flat / 4, skipped = flat % 4, quads = (skipped + count + 3) / 4;
  RC_SIMD for (int64_t q = 0; q < quads; ++q) {
    const RandomWords four = drop_words(key, quad + q, number);
    words[4 * q] = four.x;
    words[4 * q + 1] = four.y;
    words[4 * q + 2] = four.z;
    words[4 * q + 3] = four.w;
  }
  RC_SIMD for (int64_t i = 0; i < count; ++i) {
    values[i] = words[skipped + i] < task.keep_below ? values[i] : Acc(0);
  }
}

// Groups may reach past `count`, into what the scratch held before.
template <Election kElection, class Acc>
RC_INLINE void vote(const TaskOptions* tasks, int64_t task_count, int64_t count, int zero_sign,
                    Scratch<Acc>& scratch, int64_t* counters) {
  int32_t positive = 0, negative = 0, cancelled = 0;
  for (int64_t first = 0; first < count; first += kGroup) {
    Acc votes[kGroup] = {}, say[kGroup] = {};  // say: not 0 where some task has one
    for (int64_t t = 0; t < task_count; ++t) {
      const Acc weight = static_cast<Acc>(tasks[t].weight);
      const Acc* const s = scratch.task(t) + first;
      RC_SIMD for (int64_t i = 0; i < kGroup; ++i) {
        votes[i] += vote_of(kElection, s[i], weight);
        say[i] += magnitude(s[i]);
      }
    }
    const int64_t size = std::min(kGroup, count - first);
    for (int64_t i = 0; i < size; ++i) {
      positive += votes[i] > Acc(0) ? 1 : 0;
      negative += votes[i] < Acc(0) ? 1 : 0;
      cancelled += (votes[i] == Acc(0)) & (say[i] != Acc(0)) ? 1 : 0;
    }
    Acc* const sign = scratch.sign + first;
    RC_SIMD for (int64_t i = 0; i < kGroup; ++i) {
      sign[i] = elected_sign(votes[i], say[i] != Acc(0), zero_sign);
    }
  }
  counters[kPositiveVotes] += positive;
  counters[kNegativeVotes] += negative;
  counters[kCancelled] += cancelled;
}

// Where there is no election everything takes part.
template <Reduction kReduction, bool kElected, class Acc>
RC_INLINE void reduce(const TaskOptions* tasks, int64_t task_count, int64_t count,
                      Scratch<Acc>& scratch) {
  for (int64_t first = 0; first < count; first += kGroup) {
    Acc total[kGroup] = {}, divisor[kGroup] = {};
    const Acc* const sign = scratch.sign + first;
    for (int64_t t = 0; t < task_count; ++t) {
      const Acc weight = static_cast<Acc>(tasks[t].weight);
      const Acc* const s = scratch.task(t) + first;
      RC_SIMD for (int64_t i = 0; i < kGroup; ++i) {
        const bool takes_part = !kElected || s[i] * sign[i] > Acc(0);
        total[i] = next_total(kReduction, total[i], s[i], weight, takes_part);
        if (is_divided(kReduction)) {
          divisor[i] = next_divisor(kReduction, divisor[i], s[i], weight, takes_part);
        }
      }
    }
    Acc* const merged = scratch.merged + first;
    RC_SIMD for (int64_t i = 0; i < kGroup; ++i) {
      merged[i] = is_divided(kReduction) ? divided(kReduction, total[i], divisor[i]) : total[i];
    }
  }
}

template <Reduction kReduction, class Acc>
RC_INLINE void reduce(bool elected, const TaskOptions* tasks, int64_t task_count, int64_t count,
                      Scratch<Acc>& scratch) {
  if (elected) return reduce<kReduction, true>(tasks, task_count, count, scratch);
  return reduce<kReduction, false>(tasks, task_count, count, scratch);
}

// Zero where fewer than `least` masks keep.
template <class Acc>
RC_INLINE void keep_consensus(const MergeMethod& method, const TaskOptions* tasks,
                              int64_t task_count, int64_t first, int64_t count,
                              Scratch<Acc>& scratch) {
  Acc theta[kStrip];
  int32_t kept[kStrip] = {};
  const Acc* const base = scratch.base;
  Acc* const merged = scratch.merged;
  for (int64_t t = 0; t < task_count; ++t) {
    const Acc lambda = static_cast<Acc>(method.lambdas[t]);
    read_weights(tasks[t].weights, first, count, theta);
    if (tasks[t].is_vector) {
      RC_SIMD for (int64_t i = 0; i < count; ++i) theta[i] = base[i] + theta[i];
    }
    if (method.strict) {
      RC_SIMD for (int64_t i = 0; i < count; ++i) {
        const Acc own = magnitude(base[i] - theta[i]);
        kept[i] += keeps<true>(own, magnitude((base[i] + merged[i]) - theta[i]), lambda);
      }
    } else {
      RC_SIMD for (int64_t i = 0; i < count; ++i) {
        const Acc own = magnitude(base[i] - theta[i]);
        kept[i] += keeps<false>(own, magnitude((base[i] + merged[i]) - theta[i]), lambda);
      }
    }
  }
  RC_SIMD for (int64_t i = 0; i < count; ++i) {
    merged[i] = kept[i] >= method.least ? merged[i] : Acc(0);
  }
}

// Parameters of one block of a slice; `counters` add up.
template <class Acc>
RC_TARGET_CLONES void merge_block(const MergeMethod& method, const MergeSlice& slice,
                                  const TaskOptions* tasks, int64_t task_count, int64_t block,
                                  int64_t* ties, Scratch<Acc>& scratch, int64_t* counters) {
  const int64_t begin = block * kMergeBlock;
  const int64_t end = std::min(slice.parameters, begin + kMergeBlock);
  const RandomKey key = random_key(method.seed);
  const Acc base_factor = static_cast<Acc>(slice.base_factor);
  const Acc scale = static_cast<Acc>(slice.scale);
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t count = std::min(kStrip, end - first);
    read_weights(slice.base, first, count, scratch.base);
    counters[kNonfiniteBase] += count_nonfinite(scratch.base, count);
    for (int64_t t = 0; t < task_count; ++t) {
      const TaskOptions& task = tasks[t];
      Acc* const s = scratch.task(t);
      read_weights(task.weights, first, count, s);
      if (!task.is_vector) subtract(scratch.base, count, s);
      counters[kNonfiniteTask] += count_nonfinite(s, count);
      if (task.has_window) {
        keep_window(task.window, ties[2 * t], ties[2 * t + 1], count, s);
      }
      if (task.drops) {
        drop_at_random(task, key, static_cast<int>(t), slice.flat_start + first, count,
                       scratch.random, s);
      }
      if (task.rescale != 1) {
        const Acc rescale = static_cast<Acc>(task.rescale);
        RC_SIMD for (int64_t i = 0; i < count; ++i) s[i] = rounded_product(rescale, s[i]);
      }
    }
    switch (method.election) {
      case Election::kNone:
        break;
      case Election::kSum:
        vote<Election::kSum>(tasks, task_count, count, method.zero_sign, scratch, counters);
        break;
      case Election::kWeightedSum:
        vote<Election::kWeightedSum>(tasks, task_count, count, method.zero_sign, scratch,
                                     counters);
        break;
      case Election::kCount:
        vote<Election::kCount>(tasks, task_count, count, method.zero_sign, scratch, counters);
        break;
    }
    const bool elected = method.election != Election::kNone;
    switch (method.reduction) {
      case Reduction::kSum:
        reduce<Reduction::kSum>(elected, tasks, task_count, count, scratch);
        break;
      case Reduction::kMean:
        reduce<Reduction::kMean>(elected, tasks, task_count, count, scratch);
        break;
      case Reduction::kWeightedMean:
        reduce<Reduction::kWeightedMean>(elected, tasks, task_count, count, scratch);
        break;
      case Reduction::kLargest:
        reduce<Reduction::kLargest>(elected, tasks, task_count, count, scratch);
        break;
    }
    if (method.lambdas) keep_consensus(method, tasks, task_count, first, count, scratch);
    Acc* const result = scratch.merged;
    if (method.zero_sign == kMarkCancelled && elected) {
      RC_SIMD for (int64_t i = 0; i < count; ++i) {
        result[i] = scratch.sign[i] == scratch.sign[i] ? result[i] : scratch.sign[i];
      }
    }
    RC_SIMD for (int64_t i = 0; i < count; ++i) {
      result[i] = merged_weight(scratch.base[i], base_factor, scale, result[i]);
    }
    write_weights(result, first, count, slice.out, slice.out_type);
    // What was written, which may overflow where the result did not.
    read_weights(StoredWeights{slice.out, slice.out_type}, first, count, result);
    counters[kNonfiniteResult] += count_nonfinite(result, count);
  }
}

template <class Acc>
void merge_slice(const MergeMethod& method, const MergeSlice& slice, const TaskOptions* tasks,
                 int64_t task_count, std::atomic<int64_t>* totals) {
  parallel_rows(merge_blocks(slice.parameters), kMergeBlock * (task_count + 1),
                [&](int64_t begin, int64_t end) {
                  Scratch<Acc> scratch(task_count);
                  std::vector<int64_t> ties(2 * task_count);
                  int64_t counters[kMergeCounters] = {};
                  for (int64_t block = begin; block < end; ++block) {
                    if (slice.ties_before) {
                      std::copy_n(slice.ties_before + block * 2 * task_count, 2 * task_count,
                                  ties.begin());
                    }
                    merge_block<Acc>(method, slice, tasks, task_count, block, ties.data(), scratch,
                                     counters);
                  }
                  for (int i = 0; i < kMergeCounters; ++i) totals[i] += counters[i];
                });
}

Tensor merge_weights(std::vector<Tensor> out, std::vector<Tensor> base,
                     std::vector<Tensor> finetuned, const Tensor& rescale, const Tensor& weights,
                     const Tensor& scales, std::vector<int64_t> vectors,
                     const std::optional<Tensor>& windows,
                     const std::optional<Tensor>& ties_before, std::vector<double> densities,
                     int64_t seed, std::vector<int64_t> flat_starts, int64_t election,
                     int64_t reduction, int64_t zero_sign, std::vector<double> lambdas,
                     int64_t least, bool strict) {
  const MergeArguments a(out, base, finetuned, rescale, weights, scales, vectors, windows,
                         ties_before, densities, seed, flat_starts, election, reduction, zero_sign,
                         lambdas, least, strict);
  Tensor counters = fresh(rescale, {a.pieces(), kMergeCounters}, ScalarType::Long);
  for (int64_t piece = 0; piece < a.pieces(); ++piece) {
    std::atomic<int64_t> totals[kMergeCounters] = {};
    if (a.is_double(piece)) {
      merge_slice<double>(a.method(), a.slice(piece), a.tasks(piece), a.task_count(), totals);
    } else {
      merge_slice<float>(a.method(), a.slice(piece), a.tasks(piece), a.task_count(), totals);
    }
    std::copy_n(totals, kMergeCounters,
                write_pointer<int64_t>(counters) + piece * kMergeCounters);
  }
  return counters;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("merge_weights_", TORCH_BOX(&robustcore::merge_weights));
}
