// CPU backend of the row losses: threads over rows, and what is computed from all rows.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "common/errors.h"
#include "common/parallel.h"
#include "losses/row_cpu.h"
#include "losses/row_loss_op.h"
#include "losses/target.h"

namespace robustcore {
namespace row_cpu {

template <class T>
RC_INLINE void zero_row(T* matrix, int64_t row, int64_t classes) {
  if (!matrix) return;
  T* const out = matrix + row * classes;
  for (int64_t c = 0; c < classes; ++c) out[c] = from_accumulate<T>(accumulate_t<T>(0));
}

// An ignored row: zeros, not products with whatever the row holds.
template <class T>
RC_INLINE void zero_gradients(const RowProblem<T>& p, int64_t i) {
  zero_row(p.grad_logits, i, p.classes);
  zero_row(p.grad_second, i, p.classes);
  for (int k = 0; k < kRowValues; ++k) {
    if (p.grad_row_value[k]) p.grad_row_value[k][i] = 0;
  }
  if (p.grad_sample_weight) p.grad_sample_weight[i] = 0;
}

// An ignored row uses no state; what stands for it in the batch is zero.
template <class T>
RC_INLINE void zero_state(const RowProblem<T>& p, int64_t i) {
  if (p.state.updated || !p.state.index || !p.state.of_rows) return;
  for (int64_t c = 0; c < p.state.width; ++c) p.state.of_rows[i * p.state.width + c] = 0;
}

// log softmax(logits)[target] and argmax; as torch.argmax, the first of equals, NaN above all.
template <class T, class Acc = accumulate_t<T>>
RC_INLINE void row_scores(const RowProblem<T>& p, int64_t i) {
  const T* const logits = p.logits + i * p.classes;
  Acc best = to_accumulate(logits[0]);
  int64_t place = 0;
  for (int64_t c = 1; c < p.classes; ++c) {
    const Acc value = to_accumulate(logits[c]);
    const bool better = value > best || (value != value && best == best);
    place = better ? c : place;
    best = better ? value : best;
  }
  const Row<Acc> row(p.classes, nullptr, nullptr);
  const auto total = row.template sums<1>(
      [&](Acc z)
  RC_INLINE_LAMBDA { return Values<Acc, 1>{{exponential(z - best)}}; },
      matrix_row(p, p.logits, i));
  p.predicted[i] = place;
  p.log_probability[i] = p.is_ignored(i) ? std::numeric_limits<Acc>::quiet_NaN()
                                         : (to_accumulate(logits[p.target[i]]) - best) - logarithm(total[0]);
}
// What a program asks for beside its caches: see over_parameterized_loss.h.
template <class Program>
constexpr bool kWritesLabels = requires { requires Program::kWritesLabelsDown; };

// Where a program may keep rows of the wide type between walks: the row of a gradient, where that has
// this type and is not the input itself, or else scratch memory of this thread.
template <int kCaches, class T>
class Caches {
 public:
  using Acc = accumulate_t<T>;

  RC_INLINE Caches(const RowProblem<T>& p, bool with_scratch) : p_(p) {
    int64_t wanted = with_scratch;
    for (int k = 0; k < kCaches; ++k) wanted += gradient(k, 0) ? 0 : 1;
    if (wanted > 0) memory_.resize(wanted * p.classes);
  }
  RC_INLINE Acc* scratch() { return memory_.data(); }
  RC_INLINE Acc* const* of_row(int64_t i, bool with_scratch) {
    Acc* free = memory_.data() + (with_scratch ? p_.classes : 0);
    for (int k = 0; k < kCaches; ++k) {
      rows_[k] = gradient(k, i);
      if (rows_[k]) continue;
      rows_[k] = free;
      free += p_.classes;
    }
    return rows_;
  }

 private:
  RC_INLINE Acc* gradient(int k, int64_t i) const {
    if constexpr (sizeof(T) == sizeof(Acc)) {
      T* matrix = nullptr;
      if (k == 0) matrix = p_.grad_logits != p_.logits ? p_.grad_logits : nullptr;
      if (k == 1) matrix = p_.grad_second != p_.second ? p_.grad_second : nullptr;
      return matrix ? matrix + i * p_.classes : nullptr;
    }
    return nullptr;
  }

  const RowProblem<T>& p_;
  std::vector<Acc> memory_;
  Acc* rows_[kCaches > 0 ? kCaches : 1];
};

// The rows [begin, end) of a problem. Scores, where they are wanted, in the same visit. Losses alone are
// a matter of null pointers: a program compiled without gradients would save little but compile time.
template <class Program, class Options, class T>
RC_TARGET_CLONES void run_rows(const RowProblem<T>& p, const Options& options, int64_t begin,
                               int64_t end) {
  using Acc = accumulate_t<T>;
  constexpr bool kScratch = Options::label() == Label::kSpread || kWritesLabels<Program>;
  Caches<Program::kCaches, T> caches(p, kScratch);
  for (int64_t i = begin; i < end; ++i) {
    if constexpr (kHasState<Program>) {
      if (!p.state.is_of_this_round(i)) continue;
    }
    if (p.predicted) row_scores(p, i);
    Acc loss = 0;
    const Acc weight = p.weight_of_row(i);
    if (p.is_ignored(i)) {
      zero_gradients(p, i);
      if constexpr (kHasState<Program>) zero_state(p, i);
    } else {
      const Row<Acc> row(p.classes, caches.of_row(i, kScratch), caches.scratch());
      const Acc incoming = p.incoming(i);
      loss = Program::template run<true>(row, p, i, incoming * weight, options);
      if (p.grad_sample_weight) p.grad_sample_weight[i] = incoming * loss;
      loss *= weight;
    }
    if (!p.loss) continue;
    (p.reduction == Reduction::kNone ? p.loss : p.row_loss)[i] = loss;
  }
}

// Calls f with the options of a call as a compile-time constant. A soft-cap is rarer than a label that is
// spread over classes, and a single class can be written as one.
template <class Program, class T, class F>
void with_options(const RowProblem<T>& p, F&& f) {
  if constexpr (bends_logits<Program>()) {
    if (p.softcap != 0) return f(KnownOptions<Label::kSpread, true>{});
  }
  if (p.label() == Label::kSpread) return f(KnownOptions<Label::kSpread, false>{});
  return f(KnownOptions<Label::kClass, false>{});
}

}  // namespace row_cpu

struct RowLossCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static RowLossArguments prepare(const char* op, RowLossArguments a) {
    const int64_t rows = a.logits.size(0), classes = a.logits.size(1);
    if (a.target && !a.is_soft()) {
      const int64_t* target = read_pointer<int64_t>(a.target);
      for (int64_t i = 0; i < rows; ++i) {
        if (target[i] != a.ignore_index && (target[i] < 0 || target[i] >= classes)) {
          raise("IndexError", op, ": target must be in [0, ", classes, ") or ignore_index (",
                a.ignore_index, "), got ", target[i], " at row ", i);
        }
      }
    }
    return a;
  }

  template <class Program, RowMode kMode, class T>
  static void run(const RowProblem<T>& p, const Scope&) {
    write_denominator(p);
    run_round<Program, kMode>(p);
    if constexpr (kHasState<Program>) {
      if (has_second_round(p)) {
        RowProblem<T> rest = p;
        rest.state.second_round = true;
        run_round<Program, kMode>(rest);
      }
    }
    if (p.loss && p.reduction != Reduction::kNone) reduce_rows(p);
  }

 private:
  template <class T>
  static bool has_second_round(const RowProblem<T>& p) {
    if (!p.state.keeper) return false;
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.state.keeper[i] >= 0 && p.state.keeper[i] != i) return true;
    }
    return false;
  }

  template <class Program, RowMode kMode, class T>
  static void run_round(const RowProblem<T>& p) {
    const auto for_all_rows = [&](const auto& options) {
      parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
        using Options = std::decay_t<decltype(options)>;
        row_cpu::run_rows<Program, Options>(p, options, begin, end);
      });
    };
    if constexpr (Program::kTakesLabels) {
      row_cpu::with_options<Program>(p, for_all_rows);
    } else {
      for_all_rows(KnownOptions<Label::kClass, false>{});
    }
  }

  // Both sums run in double and in row order: the same bits for any number of threads.
  template <class T>
  static void write_denominator(const RowProblem<T>& p) {
    using Acc = accumulate_t<T>;
    double total = 0;
    if (p.reduction != Reduction::kMean) {
      total = 1;
    } else if (!p.target) {
      total = static_cast<double>(p.rows);
    } else {
      for (int64_t i = 0; i < p.rows; ++i) {
        if (p.is_ignored(i)) continue;
        total += p.class_weight ? static_cast<double>(p.class_weight[p.target[i]]) : 1.0;
      }
    }
    *p.denominator = static_cast<Acc>(total);
  }

  template <class T>
  static void reduce_rows(const RowProblem<T>& p) {
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) total += static_cast<double>(p.row_loss[i]);
    *p.loss = static_cast<accumulate_t<T>>(total / static_cast<double>(*p.denominator));
  }
};

}  // namespace robustcore
