// Masks of all tasks and all lambdas in one pass over the weights. The flat order is walked in
// blocks that stay in the first-level cache with all their tasks: one sweep sums the task vectors,
// the second packs codes. Reading a block of every task in turn keeps the processor's prefetchers
// running on all rows at once; blocks of several thousand parameters read at little more than half
// the speed.
#include <atomic>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/parallel.h"
#include "merging/tall_masks_lanes.h"
#include "merging/tall_masks_op.h"

namespace robustcore {
namespace {

constexpr int64_t kBlock = 256;  // parameters
// Codes are gathered per chunk, so that each row of the result is written in runs of whole cache
// lines.
constexpr int64_t kChunk = 2048;
constexpr int64_t kChunkWords = kChunk / kWordBits;
static_assert(kBlock % kWordBits == 0 && kChunk % kBlock == 0);

// A vector of 64 bytes, which compilers cut to what the processor has; it may lie anywhere.
template <class Acc>
struct Wide {
  typedef Acc type __attribute__((vector_size(64), aligned(alignof(Acc)), may_alias));
};

// target = base + (((t1 + t2) + t3) ...) with t_i = finetuned_i - base, one task after the other.
// Sums stay in registers: written to memory after every task they would cost as much as reading
// weights.
template <class Acc>
RC_TARGET_CLONES void sum_tasks(Acc* RC_RESTRICT target, const Acc* RC_RESTRICT base,
                                const Acc* const* finetuned, int64_t tasks, int64_t count) {
  using Vector = typename Wide<Acc>::type;
  constexpr int64_t kLanes = 64 / sizeof(Acc);
  const auto at = [](const Acc* from) { return reinterpret_cast<const Vector*>(from); };
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const Vector base_low = at(base + i)[0], base_high = at(base + i)[1];
    Vector low = at(finetuned[0] + i)[0] - base_low;
    Vector high = at(finetuned[0] + i)[1] - base_high;
    for (int64_t task = 1; task < tasks; ++task) {
      low = low + (at(finetuned[task] + i)[0] - base_low);
      high = high + (at(finetuned[task] + i)[1] - base_high);
    }
    Vector* to = reinterpret_cast<Vector*>(target + i);
    to[0] = base_low + low;
    to[1] = base_high + high;
  }
  for (; i < count; ++i) {
    Acc sum = finetuned[0][i] - base[i];
    for (int64_t task = 1; task < tasks; ++task) sum = sum + (finetuned[task][i] - base[i]);
    target[i] = base[i] + sum;
  }
}

template <class Acc>
RC_TARGET_CLONES void add_merged(Acc* RC_RESTRICT target, const Acc* RC_RESTRICT base,
                                 const Acc* RC_RESTRICT merged, int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) target[i] = base[i] + merged[i];
}

template <class T>
RC_TARGET_CLONES void upcast(accumulate_t<T>* RC_RESTRICT to, const T* RC_RESTRICT from,
                             int64_t count) {
  RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = to_accumulate(from[i]);
}

// Writes `count` bits of `source` from bit `offset` of `destination` on. Runs come in ascending
// order, and every bit past a run's end is zero, so only the first word of a run has anything to
// keep.
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

// Adds to counts[n - 1] how many codes are n or more. The comparisons with constants unroll into
// one or two bit operations each.
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
    case 1:
      return count_codes_unrolled<1>(planes, words, counts, std::make_integer_sequence<int, 1>());
    case 2:
      return count_codes_unrolled<2>(planes, words, counts, std::make_integer_sequence<int, 2>());
    case 3:
      return count_codes_unrolled<2>(planes, words, counts, std::make_integer_sequence<int, 3>());
    case 4:
      return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 4>());
    case 5:
      return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 5>());
    case 6:
      return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 6>());
    case 7:
      return count_codes_unrolled<3>(planes, words, counts, std::make_integer_sequence<int, 7>());
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

  // Chunks [begin, end). Counts are integers: the order in which threads add theirs leaves no
  // trace.
  void run(int64_t begin, int64_t end) const {
    Scratch scratch(a_.tasks, a_.planes, static_cast<int64_t>(a_.lambdas.size()));
    std::vector<FlatPiece> pieces;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t parameters = std::min(kChunk, a_.order.parameters() - first);
      a_.order.split(first, first + parameters, pieces);
      for (const FlatPiece& piece : pieces) {
        dispatch_floating(a_.base[piece.tensor].scalar_type(),
                          [&](auto tag) { walk<typename decltype(tag)::type>(piece, scratch); });
      }
      store(chunk, word_count(parameters), scratch);
    }
    for (size_t i = 0; i < scratch.counts.size(); ++i) {
      std::atomic_ref<int64_t>(counts_[i]).fetch_add(scratch.counts[i], std::memory_order_relaxed);
    }
  }

 private:
  // What one thread works in.
  struct Scratch {
    Scratch(int64_t tasks, int64_t planes, int64_t lambdas)
        : widened((tasks + 1) * kBlock),
          padded((tasks + 1) * kWordBits),
          pointers(tasks),
          run_planes(tasks * planes * kBlockWords),
          chunk_planes(tasks * planes * kChunkWords),
          counts(tasks * lambdas) {}

    static constexpr int64_t kBlockWords = kBlock / kWordBits;
    // Each is used as rows of float or of double.
    double target[kBlock];
    std::vector<double> widened;  // base, then one row per task
    double padded_target[kWordBits];
    std::vector<double> padded;  // the same for the last, incomplete word of a run
    std::vector<const void*> pointers;
    std::vector<uint64_t> run_planes;
    std::vector<uint64_t> chunk_planes;
    std::vector<int64_t> counts;
  };

  const LambdaTable<float>& lambdas(float) const { return float_lambdas_; }
  const LambdaTable<double>& lambdas(double) const { return double_lambdas_; }
  lanes::Pack<float> packing(float) const { return float_packing_; }
  lanes::Pack<double> packing(double) const { return double_packing_; }

  // Cuts a piece where blocks end.
  template <class T>
  void walk(const FlatPiece& piece, Scratch& scratch) const {
    const int64_t stop = piece.offset + piece.count;
    for (int64_t offset = piece.offset; offset < stop;) {
      const int64_t next = std::min(stop, (offset / kBlock + 1) * kBlock);
      pack<T>(piece.tensor, piece.first + offset - piece.offset, offset, next - offset, scratch);
      offset = next;
    }
  }

  // `count` parameters of a tensor from `first` on; they are those from `offset` on in the chunk.
  template <class T>
  void pack(int64_t tensor, int64_t first, int64_t offset, int64_t count, Scratch& scratch) const {
    using Acc = accumulate_t<T>;
    // Row 0 is the base, row 1 + t is task t: the tensors' own memory where they are in the type of
    // computation already.
    const auto row = [&](int64_t index) -> const Acc* {
      const void* memory =
          index ? finetuned_[(index - 1) * a_.order.tensors() + tensor] : base_[tensor];
      const T* from = static_cast<const T*>(memory) + first;
      if constexpr (std::is_same_v<T, Acc>) {
        return from;
      } else {
        Acc* to = reinterpret_cast<Acc*>(scratch.widened.data() + index * kBlock);
        upcast<T>(to, from, count);
        return to;
      }
    };
    const Acc* base = row(0);
    const Acc** rows = reinterpret_cast<const Acc**>(scratch.pointers.data());
    for (int64_t task = 0; task < a_.tasks; ++task) rows[task] = row(task + 1);
    Acc* target = reinterpret_cast<Acc*>(scratch.target);
    if (merged_.empty()) {
      sum_tasks(target, base, rows, a_.tasks, count);
    } else {
      add_merged(target, base, static_cast<const Acc*>(merged_[tensor]) + first, count);
    }

    const bool aligned = offset % kWordBits == 0;
    uint64_t* planes =
        aligned ? scratch.chunk_planes.data() + offset / kWordBits : scratch.run_planes.data();
    const int64_t stride = aligned ? kChunkWords : Scratch::kBlockWords;
    const int64_t groups = count / kWordBits;
    const LambdaTable<Acc>& table = lambdas(Acc());
    packing(Acc())({base, target, rows, a_.tasks, groups, planes, stride}, table);
    if (const int64_t rest = count % kWordBits; rest > 0) {
      pack_rest<Acc>({base, target, rows, a_.tasks, 1, planes + groups, stride}, groups * kWordBits,
                     rest, scratch);
    }
    if (aligned) return;
    for (int64_t plane = 0; plane < a_.tasks * a_.planes; ++plane) {
      append_bits(scratch.chunk_planes.data() + plane * kChunkWords, offset,
                  scratch.run_planes.data() + plane * stride, count);
    }
  }

  // The last word of a run, of which only `rest` parameters exist. The others are NaN: no lambda is
  // passed there, whatever the comparison.
  template <class Acc>
  void pack_rest(lanes::Run<Acc> run, int64_t first, int64_t rest, Scratch& scratch) const {
    const auto pad = [&](const Acc* from, double* room) -> const Acc* {
      Acc* to = reinterpret_cast<Acc*>(room);
      std::copy_n(from + first, rest, to);
      std::fill_n(to + rest, kWordBits - rest, std::numeric_limits<Acc>::quiet_NaN());
      return to;
    };
    double* room = scratch.padded.data();
    run.base = pad(run.base, room);
    run.target = pad(run.target, scratch.padded_target);
    const Acc** rows = reinterpret_cast<const Acc**>(scratch.pointers.data());
    for (int64_t task = 0; task < run.tasks; ++task) {
      rows[task] = pad(rows[task], room + (task + 1) * kWordBits);
    }
    packing(Acc())(run, lambdas(Acc()));
  }

  void store(int64_t chunk, int64_t words, Scratch& scratch) const {
    const int lambda_count = static_cast<int>(a_.lambdas.size());
    const uint64_t* planes = scratch.chunk_planes.data();
    for (int64_t plane = 0; plane < a_.tasks * a_.planes; ++plane) {
      std::memcpy(codes_ + plane * a_.words + chunk * kChunkWords, planes + plane * kChunkWords,
                  words * sizeof(uint64_t));
    }
    for (int64_t task = 0; task < a_.tasks; ++task) {
      count_codes(planes + task * a_.planes * kChunkWords, words, lambda_count,
                  scratch.counts.data() + task * lambda_count);
    }
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
  const TallMasksArguments a = tall_masks_arguments(
      std::move(base), std::move(finetuned), std::move(merged), tasks, std::move(lambdas), strict);
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
