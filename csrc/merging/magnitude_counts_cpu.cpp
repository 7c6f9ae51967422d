#include "common/parallel.h"
#include "merging/magnitude_counts_op.h"

namespace robustcore {
namespace {

constexpr int64_t kStrip = 512;

// Keys of |tau| of parameters [first, first + count).
template <class Acc>
RC_INLINE void read_keys(StoredWeights base, StoredWeights weights, bool is_vector, int64_t first,
                      int64_t count, uint32_t* keys) {
  Acc values[kStrip], origin[kStrip];
  read_weights(weights, first, count, values);
  if (!is_vector) {
    read_weights(base, first, count, origin);
  RC_SIMD for (int64_t i = 0; i < count; ++i) values[i] = values[i] - origin[i];
  }
  RC_SIMD for (int64_t i = 0; i < count; ++i) keys[i] = magnitude_key(values[i]);
}

template <class Acc>
RC_TARGET_CLONES void count_upper(StoredWeights base, StoredWeights weights, bool is_vector,
                                  int64_t begin, int64_t end, int64_t* counts) {
  uint32_t keys[kStrip];
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t count = std::min(kStrip, end - first);
    read_keys<Acc>(base, weights, is_vector, first, count, keys);
    for (int64_t i = 0; i < count; ++i) ++counts[keys[i] >> kLowerKeyBits];
  }
}

template <class Acc>
RC_TARGET_CLONES void count_lower(StoredWeights base, StoredWeights weights, bool is_vector,
                                  int64_t begin, int64_t end, uint32_t upper, int64_t* counts) {
  uint32_t keys[kStrip];
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t count = std::min(kStrip, end - first);
    read_keys<Acc>(base, weights, is_vector, first, count, keys);
    constexpr int64_t kTogether = 16;
    for (int64_t i = count; i < kStrip; ++i) keys[i] = ~uint32_t{0};
    // Few have these upper bits: most groups are passed over by one comparison of vectors.
    for (int64_t group = 0; group < count; group += kTogether) {
      uint32_t found = 0;
      for (int64_t i = 0; i < kTogether; ++i) {
        found |= (keys[group + i] >> kLowerKeyBits) == upper ? 1u : 0u;
      }
      if (!found) continue;
      for (int64_t i = group; i < group + kTogether; ++i) {
        if (keys[i] >> kLowerKeyBits == upper) ++counts[keys[i] & (kLowerBins - 1)];
      }
    }
  }
}

template <class Acc>
RC_TARGET_CLONES void count_block_ties(StoredWeights base, StoredWeights weights, bool is_vector,
                                       int64_t begin, int64_t end, uint32_t low, uint32_t high,
                                       int64_t* ties) {
  uint32_t keys[kStrip];
  int32_t lows = 0, highs = 0;
  for (int64_t first = begin; first < end; first += kStrip) {
    const int64_t count = std::min(kStrip, end - first);
    read_keys<Acc>(base, weights, is_vector, first, count, keys);
    for (int64_t i = 0; i < count; ++i) {
      lows += keys[i] == low;
      highs += keys[i] == high;
    }
  }
  ties[0] = lows;
  ties[1] = highs;
}

// `run` is called with a type tag of the type in which a piece is computed.
template <class F>
void in_its_type(bool is_double, const F& run) {
  if (is_double) {
    run(type_tag<double>{});
  } else {
    run(type_tag<float>{});
  }
}

void count_magnitudes(const Tensor& counts, std::vector<Tensor> base,
                      std::vector<Tensor> finetuned, std::vector<int64_t> vectors,
                      std::vector<int64_t> upper) {
  const HistogramArguments a("magnitude_histogram_", counts, base, finetuned, vectors, upper);
  // Tasks have a histogram each. A lone task's pieces are cut up, and the parts are added.
  constexpr int64_t kLeast = int64_t{1} << 18, kChunk = int64_t{1} << 15;
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>(a.parameters / kLeast, a.tasks >= 4 ? 1 : 4));
  std::vector<int64_t> partial(parts > 1 ? static_cast<size_t>(a.tasks * parts * a.bins) : 0);
  int64_t* const result = write_pointer<int64_t>(counts);
  parallel_rows(a.tasks * parts, a.parameters / parts + 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = 0; piece < a.pieces; ++piece) {
      const Tensor& origin = base[piece];
      const int64_t size = origin.numel();
      // Tasks in turn on what of the base is in the cache.
      for (int64_t chunk = 0; chunk < size / parts + 1; chunk += kChunk) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t task = item / parts, part = item % parts;
          const int64_t first = size * part / parts + chunk;
          const int64_t last = std::min(first + kChunk, size * (part + 1) / parts);
          if (first >= last) continue;
          int64_t* const row =
              parts > 1 ? partial.data() + item * a.bins : result + task * a.bins;
          const StoredWeights values = stored(finetuned[task * a.pieces + piece]);
          in_its_type(a.is_double[piece], [&](auto tag) {
            using Acc = typename decltype(tag)::type;
            if (upper.empty()) {
              count_upper<Acc>(stored(origin), values, vectors[task] != 0, first, last, row);
            } else {
              count_lower<Acc>(stored(origin), values, vectors[task] != 0, first, last,
                               static_cast<uint32_t>(upper[task]), row);
            }
          });
        }
      }
    }
  });
  if (parts == 1) return;
  for (int64_t item = 0; item < a.tasks * parts; ++item) {
    int64_t* const row = result + item / parts * a.bins;
    for (int64_t bin = 0; bin < a.bins; ++bin) row[bin] += partial[item * a.bins + bin];
  }
}

Tensor count_ties(std::vector<Tensor> base, std::vector<Tensor> finetuned,
                  std::vector<int64_t> vectors, const Tensor& windows) {
  const TieArguments a("magnitude_ties", base, finetuned, vectors, windows);
  Tensor ties = fresh(base[0], {a.blocks, a.tasks, 2}, ScalarType::Long);
  int64_t* row = write_pointer<int64_t>(ties);
  for (int64_t piece = 0; piece < a.pieces; ++piece) {
    const Tensor& origin = base[piece];
    const int64_t size = origin.numel(), blocks = merge_blocks(size);
    parallel_rows(blocks, kMergeBlock * a.tasks, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kMergeBlock, last = std::min(size, first + kMergeBlock);
        for (int64_t task = 0; task < a.tasks; ++task) {
          const Tensor& values = finetuned[task * a.pieces + piece];
          const MagnitudeWindow window = a.window(piece, task);
          in_its_type(a.is_double[piece], [&](auto tag) {
            count_block_ties<typename decltype(tag)::type>(
                stored(origin), stored(values), vectors[task] != 0, first, last, window.low,
                window.high, row + (block * a.tasks + task) * 2);
          });
        }
      }
    });
    row += blocks * a.tasks * 2;
  }
  return ties;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("magnitude_histogram_", TORCH_BOX(&robustcore::count_magnitudes));
  m.impl("magnitude_ties", TORCH_BOX(&robustcore::count_ties));
}
