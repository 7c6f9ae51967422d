// The operators of a two-logit loss, the same for CPU and CUDA: checks, output tensors, problem
// struct. A backend brings the drivers; a policy brings the loss. See gated_cross_entropy_cpu.cpp
// for the few lines that remain of a registration.
#pragma once

#include <optional>
#include <string>
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
inline TwoLogitArguments two_logit_arguments(const std::string& op, const Tensor& first,
                                             const Tensor& second, const Tensor& gate,
                                             const Tensor& target,
                                             const std::optional<Tensor>& class_weight,
                                             const std::optional<Tensor>& sample_weight,
                                             int64_t ignore_index, double label_smoothing,
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
  p.reduction = a.reduction;
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
    p.loss = write_pointer<Acc>(loss);
    p.denominator = write_pointer<Acc>(denominator);
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

// Scores of wrong labels.
struct TwoLogitScores {
  Tensor log_probability, predicted, gate_probability;

  TwoLogitScores(const TwoLogitArguments& a, ScalarType type)
      : log_probability(fresh(a.first, {a.first.size(0)}, type)),
        predicted(fresh(a.first, {a.first.size(0)}, ScalarType::Long)),
        gate_probability(fresh(a.first, {a.first.size(0)}, type)) {}

  template <class T>
  void attach(TwoLogitProblem<T>& p) const {
    using Acc = accumulate_t<T>;
    p.log_probability = write_pointer<Acc>(log_probability);
    p.predicted = write_pointer<int64_t>(predicted);
    p.gate_probability = write_pointer<Acc>(gate_probability);
  }
};

// What a backward pass gets beside the arguments of the forward pass.
struct TwoLogitCotangent {
  Tensor grad_loss, rows, denominator;

  TwoLogitCotangent(const std::string& op, const TwoLogitArguments& a, const Tensor& incoming,
                    const Tensor& saved_rows, const Tensor& saved_denominator)
      : grad_loss(made_contiguous(incoming)),
        rows(made_contiguous(saved_rows)),
        denominator(saved_denominator) {
    const ScalarType type = accumulate_type(a.first);
    const int64_t count = a.first.size(0);
    check_type(op, "grad_loss", incoming, type);
    check_numel(op, "grad_loss", incoming, a.reduction == Reduction::kNone ? count : 1);
    check_type(op, "rows", saved_rows, type);
    check_numel(op, "rows", saved_rows, 3 * count);
    check_type(op, "denominator", saved_denominator, type);
    check_numel(op, "denominator", saved_denominator, 1);
    for (const Tensor* tensor : {&incoming, &saved_rows, &saved_denominator}) {
      check_same_device(op, "a saved tensor", *tensor, a.first);
    }
  }

  template <class T>
  void attach(TwoLogitProblem<T>& p) const {
    using Acc = accumulate_t<T>;
    // The problem's statistics are writable for the forward pass; the backward pass reads them
    // only.
    p.row_loss = const_cast<Acc*>(read_pointer<Acc>(rows));
    p.row_lse = p.row_loss + p.rows;
    p.row_gate_gradient = p.row_lse + p.rows;
    p.grad_loss = read_pointer<Acc>(grad_loss);
    p.grad_loss_per_row = p.reduction == Reduction::kNone;
    p.denominator = const_cast<Acc*>(read_pointer<Acc>(denominator));
  }
};

// The four operators of a loss. Backend:
//   prepare(arguments)              what the backend asks of its arguments (ranges, alignment)
//   Scope                           constructed from a tensor before anything is launched
//   forward<Policy, mode>(problem, scope), backward<Policy>(problem, scope)
template <class Backend, template <class> class Policy>
struct TwoLogitOperators {
  static constexpr const char* kName = Policy<float>::kName;
  using OptionalTensor = std::optional<Tensor>;
  template <class T>
  using PolicyFor = Policy<accumulate_t<T>>;

  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& first, const Tensor& second,
                                                    const Tensor& gate, const Tensor& target,
                                                    const OptionalTensor& weight,
                                                    const OptionalTensor& sample_weight,
                                                    int64_t ignore_index, double label_smoothing,
                                                    int64_t reduction) {
    const TwoLogitArguments a = arguments(first, second, gate, target, weight, sample_weight,
                                          ignore_index, label_smoothing, reduction);
    const TwoLogitResult r = run<TwoLogitMode::kStatistics>(a, [](auto&) {});
    return {r.loss, r.rows, r.denominator};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scores(
      const Tensor& first, const Tensor& second, const Tensor& gate, const Tensor& target,
      const OptionalTensor& weight, const OptionalTensor& sample_weight, int64_t ignore_index,
      double label_smoothing, int64_t reduction) {
    const TwoLogitArguments a = arguments(first, second, gate, target, weight, sample_weight,
                                          ignore_index, label_smoothing, reduction);
    const TwoLogitScores s(a, accumulate_type(a.first));
    const TwoLogitResult r = run<TwoLogitMode::kScores>(a, [&](auto& p) { s.attach(p); });
    return {r.loss, r.rows, r.denominator, s.log_probability, s.predicted, s.gate_probability};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> with_gradients(
      const Tensor& first, const Tensor& second, const Tensor& gate, const Tensor& target,
      const OptionalTensor& weight, const OptionalTensor& sample_weight, int64_t ignore_index,
      double label_smoothing, int64_t reduction, bool needs_first, bool needs_second) {
    const TwoLogitArguments a = arguments(first, second, gate, target, weight, sample_weight,
                                          ignore_index, label_smoothing, reduction);
    RC_CHECK(a.reduction != Reduction::kNone, kName, "_with_gradients: reduction must be 1 or 2");
    const TwoLogitGradients g(a, accumulate_type(a.first), needs_first, needs_second);
    const TwoLogitResult r = run<TwoLogitMode::kGradients>(a, [&](auto& p) { g.attach(p); });
    return {r.loss, g.first, g.second, g.gate, g.sample_weight};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad_loss, const Tensor& first, const Tensor& second, const Tensor& gate,
      const Tensor& target, const OptionalTensor& weight, const OptionalTensor& sample_weight,
      const Tensor& rows, const Tensor& denominator, int64_t ignore_index, double label_smoothing,
      int64_t reduction, bool needs_first, bool needs_second) {
    const TwoLogitArguments a = arguments(first, second, gate, target, weight, sample_weight,
                                          ignore_index, label_smoothing, reduction);
    const typename Backend::Scope scope(a.first);
    const TwoLogitCotangent cotangent(kName, a, grad_loss, rows, denominator);
    const TwoLogitGradients g(a, accumulate_type(a.first), needs_first, needs_second);
    const OptionalTensor weight_sum = class_weight_sum(a);
    dispatch_floating(a.first.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      TwoLogitProblem<T> p = two_logit_problem<T>(a, weight_sum);
      cotangent.attach(p);
      g.attach(p);
      Backend::template backward<PolicyFor<T>>(p, scope);
    });
    return {g.first, g.second, g.gate, g.sample_weight};
  }

 private:
  template <class... Arguments>
  static TwoLogitArguments arguments(const Arguments&... values) {
    return Backend::prepare(kName, two_logit_arguments(kName, values...));
  }

  // A forward pass; `extend` adds to the problem what a variant wants written.
  template <TwoLogitMode kMode, class Extend>
  static TwoLogitResult run(const TwoLogitArguments& a, Extend&& extend) {
    const typename Backend::Scope scope(a.first);
    const TwoLogitResult result(a, accumulate_type(a.first));
    const OptionalTensor weight_sum = class_weight_sum(a);
    dispatch_floating(a.first.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      TwoLogitProblem<T> p = two_logit_problem<T>(a, weight_sum);
      result.attach(p);
      extend(p);
      Backend::template forward<PolicyFor<T>, kMode>(p, scope);
    });
    return result;
  }
};

// Registers the four operators of a loss for a backend; called inside STABLE_TORCH_LIBRARY_IMPL.
template <class Backend, template <class> class Policy>
void register_two_logit_operators(torch::stable::detail::StableLibrary& library) {
  using Operators = TwoLogitOperators<Backend, Policy>;
  const std::string name = Operators::kName;
  library.impl(name.c_str(), TORCH_BOX(&Operators::forward));
  library.impl((name + "_scores").c_str(), TORCH_BOX(&Operators::scores));
  library.impl((name + "_with_gradients").c_str(), TORCH_BOX(&Operators::with_gradients));
  library.impl((name + "_backward").c_str(), TORCH_BOX(&Operators::backward));
}

}  // namespace robustcore
