#include "losses/heteroscedastic_cross_entropy_long.cuh"

#include "simt_case.h"

namespace robustcore {
namespace {

template <class T>
HeteroscedasticProblem<T> problem_of(simt::Arguments& arguments) {
  HeteroscedasticProblem<T> p{};
  p.mean = arguments.input<T>("mean");
  p.low_rank = arguments.input<T>("low_rank");
  p.diagonal = arguments.input<T>("diagonal");
  p.classes = arguments.integer("classes");
  p.rank = arguments.integer("rank");
  p.samples = arguments.integer("samples");
  p.rows = p.classes == 0 ? 0 : arguments.elements("mean") / p.classes;
  p.inverse_temperature = static_cast<T>(1.0 / arguments.number("temperature"));
  p.device_seed = arguments.input<std::int64_t>("seed");
  return p;
}

}  // namespace

RC_SIMT_CASE(heteroscedastic_cross_entropy) {
  const auto run = [&]<typename T>(T) {
    HeteroscedasticProblem<T> p = problem_of<T>(arguments);
    p.target = arguments.input<std::int64_t>("target");
    p.class_weight = arguments.optional_input<T>("weight");
    p.sample_weight = arguments.optional_input<T>("sample_weight");
    p.ignore_index = arguments.integer("ignore_index");
    p.maximum_loss = static_cast<T>(arguments.number("maximum_loss"));
    p.reduction = static_cast<Reduction>(arguments.integer("reduction"));
    p.loss = arguments.output<T>("loss");
    p.row_loss = arguments.output<T>("row_loss");
    p.row_slope = arguments.output<T>("row_slope");
    p.denominator = arguments.output<T>("denominator");
    p.grad_mean = arguments.optional_output<T>("grad_mean");
    p.grad_low_rank = arguments.optional_output<T>("grad_low_rank");
    p.grad_diagonal = arguments.optional_output<T>("grad_diagonal");
    launch_heteroscedastic(p, simt::stream());
  };
  if (arguments.flag("double")) {
    run(double{});
  } else {
    run(float{});
  }
}

RC_SIMT_CASE(heteroscedastic_log_probabilities) {
  const auto run = [&]<typename T>(T) {
    HeteroscedasticProblem<T> p = problem_of<T>(arguments);
    p.log_probability = arguments.output<T>("log_probability");
    launch_heteroscedastic(p, simt::stream());
  };
  if (arguments.flag("double")) {
    run(double{});
  } else {
    run(float{});
  }
}

namespace {

std::vector<float> some_values(std::int64_t count, int seed, float scale) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] =
        scale * (static_cast<float>((index * 7919 + 131 * seed) % 1000) / 500.0f - 1.0f);
  }
  return values;
}

// The definition, in double: logits of all samples of a row.
std::vector<std::vector<double>> probabilities(const float* mean, const float* low_rank,
                                               const float* diagonal, std::int64_t row,
                                               std::int64_t classes, std::int64_t rank,
                                               std::int64_t samples, double temperature,
                                               std::uint64_t seed) {
  const RandomKey key = random_key(seed);
  std::vector<std::vector<double>> result;
  for (std::int64_t s = 0; s < samples; ++s) {
    const auto quad = static_cast<std::uint32_t>(s / 4);
    std::vector<double> e;
    double total = 0;
    for (std::int64_t c = 0; c < classes; ++c) {
      double u = mean[c] + diagonal[c] * double{class_noise(key, row, quad, c).values[s % 4]};
      for (std::int64_t r = 0; r < rank; ++r) {
        u += low_rank[c * rank + r] * double{rank_noise(key, row, quad, r).values[s % 4]};
      }
      e.push_back(std::exp(u / temperature));
      total += e.back();
    }
    for (double& value : e) value /= total;
    result.push_back(e);
  }
  return result;
}

}  // namespace

// Losses, gradients and log-probabilities of the registers' kernels and of the one for long rows.
RC_SIMT_CHECK(heteroscedastic_cross_entropy) {
  struct Shape {
    std::int64_t classes, rank, samples;
  };
  for (const Shape shape :
       {Shape{3, 2, 9}, Shape{40, 6, 8}, Shape{60, 12, 5}, Shape{200, 3, 4}, Shape{30, 17, 6}}) {
    const std::int64_t rows = 3, ignored = 1;
    const auto [classes, rank, samples] = shape;
    const double temperature = 1.5;
    std::vector<float> mean = some_values(rows * classes, 1, 2.0f);
    std::vector<float> low_rank = some_values(rows * classes * rank, 2, 0.5f);
    std::vector<float> diagonal = some_values(rows * classes, 3, 0.5f);
    std::vector<std::int64_t> target{0, -100, classes - 1}, seed{99};
    std::vector<float> loss(1), denominator(1), row_loss(3), row_slope(3), grad_mean(mean.size()),
        grad_low_rank(low_rank.size()), grad_diagonal(mean.size()), log_p(mean.size());
    const simt::NamedValues given = {{"mean", simt::array(mean)},
                                     {"low_rank", simt::array(low_rank)},
                                     {"diagonal", simt::array(diagonal)},
                                     {"classes", classes},
                                     {"rank", rank},
                                     {"samples", samples},
                                     {"temperature", temperature},
                                     {"seed", simt::array(seed)},
                                     {"double", std::int64_t{0}}};
    double total = 0;
    std::vector<double> for_mean, for_diagonal, logs;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto q =
          probabilities(&mean[row * classes], &low_rank[row * classes * rank],
                        &diagonal[row * classes], row, classes, rank, samples, temperature, 99);
      double label = 0;
      const std::int64_t y = row == ignored ? 0 : target[row];
      for (const auto& sample : q) label += sample[y];
      if (row != ignored) total -= std::log(label / samples);
      for (std::int64_t c = 0; c < classes; ++c) {
        double sum = 0, gradient = 0, along = 0;
        for (std::int64_t s = 0; s < samples; ++s) {
          const double slope = q[s][y] * (q[s][c] - (c == y ? 1.0 : 0.0)) / (label * temperature);
          const auto noise = class_noise(random_key(99), row, static_cast<std::uint32_t>(s / 4), c);
          sum += q[s][c];
          gradient += slope;
          along += slope * double{noise.values[s % 4]};
        }
        logs.push_back(std::log(sum / samples));
        for_mean.push_back(row == ignored ? 0.0 : gradient);
        for_diagonal.push_back(row == ignored ? 0.0 : along);
      }
    }
    simt::NamedValues prediction = given;
    prediction.emplace_back("log_probability", simt::array(log_p));
    simt::run_case("heteroscedastic_log_probabilities", prediction);
    simt::expect_close("log_probability", log_p, logs, 1e-5);

    for (const bool gradients : {true, false}) {
      simt::NamedValues values = given;
      const simt::NamedValues more = {
          {"target", simt::array(target)},
          {"weight", {}},
          {"sample_weight", {}},
          {"ignore_index", std::int64_t{-100}},
          {"maximum_loss", 16.0},
          {"reduction", static_cast<std::int64_t>(Reduction::kSum)},
          {"loss", simt::array(loss)},
          {"row_loss", simt::array(row_loss)},
          {"row_slope", simt::array(row_slope)},
          {"denominator", simt::array(denominator)},
          {"grad_mean", gradients ? simt::Value{simt::array(grad_mean)} : simt::Value{}},
          {"grad_low_rank", gradients ? simt::Value{simt::array(grad_low_rank)} : simt::Value{}},
          {"grad_diagonal", gradients ? simt::Value{simt::array(grad_diagonal)} : simt::Value{}}};
      values.insert(values.end(), more.begin(), more.end());
      simt::run_case("heteroscedastic_cross_entropy", values);
      simt::expect_close("loss", loss, std::vector<double>{total}, 1e-5);
      simt::expect_close("grad_mean", grad_mean, for_mean, 1e-5);
      simt::expect_close("grad_diagonal", grad_diagonal, for_diagonal, 1e-5);
    }
  }
}

}  // namespace robustcore
