#include "losses/gated_cross_entropy.h"

#include "losses/two_logits.cuh"
#include "simt_case.h"

namespace robustcore {
namespace {

// The operator makes its logits start here before it launches.
constexpr std::size_t kVectorAlignment = 16;

// What every pass is given.
template <class T>
TwoLogitProblem<T> problem_of(simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  TwoLogitProblem<T> p{};
  p.first = arguments.input<T>("prediction", kVectorAlignment);
  p.second = arguments.input<T>("noise", kVectorAlignment);
  p.gate = arguments.input<Acc>("gate");
  p.target = arguments.input<std::int64_t>("target");
  p.class_weight = arguments.optional_input<Acc>("weight");
  p.class_weight_sum = arguments.optional_input<Acc>("weight_sum");
  p.sample_weight = arguments.optional_input<Acc>("sample_weight");
  p.rows = arguments.elements("gate");
  p.classes = arguments.integer("classes");
  p.ignore_index = arguments.integer("ignore_index");
  p.label_smoothing = static_cast<Acc>(arguments.number("label_smoothing"));
  p.reduction = static_cast<Reduction>(arguments.integer("reduction"));
  return p;
}

template <class T>
void attach_results(TwoLogitProblem<T>& p, simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  p.loss = arguments.output<Acc>("loss");
  p.row_loss = arguments.output<Acc>("row_loss");
  p.row_lse = arguments.output<Acc>("row_lse");
  p.row_gate_gradient = arguments.output<Acc>("row_gate_gradient");
  p.denominator = arguments.output<Acc>("denominator");
}

template <class T>
void attach_gradients(TwoLogitProblem<T>& p, simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  p.grad_first = arguments.optional_output<T>("grad_prediction", kVectorAlignment);
  p.grad_second = arguments.optional_output<T>("grad_noise", kVectorAlignment);
  p.grad_gate = arguments.optional_output<Acc>("grad_gate");
  p.grad_sample_weight = arguments.optional_output<Acc>("grad_sample_weight");
}

template <class T>
using Policy = GatedCrossEntropy<accumulate_t<T>>;

}  // namespace

RC_SIMT_CASE(gated_cross_entropy) {
  simt::dispatch_floating(arguments.dtype("prediction"), [&]<typename T>() {
    TwoLogitProblem<T> p = problem_of<T>(arguments);
    attach_results(p, arguments);
    two_logits_cuda::launch_forward<Policy<T>, TwoLogitMode::kStatistics>(p, simt::stream());
  });
}

RC_SIMT_CASE(gated_cross_entropy_with_gradients) {
  simt::dispatch_floating(arguments.dtype("prediction"), [&]<typename T>() {
    TwoLogitProblem<T> p = problem_of<T>(arguments);
    attach_results(p, arguments);
    attach_gradients(p, arguments);
    two_logits_cuda::launch_forward<Policy<T>, TwoLogitMode::kGradients>(p, simt::stream());
  });
}

RC_SIMT_CASE(gated_cross_entropy_scores) {
  simt::dispatch_floating(arguments.dtype("prediction"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    TwoLogitProblem<T> p = problem_of<T>(arguments);
    attach_results(p, arguments);
    p.log_probability = arguments.output<Acc>("log_probability");
    p.predicted = arguments.output<std::int64_t>("predicted");
    p.gate_probability = arguments.output<Acc>("gate_probability");
    two_logits_cuda::launch_forward<Policy<T>, TwoLogitMode::kScores>(p, simt::stream());
  });
}

RC_SIMT_CASE(gated_cross_entropy_backward) {
  simt::dispatch_floating(arguments.dtype("prediction"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    TwoLogitProblem<T> p = problem_of<T>(arguments);
    // The struct has them writable for the forward pass.
    p.row_loss = const_cast<Acc*>(arguments.input<Acc>("row_loss"));
    p.row_lse = const_cast<Acc*>(arguments.input<Acc>("row_lse"));
    p.row_gate_gradient = const_cast<Acc*>(arguments.input<Acc>("row_gate_gradient"));
    p.denominator = const_cast<Acc*>(arguments.input<Acc>("denominator"));
    p.grad_loss = arguments.input<Acc>("grad_loss");
    p.grad_loss_per_row = p.reduction == Reduction::kNone;
    attach_gradients(p, arguments);
    two_logits_cuda::launch_backward<Policy<T>>(p, simt::stream());
  });
}

namespace {

// One row by its definition, in double: the loss and the derivatives for both logits and the gate.
struct Row {
  double loss;
  std::vector<double> grad_first, grad_second;
  double grad_gate;
};

Row row_by_definition(const float* first, const float* second, double gate_logit,
                      std::int64_t target, std::int64_t classes) {
  const double gate = 1.0 / (1.0 + std::exp(-gate_logit));
  std::vector<double> probability;
  double total = 0.0;
  for (std::int64_t c = 0; c < classes; ++c) {
    probability.push_back(std::exp((1.0 - gate) * first[c] + gate * second[c]));
    total += probability.back();
  }
  Row row{};
  for (std::int64_t c = 0; c < classes; ++c) {
    const double p = probability[c] / total;
    if (c == target) row.loss = -std::log(p);
    const double gradient = p - (c == target ? 1.0 : 0.0);
    row.grad_first.push_back((1.0 - gate) * gradient);
    row.grad_second.push_back(gate * gradient);
    row.grad_gate += gate * (1.0 - gate) * gradient * (second[c] - first[c]);
  }
  return row;
}

std::vector<float> some_logits(std::int64_t count, int seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = static_cast<float>((index * 7919 + 131 * seed) % 1000) / 125.0f - 4.0f;
  }
  return values;
}

}  // namespace

// Sum over rows, by both ways to the gradients; one ignored row.
RC_SIMT_CHECK(gated_cross_entropy) {
  for (const std::int64_t classes : {1, 3, 32, 130, 1030}) {
    const std::int64_t rows = 5, ignored = 2;
    const auto row_count = static_cast<std::size_t>(rows);
    std::vector<float> first = some_logits(rows * classes, 1);
    std::vector<float> second = some_logits(rows * classes, 2);
    std::vector<float> gate = some_logits(rows, 3);
    std::vector<std::int64_t> target;
    for (std::int64_t row = 0; row < rows; ++row) target.push_back(row * 37 % classes);
    target[ignored] = -100;

    std::vector<float> loss(1), denominator(1), row_loss(row_count), row_lse(row_count),
        row_gate_gradient(row_count), grad_first(first.size()), grad_second(first.size()),
        grad_gate(row_count), grad_loss{1.0f};
    const simt::NamedValues given = {{"prediction", simt::array(first)},
                                     {"noise", simt::array(second)},
                                     {"gate", simt::array(gate)},
                                     {"target", simt::array(target)},
                                     {"weight", {}},
                                     {"weight_sum", {}},
                                     {"sample_weight", {}},
                                     {"classes", classes},
                                     {"ignore_index", std::int64_t{-100}},
                                     {"label_smoothing", 0.0},
                                     {"reduction", static_cast<std::int64_t>(Reduction::kSum)}};
    const simt::NamedValues results = {{"loss", simt::array(loss)},
                                       {"row_loss", simt::array(row_loss)},
                                       {"row_lse", simt::array(row_lse)},
                                       {"row_gate_gradient", simt::array(row_gate_gradient)},
                                       {"denominator", simt::array(denominator)}};
    const simt::NamedValues gradients = {{"grad_prediction", simt::array(grad_first)},
                                         {"grad_noise", simt::array(grad_second)},
                                         {"grad_gate", simt::array(grad_gate)},
                                         {"grad_sample_weight", {}}};
    const auto joined = [](simt::NamedValues left, const simt::NamedValues& right) {
      left.insert(left.end(), right.begin(), right.end());
      return left;
    };

    std::vector<double> losses, for_first, for_second, for_gate;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t offset = row * classes;
      Row expected =
          row_by_definition(&first[offset], &second[offset], gate[row], target[row], classes);
      if (row == ignored) {
        expected = {0.0, std::vector<double>(classes), std::vector<double>(classes), 0.0};
      }
      losses.push_back(expected.loss);
      for_first.insert(for_first.end(), expected.grad_first.begin(), expected.grad_first.end());
      for_second.insert(for_second.end(), expected.grad_second.begin(), expected.grad_second.end());
      for_gate.push_back(expected.grad_gate);
    }
    const auto compare_gradients = [&] {
      simt::expect_close("grad_prediction", grad_first, for_first, 1e-5);
      simt::expect_close("grad_noise", grad_second, for_second, 1e-5);
      simt::expect_close("grad_gate", grad_gate, for_gate, 1e-5);
    };

    simt::run_case("gated_cross_entropy_with_gradients", joined(joined(given, results), gradients));
    simt::expect_close("row_loss", row_loss, losses, 1e-5);
    compare_gradients();

    simt::run_case("gated_cross_entropy", joined(given, results));
    std::fill(grad_first.begin(), grad_first.end(), 0.0f);
    std::fill(grad_second.begin(), grad_second.end(), 0.0f);
    simt::NamedValues saved = joined(given, gradients);
    for (const auto& value : results) {
      if (value.first != "loss") saved.push_back(value);
    }
    saved.emplace_back("grad_loss", simt::array(grad_loss));
    simt::run_case("gated_cross_entropy_backward", saved);
    compare_gradients();
  }
}

}  // namespace robustcore
