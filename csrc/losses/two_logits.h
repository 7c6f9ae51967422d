// The problem that the drivers of the two-logit losses solve (two logit tensors and a gate per
// row), for CPU and CUDA alike. No torch.
#pragma once

#include <cstdint>

#include "common/float16.h"

namespace robustcore {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// What a forward pass yields beside the loss and the statistics.
enum class TwoLogitMode { kStatistics, kGradients, kScores };

// T is the storage type of the logits, Acc = accumulate_t<T> that of everything else. A null
// pointer means "not given" for an input and "not wanted" for an output. Everything is contiguous.
template <class T>
struct TwoLogitProblem {
  using Acc = accumulate_t<T>;

  const T* first;               // [rows, classes]
  const T* second;              // [rows, classes]
  const Acc* gate;              // [rows], logits
  const int64_t* target;        // [rows]
  const Acc* class_weight;      // [classes] or null
  const Acc* class_weight_sum;  // [1]; null stands for `classes`
  const Acc* sample_weight;     // [rows] or null
  int64_t rows;
  int64_t classes;
  int64_t ignore_index;
  Acc label_smoothing;

  Reduction reduction;
  Acc* loss;  // [1], or [rows] with Reduction::kNone; forward only

  // Statistics per row: written by the forward pass, read by the backward pass.
  Acc* row_loss;           // [rows], before the sample weight
  Acc* row_lse;            // [rows], logsumexp of the mixed logits
  Acc* row_gate_gradient;  // [rows], d row_loss / d gate

  // The factor of every gradient: (grad_loss or 1) / (denominator or 1) * (sample_weight or 1).
  const Acc* grad_loss;  // [1] or [rows], or null
  bool grad_loss_per_row;
  Acc* denominator;  // [1]: what "mean" divides by, 1 otherwise; the forward pass writes it

  T* grad_first;            // [rows, classes] or null
  T* grad_second;           // [rows, classes] or null
  Acc* grad_gate;           // [rows] or null
  Acc* grad_sample_weight;  // [rows] or null

  // Scores for finding wrong labels.
  Acc* log_probability;   // [rows] log softmax(first)[target], or null (then none of the three)
  int64_t* predicted;     // [rows] argmax of first
  Acc* gate_probability;  // [rows] sigmoid(gate)
};

}  // namespace robustcore
