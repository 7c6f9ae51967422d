// Standard normal numbers for pairs of indices: element [i, f] is a function of the key, of both
// indices of i and of f alone, so a row can be made anywhere and at any time again. Host and
// device, no torch.
#pragma once

#include <cstdint>

#include "common/random.h"

namespace robustcore {

struct CounterNormalParams {
  const int64_t* first;   // [rows]
  const int64_t* second;  // [rows], below 2^32
  int64_t rows;
  int64_t count;  // numbers per row
  uint64_t seed;
  const int64_t* device_seed;  // [1]: where it is not null it counts instead
  float* values;               // [rows, count]
};

// Four numbers of a row.
RC_INLINE NormalQuad counter_normal_quad(const CounterNormalParams& p, RandomKey key, int64_t row,
                                      int64_t quad) {
  const uint64_t first = static_cast<uint64_t>(p.first[row]);
  return normal_quad(key, {static_cast<uint32_t>(quad), static_cast<uint32_t>(p.second[row]),
                           static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32)});
}

}  // namespace robustcore
