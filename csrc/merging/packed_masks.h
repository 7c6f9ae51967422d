// Policies over a column of packed masks: the same word of T mask rows, 64 parameters at once. Host
// and device, no torch.
//
// Counting is bit-sliced: bit b of the number of masks that keep a parameter stands in plane b, and
// adding a row is a ripple of ANDs and XORs. Nothing is unpacked. A method that looks at how many
// masks keep a parameter is one struct with a finish(): see AtLeast and Histogram.
#pragma once

#include <cstdint>

#include "merging/mask_words.h"

namespace robustcore {

// Adds one bit per parameter to a number written in `plane_count` planes, `stride` words apart.
template <class Word>
RC_INLINE void add_row(Word* planes, int64_t stride, int plane_count, Word carry) {
  for (int b = 0; b < plane_count; ++b) {
    const Word sum = planes[b * stride];
    planes[b * stride] = sum ^ carry;
    carry &= sum;
  }
}

// Which parameters have exactly `number`.
template <class Word>
RC_INLINE Word equal_to(const Word* planes, int64_t stride, int plane_count, int64_t number) {
  Word equal = ~Word(0);
  for (int b = 0; b < plane_count; ++b) {
    const Word plane = planes[b * stride];
    equal &= ((number >> b) & 1) ? plane : ~plane;
  }
  return equal;
}

// The bits of a column's word that are parameters.
template <class Word>
RC_INLINE Word valid_bits(int64_t first_parameter, int64_t parameters) {
  const int64_t left = parameters - first_parameter;
  if (left >= static_cast<int64_t>(8 * sizeof(Word))) return ~Word(0);
  return left <= 0 ? Word(0) : (Word(1) << left) - 1;
}

}  // namespace robustcore
