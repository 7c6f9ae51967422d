// Order of magnitudes: kth values are found by counting the bits of |x|, exactly and in any order
// of the data. Host and device, no torch.
#pragma once

#include <cstdint>
#include <limits>

#include "common/float16.h"

namespace robustcore {

// Parameters that are handled as one: partial sums and tie counts are per block of a tensor, so a
// tensor may be cut into slices of whole blocks and nothing changes.
constexpr int64_t kMergeBlock = 4096;

inline int64_t merge_blocks(int64_t parameters) {
  return (parameters + kMergeBlock - 1) / kMergeBlock;
}

constexpr uint32_t kInfinityKey = 0x7f800000u;

// 31 bits that are ordered as |x| is. NaNs share one key, above everything: their payloads differ
// between devices. Differences in float64 are ordered by their rounding to float32.
RC_INLINE uint32_t magnitude_key(float x) {
  const uint32_t key = detail::bit_cast<uint32_t>(x) & 0x7fffffffu;
  return key > kInfinityKey ? kInfinityKey + 1 : key;
}
RC_INLINE uint32_t magnitude_key(double x) {
  return magnitude_key(static_cast<float>(x));
}

// A histogram of all keys in two walks: the upper 16 bits, then the lower 15 of the keys that share
// the upper bits of the value that is looked for.
constexpr int kLowerKeyBits = 15;
constexpr int kUpperBins = 1 << 16;
constexpr int kLowerBins = 1 << kLowerKeyBits;

// Which magnitudes of a tensor stay: those between two keys, and of those equal to a key, in flat
// order, the first `low_ties` respectively all but the first `high_ties`. Where the two keys are
// one, both hold.
struct MagnitudeWindow {
  uint32_t low = 0;
  uint32_t high = std::numeric_limits<uint32_t>::max();
  int64_t low_ties = std::numeric_limits<int64_t>::max();
  int64_t high_ties = 0;

  RC_INLINE bool keeps_all() const {
    return low == 0 && low_ties == std::numeric_limits<int64_t>::max() &&
           high == std::numeric_limits<uint32_t>::max();
  }
  // Whether what stays depends on how many ties there were before.
  RC_INLINE bool counts_ties() const {
    return (low_ties > 0 && low_ties != std::numeric_limits<int64_t>::max()) || high_ties > 0;
  }
  // `low_tie`, `high_tie`: how many earlier parameters of the tensor have the key.
  RC_INLINE bool keeps(uint32_t key, int64_t low_tie, int64_t high_tie) const {
    const bool above = key > low || (key == low && low_tie < low_ties);
    const bool below = key < high || (key == high && high_tie >= high_ties);
    return above && below;
  }
};

}  // namespace robustcore
