// CPU backend of the two-logit operators: threads over rows, and what is computed from all rows.
#pragma once

#include "common/errors.h"
#include "common/parallel.h"
#include "losses/two_logits_op.h"
#include "losses/two_logits_rows.h"

namespace robustcore {

struct TwoLogitCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static TwoLogitArguments prepare(const char* op, TwoLogitArguments a) {
    const int64_t* target = read_pointer<int64_t>(a.target);
    const int64_t rows = a.first.size(0), classes = a.first.size(1);
    for (int64_t i = 0; i < rows; ++i) {
      if (target[i] != a.ignore_index && (target[i] < 0 || target[i] >= classes)) {
        raise("IndexError", op, ": target must be in [0, ", classes, ") or ignore_index (",
              a.ignore_index, "), got ", target[i], " at row ", i);
      }
    }
    return a;
  }

  template <class Policy, TwoLogitMode kMode, class T>
  static void forward(const TwoLogitProblem<T>& p, const Scope&) {
    constexpr bool kGradients = kMode == TwoLogitMode::kGradients;
    write_denominator(p);
    parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
      if (p.label_smoothing != 0) {
        two_logits_cpu::forward_rows<Policy, true, kGradients>(p, begin, end);
      } else {
        two_logits_cpu::forward_rows<Policy, false, kGradients>(p, begin, end);
      }
    });
    reduce_rows(p);
  }

  template <class Policy, class T>
  static void backward(const TwoLogitProblem<T>& p, const Scope&) {
    parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
      if (p.label_smoothing != 0) {
        two_logits_cpu::backward_rows<Policy, true>(p, begin, end);
      } else {
        two_logits_cpu::backward_rows<Policy, false>(p, begin, end);
      }
    });
  }

 private:
  // Both sums run in double and in row order: the same bits for any number of threads.
  template <class T>
  static void write_denominator(const TwoLogitProblem<T>& p) {
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.target[i] == p.ignore_index) continue;
      total += p.class_weight ? static_cast<double>(p.class_weight[p.target[i]]) : 1.0;
    }
    *p.denominator =
        p.reduction == Reduction::kMean ? static_cast<accumulate_t<T>>(total) : accumulate_t<T>(1);
  }

  template <class T>
  static void reduce_rows(const TwoLogitProblem<T>& p) {
    using Acc = accumulate_t<T>;
    const auto weighted = [&](int64_t i) {
      const Acc weight = p.sample_weight ? p.sample_weight[i] : Acc(1);
      return p.target[i] == p.ignore_index ? Acc(0) : p.row_loss[i] * weight;
    };
    if (p.reduction == Reduction::kNone) {
      for (int64_t i = 0; i < p.rows; ++i) p.loss[i] = weighted(i);
      return;
    }
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) total += static_cast<double>(weighted(i));
    *p.loss = static_cast<Acc>(total / static_cast<double>(*p.denominator));
  }
};

}  // namespace robustcore
