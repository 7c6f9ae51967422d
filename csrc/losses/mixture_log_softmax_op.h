// The operators mixture_log_softmax and mixture_log_softmax_backward, the same for CPU and CUDA.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "losses/mixture_log_softmax.h"

namespace robustcore {

// Backend: Scope, made from a tensor; prepare(tensor), what it asks of a matrix (alignment);
// run<Program>(problem, scope).
template <class Backend>
struct MixtureLogSoftmaxOperators {
  static constexpr const char* kName = "mixture_log_softmax";
  using OptionalTensor = std::optional<Tensor>;

  struct Arguments {
    Tensor matrix[2], gate;
    OptionalTensor scale[2];
    std::vector<double> scales;

    int64_t rows() const { return matrix[0].size(0); }
    int64_t classes() const { return matrix[0].size(1); }
    ScalarType type() const { return matrix[0].scalar_type(); }
  };

  static Tensor forward(const Tensor& logits1, const Tensor& logits2, const Tensor& gate,
                        const OptionalTensor& scale1, const OptionalTensor& scale2,
                        std::vector<double> scales) {
    const Arguments a = checked(logits1, logits2, gate, scale1, scale2, std::move(scales));
    const Tensor result = fresh(a.matrix[0], {a.rows(), a.classes()}, a.type());
    run<MixtureLogSoftmax>(
        a, [&]<class T>(MixtureLogSoftmaxProblem<T>& p) { p.result = write_pointer<T>(result); });
    return result;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad, const Tensor& logits1, const Tensor& logits2, const Tensor& gate,
      const OptionalTensor& scale1, const OptionalTensor& scale2, std::vector<double> scales,
      bool needs_logits1, bool needs_logits2) {
    const Arguments a = checked(logits1, logits2, gate, scale1, scale2, std::move(scales));
    const Tensor incoming = checked_matrix("grad", grad, a.matrix[0]);
    const ScalarType accumulate = accumulate_type(a.matrix[0]);
    const auto matrix = [&](bool needed) {
      return fresh(a.matrix[0], {needed ? a.rows() : 0, needed ? a.classes() : 0}, a.type());
    };
    const auto vector = [&](bool needed) {
      return fresh(a.matrix[0], {needed ? a.rows() : 0}, accumulate);
    };
    const Tensor matrices[2] = {matrix(needs_logits1), matrix(needs_logits2)};
    const Tensor for_gate = vector(true);
    const Tensor for_scale[2] = {vector(scale1.has_value()), vector(scale2.has_value())};
    run<MixtureLogSoftmaxBackward>(a, [&]<class T>(MixtureLogSoftmaxProblem<T>& p) {
      using Acc = accumulate_t<T>;
      p.grad = read_pointer<T>(incoming);
      p.grad_gate = write_pointer<Acc>(for_gate);
      p.grad_matrix[0] = needs_logits1 ? write_pointer<T>(matrices[0]) : nullptr;
      p.grad_matrix[1] = needs_logits2 ? write_pointer<T>(matrices[1]) : nullptr;
      for (int k = 0; k < 2; ++k) {
        p.grad_scale[k] = a.scale[k] ? write_pointer<Acc>(for_scale[k]) : nullptr;
      }
    });
    return {matrices[0], matrices[1], for_gate, for_scale[0], for_scale[1]};
  }

 private:
  static Tensor checked_matrix(const char* name, const Tensor& matrix, const Tensor& like) {
    RC_CHECK(matrix.dim() == 2 && matrix.size(0) == like.size(0) && matrix.size(1) == like.size(1),
             kName, ": ", name, " must have the shape of logits1");
    check_type(kName, name, matrix, like.scalar_type());
    check_same_device(kName, name, matrix, like);
    return Backend::prepare(made_contiguous(matrix));
  }

  static Arguments checked(const Tensor& logits1, const Tensor& logits2, const Tensor& gate,
                           const OptionalTensor& scale1, const OptionalTensor& scale2,
                           std::vector<double> scales) {
    check_floating(kName, "logits1", logits1);
    RC_CHECK(logits1.dim() == 2, kName, ": logits1 must have 2 dimensions, got ", logits1.dim());
    const ScalarType accumulate = accumulate_type(logits1);
    const auto check = [&](const char* name, const Tensor& tensor) {
      check_type(kName, name, tensor, accumulate);
      check_numel(kName, name, tensor, logits1.size(0));
      check_same_device(kName, name, tensor, logits1);
    };
    check("gate", gate);
    if (scale1) check("scale1", *scale1);
    if (scale2) check("scale2", *scale2);
    RC_CHECK(scales.size() == 2, kName, ": scales must be two numbers");
    return {
        {Backend::prepare(made_contiguous(logits1)), checked_matrix("logits2", logits2, logits1)},
        made_contiguous(gate),
        {made_contiguous(scale1), made_contiguous(scale2)},
        std::move(scales)};
  }

  // `extend` adds to the problem what the pass is to read and write.
  template <class Program, class Extend>
  static void run(const Arguments& a, Extend&& extend) {
    const typename Backend::Scope scope(a.matrix[0]);
    dispatch_floating(a.type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using Acc = accumulate_t<T>;
      MixtureLogSoftmaxProblem<T> p{};
      for (int k = 0; k < 2; ++k) {
        p.matrix[k] = read_pointer<T>(a.matrix[k]);
        p.scale_of_row[k] = read_pointer<Acc>(a.scale[k]);
        p.scale[k] = static_cast<Acc>(a.scales[k]);
      }
      p.gate = read_pointer<Acc>(a.gate);
      p.rows = a.rows();
      p.classes = a.classes();
      extend(p);
      Backend::template run<Program>(p, scope);
    });
  }
};

template <class Backend>
void register_mixture_log_softmax(torch::stable::detail::StableLibrary& library) {
  using Operators = MixtureLogSoftmaxOperators<Backend>;
  library.impl("mixture_log_softmax", TORCH_BOX(&Operators::forward));
  library.impl("mixture_log_softmax_backward", TORCH_BOX(&Operators::backward));
}

}  // namespace robustcore
