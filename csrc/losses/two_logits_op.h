// What the CPU and CUDA registrations of a class-2 loss share: checks, output tensors and the problem
// struct. The drivers get a filled TwoLogitProblem.
#pragma once

#include <optional>
#include <tuple>

#include "common/tensor.h"
#include "losses/two_logits.h"

namespace robustcore {

struct TwoLogitArguments {
  Tensor first, second, gate, target;
  std::optional<Tensor> class_weight, sample_weight;
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
};

// Checks and makes contiguous. `op` names the operator in errors.
inline TwoLogitArguments two_logit_arguments(
    const char* op, const Tensor& first, const Tensor& second, const Tensor& gate,
    const Tensor& target, const std::optional<Tensor>& class_weight,
    const std::optional<Tensor>& sample_weight, int64_t ignore_index, double label_smoothing,
    int64_t reduction) {
  check_floating(op, "prediction", first);
  RC_CHECK(first.dim() == 2, op, ": prediction must have 2 dimensions, got ", first.dim());
  const int64_t rows = first.size(0), classes = first.size(1);
  const ScalarType accumulate = accumulate_type(first);
  RC_CHECK(second.dim() == 2 && second.size(0) == rows && second.size(1) == classes, op,
           ": noise must have the shape of prediction");
  check_type(op, "noise", second, first.scalar_type());
  check_same_device(op, "noise", second, first);
  const auto check_rows = [&](const char* name, const Tensor& tensor, ScalarType type,
                              int64_t count) {
    check_type(op, name, tensor, type);
    check_numel(op, name, tensor, count);
    check_same_device(op, name, tensor, first);
  };
  check_rows("gate", gate, accumulate, rows);
  check_rows("target", target, ScalarType::Long, rows);
  if (class_weight) check_rows("weight", *class_weight, accumulate, classes);
  if (sample_weight) check_rows("sample_weight", *sample_weight, accumulate, rows);
  RC_CHECK(reduction >= 0 && reduction <= 2, op, ": reduction must be 0, 1 or 2, got ", reduction);
  RC_CHECK(classes > 0 || rows == 0, op, ": prediction must have at least one class");
  return {made_contiguous(first),
          made_contiguous(second),
          made_contiguous(gate),
          made_contiguous(target),
          made_contiguous(class_weight),
          made_contiguous(sample_weight),
          ignore_index,
          label_smoothing,
          static_cast<Reduction>(reduction)};
}

// sum(weight) as a device scalar, wanted by label smoothing only.
inline std::optional<Tensor> class_weight_sum(const TwoLogitArguments& a) {
  if (!a.class_weight || a.label_smoothing == 0) return std::nullopt;
  return torch::stable::sum(*a.class_weight);
}

template <class T>
TwoLogitProblem<T> two_logit_problem(const TwoLogitArguments& a,
                                     const std::optional<Tensor>& weight_sum) {
  using Acc = accumulate_t<T>;
  TwoLogitProblem<T> p{};
  p.first = read_pointer<T>(a.first);
  p.second = read_pointer<T>(a.second);
  p.gate = read_pointer<Acc>(a.gate);
  p.target = read_pointer<int64_t>(a.target);
  p.class_weight = read_pointer<Acc>(a.class_weight);
  p.class_weight_sum = read_pointer<Acc>(weight_sum);
  p.sample_weight = read_pointer<Acc>(a.sample_weight);
  p.rows = a.first.size(0);
  p.classes = a.first.size(1);
  p.ignore_index = a.ignore_index;
  p.label_smoothing = static_cast<Acc>(a.label_smoothing);
  return p;
}

// What a forward pass returns beside the gradients and scores.
struct TwoLogitResult {
  Tensor loss;         // [] or, with Reduction::kNone, [rows]
  Tensor rows;         // [3, rows]: loss before the sample weight, logsumexp, d loss / d gate
  Tensor denominator;  // []: what "mean" divides by; 1 otherwise

  TwoLogitResult(const TwoLogitArguments& a, ScalarType type)
      : loss(a.reduction == Reduction::kNone ? fresh(a.first, {a.first.size(0)}, type)
                                             : fresh(a.first, {}, type)),
        rows(fresh(a.first, {3, a.first.size(0)}, type)),
        denominator(fresh(a.first, {}, type)) {}

  template <class T>
  void attach(TwoLogitProblem<T>& p) const {
    using Acc = accumulate_t<T>;
    p.row_loss = write_pointer<Acc>(rows);
    p.row_lse = p.row_loss + p.rows;
    p.row_gate_gradient = p.row_lse + p.rows;
  }
};

// Gradients of a two-logit loss; tensors that are not wanted are empty.
struct TwoLogitGradients {
  Tensor first, second, gate, sample_weight;

  TwoLogitGradients(const TwoLogitArguments& a, ScalarType type, bool needs_first,
                    bool needs_second)
      : first(wanted(a, needs_first)),
        second(wanted(a, needs_second)),
        gate(fresh(a.first, {a.first.size(0)}, type)),
        sample_weight(fresh(a.first, {a.sample_weight ? a.first.size(0) : 0}, type)) {}

  template <class T>
  void attach(TwoLogitProblem<T>& p) const {
    using Acc = accumulate_t<T>;
    p.grad_first = first.size(0) ? write_pointer<T>(first) : nullptr;
    p.grad_second = second.size(0) ? write_pointer<T>(second) : nullptr;
    p.grad_gate = write_pointer<Acc>(gate);
    p.grad_sample_weight = sample_weight.size(0) ? write_pointer<Acc>(sample_weight) : nullptr;
  }

 private:
  static Tensor wanted(const TwoLogitArguments& a, bool needed) {
    const int64_t rows = a.first.size(0), classes = a.first.size(1);
    return needed ? fresh(a.first, {rows, classes}, a.first.scalar_type())
                  : fresh(a.first, {0, 0}, a.first.scalar_type());
  }
};

}  // namespace robustcore
