#include "losses/mixture_log_softmax.h"

#include "losses/row_map.cuh"
#include "simt_case.h"

namespace robustcore {
namespace {

// The operator makes its matrices start here before it launches.
constexpr std::size_t kVectorAlignment = 16;

template <class T>
MixtureLogSoftmaxProblem<T> problem_of(simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  MixtureLogSoftmaxProblem<T> p{};
  for (int k = 0; k < 2; ++k) {
    const std::string index = std::to_string(k + 1);
    p.matrix[k] = arguments.input<T>("logits" + index, kVectorAlignment);
    p.scale_of_row[k] = arguments.optional_input<Acc>("scale" + index);
    p.scale[k] = static_cast<Acc>(arguments.number("number" + index));
  }
  p.gate = arguments.input<Acc>("gate");
  p.rows = arguments.elements("gate");
  p.classes = arguments.integer("classes");
  return p;
}

}  // namespace

RC_SIMT_CASE(mixture_log_softmax) {
  simt::dispatch_floating(arguments.dtype("logits1"), [&]<typename T>() {
    MixtureLogSoftmaxProblem<T> p = problem_of<T>(arguments);
    p.result = arguments.output<T>("result", kVectorAlignment);
    row_cuda::launch_row_map<MixtureLogSoftmax>(p, simt::stream());
  });
}

RC_SIMT_CASE(mixture_log_softmax_backward) {
  simt::dispatch_floating(arguments.dtype("logits1"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    MixtureLogSoftmaxProblem<T> p = problem_of<T>(arguments);
    p.grad = arguments.input<T>("grad", kVectorAlignment);
    for (int k = 0; k < 2; ++k) {
      const std::string index = std::to_string(k + 1);
      p.grad_matrix[k] = arguments.optional_output<T>("grad_logits" + index, kVectorAlignment);
      p.grad_scale[k] = arguments.optional_output<Acc>("grad_scale" + index);
    }
    p.grad_gate = arguments.output<Acc>("grad_gate");
    row_cuda::launch_row_map<MixtureLogSoftmaxBackward>(p, simt::stream());
  });
}

// By the definition, in double: the mixture, and the gradient for the first logits of the sum of
// the results times 0.25 (c + 1).
RC_SIMT_CHECK(mixture_log_softmax) {
  for (const std::int64_t classes : {1, 3, 32, 130, 1030}) {
    const std::int64_t rows = 3;
    const auto count = static_cast<std::size_t>(rows * classes);
    std::vector<float> first(count), second(count), gate{-1.0f, 0.0f, 2.0f}, result(count),
        incoming(count), grad_first(count), grad_second(count), grad_gate(3);
    for (std::size_t i = 0; i < count; ++i) {
      first[i] = static_cast<float>(i * 7919 % 1000) / 125.0f - 4.0f;
      second[i] = static_cast<float>(i * 104729 % 1000) / 125.0f - 4.0f;
      incoming[i] = 0.25f * static_cast<float>(static_cast<std::int64_t>(i) % classes + 1);
    }
    std::vector<double> expected(count), expected_gradient(count), expected_gate(3);
    for (std::int64_t row = 0; row < rows; ++row) {
      const double alpha = 1.0 / (1.0 + std::exp(-gate[row])), scale = 1.5;
      double total1 = 0.0, total2 = 0.0, pulled = 0.0;
      for (std::int64_t c = 0; c < classes; ++c) {
        total1 += std::exp(scale * first[row * classes + c]);
        total2 += std::exp(second[row * classes + c]);
      }
      std::vector<double> share(classes), p1(classes);
      for (std::int64_t c = 0; c < classes; ++c) {
        const std::int64_t i = row * classes + c;
        p1[c] = std::exp(scale * first[i]) / total1;
        const double p2 = std::exp(second[i]) / total2;
        const double mixed = (1.0 - alpha) * p1[c] + alpha * p2;
        expected[i] = std::log(mixed);
        share[c] = (1.0 - alpha) * p1[c] / mixed;
        pulled += incoming[i] * share[c];
        expected_gate[row] += incoming[i] * alpha * (1.0 - alpha) * (p2 - p1[c]) / mixed;
      }
      for (std::int64_t c = 0; c < classes; ++c) {
        expected_gradient[row * classes + c] =
            scale * (incoming[row * classes + c] * share[c] - pulled * p1[c]);
      }
    }
    const simt::NamedValues given = {{"logits1", simt::array(first)},
                                     {"logits2", simt::array(second)},
                                     {"gate", simt::array(gate)},
                                     {"scale1", {}},
                                     {"scale2", {}},
                                     {"number1", 1.5},
                                     {"number2", 1.0},
                                     {"classes", classes}};
    simt::NamedValues forward = given;
    forward.emplace_back("result", simt::array(result));
    simt::run_case("mixture_log_softmax", forward);
    simt::expect_close("result", result, expected, 1e-5);
    simt::NamedValues backward = given;
    backward.emplace_back("grad", simt::array(incoming));
    backward.emplace_back("grad_logits1", simt::array(grad_first));
    backward.emplace_back("grad_logits2", simt::array(grad_second));
    backward.emplace_back("grad_gate", simt::array(grad_gate));
    backward.emplace_back("grad_scale1", simt::Value{});
    backward.emplace_back("grad_scale2", simt::Value{});
    simt::run_case("mixture_log_softmax_backward", backward);
    const double size = 1.0 + 0.25 * static_cast<double>(classes);
    simt::expect_close("gradient", grad_first, expected_gradient, 2e-5 * size);
    simt::expect_close("gate gradient", grad_gate, expected_gate, 2e-5 * size * size);
  }
}

}  // namespace robustcore
