// Operators on packed masks, 64 parameters per word and a block of words at a time.
#include <algorithm>
#include <atomic>
#include <vector>

#include "common/parallel.h"
#include "merging/packed_masks.h"
#include "merging/packed_masks_op.h"

namespace robustcore {
namespace {

// Words that are handled together: the planes of a block stay in the first-level cache.
constexpr int64_t kBlock = 64;

const uint64_t* read_words(const Tensor& words) {
  return static_cast<const uint64_t*>(words.const_data_ptr());
}

uint64_t* write_words(const Tensor& words) {
  return static_cast<uint64_t*>(words.mutable_data_ptr());
}

// planes[b][0, count) = bit b of how many of the T rows keep each parameter of words [first, first
// + count).
RC_TARGET_CLONES void count_block(const uint64_t* rows, int64_t tasks, int64_t row_words,
                                  int64_t first, int64_t count, int plane_count, uint64_t* planes) {
  std::fill_n(planes, plane_count * kBlock, uint64_t{0});
  for (int64_t task = 0; task < tasks; ++task) {
    const uint64_t* row = rows + task * row_words + first;
    uint64_t carry[kBlock];
    for (int64_t w = 0; w < count; ++w) carry[w] = row[w];
    // After t + 1 rows no number needs more planes than t + 1 itself.
    const int needed = std::min(plane_count, bits_for(task + 1));
    for (int b = 0; b < needed; ++b) {
      uint64_t* RC_RESTRICT plane = planes + b * kBlock;
      RC_SIMD for (int64_t w = 0; w < count; ++w) {
        const uint64_t sum = plane[w];
        plane[w] = sum ^ carry[w];
        carry[w] &= sum;
      }
    }
  }
}

// out[w] = at_least(planes of word w): comparison from the highest plane down.
RC_TARGET_CLONES void at_least_block(const uint64_t* planes, int64_t stride, int plane_count,
                                     int64_t rank, int64_t count, uint64_t* RC_RESTRICT out) {
  uint64_t equal[kBlock];
  RC_SIMD for (int64_t w = 0; w < count; ++w) {
    equal[w] = ~uint64_t{0};
    out[w] = 0;
  }
  for (int b = plane_count - 1; b >= 0; --b) {
    const uint64_t* RC_RESTRICT plane = planes + b * stride;
    if ((rank >> b) & 1) {
      RC_SIMD for (int64_t w = 0; w < count; ++w) equal[w] &= plane[w];
    } else {
      RC_SIMD for (int64_t w = 0; w < count; ++w) {
        out[w] |= equal[w] & plane[w];
        equal[w] &= ~plane[w];
      }
    }
  }
  RC_SIMD for (int64_t w = 0; w < count; ++w) out[w] |= equal[w];
}

// values[i] = the number of parameter i of one word.
template <class Value>
RC_TARGET_CLONES void expand_word(const uint64_t* planes, int64_t stride, int plane_count,
                                  int64_t count, Value* RC_RESTRICT values) {
  Value numbers[kWordBits] = {};
  for (int b = 0; b < plane_count; ++b) {
    const uint64_t plane = planes[b * stride];
    RC_SIMD for (int64_t i = 0; i < kWordBits; ++i) {
      numbers[i] = static_cast<Value>(numbers[i] | (((plane >> i) & 1) << b));
    }
  }
  std::copy_n(numbers, count, values);
}

RC_TARGET_CLONES int64_t population_of_both(const uint64_t* a, const uint64_t* b, int64_t count) {
  int64_t total = 0;
  for (int64_t w = 0; w < count; ++w) total += population(a[w] & b[w]);
  return total;
}

// Calls f(first word, words, planes) for the blocks of a matrix of mask rows, in parallel.
template <class F>
void for_counted_blocks(const Tensor& masks, const F& f) {
  const int64_t tasks = masks.size(0), words = masks.size(1);
  const uint64_t* rows = read_words(masks);
  const int plane_count = std::max(1, bits_for(tasks));
  const int64_t blocks = (words + kBlock - 1) / kBlock;
  parallel_rows(blocks, kBlock * (tasks + 1), [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> planes(plane_count * kBlock);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, words - first);
      count_block(rows, tasks, words, first, count, plane_count, planes.data());
      f(first, count, planes.data(), plane_count);
    }
  });
}

Tensor mask_select(const Tensor& codes, std::vector<int64_t> ranks) {
  const Tensor planes = packed_words("mask_select", "codes", codes, 3);
  check_ranks("mask_select", ranks, planes);
  const int64_t tasks = planes.size(0), plane_count = planes.size(1), words = planes.size(2);
  const Tensor masks = fresh(planes, {tasks, words}, ScalarType::Long);
  const uint64_t* from = read_words(planes);
  uint64_t* to = write_words(masks);
  const int64_t blocks = (words + kBlock - 1) / kBlock;
  parallel_rows(tasks * blocks, kBlock * plane_count, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t task = item / blocks, first = item % blocks * kBlock;
      at_least_block(from + task * plane_count * words + first, words,
                     static_cast<int>(plane_count), ranks[task], std::min(kBlock, words - first),
                     to + task * words + first);
    }
  });
  return masks;
}

Tensor mask_unpack(const Tensor& mask, int64_t parameters) {
  const Tensor words = packed_words("mask_unpack", "mask", mask, 1);
  check_parameters("mask_unpack", words, parameters);
  const Tensor kept = fresh(words, {parameters}, ScalarType::Bool);
  const uint64_t* from = read_words(words);
  uint8_t* to = static_cast<uint8_t*>(kept.mutable_data_ptr());
  parallel_rows(words.size(0), kWordBits, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      expand_word(from + w, 1, 1, std::min(kWordBits, parameters - w * kWordBits),
                  to + w * kWordBits);
    }
  });
  return kept;
}

Tensor mask_counts(const Tensor& masks, int64_t parameters) {
  const Tensor words = packed_words("mask_counts", "masks", masks, 2);
  check_parameters("mask_counts", words, parameters);
  const Tensor counts = fresh(words, {parameters}, ScalarType::Int);
  int32_t* to = write_pointer<int32_t>(counts);
  for_counted_blocks(words,
                     [&](int64_t first, int64_t count, const uint64_t* planes, int plane_count) {
                       for (int64_t w = 0; w < count; ++w) {
                         const int64_t parameter = (first + w) * kWordBits;
                         expand_word(planes + w, kBlock, plane_count,
                                     std::min(kWordBits, parameters - parameter), to + parameter);
                       }
                     });
  return counts;
}

Tensor mask_histogram(const Tensor& masks, int64_t parameters) {
  const Tensor words = packed_words("mask_histogram", "masks", masks, 2);
  check_parameters("mask_histogram", words, parameters);
  const int64_t bins = words.size(0) + 1;
  const Tensor histogram = fresh(words, {bins}, ScalarType::Long);
  int64_t* totals = write_pointer<int64_t>(histogram);
  std::fill_n(totals, bins, 0);
  for_counted_blocks(
      words, [&](int64_t first, int64_t count, const uint64_t* planes, int plane_count) {
        for (int64_t number = 0; number < bins; ++number) {
          int64_t total = 0;
          for (int64_t w = 0; w < count; ++w) {
            total += population(equal_to(planes + w, kBlock, plane_count, number) &
                                valid_bits<uint64_t>((first + w) * kWordBits, parameters));
          }
          std::atomic_ref<int64_t>(totals[number]).fetch_add(total, std::memory_order_relaxed);
        }
      });
  return histogram;
}

Tensor mask_overlap(const Tensor& masks) {
  const Tensor words = packed_words("mask_overlap", "masks", masks, 2);
  const int64_t tasks = words.size(0), row_words = words.size(1);
  const Tensor overlap = fresh(words, {tasks, tasks}, ScalarType::Long);
  int64_t* totals = write_pointer<int64_t>(overlap);
  std::fill_n(totals, tasks * tasks, 0);
  const uint64_t* rows = read_words(words);
  const int64_t blocks = (row_words + kBlock - 1) / kBlock;
  parallel_rows(blocks, kBlock * tasks * (tasks + 1) / 2, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> pairs(tasks * tasks);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, row_words - first);
      for (int64_t a = 0; a < tasks; ++a) {
        for (int64_t b = a; b < tasks; ++b) {
          pairs[a * tasks + b] +=
              population_of_both(rows + a * row_words + first, rows + b * row_words + first, count);
        }
      }
    }
    for (int64_t a = 0; a < tasks; ++a) {
      for (int64_t b = 0; b < tasks; ++b) {
        const int64_t total = pairs[std::min(a, b) * tasks + std::max(a, b)];
        std::atomic_ref<int64_t>(totals[a * tasks + b]).fetch_add(total, std::memory_order_relaxed);
      }
    }
  });
  return overlap;
}

Tensor mask_consensus(const Tensor& masks, int64_t least) {
  const Tensor words = packed_words("mask_consensus", "masks", masks, 2);
  RC_CHECK(least >= 1 && least <= words.size(0), "mask_consensus: least must be from 1 to ",
           words.size(0), ", got ", least);
  const Tensor consensus = fresh(words, {words.size(1)}, ScalarType::Long);
  uint64_t* to = write_words(consensus);
  for_counted_blocks(words,
                     [&](int64_t first, int64_t count, const uint64_t* planes, int plane_count) {
                       at_least_block(planes, kBlock, plane_count, least, count, to + first);
                     });
  return consensus;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("mask_select", TORCH_BOX(&robustcore::mask_select));
  m.impl("mask_unpack", TORCH_BOX(&robustcore::mask_unpack));
  m.impl("mask_counts", TORCH_BOX(&robustcore::mask_counts));
  m.impl("mask_histogram", TORCH_BOX(&robustcore::mask_histogram));
  m.impl("mask_overlap", TORCH_BOX(&robustcore::mask_overlap));
  m.impl("mask_consensus", TORCH_BOX(&robustcore::mask_consensus));
}
