// The problem that the drivers of the row losses solve, for CPU and CUDA alike: N rows of C
// classes, one loss per row, reduced at the end. No torch.
//
// A loss is a program that handles one row (see logit_loss.h for the one that most losses share);
// row_cpu.h and row_cuda.cuh give it the means to walk the row, row_loss_cpu.h and row_loss.cuh
// call it for every row, row_loss_op.h makes operators of it.
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/macros.h"
#include "losses/indexed_state.h"

namespace robustcore {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// What a pass over the rows yields. A backward pass is kGradients without a loss.
enum class RowMode { kLoss, kGradients, kScores };

// How the label of a row is given: a class, or spread over classes (label smoothing or class
// probabilities).
enum class Label { kClass, kSpread };

// What a program says about itself where it is not like most:
// whether it can do without a target, which then only names the rows to ignore;
template <class Program>
constexpr bool needs_target() {
  if constexpr (requires { Program::kNeedsTarget; }) return Program::kNeedsTarget;
  return true;
}
// whether it reads the second matrix, and how many row values (the others may be absent);
template <class Program>
constexpr bool needs_second() {
  if constexpr (requires { Program::kNeedsSecond; }) return Program::kNeedsSecond;
  return false;
}
template <class Program>
constexpr int needed_row_values() {
  if constexpr (requires { Program::kNeededRowValues; }) return Program::kNeededRowValues;
  return 0;
}
// whether it offers temperature and soft-cap for all logits alike; and
template <class Program>
constexpr bool bends_logits() {
  if constexpr (requires { Program::kBendsLogits; }) return Program::kBendsLogits;
  return true;
}
// how many 32-bit registers its kernels need beyond what most do on CUDA, which spill otherwise.
template <class Program>
constexpr int more_registers() {
  if constexpr (requires { Program::kMoreRegisters; }) return Program::kMoreRegisters;
  return 0;
}

constexpr int kRowValues = 3;
constexpr int kParameters = 4;

// T is the storage type of the matrices, Acc = accumulate_t<T> that of everything else. A null
// pointer means "not given" for an input and "not wanted" for an output. Everything is contiguous.
template <class T>
struct RowProblem {
  using Acc = accumulate_t<T>;

  const T* logits;                   // [rows, classes]
  const T* second;                   // [rows, classes] or null: what it is, the program says
  const Acc* row_value[kRowValues];  // [rows] each, or null
  const int64_t* target;             // [rows], null with soft_target or without labels
  const Acc* soft_target;            // [rows, classes] class probabilities, or null
  const Acc* class_weight;           // [classes] or null
  const Acc* sample_weight;          // [rows] or null
  int64_t rows;
  int64_t classes;
  int64_t ignore_index;

  Acc label_smoothing;
  Acc inverse_temperature;
  Acc softcap;     // 0: none
  Acc lse_square;  // factor of logsumexp^2
  Acc parameter[kParameters];

  Reduction reduction;
  Acc* loss;         // [1], or [rows] with Reduction::kNone; null in a backward pass
  Acc* row_loss;     // [rows] workspace of the scalar reductions: losses after the sample weight
  Acc* denominator;  // [1]: what "mean" divides by, 1 otherwise; written before the rows

  // The factor of every gradient: (grad_loss or 1) / denominator * (sample_weight or 1).
  const Acc* grad_loss;  // [1] or, with Reduction::kNone, [rows]; null stands for 1

  T* grad_logits;                   // [rows, classes] or null; may be `logits` itself
  T* grad_second;                   // [rows, classes] or null; may be `second` itself
  Acc* grad_row_value[kRowValues];  // [rows] each, or null
  Acc* grad_sample_weight;          // [rows] or null

  IndexedState<Acc> state;  // for programs that have one

  // Scores for finding wrong labels (RowMode::kScores).
  Acc* log_probability;  // [rows] log softmax(logits)[target]
  int64_t* predicted;  // [rows] argmax of logits

  RC_INLINE Label label() const {
    return soft_target || label_smoothing != Acc(0) ? Label::kSpread : Label::kClass;
  }
  RC_INLINE bool is_ignored(int64_t row) const { return target && target[row] == ignore_index; }
  RC_INLINE Acc weight_of_row(int64_t row) const {
    return sample_weight ? sample_weight[row] : Acc(1);
  }
  RC_INLINE Acc incoming(int64_t row) const {
    const Acc above = grad_loss ? grad_loss[reduction == Reduction::kNone ? row : 0] : Acc(1);
    return above / *denominator;
  }
};

// A few numbers of the wide type, as element functions return them.
template <class Acc, int kCount>
struct Values {
  Acc value[kCount];

  RC_INLINE Acc operator[](int k) const { return value[k]; }
};
// None: loops over k that never run still have to compile.
template <class Acc>
struct Values<Acc, 0> {
  Acc value[1];
};

// --- streams: what the element functions of a walk get, one value per class. at(c) is the value of
// class c.

// A row of a matrix. Rows of the problem's own matrices have the alignment of the logits' row.
template <class T>
struct MatrixRow {
  static constexpr bool kAligned = true;
  using Storage = T;
  const T* data;

  RC_INLINE accumulate_t<T> at(int64_t c) const { return to_accumulate(data[c]); }
};

// A row that lies anywhere, such as one of an indexed state.
template <class T>
struct ScatteredRow {
  static constexpr bool kAligned = false;
  const T* data;

  RC_INLINE accumulate_t<T> at(int64_t c) const { return to_accumulate(data[c]); }
};

template <class T>
RC_INLINE MatrixRow<T> matrix_row(const RowProblem<T>& p, const T* matrix, int64_t row) {
  return {matrix + row * p.classes};
}

}  // namespace robustcore
