// The operators of shrink_match_loss, the same for CPU and CUDA: checks, output tensors, problem
// struct. A backend brings the kernels.
#pragma once

#include <string>
#include <tuple>

#include "common/tensor.h"
#include "losses/shrink_match_loss.h"

namespace robustcore {

// Backend: Scope (constructed from a tensor before anything is launched), prepare(tensor),
// forward<kGradients>(problem, scope), backward(problem, scope).
template <class Backend>
struct ShrinkMatchOperators {
  static constexpr const char* kName = "shrink_match_loss";
  static constexpr int64_t kRowValues = 5, kRowPlaces = 3;

  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& weak, const Tensor& strong,
                                                    double threshold, int64_t reduction) {
    const Call call(weak, strong, reduction);
    const Result result(call);
    run<false>(call, result, threshold, nullptr);
    return {result.loss, result.values, result.places};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> with_gradients(const Tensor& weak,
                                                                   const Tensor& strong,
                                                                   double threshold,
                                                                   int64_t reduction) {
    const Call call(weak, strong, reduction);
    RC_CHECK(reduction != 0, kName, "_with_gradients: reduction must be 1 or 2");
    const Result result(call);
    const Tensor grad = call.gradient();
    run<true>(call, result, threshold, &grad);
    return {result.loss, result.values, result.places, grad};
  }

  static Tensor backward(const Tensor& grad_loss, const Tensor& weak, const Tensor& strong,
                         const Tensor& row_values, const Tensor& row_places, int64_t reduction) {
    const Call call(weak, strong, reduction);
    const ScalarType type = accumulate_type(strong);
    check_type(kName, "grad_loss", grad_loss, type);
    check_numel(kName, "grad_loss", grad_loss, reduction == 0 ? call.rows : 1);
    check_type(kName, "row_values", row_values, type);
    check_numel(kName, "row_values", row_values, kRowValues * call.rows);
    check_type(kName, "row_places", row_places, ScalarType::Long);
    check_numel(kName, "row_places", row_places, kRowPlaces * call.rows);
    for (const Tensor* tensor : {&grad_loss, &row_values, &row_places}) {
      check_same_device(kName, "a saved tensor", *tensor, strong);
    }
    const typename Backend::Scope scope(call.strong);
    const Tensor incoming = made_contiguous(grad_loss), values = made_contiguous(row_values);
    const Tensor places = made_contiguous(row_places), grad = call.gradient();
    dispatch_floating(call.strong.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using Acc = accumulate_t<T>;
      ShrinkMatchProblem<T> p = call.template problem<T>();
      // Writable for the forward pass; the backward pass reads them only.
      attach(p, const_cast<Acc*>(read_pointer<Acc>(values)),
             const_cast<int64_t*>(read_pointer<int64_t>(places)));
      p.grad_loss = read_pointer<Acc>(incoming);
      p.grad = write_pointer<T>(grad);
      Backend::backward(p, scope);
    });
    return grad;
  }

 private:
  struct Call {
    Tensor weak, strong;
    int64_t rows, classes, reduction;

    Call(const Tensor& weak_logits, const Tensor& strong_logits, int64_t how)
        : weak(Backend::prepare(made_contiguous(weak_logits))),
          strong(Backend::prepare(made_contiguous(strong_logits))),
          reduction(how) {
      check_floating(kName, "strong_logits", strong);
      RC_CHECK(strong.dim() == 2, kName, ": strong_logits must have 2 dimensions, got ",
               strong.dim());
      rows = strong.size(0);
      classes = strong.size(1);
      RC_CHECK(weak.dim() == 2 && weak.size(0) == rows && weak.size(1) == classes, kName,
               ": weak_logits must have the shape of strong_logits");
      check_type(kName, "weak_logits", weak, strong.scalar_type());
      check_same_device(kName, "weak_logits", weak, strong);
      RC_CHECK(classes > 0 || rows == 0, kName, ": strong_logits must have at least one class");
      RC_CHECK(reduction >= 0 && reduction <= 2, kName, ": reduction must be 0, 1 or 2, got ",
               reduction);
    }

    Tensor gradient() const { return fresh(strong, {rows, classes}, strong.scalar_type()); }

    template <class T>
    ShrinkMatchProblem<T> problem() const {
      ShrinkMatchProblem<T> p{};
      p.weak = read_pointer<T>(weak);
      p.strong = read_pointer<T>(strong);
      p.rows = rows;
      p.classes = classes;
      p.reduced = reduction != 0;
      p.mean = reduction == 1;
      return p;
    }
  };

  // The loss; per row its value, logsumexp, weight, cut and confidence; top class, tie, removed.
  struct Result {
    Tensor loss, values, places;

    explicit Result(const Call& call)
        : loss(call.reduction == 0 ? fresh(call.strong, {call.rows}, accumulate_type(call.strong))
                                   : fresh(call.strong, {}, accumulate_type(call.strong))),
          values(fresh(call.strong, {kRowValues, call.rows}, accumulate_type(call.strong))),
          places(fresh(call.strong, {kRowPlaces, call.rows}, ScalarType::Long)) {}
  };

  template <class T>
  static void attach(ShrinkMatchProblem<T>& p, accumulate_t<T>* values, int64_t* places) {
    p.row_loss = values;
    p.row_lse = values + p.rows;
    p.row_weight = values + 2 * p.rows;
    p.row_cut = values + 3 * p.rows;
    p.row_confidence = values + 4 * p.rows;
    p.row_top = places;
    p.row_tie = places + p.rows;
    p.row_removed = places + 2 * p.rows;
  }

  template <bool kGradients>
  static void run(const Call& call, const Result& result, double threshold, const Tensor* grad) {
    RC_CHECK(threshold > 0 && threshold < 1, kName, ": threshold must be in (0, 1), got ",
             threshold);
    const typename Backend::Scope scope(call.strong);
    dispatch_floating(call.strong.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      ShrinkMatchProblem<T> p = call.template problem<T>();
      p.budget = (1.0 - threshold) / threshold;
      p.loss = write_pointer<accumulate_t<T>>(result.loss);
      attach(p, write_pointer<accumulate_t<T>>(result.values),
             write_pointer<int64_t>(result.places));
      if (grad) p.grad = write_pointer<T>(*grad);
      Backend::template forward<kGradients>(p, scope);
    });
  }
};

template <class Backend>
void register_shrink_match_operators(torch::stable::detail::StableLibrary& library) {
  using Operators = ShrinkMatchOperators<Backend>;
  library.impl("shrink_match_loss", TORCH_BOX(&Operators::forward));
  library.impl("shrink_match_loss_with_gradients", TORCH_BOX(&Operators::with_gradients));
  library.impl("shrink_match_loss_backward", TORCH_BOX(&Operators::backward));
}

}  // namespace robustcore
