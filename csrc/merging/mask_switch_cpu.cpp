#include "common/parallel.h"
#include "merging/mask_apply.h"
#include "merging/mask_switch_op.h"

namespace robustcore {
namespace {

constexpr int64_t kChunk = 8192;  // parameters in flat order

// Up to 32 parameters: where a bit of `differs` is set, the weight under the bit of `kept`. With
// words as wide as a float, a bit becomes a lane without narrowing and widening.
template <class T>
RC_INLINE void switch_word(uint32_t differs, uint32_t kept, int count, const T* base,
                        const accumulate_t<T>* merged, T* weights) {
  RC_SIMD for (int i = 0; i < count; ++i) {
    const T value = AddWhereKept::apply<T>(base[i], merged[i], ((kept >> i) & 1u) != 0);
    weights[i] = ((differs >> i) & 1u) != 0 ? value : weights[i];
  }
}

// Parameters [begin, end) of one tensor, whose first parameter is bit `start` of the masks.
template <class T>
RC_TARGET_CLONES void switch_range(const T* base, const accumulate_t<T>* merged, T* weights,
                                   const uint64_t* before, const uint64_t* after, int64_t words,
                                   int64_t start, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kWordBits) {
    const int64_t count = end - first < kWordBits ? end - first : kWordBits;
    const uint64_t kept = bits_from(after, words, start + first);
    uint64_t differs = kept ^ bits_from(before, words, start + first);
    if (count < kWordBits) differs &= (uint64_t{1} << count) - 1;
    if (differs == 0) continue;
    for (int64_t half = 0; half < count; half += 32) {
      const auto rewritten = static_cast<uint32_t>(differs >> half);
      const auto added = static_cast<uint32_t>(kept >> half);
      const int64_t at = first + half;
      if (rewritten == 0) continue;
      if (count - half >= 32) {  // a loop of known length
        switch_word(rewritten, added, 32, base + at, merged + at, weights + at);
      } else {
        switch_word(rewritten, added, static_cast<int>(count - half), base + at, merged + at,
                    weights + at);
      }
    }
  }
}

void mask_switch_(std::vector<Tensor> weights, std::vector<Tensor> base,
                  std::vector<Tensor> merged, const Tensor& before, const Tensor& after) {
  const MaskSwitchArguments a = mask_switch_arguments(std::move(weights), std::move(base),
                                                      std::move(merged), before, after);
  const uint64_t* before_words = static_cast<const uint64_t*>(a.before.const_data_ptr());
  const uint64_t* after_words = static_cast<const uint64_t*>(a.after.const_data_ptr());
  const std::vector<const void*> from = read_pointers(a.base), added = read_pointers(a.merged);
  const std::vector<ScalarType> types = types_of(a.weights);
  std::vector<void*> to;
  for (const Tensor& tensor : a.weights) to.push_back(tensor.mutable_data_ptr());
  const int64_t words = a.before.size(0), parameters = a.order.parameters();
  // One loop over the whole model: most tensors are too small for threads of their own.
  parallel_rows((parameters + kChunk - 1) / kChunk, kChunk, [&](int64_t first, int64_t last) {
    std::vector<FlatPiece> pieces;
    a.order.split(first * kChunk, std::min(parameters, last * kChunk), pieces);
    for (const FlatPiece& piece : pieces) {
      dispatch_floating(types[piece.tensor], [&](auto tag) {
        using T = typename decltype(tag)::type;
        switch_range(static_cast<const T*>(from[piece.tensor]),
                     static_cast<const accumulate_t<T>*>(added[piece.tensor]),
                     static_cast<T*>(to[piece.tensor]), before_words, after_words, words,
                     a.order.start(piece.tensor), piece.first, piece.first + piece.count);
      });
    }
  });
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("mask_switch_", TORCH_BOX(&robustcore::mask_switch_));
}
