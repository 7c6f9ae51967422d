// exp and log1p-free helpers for rows: a branch-free exponential that compilers vectorise on the
// host (libm's is called element by element unless -ffast-math is on), the hardware's on the
// device.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

namespace detail {

// exp(r) - 1 for |r| <= log(2)/2 in float: r + r^2 q(r), q of degree 5 fitted for the smallest
// largest relative error of exp(r) (5e-11 before rounding).
RC_INLINE float exponential_minus_one_near_zero(float r) {
  float q = 1.97902976651676e-4f;
  q = q * r + 1.3944703387096524e-3f;
  q = q * r + 8.333497680723667e-3f;
  q = q * r + 4.166629537940025e-2f;
  q = q * r + 1.666666567325592e-1f;
  q = q * r + 0.5f;
  return (q * r) * r + r;
}

// atanh(s) / s - 1 from s^2 <= 1/9: a polynomial fitted for the smallest largest relative error of
// the ratio, 5e-9 before rounding.
RC_INLINE float inverse_hyperbolic_tangent_excess(float square) {
  float q = 1.4012229e-1f;
  q = q * square + 1.3999571e-1f;
  q = q * square + 2.001085e-1f;
  q = q * square + 3.3333206e-1f;
  return q * square;
}

}  // namespace detail

// exp(x) in float. Relative error below 1e-7 on the host; exp(+inf) = inf, exp(-inf) = 0 and NaN
// stays NaN; results below the normal range are rounded to subnormals as libm does.
//
// x = n log 2 + r with |r| <= log(2)/2; exp(r) times 2^n in two steps, each of which stays in
// range.
RC_INLINE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // Selections that are false for NaN let it pass through.
  float clamped = x > 89.0f ? 89.0f : x;
  clamped = clamped < -104.5f ? -104.5f : clamped;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const int32_t exponent = static_cast<int32_t>(detail::bit_cast<uint32_t>(shifted) - 0x4b400000u);
  const float r = (clamped - n * 0.693145751953125f) - n * 1.428606765330187e-06f;
  const float p = detail::exponential_minus_one_near_zero(r) + 1.0f;
  const int32_t half = exponent >> 1;
  const float first = detail::bit_cast<float>((half + 127) << 23);
  const float second = detail::bit_cast<float>((exponent - half + 127) << 23);
  return p * first * second;
#endif
}

RC_INLINE double exponential(double x) {
  return exp(x);
}

// exp(x) for x <= 0 in float, as a softmax needs it, by two thirds of the instructions: what would
// be below the smallest normal number becomes 0 from x = -87.7 on. Relative error below 1.2e-7 on
// the host otherwise; exp(0) = 1 exactly, exp(-inf) = 0, NaN stays NaN.
RC_INLINE float exponential_of_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // n + 127 in the low bits; from the least x on, it is 0, and so is the scale.
  const float clamped = x < -88.0f ? -88.0f : x;
  const float shifted = clamped * 1.44269504088896341f + 12583039.0f;
  const float n = shifted - 12583039.0f;
  const float r = (clamped - n * 0.693145751953125f) - n * 1.428606765330187e-06f;
  float p = 1.381454e-3f;
  p = p * r + 8.368745e-3f;
  p = p * r + 4.166839e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 0.49999994f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * detail::bit_cast<float>(detail::bit_cast<uint32_t>(shifted) << 23);
#endif
}
RC_INLINE double exponential_of_nonpositive(double x) {
  return exp(x);
}

// 2^x for x <= 0, likewise (0 from x = -126.5 on): where the factor log2(e) of an exponential can
// be part of a factor that is there anyway.
RC_INLINE float power_of_two_of_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return exp2f(x);
#else
  const float clamped = x < -127.0f ? -127.0f : x;
  const float shifted = clamped + 12583039.0f;
  const float r = clamped - (shifted - 12583039.0f);
  float p = 1.5353362e-4f;
  p = p * r + 1.3398875e-3f;
  p = p * r + 9.618437e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.931472e-1f;
  p = p * r + 1.0f;
  return p * detail::bit_cast<float>(detail::bit_cast<uint32_t>(shifted) << 23);
#endif
}
RC_INLINE double power_of_two_of_nonpositive(double x) {
  return exp2(x);
}

RC_INLINE float magnitude_of(float x) {
  return fabsf(x);
}
RC_INLINE double magnitude_of(double x) {
  return fabs(x);
}

RC_INLINE float square_root(float x) {
  return sqrtf(x);
}
RC_INLINE double square_root(double x) {
  return sqrt(x);
}

RC_INLINE float logarithm(float x) {
  return logf(x);
}
RC_INLINE double logarithm(double x) {
  return log(x);
}

// exp(x) - 1 in float, relative error below 4e-7 on the host: the exponential's own polynomial
// where nothing has to be scaled.
RC_INLINE float exponential_minus_one(float x) {
#if defined(__CUDA_ARCH__)
  return expm1f(x);
#else
  const float near_zero = detail::exponential_minus_one_near_zero(x);
  const float away = exponential(x) - 1.0f;
  const float magnitude = x < 0.0f ? -x : x;
  return magnitude < 0.3465f ? near_zero : away;
#endif
}
RC_INLINE double exponential_minus_one(double x) {
  return expm1(x);
}

// log(1 + x) in float for 0 <= x <= 1, relative error below 2e-7 on the host, branch-free:
// 2 atanh(x / (2 + x)).
RC_INLINE float log_one_plus(float x) {
#if defined(__CUDA_ARCH__)
  return log1pf(x);
#else
  const float s = x / (2.0f + x);
  return 2.0f * (s + s * detail::inverse_hyperbolic_tangent_excess(s * s));
#endif
}
RC_INLINE double log_one_plus(double x) {
  return log1p(x);
}

// tanh(x) in float, relative error below 2e-7 on the host, branch-free like the exponential: an odd
// polynomial near 0 (fitted for the smallest largest relative error on |x| <= 0.56), otherwise by
// way of exp(-2 |x|).
RC_INLINE float hyperbolic_tangent(float x) {
#if defined(__CUDA_ARCH__)
  return tanhf(x);
#else
  const float square = x * x;
  float q = 2.36547e-3f;
  q = q * square - 8.38896e-3f;
  q = q * square + 2.177525e-2f;
  q = q * square - 5.395862e-2f;
  q = q * square + 1.3333288e-1f;
  q = q * square - 3.3333333e-1f;
  const float near_zero = x + x * (square * q);
  const float magnitude = x < 0.0f ? -x : x;
  const float small = exponential(-2.0f * magnitude);
  const float away = (1.0f - small) / (1.0f + small);
  const float result = x < 0.0f ? -away : away;
  return magnitude < 0.55f ? near_zero : result;
#endif
}
RC_INLINE double hyperbolic_tangent(double x) {
  return tanh(x);
}

// log(x) for positive normal x, +inf and NaN, relative error below 3e-7 in float. Branch-free, for
// loops that are to be vectorised.
RC_INLINE float logarithm_of_normal(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x);
#else
  // x = 2^n f with f in [sqrt(1/2), sqrt(2)).
  const uint32_t bits = detail::bit_cast<uint32_t>(x) - 0x3f3504f3u;
  const int32_t exponent = static_cast<int32_t>(bits) >> 23;
  const float f = detail::bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u);
  const float n = static_cast<float>(exponent);
  const float s = (f - 1.0f) / (f + 1.0f);
  const float near_zero = 2.0f * s * (1.0f + detail::inverse_hyperbolic_tangent_excess(s * s));
  const float result = n * 0.693145751953125f + (n * 1.428606765330187e-06f + near_zero);
  return x < HUGE_VALF ? result : x;
#endif
}
RC_INLINE double logarithm_of_normal(double x) {
  return log(x);
}

// What softplus(z) = log(1 + e^z) and its derivative have in common, from y = e^-|z| in [0, 1].
template <class Acc>
struct SoftplusParts {
  Acc ratio;    // log(1 + y) / y, 1 at 0
  Acc inverse;  // 1 / (1 + y)
};

// Branch-free. log(1 + y) / y by a polynomial fitted for the smallest largest relative error (5e-9
// before rounding), in two chains that do not wait for each other nor for the division.
RC_INLINE SoftplusParts<float> softplus_parts(float y) {
  const float square = y * y;
  float even = 2.0204572e-2f;
  even = even * square + 1.0680554e-1f;
  even = even * square + 1.96954e-1f;
  even = even * square + 3.3330512e-1f;
  float odd = -3.3184695e-3f;
  odd = odd * square - 5.7664424e-2f;
  odd = odd * square - 1.5355395e-1f;
  odd = odd * square - 2.4958587e-1f;
  odd = odd * square - 4.999993e-1f;
  // The small part first: one rounding of a number near 1.
  return {1.0f + (odd * y + even * square), 1.0f / (1.0f + y)};
}
RC_INLINE SoftplusParts<double> softplus_parts(double y) {
  return {y > 0.0 ? log1p(y) / y : 1.0 + y, 1.0 / (1.0 + y)};
}

// log(1 + e^x), relative error below 4e-7 in float, without overflow; softplus(-inf) = 0.
template <class Acc>
RC_INLINE Acc softplus(Acc x) {
  const Acc y = exponential(x < Acc(0) ? x : -x);
  return (x > Acc(0) ? x : Acc(0)) + y * softplus_parts(y).ratio;
}

// sigmoid(x) and sigmoid(-x), both without cancellation: never 1 - sigmoid(x).
template <class Acc>
struct LogisticPair {
  Acc value;
  Acc complement;
};

template <class Acc>
RC_INLINE LogisticPair<Acc> logistic_pair(Acc x) {
  const bool negative = x < Acc(0);
  const Acc small = exponential(negative ? x : -x);
  const Acc inverse = Acc(1) / (Acc(1) + small);
  const Acc scaled = small * inverse;
  return {negative ? scaled : inverse, negative ? inverse : scaled};
}

}  // namespace robustcore
