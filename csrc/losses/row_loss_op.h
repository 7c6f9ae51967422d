// The operators of a row loss, the same for CPU and CUDA: checks, output tensors, problem struct. A
// backend brings the drivers; a program brings the loss. See gated_cross_entropy_cpu.cpp for the
// few lines that remain of a registration.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "losses/row_problem.h"

namespace robustcore {

using OptionalTensor = std::optional<Tensor>;

struct RowLossArguments {
  Tensor logits;
  OptionalTensor second, row_value[kRowValues];
  OptionalTensor target;  // int64 [rows], or floating [rows, classes]
  OptionalTensor weight, sample_weight;
  std::vector<double> parameters;
  int64_t ignore_index;
  double label_smoothing, temperature, softcap, lse_square;
  Reduction reduction;

  bool is_soft() const { return target && target->scalar_type() != ScalarType::Long; }
};

// What every operator of a row loss begins with, in the order of the schema (ops.cpp).
#define RC_ROW_LOSS_PARAMETERS                                                                   \
  const Tensor &logits, const OptionalTensor &second, const OptionalTensor &row_value,           \
      const OptionalTensor &row_value2, const OptionalTensor &row_value3,                        \
      const OptionalTensor &target, const OptionalTensor &weight,                                \
      const OptionalTensor &sample_weight, std::vector<double> parameters, int64_t ignore_index, \
      double label_smoothing, double temperature, double softcap, double lse_square,             \
      int64_t reduction
#define RC_ROW_LOSS_VALUES                                                                      \
  logits, second, row_value, row_value2, row_value3, target, weight, sample_weight, parameters, \
      ignore_index, label_smoothing, temperature, softcap, lse_square, reduction

// Checks and makes contiguous. `op` names the operator in errors.
inline RowLossArguments row_loss_arguments(const std::string& op, RC_ROW_LOSS_PARAMETERS) {
  check_floating(op, "logits", logits);
  RC_CHECK(logits.dim() == 2, op, ": logits must have 2 dimensions, got ", logits.dim());
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const ScalarType accumulate = accumulate_type(logits);
  RC_CHECK(classes > 0 || rows == 0, op, ": logits must have at least one class");
  const auto check = [&](const char* name, const OptionalTensor& tensor, ScalarType type,
                         int64_t count) {
    if (!tensor) return;
    check_type(op, name, *tensor, type);
    check_numel(op, name, *tensor, count);
    check_same_device(op, name, *tensor, logits);
  };
  if (second) {
    RC_CHECK(second->dim() == 2 && second->size(0) == rows && second->size(1) == classes, op,
             ": the second matrix must have the shape of logits");
  }
  check("the second matrix", second, logits.scalar_type(), rows * classes);
  check("the first row value", row_value, accumulate, rows);
  check("the second row value", row_value2, accumulate, rows);
  check("the third row value", row_value3, accumulate, rows);
  const bool soft = target && target->scalar_type() != ScalarType::Long;
  check("target", target, soft ? accumulate : ScalarType::Long, soft ? rows * classes : rows);
  check("weight", weight, accumulate, classes);
  check("sample_weight", sample_weight, accumulate, rows);
  RC_CHECK(parameters.size() <= kParameters, op, ": at most 4 parameters");
  RC_CHECK(reduction >= 0 && reduction <= 2, op, ": reduction must be 0, 1 or 2, got ", reduction);
  return {made_contiguous(logits),
          made_contiguous(second),
          {made_contiguous(row_value), made_contiguous(row_value2), made_contiguous(row_value3)},
          made_contiguous(target),
          made_contiguous(weight),
          made_contiguous(sample_weight),
          std::move(parameters),
          ignore_index,
          label_smoothing,
          temperature,
          softcap,
          lse_square,
          static_cast<Reduction>(reduction)};
}

template <class T>
RowProblem<T> row_problem(const RowLossArguments& a, const Tensor& denominator) {
  using Acc = accumulate_t<T>;
  RowProblem<T> p{};
  p.logits = read_pointer<T>(a.logits);
  p.second = read_pointer<T>(a.second);
  for (int k = 0; k < kRowValues; ++k) p.row_value[k] = read_pointer<Acc>(a.row_value[k]);
  p.target = a.is_soft() ? nullptr : read_pointer<int64_t>(a.target);  // null without labels
  p.soft_target = a.is_soft() ? read_pointer<Acc>(a.target) : nullptr;
  p.class_weight = read_pointer<Acc>(a.weight);
  p.sample_weight = read_pointer<Acc>(a.sample_weight);
  p.rows = a.logits.size(0);
  p.classes = a.logits.size(1);
  p.ignore_index = a.ignore_index;
  p.label_smoothing = static_cast<Acc>(a.label_smoothing);
  p.inverse_temperature = static_cast<Acc>(1.0 / a.temperature);
  p.softcap = static_cast<Acc>(a.softcap);
  p.lse_square = static_cast<Acc>(a.lse_square);
  for (size_t k = 0; k < a.parameters.size(); ++k) {
    p.parameter[k] = static_cast<Acc>(a.parameters[k]);
  }
  p.reduction = a.reduction;
  p.denominator = write_pointer<Acc>(denominator);
  return p;
}

// What a forward pass writes: the loss, [] or with Reduction::kNone [rows], and the rows behind it.
struct RowLossResult {
  Tensor loss, rows;

  RowLossResult(const RowLossArguments& a, ScalarType type)
      : loss(a.reduction == Reduction::kNone ? fresh(a.logits, {a.logits.size(0)}, type)
                                             : fresh(a.logits, {}, type)),
        rows(a.reduction == Reduction::kNone ? loss : fresh(a.logits, {a.logits.size(0)}, type)) {}

  template <class T>
  void attach(RowProblem<T>& p) const {
    p.loss = write_pointer<accumulate_t<T>>(loss);
    p.row_loss = write_pointer<accumulate_t<T>>(rows);
  }
};

using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using LossAndGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of a row loss for logits, second, the row values and sample_weight; those that are not
// wanted are empty.
struct RowLossGradients {
  Tensor logits, second, row_value[kRowValues], sample_weight;

  // In place: the gradients take the place of the matrices.
  RowLossGradients(const RowLossArguments& a, ScalarType type, int row_value_gradients,
                   bool needs_logits, bool needs_second, bool in_place)
      : logits(matrix(a, a.logits, needs_logits, in_place)),
        second(matrix(a, a.second ? *a.second : a.logits, a.second && needs_second, in_place)),
        row_value{vector(a, type, row_value_gradients > 0 && a.row_value[0]),
                  vector(a, type, row_value_gradients > 1 && a.row_value[1]),
                  vector(a, type, row_value_gradients > 2 && a.row_value[2])},
        sample_weight(vector(a, type, a.sample_weight.has_value())) {}

  template <class T>
  void attach(RowProblem<T>& p) const {
    using Acc = accumulate_t<T>;
    p.grad_logits = logits.size(0) ? write_pointer<T>(logits) : nullptr;
    p.grad_second = second.size(0) ? write_pointer<T>(second) : nullptr;
    for (int k = 0; k < kRowValues; ++k) {
      p.grad_row_value[k] = row_value[k].size(0) ? write_pointer<Acc>(row_value[k]) : nullptr;
    }
    p.grad_sample_weight = sample_weight.size(0) ? write_pointer<Acc>(sample_weight) : nullptr;
  }

  GradientTuple tuple() const {
    return {logits, second, row_value[0], row_value[1], row_value[2], sample_weight};
  }

 private:
  static Tensor matrix(const RowLossArguments& a, const Tensor& input, bool needed, bool in_place) {
    if (!needed) return fresh(a.logits, {0, 0}, a.logits.scalar_type());
    if (in_place) return input;
    return fresh(a.logits, {a.logits.size(0), a.logits.size(1)}, a.logits.scalar_type());
  }
  static Tensor vector(const RowLossArguments& a, ScalarType type, bool wanted) {
    return fresh(a.logits, {wanted ? a.logits.size(0) : 0}, type);
  }
};

// The operators of a loss. Backend:
//   prepare(name, arguments)   what the backend asks of its arguments (ranges, alignment)
//   Scope                      constructed from a tensor before anything is launched
//   run<Program, mode>(problem, scope)
template <class Backend, class Program>
struct RowLossOperators {
  static constexpr const char* kName = Program::kName;

  static Tensor forward(RC_ROW_LOSS_PARAMETERS) {
    const RowLossArguments a = arguments(RC_ROW_LOSS_VALUES);
    const RowLossResult result(a, accumulate_type(a.logits));
    run<RowMode::kLoss>(a, [&](auto& p) { result.attach(p); });
    return result.loss;
  }

  // The loss, then log softmax(logits)[target] and argmax(logits).
  static std::tuple<Tensor, Tensor, Tensor> scores(RC_ROW_LOSS_PARAMETERS) {
    const RowLossArguments a = arguments(RC_ROW_LOSS_VALUES);
    RC_CHECK(a.target && !a.is_soft(), kName, "_scores: target must hold class indices");
    const ScalarType type = accumulate_type(a.logits);
    const RowLossResult result(a, type);
    const Tensor log_probability = fresh(a.logits, {a.logits.size(0)}, type);
    const Tensor predicted = fresh(a.logits, {a.logits.size(0)}, ScalarType::Long);
    run<RowMode::kScores>(a, [&]<class T>(RowProblem<T>& p) {
      result.attach(p);
      p.log_probability = write_pointer<accumulate_t<T>>(log_probability);
      p.predicted = write_pointer<int64_t>(predicted);
    });
    return {result.loss, log_probability, predicted};
  }

  static LossAndGradients with_gradients(RC_ROW_LOSS_PARAMETERS, bool needs_logits,
                                         bool needs_second) {
    return loss_and_gradients(arguments(RC_ROW_LOSS_VALUES), needs_logits, needs_second, false,
                              [](auto&) {});
  }

  // The same; the gradients of the matrices, empty in the result, are written over the matrices.
  static LossAndGradients with_gradients_in_place(RC_ROW_LOSS_PARAMETERS, bool needs_logits,
                                                  bool needs_second) {
    return loss_over_matrices(arguments_in_place(RC_ROW_LOSS_VALUES), needs_logits, needs_second,
                              [](auto&) {});
  }

  static GradientTuple backward(const Tensor& grad_loss, RC_ROW_LOSS_PARAMETERS, bool needs_logits,
                                bool needs_second) {
    return gradients_of(grad_loss, arguments(RC_ROW_LOSS_VALUES), needs_logits, needs_second,
                        [](auto&) {});
  }

 protected:
  // What the program asks of the label.
  static RowLossArguments checked(RC_ROW_LOSS_PARAMETERS) {
    RowLossArguments a = row_loss_arguments(kName, RC_ROW_LOSS_VALUES);
    RC_CHECK(a.target || !needs_target<Program>(), kName, ": target must be given");
    RC_CHECK(a.second || !needs_second<Program>(), kName, ": the second matrix must be given");
    for (int k = 0; k < needed_row_values<Program>(); ++k) {
      RC_CHECK(a.row_value[k], kName, ": row value ", k + 1, " must be given");
    }
    RC_CHECK(Program::kTakesLabels || (!a.is_soft() && label_smoothing == 0), kName,
             ": the label must be a class, without label smoothing");
    return a;
  }

  static RowLossArguments arguments(RC_ROW_LOSS_PARAMETERS) {
    return Backend::prepare(kName, checked(RC_ROW_LOSS_VALUES));
  }

  template <class Extend>
  static LossAndGradients loss_and_gradients(const RowLossArguments& a, bool needs_logits,
                                             bool needs_second, bool in_place, Extend&& extend) {
    RC_CHECK(a.reduction != Reduction::kNone, kName, "_with_gradients: reduction must be 1 or 2");
    const ScalarType type = accumulate_type(a.logits);
    const RowLossResult result(a, type);
    const RowLossGradients gradients(a, type, Program::kRowValueGradients, needs_logits,
                                     needs_second, in_place);
    run<RowMode::kGradients>(a, [&](auto& p) {
      result.attach(p);
      gradients.attach(p);
      extend(p);
    });
    return std::tuple_cat(std::tuple<Tensor>(result.loss), gradients.tuple());
  }

  static RowLossArguments arguments_in_place(RC_ROW_LOSS_PARAMETERS) {
    RowLossArguments a = checked(RC_ROW_LOSS_VALUES);
    RC_CHECK(logits.is_contiguous() && (!second || second->is_contiguous()), kName,
             "_with_gradients_: logits must be contiguous");
    const Tensor given = a.logits;
    a = Backend::prepare(kName, std::move(a));
    RC_CHECK(a.logits.const_data_ptr() == given.const_data_ptr(), kName,
             "_with_gradients_: logits must start on a 16-byte boundary");
    return a;
  }

  template <class Extend>
  static LossAndGradients loss_over_matrices(const RowLossArguments& a, bool needs_logits,
                                             bool needs_second, Extend&& extend) {
    LossAndGradients result = loss_and_gradients(a, needs_logits, needs_second, true, extend);
    const auto none = [&] { return fresh(a.logits, {0, 0}, a.logits.scalar_type()); };
    std::get<1>(result) = none();
    std::get<2>(result) = none();
    return result;
  }

  template <class Extend>
  static GradientTuple gradients_of(const Tensor& grad_loss, const RowLossArguments& a,
                                    bool needs_logits, bool needs_second, Extend&& extend) {
    const ScalarType type = accumulate_type(a.logits);
    check_type(kName, "grad_loss", grad_loss, type);
    check_numel(kName, "grad_loss", grad_loss,
                a.reduction == Reduction::kNone ? a.logits.size(0) : 1);
    check_same_device(kName, "grad_loss", grad_loss, a.logits);
    const RowLossGradients gradients(a, type, Program::kRowValueGradients, needs_logits,
                                     needs_second, false);
    const Tensor incoming = made_contiguous(grad_loss);
    run<RowMode::kGradients>(a, [&]<class T>(RowProblem<T>& p) {
      gradients.attach(p);
      p.grad_loss = read_pointer<accumulate_t<T>>(incoming);
      extend(p);
    });
    return gradients.tuple();
  }

  // One pass; `extend` adds to the problem what the pass is to write.
  template <RowMode kMode, class Extend>
  static void run(const RowLossArguments& a, Extend&& extend) {
    const typename Backend::Scope scope(a.logits);
    const Tensor denominator = fresh(a.logits, {}, accumulate_type(a.logits));
    dispatch_floating(a.logits.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      RowProblem<T> p = row_problem<T>(a, denominator);
      extend(p);
      Backend::template run<Program, kMode>(p, scope);
    });
  }
};

// Registers the operators of a loss for a backend; called inside STABLE_TORCH_LIBRARY_IMPL.
template <class Backend, class Program>
void register_row_loss(torch::stable::detail::StableLibrary& library) {
  using Operators = RowLossOperators<Backend, Program>;
  const std::string name = Operators::kName;
  library.impl(name.c_str(), TORCH_BOX(&Operators::forward));
  library.impl((name + "_with_gradients").c_str(), TORCH_BOX(&Operators::with_gradients));
  library.impl((name + "_with_gradients_").c_str(), TORCH_BOX(&Operators::with_gradients_in_place));
  library.impl((name + "_backward").c_str(), TORCH_BOX(&Operators::backward));
}

// Only the forward operator: for values per row that are no loss and have no gradient.
template <class Backend, class Program>
void register_row_values(torch::stable::detail::StableLibrary& library) {
  using Operators = RowLossOperators<Backend, Program>;
  library.impl(Operators::kName, TORCH_BOX(&Operators::forward));
}

// And the scores, for a loss that offers them.
template <class Backend, class Program>
void register_row_loss_scores(torch::stable::detail::StableLibrary& library) {
  using Operators = RowLossOperators<Backend, Program>;
  library.impl((std::string(Operators::kName) + "_scores").c_str(), TORCH_BOX(&Operators::scores));
}

}  // namespace robustcore
