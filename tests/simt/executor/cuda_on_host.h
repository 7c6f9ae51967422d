// The CUDA that kernels of this project are written in, for the host executor: common/simt.cuh
// includes this file where the compiler is not nvcc.
//
// What is missing here does not compile: __shared__ (use RC_SHARED), floating-point atomics (they
// are not deterministic), y and z dimensions of a launch, printf.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_math.h"
#include "cuda_vectors.h"
#include "executor.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

using cudaStream_t = ::robustcore::simt::stream_type;

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

#define RC_SHARED(type, name, count)                                                          \
  type(&name)[count] = []() -> type(&)[count] {                                               \
    static_assert(std::is_trivially_default_constructible_v<type>,                            \
                  "shared memory cannot run constructors");                                   \
    constinit static ::robustcore::simt::host::SharedSite site{#name, sizeof(type) * (count), \
                                                               alignof(type), sizeof(type)};  \
    return *reinterpret_cast<type(*)[count]>(::robustcore::simt::host::shared_storage(site)); \
  }()

#define RC_DEVICE_ASSERT(condition)                                     \
  ((condition)                                                          \
       ? static_cast<void>(0)                                           \
       : ::robustcore::simt::host::fail(                                \
             "device assertion", #condition " is false in " +           \
                                     ::robustcore::simt::host::name_of( \
                                         ::robustcore::simt::host::Site{__FILE__, __LINE__})))

// Each primitive learns where it was called, so that reports can say it.
#define RC_SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#define RC_SIMT_HERE \
  ::robustcore::simt::host::Site { file, line }

inline void __trap(RC_SIMT_SITE) {
  ::robustcore::simt::host::fail("trap",
                                 "__trap() in " + ::robustcore::simt::host::name_of(RC_SIMT_HERE));
}

inline void __syncthreads(RC_SIMT_SITE) {
  ::robustcore::simt::host::barrier(::robustcore::simt::host::BarrierKind::kPlain, 0, RC_SIMT_HERE);
}
inline int __syncthreads_or(int predicate, RC_SIMT_SITE) {
  return ::robustcore::simt::host::barrier(::robustcore::simt::host::BarrierKind::kOr, predicate,
                                           RC_SIMT_HERE);
}
inline int __syncthreads_and(int predicate, RC_SIMT_SITE) {
  return ::robustcore::simt::host::barrier(::robustcore::simt::host::BarrierKind::kAnd, predicate,
                                           RC_SIMT_HERE);
}
inline int __syncthreads_count(int predicate, RC_SIMT_SITE) {
  return ::robustcore::simt::host::barrier(::robustcore::simt::host::BarrierKind::kCount, predicate,
                                           RC_SIMT_HERE);
}

namespace robustcore::simt::host {

template <typename T>
std::uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "warp primitives move values of 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace robustcore::simt::host

#define RC_SIMT_SHUFFLE(function, kind)                                                     \
  template <typename T>                                                                     \
  T function(unsigned mask, T value, int parameter, int width = warpSize, RC_SIMT_SITE) {   \
    namespace host = ::robustcore::simt::host;                                              \
    return host::from_bits<T>(host::warp_primitive(                                         \
        host::WarpKind::kind, mask, host::to_bits(value), parameter, width, RC_SIMT_HERE)); \
  }
RC_SIMT_SHUFFLE(__shfl_sync, kShuffle)
RC_SIMT_SHUFFLE(__shfl_up_sync, kShuffleUp)
RC_SIMT_SHUFFLE(__shfl_down_sync, kShuffleDown)
RC_SIMT_SHUFFLE(__shfl_xor_sync, kShuffleXor)
#undef RC_SIMT_SHUFFLE

#define RC_SIMT_VOTE(type, function, kind)                                                       \
  inline type function(unsigned mask, int predicate, RC_SIMT_SITE) {                             \
    return static_cast<type>(                                                                    \
        ::robustcore::simt::host::warp_primitive(::robustcore::simt::host::WarpKind::kind, mask, \
                                                 predicate != 0, 0, warpSize, RC_SIMT_HERE));    \
  }
RC_SIMT_VOTE(unsigned, __ballot_sync, kBallot)
RC_SIMT_VOTE(int, __any_sync, kAny)
RC_SIMT_VOTE(int, __all_sync, kAll)
#undef RC_SIMT_VOTE

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, RC_SIMT_SITE) {
  namespace host = ::robustcore::simt::host;
  return static_cast<unsigned>(host::warp_primitive(
      host::WarpKind::kMatchAny, mask, host::to_bits(value), 0, warpSize, RC_SIMT_HERE));
}

#define RC_SIMT_REDUCE(function, kind)                                                           \
  template <typename T>                                                                          \
  T function(unsigned mask, T value, RC_SIMT_SITE) {                                             \
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);                        \
    namespace host = ::robustcore::simt::host;                                                   \
    return static_cast<T>(host::warp_primitive(host::WarpKind::kind, mask, host::to_bits(value), \
                                               std::is_signed_v<T>, warpSize, RC_SIMT_HERE));    \
  }
RC_SIMT_REDUCE(__reduce_add_sync, kReduceAdd)
RC_SIMT_REDUCE(__reduce_min_sync, kReduceMin)
RC_SIMT_REDUCE(__reduce_max_sync, kReduceMax)
RC_SIMT_REDUCE(__reduce_and_sync, kReduceAnd)
RC_SIMT_REDUCE(__reduce_or_sync, kReduceOr)
RC_SIMT_REDUCE(__reduce_xor_sync, kReduceXor)
#undef RC_SIMT_REDUCE

inline void __syncwarp(unsigned mask = 0xffffffffu, RC_SIMT_SITE) {
  ::robustcore::simt::host::warp_primitive(::robustcore::simt::host::WarpKind::kSync, mask, 0, 0,
                                           warpSize, RC_SIMT_HERE);
}

// The lanes that have not exited. On a GPU the result depends on how the hardware has scheduled
// the warp: a kernel must not synchronise by it.
inline unsigned __activemask() { return ::robustcore::simt::host::active_mask(); }

inline void __threadfence() { ::robustcore::simt::host::fence(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { ::robustcore::simt::host::yield(); }

// Cached and streaming loads and stores are loads and stores.
#define RC_SIMT_LOAD(function)                                         \
  template <typename T>                                                \
  inline __attribute__((always_inline)) T function(const T* address) { \
    return *address;                                                   \
  }
RC_SIMT_LOAD(__ldg)
RC_SIMT_LOAD(__ldca)
RC_SIMT_LOAD(__ldcg)
RC_SIMT_LOAD(__ldcs)
RC_SIMT_LOAD(__ldlu)
RC_SIMT_LOAD(__ldcv)
#undef RC_SIMT_LOAD
#define RC_SIMT_STORE(function)                                                                    \
  template <typename T>                                                                            \
  inline __attribute__((always_inline)) void function(T* address, std::type_identity_t<T> value) { \
    *address = value;                                                                              \
  }
RC_SIMT_STORE(__stwb)
RC_SIMT_STORE(__stcg)
RC_SIMT_STORE(__stcs)
RC_SIMT_STORE(__stwt)
#undef RC_SIMT_STORE

#include "cuda_atomics.h"
