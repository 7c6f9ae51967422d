// Packs the codes of a run of parameters of all tasks, 64 at a time: one function per instruction
// set, and the choice between them. Host only, no torch.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "merging/tall_masks.h"
#if defined(__x86_64__) && defined(__GNUC__)
#define RC_X86_LANES 1
#include <immintrin.h>
#endif

namespace robustcore::lanes {

// A run of parameters whose number is a multiple of 64.
template <class Acc>
struct Run {
  const Acc* base;
  const Acc* target;            // base + merged task vector
  const Acc* const* finetuned;  // one row per task
  int64_t tasks;
  int64_t groups;  // of 64 parameters
  uint64_t* planes;
  int64_t
      stride;  // words from one plane to the next; a task's planes follow those of the one before
};

// Writes bit b of parameter i's code for task t to bit i % 64 of
// planes[(t * lambdas.planes + b) * stride + i / 64].
template <class Acc>
using Pack = void (*)(const Run<Acc>& run, const LambdaTable<Acc>& lambdas);

// Any processor, any number of lambdas: counts in lanes of the type's width, then gathers the bits
// of 8 bytes with one multiplication.
template <bool kStrict, class Acc>
RC_TARGET_CLONES void pack_portable(const Run<Acc>& run, const LambdaTable<Acc>& lambdas) {
  using Lane = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  for (int64_t task = 0; task < run.tasks; ++task)
    for (int64_t group = 0; group < run.groups; ++group) {
      const Acc* RC_RESTRICT base = run.base + group * kWordBits;
      const Acc* RC_RESTRICT target = run.target + group * kWordBits;
      const Acc* RC_RESTRICT finetuned = run.finetuned[task] + group * kWordBits;
      uint64_t* planes = run.planes + task * lambdas.planes * run.stride + group;
      Acc own[kWordBits], merged[kWordBits];
      Lane passed[kWordBits] = {};
      RC_SIMD for (int64_t i = 0; i < kWordBits; ++i) {
        own[i] = magnitude(base[i] - finetuned[i]);
        merged[i] = magnitude(target[i] - finetuned[i]);
      }
      for (int n = 1; n <= lambdas.count; ++n) {
        const Acc lambda = lambdas.value[n];
        RC_SIMD for (int64_t i = 0; i < kWordBits; ++i) {
          passed[i] += keeps<kStrict>(own[i], merged[i], lambda) ? Lane(1) : Lane(0);
        }
      }
      uint8_t bytes[kWordBits];
      RC_SIMD for (int64_t i = 0; i < kWordBits; ++i) bytes[i] = static_cast<uint8_t>(passed[i]);
      uint64_t word[8];
      __builtin_memcpy(word, bytes, sizeof(word));
      for (int b = 0; b < lambdas.planes; ++b) {
        uint64_t plane = 0;
        for (int j = 0; j < 8; ++j) {
          // Byte i's lowest bit goes to bit 56 + i: every other product lands elsewhere, without
          // carries.
          const uint64_t low = (word[j] >> b) & 0x0101010101010101u;
          plane |= ((low * 0x0102040810204080u) >> 56) << (8 * j);
        }
        planes[b * run.stride] = plane;
      }
    }
}

#if defined(RC_X86_LANES)

#define RC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define RC_AVX2 __attribute__((target("avx2")))

// Packing computes from the first-level cache, while memory has nothing to do: meanwhile what a row
// holds a few blocks on is asked for, into the second level. Addresses past the end of a tensor are
// allowed.
constexpr int64_t kPrefetchDistance = 768;

RC_INLINE void prefetch_group(const float* row) {
  for (int64_t i = 0; i < kWordBits; i += 16) {
    __builtin_prefetch(row + kPrefetchDistance + i, 0, 2);
  }
}

// Bisection finds a code in as many comparisons as it has bits. The lambda to compare with next is
// blended, lane by lane, out of those that the bits found so far leave; `passed[b]` is bit b, known
// above kBit.
template <int kBit, int kUndecided>
RC_AVX512 inline __attribute__((always_inline)) __m512 choose_lambda_avx512(
    const __m512* lambdas, const __mmask16* passed, int code) {
  if constexpr (kUndecided == kBit) {
    return lambdas[code | (1 << kBit)];
  } else {
    return _mm512_mask_blend_ps(
        passed[kUndecided], choose_lambda_avx512<kBit, kUndecided - 1>(lambdas, passed, code),
        choose_lambda_avx512<kBit, kUndecided - 1>(lambdas, passed, code | (1 << kUndecided)));
  }
}

template <bool kStrict, int kPlanes, int kBit>
RC_AVX512 inline __attribute__((always_inline)) void bisect_avx512(
    __m512 own, __m512 merged, const __m512* lambdas, __mmask16* passed) {
  constexpr int kOrder = kStrict ? _CMP_GT_OQ : _CMP_GE_OQ;
  const __m512 lambda = choose_lambda_avx512<kBit, kPlanes - 1>(lambdas, passed, 0);
  passed[kBit] = _mm512_cmp_ps_mask(own, _mm512_mul_ps(merged, lambda), kOrder);
  if constexpr (kBit > 0) bisect_avx512<kStrict, kPlanes, kBit - 1>(own, merged, lambdas, passed);
}

// Up to 15 lambdas: they all fit into registers.
template <bool kStrict, int kPlanes>
RC_AVX512 void pack_avx512(const Run<float>& run, const LambdaTable<float>& table) {
  static_assert(kPlanes >= 1 && kPlanes <= 4);
  const __m512 sign = _mm512_set1_ps(-0.0f);
  __m512 lambdas[1 << kPlanes];
  for (int n = 0; n < 1 << kPlanes; ++n) lambdas[n] = _mm512_set1_ps(table.value[n]);
  for (int64_t task = 0; task < run.tasks; ++task) {
    const float* finetuned = run.finetuned[task];
    for (int64_t group = 0; group < run.groups; ++group) {
      prefetch_group(finetuned + group * kWordBits);
      if (task == 0) prefetch_group(run.base + group * kWordBits);
      uint64_t word[kPlanes] = {};
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const int64_t i = group * kWordBits + part * 16;
        const __m512 value = _mm512_loadu_ps(finetuned + i);
        const __m512 own = _mm512_sub_ps(_mm512_loadu_ps(run.base + i), value);
        const __m512 merged = _mm512_sub_ps(_mm512_loadu_ps(run.target + i), value);
        __mmask16 passed[kPlanes];
        bisect_avx512<kStrict, kPlanes, kPlanes - 1>(
            _mm512_andnot_ps(sign, own), _mm512_andnot_ps(sign, merged), lambdas, passed);
        for (int b = 0; b < kPlanes; ++b) {
          word[b] |= static_cast<uint64_t>(_cvtmask16_u32(passed[b])) << (16 * part);
        }
      }
      uint64_t* planes = run.planes + task * kPlanes * run.stride + group;
      for (int b = 0; b < kPlanes; ++b) planes[b * run.stride] = word[b];
    }
  }
}

// The same with 8 lanes and up to 7 lambdas.
template <int kBit, int kUndecided>
RC_AVX2 inline __attribute__((always_inline)) __m256 choose_lambda_avx2(const __m256* lambdas,
                                                                        const __m256* passed,
                                                                        int code) {
  if constexpr (kUndecided == kBit) {
    return lambdas[code | (1 << kBit)];
  } else {
    return _mm256_blendv_ps(
        choose_lambda_avx2<kBit, kUndecided - 1>(lambdas, passed, code),
        choose_lambda_avx2<kBit, kUndecided - 1>(lambdas, passed, code | (1 << kUndecided)),
        passed[kUndecided]);
  }
}

template <bool kStrict, int kPlanes, int kBit>
RC_AVX2 inline __attribute__((always_inline)) void bisect_avx2(__m256 own, __m256 merged,
                                                               const __m256* lambdas,
                                                               __m256* passed) {
  constexpr int kOrder = kStrict ? _CMP_GT_OQ : _CMP_GE_OQ;
  const __m256 lambda = choose_lambda_avx2<kBit, kPlanes - 1>(lambdas, passed, 0);
  passed[kBit] = _mm256_cmp_ps(own, _mm256_mul_ps(merged, lambda), kOrder);
  if constexpr (kBit > 0) bisect_avx2<kStrict, kPlanes, kBit - 1>(own, merged, lambdas, passed);
}

template <bool kStrict, int kPlanes>
RC_AVX2 void pack_avx2(const Run<float>& run, const LambdaTable<float>& table) {
  static_assert(kPlanes >= 1 && kPlanes <= 3);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 lambdas[1 << kPlanes];
  for (int n = 0; n < 1 << kPlanes; ++n) lambdas[n] = _mm256_set1_ps(table.value[n]);
  for (int64_t task = 0; task < run.tasks; ++task) {
    const float* finetuned = run.finetuned[task];
    for (int64_t group = 0; group < run.groups; ++group) {
      prefetch_group(finetuned + group * kWordBits);
      if (task == 0) prefetch_group(run.base + group * kWordBits);
      uint64_t word[kPlanes] = {};
#pragma GCC unroll 8
      for (int part = 0; part < 8; ++part) {
        const int64_t i = group * kWordBits + part * 8;
        const __m256 value = _mm256_loadu_ps(finetuned + i);
        const __m256 own = _mm256_sub_ps(_mm256_loadu_ps(run.base + i), value);
        const __m256 merged = _mm256_sub_ps(_mm256_loadu_ps(run.target + i), value);
        __m256 passed[kPlanes];
        bisect_avx2<kStrict, kPlanes, kPlanes - 1>(
            _mm256_andnot_ps(sign, own), _mm256_andnot_ps(sign, merged), lambdas, passed);
        for (int b = 0; b < kPlanes; ++b) {
          word[b] |= static_cast<uint64_t>(_mm256_movemask_ps(passed[b])) << (8 * part);
        }
      }
      uint64_t* planes = run.planes + task * kPlanes * run.stride + group;
      for (int b = 0; b < kPlanes; ++b) planes[b * run.stride] = word[b];
    }
  }
}

#endif

// Tests and benchmarks name a lesser instruction set here: "avx2" or "portable".
inline bool allowed(const char* instructions) {
  const char* limit = std::getenv("ROBUSTCORE_CPU_INSTRUCTIONS");
  return limit == nullptr || (std::strcmp(limit, "avx2") == 0 && std::strcmp(instructions, limit) == 0);
}

template <bool kStrict>
Pack<float> choose_float(int planes) {
#if defined(RC_X86_LANES)
  if (allowed("avx512") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    switch (planes) {
      case 1:
        return pack_avx512<kStrict, 1>;
      case 2:
        return pack_avx512<kStrict, 2>;
      case 3:
        return pack_avx512<kStrict, 3>;
      case 4:
        return pack_avx512<kStrict, 4>;
    }
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2")) {
    switch (planes) {
      case 1:
        return pack_avx2<kStrict, 1>;
      case 2:
        return pack_avx2<kStrict, 2>;
      case 3:
        return pack_avx2<kStrict, 3>;
    }
  }
#endif
  (void)planes;
  return pack_portable<kStrict, float>;
}

// The fastest packing that this processor has; all give the same bits.
inline Pack<float> choose(float, int planes, bool strict) {
  return strict ? choose_float<true>(planes) : choose_float<false>(planes);
}

inline Pack<double> choose(double, int, bool strict) {
  return strict ? pack_portable<true, double> : pack_portable<false, double>;
}

}  // namespace robustcore::lanes
