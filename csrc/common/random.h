// Random numbers that are a function of a key and a counter: nobody has to store them, and they are
// the same for any number of threads and on every device. Host and device, no torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

struct RandomKey {
  uint32_t low;
  uint32_t high;
};

struct RandomWords {
  uint32_t x, y, z, w;
};

// Philox4x32 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011). Seven rounds
// pass BigCrush; ten is what general-purpose libraries take as a margin.
constexpr int kPhiloxRounds = 7;

template <int kRounds>
RC_INLINE RandomWords philox(RandomKey key, RandomWords counter) {
  uint32_t x = counter.x, y = counter.y, z = counter.z, w = counter.w;
  uint32_t low = key.low, high = key.high;
#if defined(__CUDACC__) || defined(__clang__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * x;
    const uint64_t second = uint64_t{0xCD9E8D57u} * z;
    x = static_cast<uint32_t>(second >> 32) ^ y ^ low;
    z = static_cast<uint32_t>(first >> 32) ^ w ^ high;
    y = static_cast<uint32_t>(second);
    w = static_cast<uint32_t>(first);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return {x, y, z, w};
}

// One rounding on host and device alike. Everything that follows multiplies and adds by this and
// never by an expression that a compiler may or may not fuse: the numbers have the same bits
// everywhere. (x86 processors without FMA, of before 2013, call libm for it.)
RC_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

RC_INLINE float correctly_rounded_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

struct NormalPair {
  float first;
  float second;
};

// Two independent standard normal numbers from two words: Box and Muller. The largest magnitude is
// sqrt(2 log 2^31) = 6.56; the polynomials are off by less than 1e-7, relatively.
RC_INLINE NormalPair normal_pair(uint32_t radius_word, uint32_t angle_word) {
  // -2 log v with v = n / 2^31, n odd: n = m 2^e with m in [sqrt(1/2), sqrt(2)), then a polynomial
  // in m - 1, which keeps its relative precision where v is almost 1.
  const float n = static_cast<float>(static_cast<int32_t>((radius_word >> 1) | 1u));
  const int32_t bits = detail::bit_cast<int32_t>(n);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float m = detail::bit_cast<float>(bits - exponent * (1 << 23));
  const float t = m - 1.0f;
  float p = -0.17444707453250885f;
  p = fused_multiply_add(p, t, 0.28733694553375244f);
  p = fused_multiply_add(p, t, -0.2990453839302063f);
  p = fused_multiply_add(p, t, 0.33124786615371704f);
  p = fused_multiply_add(p, t, -0.39913666248321533f);
  p = fused_multiply_add(p, t, 0.5000414848327637f);
  p = fused_multiply_add(p, t, -0.6666837334632874f);
  p = fused_multiply_add(p, t, 0.9999997615814209f);
  p = fused_multiply_add(p, t, -2.0f);
  const float squared =
      fused_multiply_add(static_cast<float>(31 - exponent), 1.3862943611198906f, t * p);
  const float radius = correctly_rounded_sqrt(squared);

  // A point on the quarter of the circle around angle 0, from 30 bits; one more bit mirrors it, and
  // one exchanges its coordinates.
  const float w = static_cast<float>(static_cast<int32_t>(angle_word) >> 2) * 0x1p-29f;
  const float s = w * w;
  float sine = -3.59504520019982e-05f;
  sine = fused_multiply_add(sine, s, 0.00249000103212893f);
  sine = fused_multiply_add(sine, s, -0.08074543625116348f);
  sine = fused_multiply_add(sine, s, 0.7853981852531433f);
  sine = sine * w;
  float cosine = -0.00031872783438302577f;
  cosine = fused_multiply_add(cosine, s, 0.015849683433771133f);
  cosine = fused_multiply_add(cosine, s, -0.308424174785614f);
  cosine = fused_multiply_add(cosine, s, 0.9999999403953552f);
  cosine = detail::bit_cast<float>(detail::bit_cast<uint32_t>(cosine) ^ (angle_word << 31));
  const bool exchanged = (angle_word & 2u) != 0;
  return {radius * (exchanged ? sine : cosine), radius * (exchanged ? cosine : sine)};
}

struct NormalQuad {
  float values[4];
};

// Four independent standard normal numbers of one counter.
RC_INLINE NormalQuad normal_quad(RandomKey key, RandomWords counter) {
  const RandomWords words = philox<kPhiloxRounds>(key, counter);
  const NormalPair a = normal_pair(words.x, words.y);
  const NormalPair b = normal_pair(words.z, words.w);
  return {{a.first, a.second, b.first, b.second}};
}

RC_INLINE RandomKey random_key(uint64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

}  // namespace robustcore
