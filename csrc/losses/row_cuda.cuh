// One row of classes on CUDA, shared by the threads of a warp or of a block: sums, maxima, softmax
// and element-wise writes with 16-byte accesses. What a program of a loss does with a row is
// written with these; row_cpu.h offers the same.
//
// Every sum has a fixed order: same inputs, same bits. All threads of the row must make the same
// calls, and all get the results.
#pragma once

#include <cstdint>

#include "common/exp.h"
#include "common/rows.cuh"
#include "common/vector.cuh"
#include "losses/row_problem.h"

namespace robustcore::row_cuda {

template <class Acc>
__device__ __forceinline__ Acc negative_infinity() {
  return -static_cast<Acc>(__builtin_huge_val());
}

// A stream of nothing: where the CPU keeps exponentials, CUDA computes them again.
struct NothingCached {
  static constexpr bool kAligned = false;
};

// kWidth consecutive values of a stream.
template <class Acc, int kWidth, class Stream>
struct Loaded {
  Acc lanes[kWidth];

  __device__ __forceinline__ Loaded(const Stream& stream, std::int64_t c) {
    if constexpr (Stream::kAligned) {
      using Storage = typename Stream::Storage;
      static_assert(kWidth == 1 || kWidth == kVectorWidth<Storage>,
                    "aligned streams have the storage type of the logits");
      const Widened<Storage, kWidth> widened(stream.data + c);
#pragma unroll
      for (int l = 0; l < kWidth; ++l) lanes[l] = widened.lanes[l];
    } else {
#pragma unroll
      for (int l = 0; l < kWidth; ++l) lanes[l] = stream.at(c + l);
    }
  }
};
template <class Acc, int kWidth>
struct Loaded<Acc, kWidth, NothingCached> {
  Acc lanes[kWidth] = {};

  __device__ __forceinline__ Loaded(const NothingCached&, std::int64_t) {}
};

// Calls f(values of the streams, one array per stream) for kWidth classes from c on.
template <class Acc, int kWidth, class F, class... Streams>
__device__ __forceinline__ void with_loaded(std::int64_t c, F&& f, const Streams&... streams) {
  f(Loaded<Acc, kWidth, Streams>(streams, c)...);
}

struct JoinSums {
  template <class Acc, int kCount>
  __device__ __forceinline__ Values<Acc, kCount> operator()(const Values<Acc, kCount>& a,
                                                            const Values<Acc, kCount>& b) const {
    Values<Acc, kCount> joined;
#pragma unroll
    for (int k = 0; k < kCount; ++k) joined.value[k] = a.value[k] + b.value[k];
    return joined;
  }
};

// Sums of a row relative to a running maximum (online softmax), and how two parts are joined.
template <class Acc, int kWeighted>
struct SoftmaxSums {
  Acc maximum;
  Values<Acc, 1 + kWeighted> sum;  // of exp(h - maximum), then of its products with weights

  static __device__ __forceinline__ SoftmaxSums empty() {
    SoftmaxSums none;
    none.maximum = negative_infinity<Acc>();
#pragma unroll
    for (int k = 0; k <= kWeighted; ++k) none.sum.value[k] = Acc(0);
    return none;
  }
  // What to subtract before exponentiating: a part of -inf must not yield inf - inf.
  __device__ __forceinline__ Acc shift() const {
    return maximum == negative_infinity<Acc>() ? Acc(0) : maximum;
  }
};

struct JoinSoftmaxSums {
  template <class Acc, int kWeighted>
  __device__ __forceinline__ SoftmaxSums<Acc, kWeighted> operator()(
      const SoftmaxSums<Acc, kWeighted>& a, const SoftmaxSums<Acc, kWeighted>& b) const {
    SoftmaxSums<Acc, kWeighted> joined = a.maximum > b.maximum ? a : b;
    const Acc shift = joined.shift();
    const Acc scale_a = exponential(a.maximum - shift), scale_b = exponential(b.maximum - shift);
#pragma unroll
    for (int k = 0; k <= kWeighted; ++k) {
      joined.sum.value[k] = a.sum.value[k] * scale_a + b.sum.value[k] * scale_b;
    }
    return joined;
  }
};

// As row_cpu::Softmax. `maximum` is what was subtracted: 0 for a row of nothing but -inf, whose
// total is then 0.
template <class Acc, int kWeighted, class Logit>
struct Softmax {
  Acc maximum;
  Acc total;
  Values<Acc, kWeighted> weighted;
  NothingCached cached;
  Logit logit;

  __device__ __forceinline__ Acc lse() const { return maximum + logarithm(total); }
  template <class... In>
  __device__ __forceinline__ Acc exponential(Acc, const In&... in) const {
    return robustcore::exponential(logit(in...) - maximum);
  }
};

// T: storage type of the logits; kThreads: threads that share the row.
template <class T, int kThreads>
class Row {
 public:
  using Acc = accumulate_t<T>;

  const std::int64_t classes;

  // offset: of the row's first element in the matrices.
  __device__ __forceinline__ Row(std::int64_t count, std::int64_t offset, int thread)
      : classes(count), offset_(offset), thread_(thread) {}

  __device__ __forceinline__ bool is_leader() const { return thread_ == 0; }

  // The stream itself: the CPU writes it down instead.
  template <class Stream>
  __device__ __forceinline__ Stream materialized(const Stream& stream, bool) const {
    return stream;
  }

  template <class F, class... Streams>
  __device__ __forceinline__ Acc maximum(F&& f, const Streams&... streams) const {
    Acc largest = negative_infinity<Acc>();
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              const Acc value = f(in.lanes[l]...);
              largest = value > largest ? value : largest;
            }
          },
          streams...);
    });
    return reduce_row<kThreads>(largest, [](Acc a, Acc b) { return a > b ? a : b; });
  }

  template <int kCount, class F, class... Streams>
  __device__ __forceinline__ Values<Acc, kCount> sums(F&& f, const Streams&... streams) const {
    Values<Acc, kCount> sum;
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum.value[k] = Acc(0);
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
#pragma unroll
            for (int l = 0; l < kWidth; ++l) sum = JoinSums{}(sum, f(in.lanes[l]...));
          },
          streams...);
    });
    return reduce_row<kThreads>(sum, JoinSums{});
  }

  // The written values are there for all threads of the row.
  template <int kCount, class F, class... Streams>
  __device__ __forceinline__ Values<Acc, kCount> sums_with_update(Acc* out, F&& f,
                                                                  const Streams&... streams) const {
    Values<Acc, kCount> sum;
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum.value[k] = Acc(0);
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              const Values<Acc, kCount + 1> of_class = f(in.lanes[l]...);
              if (out) out[c + l] = of_class.value[0];
#pragma unroll
              for (int k = 0; k < kCount; ++k) sum.value[k] += of_class.value[k + 1];
            }
          },
          streams...);
    });
    sum = reduce_row<kThreads>(sum, JoinSums{});
    synchronize();
    return sum;
  }

  template <class F, class... Streams>
  __device__ __forceinline__ std::int64_t first(F&& f, const Streams&... streams) const {
    std::int64_t place = classes;
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              if (c + l < place && f(in.lanes[l]...)) place = c + l;
            }
          },
          streams...);
    });
    return reduce_row<kThreads>(place,
                                [](std::int64_t a, std::int64_t b) { return a < b ? a : b; });
  }

  __device__ __forceinline__ void synchronize() const {
    if constexpr (kThreads == kWarpSize) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Nothing is kept: see row_cpu.h.
  template <int kCount, int kKept, int kFirst, class F, class... Streams>
  __device__ __forceinline__ Values<Acc, kCount> sums_keeping(F&& f,
                                                              const Streams&... streams) const {
    return sums<kCount>(
        [&](const auto&... in) {
          const Values<Acc, kCount + kKept> all = f(in...);
          Values<Acc, kCount> counted;
#pragma unroll
          for (int k = 0; k < kCount; ++k) counted.value[k] = all.value[k];
          return counted;
        },
        streams...);
  }
  static constexpr bool kKeeps = false;
  template <int k>
  __device__ __forceinline__ NothingCached kept() const {
    return {};
  }

  // In a single pass over the row. kCache is the CPU's.
  template <int kWeighted, int kCache, class Logit, class Weight, class... Streams>
  __device__ __forceinline__ Softmax<Acc, kWeighted, Logit> softmax(
      const Logit& logit, const Weight& weight, const Streams&... streams) const {
    using Sums = SoftmaxSums<Acc, kWeighted>;
    Sums sums = Sums::empty();
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
            Acc h[kWidth];
            const Acc before = sums.maximum;
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              h[l] = logit(in.lanes[l]...);
              sums.maximum = h[l] > sums.maximum ? h[l] : sums.maximum;
            }
            const Acc shift = sums.shift();
            const Acc rescale = exponential(before - shift);
#pragma unroll
            for (int k = 0; k <= kWeighted; ++k) sums.sum.value[k] *= rescale;
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              const Acc e = exponential(h[l] - shift);
              sums.sum.value[0] += e;
              if constexpr (kWeighted > 0) {
                const Values<Acc, kWeighted> w = weight(in.lanes[l]...);
#pragma unroll
                for (int k = 0; k < kWeighted; ++k) {
                  // A masked class has no probability; an infinite weight must not turn 0 into NaN.
                  const Acc term = e * w.value[k];
                  sums.sum.value[1 + k] += e == Acc(0) ? Acc(0) : term;
                }
              }
            }
          },
          streams...);
    });
    sums = reduce_row<kThreads>(sums, JoinSoftmaxSums{});
    Softmax<Acc, kWeighted, Logit> result{sums.shift(), sums.sum.value[0], {}, {}, logit};
#pragma unroll
    for (int k = 0; k < kWeighted; ++k) result.weighted.value[k] = sums.sum.value[1 + k];
    return result;
  }

  template <int kOutputs, class F, class... Streams>
  __device__ __forceinline__ void write(T* const (&outputs)[kOutputs], std::int64_t patched,
                                        const Values<Acc, kOutputs>& patch, F&& f,
                                        const Streams&... streams) const {
    bool wanted = false;
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) wanted |= outputs[m] != nullptr;
    if (!wanted) return;
    // An output may take the place of what another thread has just read (the label's class).
    synchronize();
    for_each([&](std::int64_t c, auto width) {
      constexpr int kWidth = decltype(width)::value;
      with_loaded<Acc, kWidth>(
          c,
          [&](const auto&... in) {
            Acc lanes[kOutputs][kWidth];
#pragma unroll
            for (int l = 0; l < kWidth; ++l) {
              const Values<Acc, kOutputs> of_class = f(in.lanes[l]...);
#pragma unroll
              for (int m = 0; m < kOutputs; ++m) {
                lanes[m][l] = c + l == patched ? patch.value[m] : of_class.value[m];
              }
            }
#pragma unroll
            for (int m = 0; m < kOutputs; ++m) {
              if (outputs[m]) store_narrowed<T>(outputs[m] + c, lanes[m]);
            }
          },
          streams...);
    });
  }

 private:
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    for_each_vector<T>(offset_, classes, thread_, kThreads, f);
  }

  const std::int64_t offset_;
  const int thread_;
};

}  // namespace robustcore::row_cuda
