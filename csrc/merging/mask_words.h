// Packed masks as words: bit i of word w stands for parameter 64 w + i of the flat order (on
// little-endian machines that is bit i of byte j for parameter 8 j + i). Bits past the last
// parameter are zero. Host and device, no torch.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace robustcore {

constexpr int64_t kWordBits = 64;

RC_INLINE int64_t word_count(int64_t parameters) {
  return (parameters + kWordBits - 1) / kWordBits;
}

// The number of bits that write every value from 0 to `largest`.
RC_INLINE int bits_for(int64_t largest) {
  int bits = 0;
  while (largest >> bits) ++bits;
  return bits;
}

RC_INLINE int population(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

RC_INLINE int population(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// Bits [bit, bit + 64) of a mask of `words` words; those past the end are zero.
RC_INLINE uint64_t bits_from(const uint64_t* mask, int64_t words, int64_t bit) {
  const int64_t word = bit / kWordBits;
  const int shift = static_cast<int>(bit % kWordBits);
  const uint64_t low = mask[word] >> shift;
  if (shift == 0 || word + 1 == words) return low;
  return low | (mask[word + 1] << (kWordBits - shift));
}

// Which of a word's parameters have a number >= rank, where bit b of each number stands in
// planes[b * stride]. Compares from the highest bit down: `equal` are those still undecided.
template <class Word>
RC_INLINE Word at_least(const Word* planes, int64_t stride, int plane_count, int64_t rank) {
  Word greater = 0;
  Word equal = ~Word(0);
  for (int b = plane_count - 1; b >= 0; --b) {
    const Word plane = planes[b * stride];
    if ((rank >> b) & 1) {
      equal &= plane;
    } else {
      greater |= equal & plane;
      equal &= ~plane;
    }
  }
  return greater | equal;
}

}  // namespace robustcore
