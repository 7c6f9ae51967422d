// What a mask does to one parameter. Host and device, no torch. A policy gets the values in the
// type of computation; which ones are read follows from kReadsBase.
#pragma once

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

// base + m * merged. Where the bit is 0 the base is kept bit for bit, also a NaN's payload or a
// number that an addition of zero would change (-0).
struct AddWhereKept {
  static constexpr bool kReadsBase = true;

  template <class T>
  static RC_INLINE T apply(T base, accumulate_t<T> merged, bool kept) {
    const T sum = from_accumulate<T>(to_accumulate(base) + merged);
    return kept ? sum : base;
  }
};

// m * value: the derivative of the above for `merged`, and its own.
struct ZeroWhereDropped {
  static constexpr bool kReadsBase = false;

  template <class T>
  static RC_INLINE T apply(T value, accumulate_t<T>, bool kept) {
    return kept ? value : from_accumulate<T>(accumulate_t<T>(0));
  }
};

}  // namespace robustcore
