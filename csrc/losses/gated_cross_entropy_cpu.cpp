#include "common/errors.h"
#include "common/parallel.h"
#include "losses/gated_cross_entropy.h"
#include "losses/two_logits_cpu.h"
#include "losses/two_logits_op.h"

namespace robustcore {
namespace {

constexpr const char* kOp = "gated_cross_entropy";

void check_targets(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < rows; ++i) {
    if (target[i] != ignore_index && (target[i] < 0 || target[i] >= classes)) {
      raise("IndexError", kOp, ": target must be in [0, ", classes, ") or ignore_index (",
            ignore_index, "), got ", target[i], " at row ", i);
    }
  }
}

// Sums in double, in row order: the same bits for any number of threads.
template <class T>
void reduce_rows(const TwoLogitProblem<T>& p, Reduction reduction, accumulate_t<T>* loss,
                 const accumulate_t<T>* denominator) {
  using Acc = accumulate_t<T>;
  const auto weight = [&](int64_t i) { return p.sample_weight ? p.sample_weight[i] : Acc(1); };
  if (reduction == Reduction::kNone) {
    for (int64_t i = 0; i < p.rows; ++i) {
      loss[i] = p.target[i] == p.ignore_index ? Acc(0) : p.row_loss[i] * weight(i);
    }
    return;
  }
  double total = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.target[i] != p.ignore_index) total += static_cast<double>(p.row_loss[i]) * weight(i);
  }
  *loss = static_cast<Acc>(total / static_cast<double>(*denominator));
}

template <class T>
void write_denominator(const TwoLogitProblem<T>& p, Reduction reduction,
                       accumulate_t<T>* denominator) {
  double total = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.target[i] == p.ignore_index) continue;
    total += p.class_weight ? static_cast<double>(p.class_weight[p.target[i]]) : 1.0;
  }
  *denominator = reduction == Reduction::kMean ? static_cast<accumulate_t<T>>(total)
                                               : accumulate_t<T>(1);
}

template <bool kGradients, class T>
void forward(const TwoLogitProblem<T>& p) {
  using Policy = GatedCrossEntropy<accumulate_t<T>>;
  parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
    if (p.label_smoothing != 0) {
      two_logits_cpu::forward_rows<Policy, true, kGradients>(p, begin, end);
    } else {
      two_logits_cpu::forward_rows<Policy, false, kGradients>(p, begin, end);
    }
  });
}

// Everything of a forward pass; `extend` adds what a variant wants to the problem.
template <bool kGradients, class Extend>
TwoLogitResult run_forward(const TwoLogitArguments& a, Extend&& extend) {
  const TwoLogitResult result(a, accumulate_type(a.first));
  const std::optional<Tensor> weight_sum = class_weight_sum(a);
  check_targets(read_pointer<int64_t>(a.target), a.first.size(0), a.first.size(1), a.ignore_index);
  dispatch_floating(a.first.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    TwoLogitProblem<T> p = two_logit_problem<T>(a, weight_sum);
    result.attach(p);
    Acc* denominator = write_pointer<Acc>(result.denominator);
    write_denominator(p, a.reduction, denominator);
    p.denominator = denominator;
    extend(p);
    forward<kGradients>(p);
    reduce_rows(p, a.reduction, write_pointer<Acc>(result.loss), denominator);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> gated_cross_entropy(
    const Tensor& prediction, const Tensor& noise, const Tensor& gate, const Tensor& target,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& sample_weight,
    int64_t ignore_index, double label_smoothing, int64_t reduction) {
  const TwoLogitArguments a = two_logit_arguments(kOp, prediction, noise, gate, target, weight,
                                                  sample_weight, ignore_index, label_smoothing,
                                                  reduction);
  const TwoLogitResult r = run_forward<false>(a, [](auto&) {});
  return {r.loss, r.rows, r.denominator};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_cross_entropy_scores(
    const Tensor& prediction, const Tensor& noise, const Tensor& gate, const Tensor& target,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& sample_weight,
    int64_t ignore_index, double label_smoothing, int64_t reduction) {
  const TwoLogitArguments a = two_logit_arguments(kOp, prediction, noise, gate, target, weight,
                                                  sample_weight, ignore_index, label_smoothing,
                                                  reduction);
  const int64_t rows = a.first.size(0);
  const ScalarType type = accumulate_type(a.first);
  const Tensor log_probability = fresh(a.first, {rows}, type);
  const Tensor predicted = fresh(a.first, {rows}, ScalarType::Long);
  const Tensor gate_probability = fresh(a.first, {rows}, type);
  const TwoLogitResult r = run_forward<false>(a, [&](auto& p) {
    using Acc = typename std::decay_t<decltype(p)>::Acc;
    p.log_probability = write_pointer<Acc>(log_probability);
    p.predicted = write_pointer<int64_t>(predicted);
    p.gate_probability = write_pointer<Acc>(gate_probability);
  });
  return {r.loss, r.rows, r.denominator, log_probability, predicted, gate_probability};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_cross_entropy_with_gradients(
    const Tensor& prediction, const Tensor& noise, const Tensor& gate, const Tensor& target,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& sample_weight,
    int64_t ignore_index, double label_smoothing, int64_t reduction, bool needs_prediction,
    bool needs_noise) {
  const TwoLogitArguments a = two_logit_arguments(kOp, prediction, noise, gate, target, weight,
                                                  sample_weight, ignore_index, label_smoothing,
                                                  reduction);
  RC_CHECK(a.reduction != Reduction::kNone, kOp, "_with_gradients: reduction must be 1 or 2");
  const TwoLogitGradients g(a, accumulate_type(a.first), needs_prediction, needs_noise);
  const TwoLogitResult r = run_forward<true>(a, [&](auto& p) { g.attach(p); });
  return {r.loss, g.first, g.second, g.gate, g.sample_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_cross_entropy_backward(
    const Tensor& grad_loss, const Tensor& prediction, const Tensor& noise, const Tensor& gate,
    const Tensor& target, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& sample_weight, const Tensor& rows, const Tensor& denominator,
    int64_t ignore_index, double label_smoothing, int64_t reduction, bool needs_prediction,
    bool needs_noise) {
  const TwoLogitArguments a = two_logit_arguments(kOp, prediction, noise, gate, target, weight,
                                                  sample_weight, ignore_index, label_smoothing,
                                                  reduction);
  const bool per_row = a.reduction == Reduction::kNone;
  check_numel(kOp, "grad_loss", grad_loss, per_row ? a.first.size(0) : 1);
  check_type(kOp, "grad_loss", grad_loss, accumulate_type(a.first));
  check_numel(kOp, "rows", rows, 3 * a.first.size(0));
  const Tensor incoming = made_contiguous(grad_loss);
  const Tensor statistics = made_contiguous(rows);
  const TwoLogitGradients g(a, accumulate_type(a.first), needs_prediction, needs_noise);
  const std::optional<Tensor> weight_sum = class_weight_sum(a);
  dispatch_floating(a.first.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    using Policy = GatedCrossEntropy<Acc>;
    TwoLogitProblem<T> p = two_logit_problem<T>(a, weight_sum);
    // Read only from here on.
    p.row_loss = const_cast<Acc*>(read_pointer<Acc>(statistics));
    p.row_lse = p.row_loss + p.rows;
    p.row_gate_gradient = p.row_lse + p.rows;
    p.grad_loss = read_pointer<Acc>(incoming);
    p.grad_loss_per_row = per_row;
    p.denominator = read_pointer<Acc>(denominator);
    g.attach(p);
    parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
      if (p.label_smoothing != 0) {
        two_logits_cpu::backward_rows<Policy, true>(p, begin, end);
      } else {
        two_logits_cpu::backward_rows<Policy, false>(p, begin, end);
      }
    });
  });
  return {g.first, g.second, g.gate, g.sample_weight};
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("gated_cross_entropy", TORCH_BOX(&robustcore::gated_cross_entropy));
  m.impl("gated_cross_entropy_scores", TORCH_BOX(&robustcore::gated_cross_entropy_scores));
  m.impl("gated_cross_entropy_with_gradients",
         TORCH_BOX(&robustcore::gated_cross_entropy_with_gradients));
  m.impl("gated_cross_entropy_backward", TORCH_BOX(&robustcore::gated_cross_entropy_backward));
}
