// Masks of all tasks and all lambdas in one pass over the weights. The flat order is cut into fixed chunks
// that stay in the second-level cache: the first sweep over a chunk's rows sums the task vectors, the second
// packs the codes of one task after the other.
#include <atomic>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "common/parallel.h"
#include "merging/tall_masks_lanes.h"
#include "merging/tall_masks_op.h"

namespace robustcore {
namespace {

constexpr int64_t kChunk = 4096;  // parameters; a multiple of 64
constexpr int64_t kChunkWords = kChunk / kWordBits;
// Room for one number per parameter of a chunk in the widest type.
constexpr int64_t kRowBytes = kChunk * static_cast<int64_t>(sizeof(double));

template <class Acc>
RC_TARGET_CLONES void first_task(Acc* RC_RESTRICT sum, const Acc* RC_RESTRICT base,
                                 const Acc* RC_RESTRICT finetuned, int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) sum[i] = finetuned[i] - base[i];
}

template <class Acc>
RC_TARGET_CLONES void next_task(Acc* RC_RESTRICT sum, const Acc* RC_RESTRICT base,
                                const Acc* RC_RESTRICT finetuned, int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) sum[i] = sum[i] + (finetuned[i] - base[i]);
}

template <class Acc>
RC_TARGET_CLONES void add_base(Acc* target, const Acc* base, const Acc* merged,
                               int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) target[i] = base[i] + merged[i];
}

template <class T>
RC_TARGET_CLONES void upcast(accumulate_t<T>* RC_RESTRICT to, const T* RC_RESTRICT from,
                             int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = to_accumulate(from[i]);
}

// A run of a tensor in the type it is computed with: the tensor's own memory where that is its type
// already, else converted into `scratch`.
template <class T>
const accumulate_t<T>* widened(const void* tensor, int64_t first, int64_t count, void* scratch) {
  const T* from = static_cast<const T*>(tensor) + first;
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    (void)count, (void)scratch;
    return from;
  } else {
    auto* to = static_cast<accumulate_t<T>*>(scratch);
    upcast<T>(to, from, count);
    return to;
  }
}

// Writes `count` bits of `source` from bit `offset` of `destination` on. Runs come in ascending order, and
// every bit past a run's end is zero, so only the first word of a run has anything to keep.
void append_bits(uint64_t* destination, int64_t offset, const uint64_t* source, int64_t count) {
  uint64_t* to = destination + offset / kWordBits;
  const int shift = static_cast<int>(offset % kWordBits);
  const int64_t words = word_count(count);
  if (shift == 0) {
    std::memcpy(to, source, words * sizeof(uint64_t));
    return;
  }
  to[0] |= source[0] << shift;
  for (int64_t w = 1; w < word_count(shift + count); ++w) {
    const uint64_t high = w < words ? source[w] << shift : 0;
    to[w] = high | (source[w - 1] >> (kWordBits - shift));
  }
}

// Adds to counts[n - 1] how many codes are n or more. The comparisons with constants unroll into one or two
// bit operations each.
template <int kPlanes, int... kLess>
RC_INLINE void count_codes_unrolled(const uint64_t* planes, int64_t words, int64_t* counts,
                                    std::integer_sequence<int, kLess...>) {
  int64_t totals[sizeof...(kLess)] = {};
  for (int64_t w = 0; w < words; ++w) {
    uint64_t word[kPlanes];
    for (int b = 0; b < kPlanes; ++b) word[b] = planes[b * kChunkWords + w];
    ((totals[kLess] += population(at_least(word, 1, kPlanes, kLess + 1))), ...);
  }
  ((counts[kLess] += totals[kLess]), ...);
}

RC_TARGET_CLONES void count_codes(const uint64_t* planes, int64_t words, int lambda_count,
                                  int64_t* counts) {
  switch (lambda_count) {
    case 1: return count_codes_unrolled<1>(planes, words, counts, std::make_integer_sequence<int, 1>());
    case 2: return count_codes_unrolled<2>(planes, words, counts, std::make_integer_sequence<int, 2>());
    case 3: return count_codes_unrolled<2>(planes, words, counts, std::make_integer_sequence<int, 3>());
    case 4: return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 4>());
    case 5: return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 5>());
    case 6: return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 6>());
    case 7: return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 7>());
  }
  for (int n = 1; n <= lambda_count; ++n) {
    for (int64_t w = 0; w < words; ++w) {
      counts[n - 1] += population(at_least(planes + w, kChunkWords, bits_for(lambda_count), n));
    }
  }
}

class TallMasks {
 public:
  explicit TallMasks(const TallMasksArguments& a, uint64_t* codes, int64_t* counts)
      : a_(a),
        base_(read_pointers(a.base)),
        finetuned_(read_pointers(a.finetuned)),
        merged_(read_pointers(a.merged)),
        float_lambdas_(lambda_table<float>(a.lambdas.data(), a.lambdas.size())),
        double_lambdas_(lambda_table<double>(a.lambdas.data(), a.lambdas.size())),
        float_packing_(lanes::choose(float(), float_lambdas_.planes, a.strict)),
        double_packing_(lanes::choose(double(), double_lambdas_.planes, a.strict)),
        codes_(codes),
        counts_(counts) {}

  // Chunks [begin, end). Counts are integers: the order in which threads add theirs leaves no trace.
  void run(int64_t begin, int64_t end) const {
    Scratch scratch;
    std::vector<FlatPiece> pieces;
    std::vector<int64_t> counts(a_.tasks * a_.lambdas.size());
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t parameters = std::min(kChunk, a_.order.parameters() - first);
      a_.order.split(first, first + parameters, pieces);
      for (const FlatPiece& piece : pieces) {
        with_type(piece, [&](auto tag) { write_target<typename decltype(tag)::type>(piece, scratch); });
      }
      for (int64_t task = 0; task < a_.tasks; ++task) {
        for (const FlatPiece& piece : pieces) {
          with_type(piece, [&](auto tag) { pack<typename decltype(tag)::type>(piece, task, scratch); });
        }
        store(chunk, word_count(parameters), task, scratch, counts.data());
      }
    }
    for (size_t i = 0; i < counts.size(); ++i) {
      std::atomic_ref<int64_t>(counts_[i]).fetch_add(counts[i], std::memory_order_relaxed);
    }
  }

 private:
  struct alignas(64) Buffers {
    char base[kRowBytes];
    char target[kRowBytes];
    char finetuned[kRowBytes];
    uint64_t planes[kMaximumPlanes][kChunkWords];
    uint64_t run[kMaximumPlanes][kChunkWords];
  };

  // Where the widened rows of the chunk at hand are.
  struct Scratch {
    std::unique_ptr<Buffers> buffers = std::make_unique<Buffers>();
    template <class Acc>
    static Acc* at(char* row, int64_t offset) {
      return reinterpret_cast<Acc*>(row + offset * sizeof(double));
    }
  };

  template <class F>
  void with_type(const FlatPiece& piece, F&& f) const {
    dispatch_floating(a_.base[piece.tensor].scalar_type(), f);
  }

  const void* finetuned(int64_t task, const FlatPiece& piece) const {
    return finetuned_[task * a_.order.tensors() + piece.tensor];
  }

  const LambdaTable<float>& lambdas(float) const { return float_lambdas_; }
  const LambdaTable<double>& lambdas(double) const { return double_lambdas_; }

  lanes::Pack<float> packing(float) const { return float_packing_; }
  lanes::Pack<double> packing(double) const { return double_packing_; }

  // target = base + merged; a widened base stays in its buffer for pack().
  template <class T>
  void write_target(const FlatPiece& piece, Scratch& scratch) const {
    using Acc = accumulate_t<T>;
    Buffers& b = *scratch.buffers;
    const Acc* base = widened<T>(base_[piece.tensor], piece.first, piece.count,
                                 Scratch::at<Acc>(b.base, piece.offset));
    Acc* target = Scratch::at<Acc>(b.target, piece.offset);
    if (!merged_.empty()) {
      const Acc* merged = static_cast<const Acc*>(merged_[piece.tensor]) + piece.first;
      return add_base(target, base, merged, piece.count);
    }
    for (int64_t task = 0; task < a_.tasks; ++task) {
      const Acc* row =
          widened<T>(finetuned(task, piece), piece.first, piece.count, b.finetuned);
      (task ? next_task<Acc> : first_task<Acc>)(target, base, row, piece.count);
    }
    add_base(target, base, target, piece.count);
  }

  template <class T>
  void pack(const FlatPiece& piece, int64_t task, Scratch& scratch) const {
    using Acc = accumulate_t<T>;
    Buffers& b = *scratch.buffers;
    const Acc* base;
    if constexpr (std::is_same_v<T, Acc>) {
      base = static_cast<const Acc*>(base_[piece.tensor]) + piece.first;
    } else {
      base = Scratch::at<Acc>(b.base, piece.offset);
    }
    const Acc* target = Scratch::at<Acc>(b.target, piece.offset);
    const Acc* row = widened<T>(finetuned(task, piece), piece.first, piece.count, b.finetuned);
    const LambdaTable<Acc>& table = lambdas(Acc());
    const lanes::Pack<Acc> pack_groups = packing(Acc());
    const int64_t groups = piece.count / kWordBits;
    const bool aligned = piece.offset % kWordBits == 0;
    uint64_t* planes = aligned ? b.planes[0] + piece.offset / kWordBits : b.run[0];
    pack_groups(base, target, row, groups, table, planes, kChunkWords);
    const int64_t whole = groups * kWordBits;
    if (const int64_t rest = piece.count - whole; rest > 0) {
      // NaN everywhere past the end: no lambda is passed there, whatever the comparison.
      Acc last[3][kWordBits];
      for (auto& values : last) std::fill_n(values, kWordBits, std::numeric_limits<Acc>::quiet_NaN());
      std::copy_n(base + whole, rest, last[0]);
      std::copy_n(target + whole, rest, last[1]);
      std::copy_n(row + whole, rest, last[2]);
      pack_groups(last[0], last[1], last[2], 1, table, planes + groups, kChunkWords);
    }
    if (aligned) return;
    for (int plane = 0; plane < table.planes; ++plane) {
      append_bits(b.planes[plane], piece.offset, b.run[plane], piece.count);
    }
  }

  void store(int64_t chunk, int64_t words, int64_t task, const Scratch& scratch,
             int64_t* counts) const {
    const Buffers& b = *scratch.buffers;
    for (int64_t plane = 0; plane < a_.planes; ++plane) {
      uint64_t* row = codes_ + (task * a_.planes + plane) * a_.words;
      std::memcpy(row + chunk * kChunkWords, b.planes[plane], words * sizeof(uint64_t));
    }
    const int lambda_count = static_cast<int>(a_.lambdas.size());
    count_codes(b.planes[0], words, lambda_count, counts + task * lambda_count);
  }

  const TallMasksArguments& a_;
  const std::vector<const void*> base_, finetuned_, merged_;
  const LambdaTable<float> float_lambdas_;
  const LambdaTable<double> double_lambdas_;
  const lanes::Pack<float> float_packing_;
  const lanes::Pack<double> double_packing_;
  uint64_t* const codes_;
  int64_t* const counts_;
};

std::tuple<Tensor, Tensor> tall_masks(std::vector<Tensor> base, std::vector<Tensor> finetuned,
                                      std::vector<Tensor> merged, int64_t tasks,
                                      std::vector<double> lambdas, bool strict) {
  const TallMasksArguments a =
      tall_masks_arguments(std::move(base), std::move(finetuned), std::move(merged), tasks,
                           std::move(lambdas), strict);
  const int64_t lambda_count = static_cast<int64_t>(a.lambdas.size());
  const Tensor codes = fresh(a.base[0], {tasks, a.planes, a.words}, ScalarType::Long);
  const Tensor counts = fresh(a.base[0], {tasks, lambda_count}, ScalarType::Long);
  int64_t* totals = write_pointer<int64_t>(counts);
  std::fill_n(totals, counts.numel(), 0);
  const TallMasks masks(a, write_pointer<uint64_t>(codes), totals);
  const int64_t chunks = (a.order.parameters() + kChunk - 1) / kChunk;
  parallel_rows(chunks, kChunk * (tasks + 1),
                [&](int64_t begin, int64_t end) { masks.run(begin, end); });
  return {codes, counts};
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("tall_masks", TORCH_BOX(&robustcore::tall_masks));
}
