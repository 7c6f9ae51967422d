// The operators of the heteroscedastic loss, the same for CPU and CUDA: checks, output tensors,
// problem struct. A backend brings Scope, `prepare` and `launch`.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "common/tensor.h"
#include "losses/heteroscedastic_cross_entropy.h"

namespace robustcore {

struct HeteroscedasticArguments {
  Tensor mean, low_rank, diagonal, seed;
  double temperature;
  int64_t samples;
  // Of the loss only.
  std::optional<Tensor> target, class_weight, sample_weight;
  double minimum_probability = 0;
  int64_t ignore_index = 0;
  Reduction reduction = Reduction::kNone;
};

// Samples are counted in fours by 31 bits, but no more than this many make sense.
constexpr int64_t kMaximumSamples = int64_t{1} << 30;
constexpr int64_t kMaximumRank = 1024;  // what the CUDA kernels hold noise for

inline HeteroscedasticArguments heteroscedastic_arguments(const std::string& op, const Tensor& mean,
                                                          const Tensor& low_rank,
                                                          const Tensor& diagonal,
                                                          const Tensor& seed, double temperature,
                                                          int64_t samples) {
  const ScalarType type = mean.scalar_type();
  RC_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
           ": mean must be float32 or float64");
  RC_CHECK(mean.dim() == 2, op, ": mean must have 2 dimensions, got ", mean.dim());
  const int64_t rows = mean.size(0), classes = mean.size(1);
  RC_CHECK(low_rank.dim() == 3 && low_rank.size(0) == rows && low_rank.size(1) == classes, op,
           ": low_rank must have the shape of mean and a third dimension");
  RC_CHECK(low_rank.size(2) <= kMaximumRank, op, ": rank must be at most ", kMaximumRank);
  RC_CHECK(diagonal.dim() == 2 && diagonal.size(0) == rows && diagonal.size(1) == classes, op,
           ": diagonal must have the shape of mean");
  check_type(op, "low_rank", low_rank, type);
  check_type(op, "diagonal", diagonal, type);
  check_same_device(op, "low_rank", low_rank, mean);
  check_same_device(op, "diagonal", diagonal, mean);
  check_type(op, "seed", seed, ScalarType::Long);
  check_numel(op, "seed", seed, 1);
  RC_CHECK(seed.is_cpu() || seed.get_device_index() == mean.get_device_index(), op,
           ": seed must be on the CPU or on the device of mean");
  RC_CHECK(temperature > 0, op, ": temperature must be positive, got ", temperature);
  RC_CHECK(samples >= 1 && samples <= kMaximumSamples, op, ": samples must be in [1, 2^30], got ",
           samples);
  RC_CHECK(classes > 0 || rows == 0, op, ": mean must have at least one class");
  return {made_contiguous(mean),
          made_contiguous(low_rank),
          made_contiguous(diagonal),
          seed,
          temperature,
          samples,
          {},
          {},
          {}};
}

template <class T>
HeteroscedasticProblem<T> heteroscedastic_problem(const HeteroscedasticArguments& a) {
  HeteroscedasticProblem<T> p{};
  p.mean = read_pointer<T>(a.mean);
  p.low_rank = read_pointer<T>(a.low_rank);
  p.diagonal = read_pointer<T>(a.diagonal);
  p.rows = a.mean.size(0);
  p.classes = a.mean.size(1);
  p.rank = a.low_rank.size(2);
  p.samples = a.samples;
  p.inverse_temperature = static_cast<T>(1.0 / a.temperature);
  if (a.seed.is_cpu()) {
    p.seed = static_cast<uint64_t>(*read_pointer<int64_t>(a.seed));
  } else {
    p.device_seed = read_pointer<int64_t>(a.seed);
  }
  p.target = read_pointer<int64_t>(a.target);
  p.class_weight = read_pointer<T>(a.class_weight);
  p.sample_weight = read_pointer<T>(a.sample_weight);
  p.ignore_index = a.ignore_index;
  p.maximum_loss = a.minimum_probability > 0 ? static_cast<T>(-std::log(a.minimum_probability))
                                             : std::numeric_limits<T>::infinity();
  p.reduction = a.reduction;
  return p;
}

template <class Backend>
struct HeteroscedasticOperators {
  static constexpr const char* kName = "heteroscedastic_cross_entropy";

  // Results: loss, rows [2, N] (loss before the sample weight; derivative for the sample weight),
  // and the gradients of mean, low_rank and diagonal, empty where they are not wanted.
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss(
      const Tensor& mean, const Tensor& low_rank, const Tensor& diagonal, const Tensor& target,
      const std::optional<Tensor>& weight, const std::optional<Tensor>& sample_weight,
      const Tensor& seed, double temperature, int64_t samples, double minimum_probability,
      int64_t ignore_index, int64_t reduction, bool needs_gradients) {
    HeteroscedasticArguments a =
        heteroscedastic_arguments(kName, mean, low_rank, diagonal, seed, temperature, samples);
    const int64_t rows = mean.size(0), classes = mean.size(1), rank = low_rank.size(2);
    const ScalarType type = mean.scalar_type();
    const auto check = [&](const char* name, const Tensor& tensor, ScalarType wanted,
                           int64_t count) {
      check_type(kName, name, tensor, wanted);
      check_numel(kName, name, tensor, count);
      check_same_device(kName, name, tensor, mean);
    };
    check("target", target, ScalarType::Long, rows);
    if (weight) check("weight", *weight, type, classes);
    if (sample_weight) check("sample_weight", *sample_weight, type, rows);
    RC_CHECK(reduction >= 0 && reduction <= 2, kName, ": reduction must be 0, 1 or 2, got ",
             reduction);
    RC_CHECK(minimum_probability >= 0 && minimum_probability < 1, kName,
             ": minimum_probability must be in [0, 1), got ", minimum_probability);
    a.target = made_contiguous(target);
    a.class_weight = made_contiguous(weight);
    a.sample_weight = made_contiguous(sample_weight);
    a.minimum_probability = minimum_probability;
    a.ignore_index = ignore_index;
    a.reduction = static_cast<Reduction>(reduction);
    Backend::check_targets(kName, a);

    const bool per_row = a.reduction == Reduction::kNone;
    const Tensor result = per_row ? fresh(a.mean, {rows}, type) : fresh(a.mean, {}, type);
    const Tensor saved = fresh(a.mean, {2, rows}, type);
    const Tensor denominator = fresh(a.mean, {}, type);
    const int64_t n = needs_gradients ? rows : 0;
    const Tensor grad_mean = fresh(a.mean, {n, classes}, type);
    const Tensor grad_low_rank = fresh(a.mean, {n, classes, rank}, type);
    const Tensor grad_diagonal = fresh(a.mean, {n, classes}, type);
    run(a, [&](auto& p) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(p.loss)>>;
      p.loss = write_pointer<T>(result);
      p.row_loss = write_pointer<T>(saved);
      p.row_slope = p.row_loss + rows;
      p.denominator = write_pointer<T>(denominator);
      if (needs_gradients) {
        p.grad_mean = write_pointer<T>(grad_mean);
        p.grad_low_rank = write_pointer<T>(grad_low_rank);
        p.grad_diagonal = write_pointer<T>(grad_diagonal);
      }
    });
    return {result, saved, grad_mean, grad_low_rank, grad_diagonal};
  }

  static Tensor log_probabilities(const Tensor& mean, const Tensor& low_rank,
                                  const Tensor& diagonal, const Tensor& seed, double temperature,
                                  int64_t samples) {
    const HeteroscedasticArguments a = heteroscedastic_arguments(
        "heteroscedastic_log_probabilities", mean, low_rank, diagonal, seed, temperature, samples);
    const Tensor result = fresh(a.mean, {mean.size(0), mean.size(1)}, mean.scalar_type());
    run(a, [&](auto& p) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(p.log_probability)>>;
      p.log_probability = write_pointer<T>(result);
    });
    return result;
  }

 private:
  template <class Attach>
  static void run(const HeteroscedasticArguments& a, Attach&& attach) {
    const typename Backend::Scope scope(a.mean);
    const auto launch = [&]<class T>(type_tag<T>) {
      HeteroscedasticProblem<T> p = heteroscedastic_problem<T>(a);
      attach(p);
      Backend::launch(p, scope);
    };
    if (a.mean.scalar_type() == ScalarType::Double) {
      launch(type_tag<double>{});
    } else {
      launch(type_tag<float>{});
    }
  }
};

template <class Backend>
void register_heteroscedastic_operators(torch::stable::detail::StableLibrary& library) {
  using Operators = HeteroscedasticOperators<Backend>;
  library.impl("heteroscedastic_cross_entropy", TORCH_BOX(&Operators::loss));
  library.impl("heteroscedastic_log_probabilities", TORCH_BOX(&Operators::log_probabilities));
}

}  // namespace robustcore
