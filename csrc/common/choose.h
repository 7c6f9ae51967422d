// A choice between two values that compilers cannot turn into a branch. From a conditional
// expression whose operands are long computations gcc makes branches, and scalar code of the loop
// around them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

// condition ? yes : no
template <class Acc>
RC_INLINE Acc choose(bool condition, Acc yes, Acc no) {
#if defined(__CUDA_ARCH__)
  return condition ? yes : no;
#else
  using Bits = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  const Bits mask = condition ? Bits(-1) : Bits(0);
  return detail::bit_cast<Acc>((detail::bit_cast<Bits>(yes) & mask) |
                               (detail::bit_cast<Bits>(no) & ~mask));
#endif
}

// condition ? 0 : value
template <class Acc>
RC_INLINE Acc zero_if(bool condition, Acc value) {
  return choose(condition, Acc(0), value);
}

}  // namespace robustcore
