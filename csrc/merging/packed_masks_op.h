// Checks shared by the CPU and the CUDA registration of the operators on packed masks.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "merging/mask_words.h"
#include "merging/tall_masks.h"

namespace robustcore {

// Rows of words, `dimensions` of them in all; returned contiguous.
inline Tensor packed_words(const char* op, const char* name, const Tensor& words,
                           int64_t dimensions) {
  check_type(op, name, words, ScalarType::Long);
  RC_CHECK(words.dim() == dimensions, op, ": ", name, " must have ", dimensions,
           " dimensions, got ", words.dim());
  return torch::stable::contiguous(words);
}

inline void check_parameters(const char* op, const Tensor& words, int64_t parameters) {
  RC_CHECK(parameters >= 0 && word_count(parameters) == words.size(words.dim() - 1), op,
           ": parameters must fit ", words.size(words.dim() - 1), " words, got ", parameters);
}

inline void check_ranks(const char* op, const std::vector<int64_t>& ranks, const Tensor& codes) {
  RC_CHECK(static_cast<int64_t>(ranks.size()) == codes.size(0), op, ": ranks must hold ",
           codes.size(0), " values, got ", ranks.size());
  // The shifts below are defined only for fewer planes than a rank has bits.
  RC_CHECK(codes.size(1) >= 1 && codes.size(1) <= kMaximumPlanes, op, ": codes must have 1 to ",
           kMaximumPlanes, " planes, got ", codes.size(1));
  for (const int64_t rank : ranks) {
    RC_CHECK(rank >= 1 && (rank >> codes.size(1)) == 0, op, ": a rank must be from 1 to ",
             (int64_t{1} << codes.size(1)) - 1, ", got ", rank);
  }
}

}  // namespace robustcore
