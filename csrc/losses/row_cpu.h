// One row of classes on the CPU: sums, maxima, softmax and element-wise writes, vectorised over the
// classes. What a program of a loss does with a row is written with these; row_cuda.cuh offers the
// same.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/exp.h"
#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore::row_cpu {

// Elements that are handled together. Sums are kept per lane and added in a fixed order at the end,
// so that they do not depend on the instruction set's width.
template <class Acc>
constexpr int kLanes = sizeof(Acc) == 8 ? 8 : 16;

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

// Folds the lanes pairwise: a fixed order, and a short chain of dependent operations.
template <class Acc, class Fold>
RC_INLINE Acc fold_lanes(const Acc* lanes, Fold&& fold) {
  Acc folded[kLanes<Acc>];
  RC_SIMD for (int l = 0; l < kLanes<Acc>; ++l) folded[l] = lanes[l];
  for (int width = kLanes<Acc> / 2; width > 0; width /= 2) {
    RC_SIMD for (int l = 0; l < width; ++l) folded[l] = fold(folded[l], folded[l + width]);
  }
  return folded[0];
}

template <class Acc>
RC_INLINE Acc sum_lanes(const Acc* lanes) {
  return fold_lanes(lanes, [](Acc a, Acc b) RC_INLINE_LAMBDA { return a + b; });
}

template <class Acc>
RC_INLINE Acc max_lanes(const Acc* lanes) {
  return fold_lanes(lanes, [](Acc a, Acc b) RC_INLINE_LAMBDA { return a > b ? a : b; });
}

template <class Acc>
using LaneBits = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// kLanes zeros, kLanes times all ones, kLanes zeros: a window of it keeps the lanes from some lane on,
// or those before one.
template <class Acc>
inline constexpr auto kLaneBits = [] {
  std::array<LaneBits<Acc>, 3 * kLanes<Acc>> bits{};
  for (int l = kLanes<Acc>; l < 2 * kLanes<Acc>; ++l) bits[l] = -1;
  return bits;
}();

// Which lanes of a group count: all of them, or those whose bits a mask keeps. Bits rather than a
// condition: from a condition the compiler makes branches, and scalar code.
template <class Acc>
struct EveryLane {
  RC_INLINE Acc keep(int, Acc value) const { return value; }
};

template <class Acc>
struct SomeLanes {
  const LaneBits<Acc>* bits;

  static RC_INLINE SomeLanes from(int lane) {
    return {kLaneBits<Acc>.data() + kLanes<Acc> - lane};
  }
  static RC_INLINE SomeLanes before(int lane) {
    return {kLaneBits<Acc>.data() + 2 * kLanes<Acc> - lane};
  }
  RC_INLINE Acc keep(int lane, Acc value) const {
    return detail::bit_cast<Acc>(detail::bit_cast<LaneBits<Acc>>(value) & bits[lane]);
  }
};

// Where the lanes of a group lie: side by side, or (a row shorter than a group) with the last class
// repeated, so that no lane holds a value that the row does not.
struct Consecutive {
  int64_t first;
  RC_INLINE int64_t at(int lane) const { return first + lane; }
};
struct Repeated {
  int last;
  RC_INLINE int64_t at(int lane) const { return lane < last ? lane : last; }
};

// What a softmax leaves behind. `exponential` gives exp(h - maximum) of a class: here it is the value
// of the stream `cached`, on CUDA it is computed again from the values of the other streams.
template <class Acc, int kWeighted>
struct Softmax {
  Acc maximum;
  Acc total;                         // sum exp(h - maximum)
  Values<Acc, kWeighted> weighted;   // sum exp(h - maximum) weight_k
  MatrixRow<Acc> cached;

  RC_INLINE Acc lse() const { return maximum + logarithm(total); }
  template <class... In>
  RC_INLINE Acc exponential(Acc from_cache, const In&...) const {
    return from_cache;
  }
};

// Calls f(integral_constant<int, k>) for k = 0 .. kCount - 1.
template <int kCount, class F>
RC_INLINE void unrolled(F&& f) {
  [&]<int... k>(std::integer_sequence<int, k...>) RC_INLINE_LAMBDA {
    (f(std::integral_constant<int, k>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// A row whose classes do not fill the last group ends with a group that begins with lanes that the
// group before it counted already: visiting a class twice costs less than handling the rest one by one.
template <class Acc>
class Row {
 public:
  static constexpr int kWhole = kLanes<Acc>;

  const int64_t classes;
  // Rows of the wide type for what a program keeps between walks; null where nothing is to be kept.
  // A cache may be the row of a gradient that is written later.
  Acc* const* caches;
  Acc* scratch;  // for materialized()

  RC_INLINE Row(int64_t count, Acc* const* cache_rows, Acc* scratch_row)
      : classes(count), caches(cache_rows), scratch(scratch_row), whole_(count - count % kWhole) {}

  // True where per-row results are to be written.
  static RC_INLINE constexpr bool is_leader() { return true; }

  // A stream with the values of another one that is hard to evaluate in lanes: written down once, where
  // that is wanted.
  template <class Stream>
  RC_INLINE MatrixRow<Acc> materialized(const Stream& stream, bool wanted) const {
    if (wanted) stream.fill(scratch, classes);
    return {scratch};
  }

  // max_c f(values of the streams at c); NaN loses every comparison, but not against nothing.
  template <class F, class... Streams>
  RC_INLINE Acc maximum(F&& f, const Streams&... streams) const {
    Acc largest[kWhole];
    for (int l = 0; l < kWhole; ++l) largest[l] = -kInfinity<Acc>;
    for_each_group([&](const auto& place, const auto&) RC_INLINE_LAMBDA {
      RC_SIMD for (int l = 0; l < kWhole; ++l) {
        const Acc value = f(streams.at(place.at(l))...);
        largest[l] = value > largest[l] ? value : largest[l];
      }
    });
    return max_lanes(largest);
  }

  // sum_c f(values of the streams at c), where f returns Values<Acc, kCount>.
  template <int kCount, class F, class... Streams>
  RC_INLINE Values<Acc, kCount> sums(F&& f, const Streams&... streams) const {
    Acc sum[kCount][kWhole] = {};
    for_each_group([&](const auto& place, const auto& lanes) RC_INLINE_LAMBDA {
      Acc terms[kCount][kWhole];
      RC_SIMD for (int l = 0; l < kWhole; ++l) {
        put(terms, l, f(streams.at(place.at(l))...), std::make_integer_sequence<int, kCount>{});
      }
      unrolled<kCount>([&](auto k) RC_INLINE_LAMBDA {
        RC_SIMD for (int l = 0; l < kWhole; ++l) sum[k][l] += lanes.keep(l, terms[k][l]);
      });
    });
    Values<Acc, kCount> result;
    for (int k = 0; k < kCount; ++k) result.value[k] = sum_lanes(sum[k]);
    return result;
  }

  // sums<kCount> of all values of f but its first, which becomes out[c] (null: it is dropped). `out`
  // may be what a stream reads.
  template <int kCount, class F, class... Streams>
  RC_INLINE Values<Acc, kCount> sums_with_update(Acc* out, F&& f, const Streams&... streams) const {
    Acc sum[kCount][kWhole] = {};
    const auto add = [&](Acc (&lanes)[kCount + 1][kWhole], const auto& kept) RC_INLINE_LAMBDA {
      for (int k = 0; k < kCount; ++k) {
        RC_SIMD for (int l = 0; l < kWhole; ++l) sum[k][l] += kept.keep(l, lanes[k + 1][l]);
      }
    };
    // The last group is read first and stored last: it may overlap what the groups before it write.
    Acc last[kCount + 1][kWhole];
    const int count = static_cast<int>(classes);
    const bool has_tail = whole_ < classes;
    if (has_tail && whole_ > 0) {
      const int64_t first = classes - kWhole;
      evaluate(last, Consecutive{first}, f, streams...);
      add(last, SomeLanes<Acc>::from(static_cast<int>(whole_ - first)));
    } else if (has_tail) {
      evaluate(last, Repeated{count - 1}, f, streams...);
      add(last, SomeLanes<Acc>::before(count));
    }
    for (int64_t c = 0; c < whole_; c += kWhole) {
      Acc lanes[kCount + 1][kWhole];
      evaluate(lanes, Consecutive{c}, f, streams...);
      add(lanes, EveryLane<Acc>{});
      if (out) store_group(out, Consecutive{c}, lanes[0]);
    }
    if (out && has_tail && whole_ > 0) {
      store_group(out, Consecutive{classes - kWhole}, last[0]);
    } else if (out && has_tail) {
      store_group(out, Repeated{count - 1}, last[0]);
    }
    Values<Acc, kCount> result;
    for (int k = 0; k < kCount; ++k) result.value[k] = sum_lanes(sum[k]);
    return result;
  }

  // As sums(); f returns kKept values more, which kept<kFirst>(), ... give back in later walks.
  template <int kCount, int kKept, int kFirst, class F, class... Streams>
  RC_INLINE Values<Acc, kCount> sums_keeping(F&& f, const Streams&... streams) const {
    Acc sum[kCount][kWhole] = {};
    for_each_group([&](const auto& place, const auto& lanes) RC_INLINE_LAMBDA {
      Acc terms[kCount + kKept][kWhole];
      RC_SIMD for (int l = 0; l < kWhole; ++l) {
        put(terms, l, f(streams.at(place.at(l))...), std::make_integer_sequence<int, kCount + kKept>{});
      }
      unrolled<kCount>([&](auto k) RC_INLINE_LAMBDA {
        RC_SIMD for (int l = 0; l < kWhole; ++l) sum[k][l] += lanes.keep(l, terms[k][l]);
      });
      unrolled<kKept>([&](auto k) RC_INLINE_LAMBDA {
        store(caches[kFirst + k], place,
              [&](int l) RC_INLINE_LAMBDA { return terms[kCount + k][l]; });
      });
    });
    Values<Acc, kCount> result;
    for (int k = 0; k < kCount; ++k) result.value[k] = sum_lanes(sum[k]);
    return result;
  }

  // The first class whose values satisfy f; `classes` where none does.
  template <class F, class... Streams>
  RC_INLINE int64_t first(F&& f, const Streams&... streams) const {
    for (int64_t c = 0; c < whole_; c += kWhole) {
      int found = 0;
      RC_SIMD for (int l = 0; l < kWhole; ++l) found |= f(streams.at(c + l)...) ? 1 : 0;
      if (!found) continue;
      for (int l = 0; l < kWhole; ++l) {
        if (f(streams.at(c + l)...)) return c + l;
      }
    }
    for (int64_t c = whole_; c < classes; ++c) {
      if (f(streams.at(c)...)) return c;
    }
    return classes;
  }

  // Behind it, all threads of the row have read and written what they had to.
  RC_INLINE void synchronize() const {}

  // Whether kept<k>() has values; where not (CUDA), they are computed again.
  static constexpr bool kKeeps = true;
  template <int k>
  RC_INLINE MatrixRow<Acc> kept() const {
    return {caches[k]};
  }

  // Maximum, and sums of exp(h - maximum) and of its products with weights; h = logit(values),
  // weights = weight(values), which returns Values<Acc, kWeighted>. The exponentials are left in
  // caches[kCache] where that is given.
  template <int kWeighted, int kCache, class Logit, class Weight, class... Streams>
  RC_INLINE Softmax<Acc, kWeighted> softmax(const Logit& logit, const Weight& weight,
                                            const Streams&... streams) const {
    const Acc largest = maximum(logit, streams...);
    Acc* const cache = caches ? caches[kCache] : nullptr;
    Acc sum[kWhole] = {};
    Acc along[kWeighted > 0 ? kWeighted : 1][kWhole] = {};
    for_each_group([&](const auto& place, const auto& lanes) RC_INLINE_LAMBDA {
      Acc e[kWhole];
      RC_SIMD for (int l = 0; l < kWhole; ++l) {
        e[l] = exponential_of_nonpositive(logit(streams.at(place.at(l))...) - largest);
      }
      RC_SIMD for (int l = 0; l < kWhole; ++l) sum[l] += lanes.keep(l, e[l]);
      if constexpr (kWeighted > 0) {
        Acc terms[kWeighted][kWhole];
        RC_SIMD for (int l = 0; l < kWhole; ++l) {
          const Acc counted = lanes.keep(l, e[l]);
          const Values<Acc, kWeighted> w = weight(streams.at(place.at(l))...);
          for (int k = 0; k < kWeighted; ++k) {
            // A masked class has no probability; an infinite weight must not turn 0 into NaN.
            const Acc term = counted * w.value[k];
            terms[k][l] = counted == Acc(0) ? Acc(0) : term;
          }
        }
        for (int k = 0; k < kWeighted; ++k) {
          RC_SIMD for (int l = 0; l < kWhole; ++l) along[k][l] += terms[k][l];
        }
      }
      if (cache) store(cache, place, [&](int l) RC_INLINE_LAMBDA { return e[l]; });
    });
    Softmax<Acc, kWeighted> result;
    result.maximum = largest;
    result.total = sum_lanes(sum);
    for (int k = 0; k < kWeighted; ++k) result.weighted.value[k] = sum_lanes(along[k]);
    result.cached = {cache};
    return result;
  }

  // outputs[m][c] = f(values of the streams at c)[m] for every class, except that class `patched`
  // (if any: -1) gets `patch`. Outputs may be null, and may be what the streams read.
  template <int kOutputs, class T, class F, class... Streams>
  RC_INLINE void write(T* const (&outputs)[kOutputs], int64_t patched,
                       const Values<Acc, kOutputs>& patch, F&& f, const Streams&... streams) const {
    bool wanted = false;
    for (int m = 0; m < kOutputs; ++m) wanted |= outputs[m] != nullptr;
    if (!wanted) return;
    // The last group first: it may overlap what the groups before it write.
    Acc last[kOutputs][kWhole];
    const bool has_tail = whole_ < classes;
    if (has_tail && whole_ > 0) {
      evaluate(last, Consecutive{classes - kWhole}, f, streams...);
    } else if (has_tail) {
      evaluate(last, Repeated{static_cast<int>(classes) - 1}, f, streams...);
    }
    for (int64_t c = 0; c < whole_; c += kWhole) {
      Acc lanes[kOutputs][kWhole];
      evaluate(lanes, Consecutive{c}, f, streams...);
      for (int m = 0; m < kOutputs; ++m) {
        if (outputs[m]) store_group(outputs[m], Consecutive{c}, lanes[m]);
      }
    }
    for (int m = 0; m < kOutputs; ++m) {
      if (!outputs[m]) continue;
      if (has_tail && whole_ > 0) {
        store_group(outputs[m], Consecutive{classes - kWhole}, last[m]);
      } else if (has_tail) {
        store_group(outputs[m], Repeated{static_cast<int>(classes) - 1}, last[m]);
      }
      if (patched >= 0) outputs[m][patched] = from_accumulate<T>(patch.value[m]);
    }
  }

 private:
  // terms[k][lane] = values[k] for all k. Neither a loop nor a reference to the values: with either, the
  // compiler does not vectorise the loop over lanes around it.
  template <int kCount, int... k>
  static RC_INLINE void put(Acc (&terms)[kCount][kWhole], int lane, Values<Acc, kCount> values,
                            std::integer_sequence<int, k...>) {
    ((terms[k][lane] = values.value[k]), ...);
  }

  // Calls f(place, lanes) for each group; `lanes` keeps the classes that no other group counts.
  template <class F>
  RC_INLINE void for_each_group(F&& f) const {
    for (int64_t c = 0; c < whole_; c += kWhole) f(Consecutive{c}, EveryLane<Acc>{});
    if (whole_ == classes) return;
    if (whole_ > 0) {
      const int64_t first = classes - kWhole;
      f(Consecutive{first}, SomeLanes<Acc>::from(static_cast<int>(whole_ - first)));
    } else {
      const int count = static_cast<int>(classes);
      f(Repeated{count - 1}, SomeLanes<Acc>::before(count));
    }
  }

  template <int kOutputs, class Place, class F, class... Streams>
  static RC_INLINE void evaluate(Acc (&lanes)[kOutputs][kWhole], const Place& place, F&& f,
                                 const Streams&... streams) {
    RC_SIMD for (int l = 0; l < kWhole; ++l) {
      put(lanes, l, f(streams.at(place.at(l))...), std::make_integer_sequence<int, kOutputs>{});
    }
  }

  template <class T, class Place>
  static RC_INLINE void store_group(T* out, const Place& place, const Acc* lanes) {
    store(out, place, [&](int l) RC_INLINE_LAMBDA { return from_accumulate<T>(lanes[l]); });
  }

  template <class Out, class Value>
  static RC_INLINE void store(Out* out, const Consecutive& place, Value&& value) {
    Out* const from = out + place.first;
    RC_SIMD for (int l = 0; l < kWhole; ++l) from[l] = value(l);
  }
  template <class Out, class Value>
  static RC_INLINE void store(Out* out, const Repeated& place, Value&& value) {
    for (int l = 0; l <= place.last; ++l) out[l] = value(l);
  }

  int64_t whole_;  // classes in complete groups
};

}  // namespace robustcore::row_cpu
