// The cases of a row loss: RC_SIMT_ROW_LOSS(stem, Program) registers <stem>, <stem>_with_gradients
// and <stem>_backward for Python, and a check that compares them with the program on the CPU, in
// double.
#pragma once

#include <string>
#include <vector>

#include "losses/row_cpu.h"
#include "losses/row_loss.cuh"
#include "simt_case.h"

namespace robustcore::row_loss_case {

// The operator makes its matrices start here before it launches.
constexpr std::size_t kVectorAlignment = 16;

inline const char* row_value_name(int k) {
  constexpr const char* kNames[] = {"row_value", "row_value2", "row_value3"};
  return kNames[k];
}

// What every pass is given.
template <class T>
RowProblem<T> problem_of(simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  RowProblem<T> p{};
  p.logits = arguments.input<T>("logits", kVectorAlignment);
  p.second = arguments.optional_input<T>("second", kVectorAlignment);
  for (int k = 0; k < kRowValues; ++k) {
    p.row_value[k] = arguments.optional_input<Acc>(row_value_name(k));
  }
  p.target = arguments.optional_input<std::int64_t>("target");
  p.soft_target = arguments.optional_input<Acc>("soft_target");
  p.class_weight = arguments.optional_input<Acc>("weight");
  p.sample_weight = arguments.optional_input<Acc>("sample_weight");
  p.rows = arguments.integer("rows");
  p.classes = arguments.integer("classes");
  p.ignore_index = arguments.integer("ignore_index");
  p.label_smoothing = static_cast<Acc>(arguments.number("label_smoothing"));
  p.inverse_temperature = static_cast<Acc>(1.0 / arguments.number("temperature"));
  p.softcap = static_cast<Acc>(arguments.number("softcap"));
  p.lse_square = static_cast<Acc>(arguments.number("lse_square"));
  for (int k = 0; k < kParameters; ++k) {
    p.parameter[k] = static_cast<Acc>(arguments.number("parameter" + std::to_string(k)));
  }
  p.reduction = static_cast<Reduction>(arguments.integer("reduction"));
  p.denominator = arguments.output<Acc>("denominator");
  return p;
}

template <class T>
void attach_loss(RowProblem<T>& p, simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  p.loss = arguments.output<Acc>("loss");
  p.row_loss = p.reduction == Reduction::kNone ? nullptr : arguments.output<Acc>("row_loss");
}

template <class T>
void attach_gradients(RowProblem<T>& p, simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  p.grad_logits = arguments.optional_output<T>("grad_logits", kVectorAlignment);
  p.grad_second = arguments.optional_output<T>("grad_second", kVectorAlignment);
  for (int k = 0; k < kRowValues; ++k) {
    p.grad_row_value[k] = arguments.optional_output<Acc>("grad_" + std::string(row_value_name(k)));
  }
  p.grad_sample_weight = arguments.optional_output<Acc>("grad_sample_weight");
}

template <class Program>
void forward(simt::Arguments& arguments) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    RowProblem<T> p = problem_of<T>(arguments);
    attach_loss(p, arguments);
    row_cuda::launch_row_loss<Program, RowMode::kLoss>(p, simt::stream());
  });
}

template <class Program>
void with_gradients(simt::Arguments& arguments) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    RowProblem<T> p = problem_of<T>(arguments);
    attach_loss(p, arguments);
    attach_gradients(p, arguments);
    row_cuda::launch_row_loss<Program, RowMode::kGradients>(p, simt::stream());
  });
}

template <class Program>
void backward(simt::Arguments& arguments) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    RowProblem<T> p = problem_of<T>(arguments);
    p.grad_loss = arguments.input<accumulate_t<T>>("grad_loss");
    attach_gradients(p, arguments);
    row_cuda::launch_row_loss<Program, RowMode::kGradients>(p, simt::stream());
  });
}

inline std::vector<float> some_numbers(std::int64_t count, int seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = static_cast<float>((index * 7919 + 131 * seed) % 1000) / 125.0f - 4.0f;
  }
  return values;
}

// Loss and gradient for the logits of the rows that are not ignored, by the program itself on the
// CPU.
template <class Program>
void expect(const RowProblem<double>& p, double& loss) {
  std::vector<double> cache(static_cast<std::size_t>(p.classes * 4));
  double* caches[] = {cache.data(), cache.data() + p.classes, cache.data() + 2 * p.classes};
  for (std::int64_t i = 0; i < p.rows; ++i) {
    if (p.is_ignored(i)) continue;
    const row_cpu::Row<double> row(p.classes, caches, cache.data() + 3 * p.classes);
    loss += Program::template run<true>(row, p, i, 1.0, KnownOptions<Label::kClass, false>{});
  }
}

// Sum over rows with one ignored; widths of a warp's row and of a block's.
template <class Program>
void check(const char* stem) {
  for (const std::int64_t classes : {1, 3, 32, 130, 1030}) {
    const std::int64_t rows = 5, ignored = 2;
    const auto row_count = static_cast<std::size_t>(rows);
    std::vector<float> logits = some_numbers(rows * classes, 1),
                       second = some_numbers(rows * classes, 2);
    std::vector<float> row_value[kRowValues];
    std::vector<double> wide_row_value[kRowValues];
    std::vector<std::int64_t> target;
    for (std::int64_t row = 0; row < rows; ++row) target.push_back(row * 37 % classes);
    target[ignored] = -100;
    std::vector<double> wide_logits(logits.begin(), logits.end()),
        wide_second(second.begin(), second.end()), expected_gradient(logits.size(), 0.0);

    RowProblem<double> wide{};
    wide.logits = wide_logits.data();
    wide.second = wide_second.data();
    wide.target = target.data();
    wide.rows = rows;
    wide.classes = classes;
    wide.ignore_index = -100;
    wide.inverse_temperature = 1.0;
    for (double& parameter : wide.parameter) parameter = 1.5;
    wide.reduction = Reduction::kSum;
    wide.grad_logits = expected_gradient.data();

    std::vector<float> loss(1), row_loss(row_count), denominator(1), gradient(logits.size()),
        grad_loss{1.0f};
    simt::NamedValues given = {{"logits", simt::array(logits)},
                               {"second", simt::array(second)},
                               {"target", simt::array(target)},
                               {"soft_target", {}},
                               {"weight", {}},
                               {"sample_weight", {}},
                               {"rows", rows},
                               {"classes", classes},
                               {"ignore_index", std::int64_t{-100}},
                               {"label_smoothing", 0.0},
                               {"temperature", 1.0},
                               {"softcap", 0.0},
                               {"lse_square", 0.0},
                               {"reduction", static_cast<std::int64_t>(Reduction::kSum)},
                               {"denominator", simt::array(denominator)}};
    for (int k = 0; k < kRowValues; ++k) {
      // Positive: some losses take a scale here.
      row_value[k] = some_numbers(rows, 3 + k);
      for (float& value : row_value[k]) value = 1.0f + value * value / 16.0f;
      wide_row_value[k].assign(row_value[k].begin(), row_value[k].end());
      wide.row_value[k] = wide_row_value[k].data();
      given.emplace_back(row_value_name(k), simt::array(row_value[k]));
    }
    for (int k = 0; k < kParameters; ++k) {
      given.emplace_back("parameter" + std::to_string(k), 1.5);
    }
    double expected_loss = 0.0;
    expect<Program>(wide, expected_loss);

    simt::NamedValues results = given;
    results.emplace_back("loss", simt::array(loss));
    results.emplace_back("row_loss", simt::array(row_loss));
    simt::run_case(stem, results);
    const double tolerance = 2e-5;
    simt::expect_close("loss", loss, std::vector<float>{static_cast<float>(expected_loss)},
                       tolerance * (1.0 + std::abs(expected_loss)));

    simt::NamedValues gradients = {
        {"grad_logits", simt::array(gradient)}, {"grad_second", {}}, {"grad_sample_weight", {}}};
    for (int k = 0; k < kRowValues; ++k) {
      gradients.emplace_back("grad_" + std::string(row_value_name(k)), simt::Value{});
    }
    const std::vector<float> expected(expected_gradient.begin(), expected_gradient.end());
    simt::NamedValues both = results;
    both.insert(both.end(), gradients.begin(), gradients.end());
    simt::run_case(std::string(stem) + "_with_gradients", both);
    simt::expect_close("gradient", gradient, expected, tolerance);
    simt::NamedValues back = given;
    back.insert(back.end(), gradients.begin(), gradients.end());
    back.emplace_back("grad_loss", simt::array(grad_loss));
    simt::run_case(std::string(stem) + "_backward", back);
    simt::expect_close("gradient of backward", gradient, expected, tolerance);
  }
}

}  // namespace robustcore::row_loss_case

#define RC_SIMT_ROW_LOSS(stem, Program)                              \
  RC_SIMT_CASE(stem) {                                               \
    ::robustcore::row_loss_case::forward<Program>(arguments);        \
  }                                                                  \
  RC_SIMT_CASE(stem##_with_gradients) {                              \
    ::robustcore::row_loss_case::with_gradients<Program>(arguments); \
  }                                                                  \
  RC_SIMT_CASE(stem##_backward) {                                    \
    ::robustcore::row_loss_case::backward<Program>(arguments);       \
  }                                                                  \
  RC_SIMT_CHECK(stem) {                                              \
    ::robustcore::row_loss_case::check<Program>(#stem);              \
  }
