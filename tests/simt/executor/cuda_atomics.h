// Atomic operations on 32- and 64-bit integers. Only one fiber runs at a time, so plain operations
// are atomic; the recorder of accesses is told that they may meet.
#pragma once

#include <type_traits>

#include "access.h"
#include "executor.h"

namespace robustcore::simt::host {

template <typename T, typename Update>
inline T atomic_update(T* address, Update update) {
  static_assert(std::is_integral_v<T>,
                "floating-point atomics are not deterministic: reduce in a fixed order instead");
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics take 32- and 64-bit integers");
  atomic_point();
  const AtomicAccess access;
  const T previous = *address;
  *address = update(previous);
  return previous;
}

}  // namespace robustcore::simt::host

#define RC_SIMT_ATOMIC(function, expression)                                                   \
  template <typename T>                                                                        \
  inline T function(T* address, std::type_identity_t<T> value) {                               \
    return ::robustcore::simt::host::atomic_update(                                            \
        address, [value]([[maybe_unused]] T previous) { return static_cast<T>(expression); }); \
  }
RC_SIMT_ATOMIC(atomicAdd, previous + value)
RC_SIMT_ATOMIC(atomicSub, previous - value)
RC_SIMT_ATOMIC(atomicOr, previous | value)
RC_SIMT_ATOMIC(atomicAnd, previous& value)
RC_SIMT_ATOMIC(atomicXor, previous ^ value)
RC_SIMT_ATOMIC(atomicMax, value > previous ? value : previous)
RC_SIMT_ATOMIC(atomicMin, value < previous ? value : previous)
RC_SIMT_ATOMIC(atomicExch, value)
#undef RC_SIMT_ATOMIC

template <typename T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::robustcore::simt::host::atomic_update(
      address, [expected, value](T previous) { return previous == expected ? value : previous; });
}
