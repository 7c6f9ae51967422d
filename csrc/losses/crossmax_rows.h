// CPU kernels of crossmax. A sample's logits are read from memory once; its classes are then
// handled kLanes at a time, a tile of all members that stays in cache.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "losses/crossmax.h"

namespace robustcore::crossmax_cpu {

template <class Acc>
constexpr int kLanes = sizeof(Acc) == 8 ? 8 : 16;

// Integers as wide as the values: comparisons then select both alike.
template <class Acc>
using Index = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// As torch.argmax: the first NaN, or else the first of equal maxima.
template <class T, class Acc = accumulate_t<T>>
RC_INLINE int64_t first_maximum(const T* row, int64_t classes) {
  constexpr Acc kLowest = -std::numeric_limits<Acc>::infinity();
  Acc largest = kLowest;
  int32_t has_nan = 0;
#pragma omp simd reduction(max : largest) reduction(| : has_nan)
  for (int64_t c = 0; c < classes; ++c) {
    const Acc value = to_accumulate(row[c]);
    largest = value > largest ? value : largest;
    has_nan |= value != value ? 1 : 0;
  }
  constexpr int64_t kBlock = 64;
  for (int64_t block = 0; block < classes; block += kBlock) {
    const int64_t end = block + kBlock < classes ? block + kBlock : classes;
    int32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t c = block; c < end; ++c) {
      const Acc value = to_accumulate(row[c]);
      found |= (has_nan ? value != value : value == largest) ? 1 : 0;
    }
    if (!found) continue;
    for (int64_t c = block; c < end; ++c) {
      const Acc value = to_accumulate(row[c]);
      if (has_nan ? value != value : value == largest) return c;
    }
  }
  return 0;
}

// The first k of a tile's members in descending order, kept sorted while they come in.
template <class Acc>
struct Leaders {
  static constexpr int L = kLanes<Acc>;
  int64_t k;
  std::vector<Acc> value;          // [k, L]
  std::vector<Index<Acc>> member;  // [k, L]

  explicit Leaders(int64_t count) : k(count), value(count * L), member(count * L) {}

  RC_INLINE void insert(int64_t i, Acc*
  RC_RESTRICT x) {
    Acc* RC_RESTRICT values = value.data();
    Index<Acc>* RC_RESTRICT members = member.data();
    Index<Acc> own[L], moved[L] = {};
    RC_SIMD for (int l = 0; l < L; ++l) own[l] = static_cast<Index<Acc>>(i);
    const int64_t filled = i < k ? i : k;
    for (int64_t j = 0; j < filled; ++j) {
      RC_SIMD for (int l = 0; l < L; ++l) {
        const Acc there = values[j * L + l];
        const Index<Acc> who = members[j * L + l];
        // What was displaced goes before its equals further down: it came in earlier.
        moved[l] |= ranks_above(x[l], there) ? 1 : 0;
        const bool above = moved[l] != 0;
        values[j * L + l] = above ? x[l] : there;
        members[j * L + l] = above ? own[l] : who;
        x[l] = above ? there : x[l];
        own[l] = above ? who : own[l];
      }
    }
    if (i >= k) return;
    RC_SIMD for (int l = 0; l < L; ++l) {
      values[i * L + l] = x[l];
      members[i * L + l] = own[l];
    }
  }
};

// kLanes classes from c on, of which `count` exist.
template <bool kWhole, class T, class Acc = accumulate_t<T>>
RC_INLINE void forward_tile(const CrossMaxProblem<T>& p, int64_t b, int64_t c, int count,
                            const Acc* shifts, Leaders<Acc>& leaders) {
  constexpr int L = kLanes<Acc>;
  constexpr Acc kLowest = -std::numeric_limits<Acc>::infinity();
  const T* logits = p.logits + b * p.members * p.classes + c;
  for (int64_t i = 0; i < p.members; ++i) {
    Acc x[L];
    const T* row = logits + i * p.classes;
    const Acc shift = shifts[i];
    if constexpr (kWhole) {
      RC_SIMD for (int l = 0; l < L; ++l) x[l] = to_accumulate(row[l]) - shift;
    } else {
      for (int l = 0; l < L; ++l) x[l] = l < count ? to_accumulate(row[l]) - shift : kLowest;
    }
    leaders.insert(i, x);
  }
  const Acc* first = leaders.value.data();
  const Acc* last = first + (p.k - 1) * L;
  const Index<Acc>* first_member = leaders.member.data();
  const Index<Acc>* last_member = first_member + (p.k - 1) * L;
  const int64_t offset = b * p.classes + c;
  const int lanes = kWhole ? L : count;
  RC_SIMD for (int l = 0; l < lanes; ++l) {
    const bool masked = is_lowest(first[l]);
    p.result[offset + l] = from_accumulate<T>(last[l] - maximum_or_zero(first[l]));
    p.largest[offset + l] = static_cast<int16_t>(first_member[l]);
    p.kth[offset + l] = static_cast<int16_t>(masked ? first_member[l] : last_member[l]);
  }
}

// Samples [begin, end).
template <class T>
RC_TARGET_CLONES void forward_samples(const CrossMaxProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  constexpr int L = kLanes<Acc>;
  std::vector<Acc> shifts(p.members);
  Leaders<Acc> leaders(p.k);
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t i = 0; i < p.members; ++i) {
      const T* row = p.logits + (b * p.members + i) * p.classes;
      const int64_t top = first_maximum(row, p.classes);
      const Acc maximum = to_accumulate(row[top]);
      p.tops[b * p.members + i] = is_lowest(maximum) ? -1 : top;
      shifts[i] = maximum_or_zero(maximum);
    }
    int64_t c = 0;
    for (; c + L <= p.classes; c += L) forward_tile<true>(p, b, c, L, shifts.data(), leaders);
    const int rest = static_cast<int>(p.classes - c);
    if (rest > 0) forward_tile<false>(p, b, c, rest, shifts.data(), leaders);
  }
}

template <class T>
RC_TARGET_CLONES void backward_samples(const CrossMaxProblem<T>& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  constexpr int L = kLanes<Acc>;
  const int64_t whole = p.classes - p.classes % L;
  for (int64_t b = begin; b < end; ++b) {
    const T* incoming = p.grad_result + b * p.classes;
    const int16_t* kth = p.kth + b * p.classes;
    const int16_t* largest = p.largest + b * p.classes;
    for (int64_t i = 0; i < p.members; ++i) {
      T* grad = p.grad + (b * p.members + i) * p.classes;
      const auto member = static_cast<int16_t>(i);
      const auto part = [&](int64_t c) RC_INLINE_LAMBDA {
        const Acc g = to_accumulate(incoming[c]);
        return (kth[c] == member ? g : Acc(0)) - (largest[c] == member ? g : Acc(0));
      };
      Acc sum[L] = {};
      for (int64_t c = 0; c < whole; c += L) {
        RC_SIMD for (int l = 0; l < L; ++l) {
          const Acc value = part(c + l);
          grad[c + l] = from_accumulate<T>(value);
          sum[l] += value;
        }
      }
      double total = 0;
      for (int l = 0; l < L; ++l) total += static_cast<double>(sum[l]);
      for (int64_t c = whole; c < p.classes; ++c) {
        const Acc value = part(c);
        grad[c] = from_accumulate<T>(value);
        total += static_cast<double>(value);
      }
      // All classes of a member lose what its maximum gains.
      const int64_t top = p.tops[b * p.members + i];
      if (top < 0) continue;
      grad[top] = from_accumulate<T>(part(top) - static_cast<Acc>(total));
    }
  }
}

}  // namespace robustcore::crossmax_cpu
