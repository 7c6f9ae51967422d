#include "losses/shrink_match_loss.cuh"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "simt_case.h"

namespace robustcore {
namespace {

// The operator makes its logits start here before it launches.
constexpr std::size_t kVectorAlignment = 16;

template <class T>
ShrinkMatchProblem<T> problem_of(simt::Arguments& arguments) {
  ShrinkMatchProblem<T> p{};
  p.weak = arguments.input<T>("weak", kVectorAlignment);
  p.strong = arguments.input<T>("strong", kVectorAlignment);
  p.rows = arguments.integer("rows");
  p.classes = arguments.integer("classes");
  const std::int64_t reduction = arguments.integer("reduction");
  p.reduced = reduction != 0;
  p.mean = reduction == 1;
  return p;
}

template <class T>
void attach_results(ShrinkMatchProblem<T>& p, simt::Arguments& arguments) {
  using Acc = accumulate_t<T>;
  const double threshold = arguments.number("threshold");
  p.budget = (1.0 - threshold) / threshold;
  p.loss = arguments.output<Acc>("loss");
  p.row_loss = arguments.output<Acc>("row_loss");
  p.row_lse = arguments.output<Acc>("row_lse");
  p.row_weight = arguments.output<Acc>("row_weight");
  p.row_cut = arguments.output<Acc>("row_cut");
  p.row_confidence = arguments.output<Acc>("row_confidence");
  p.row_top = arguments.output<std::int64_t>("row_top");
  p.row_tie = arguments.output<std::int64_t>("row_tie");
  p.row_removed = arguments.output<std::int64_t>("row_removed");
}

}  // namespace

RC_SIMT_CASE(shrink_match_loss) {
  simt::dispatch_floating(arguments.dtype("weak"), [&]<typename T>() {
    ShrinkMatchProblem<T> p = problem_of<T>(arguments);
    attach_results(p, arguments);
    shrink_match_cuda::launch_forward<false>(p, simt::stream());
  });
}

RC_SIMT_CASE(shrink_match_loss_with_gradients) {
  simt::dispatch_floating(arguments.dtype("weak"), [&]<typename T>() {
    ShrinkMatchProblem<T> p = problem_of<T>(arguments);
    attach_results(p, arguments);
    p.grad = arguments.output<T>("grad", kVectorAlignment);
    shrink_match_cuda::launch_forward<true>(p, simt::stream());
  });
}

RC_SIMT_CASE(shrink_match_loss_backward) {
  simt::dispatch_floating(arguments.dtype("weak"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    ShrinkMatchProblem<T> p = problem_of<T>(arguments);
    // The struct has them writable for the forward pass.
    p.row_lse = const_cast<Acc*>(arguments.input<Acc>("row_lse"));
    p.row_weight = const_cast<Acc*>(arguments.input<Acc>("row_weight"));
    p.row_cut = const_cast<Acc*>(arguments.input<Acc>("row_cut"));
    p.row_top = const_cast<std::int64_t*>(arguments.input<std::int64_t>("row_top"));
    p.row_tie = const_cast<std::int64_t*>(arguments.input<std::int64_t>("row_tie"));
    p.grad_loss = arguments.input<Acc>("grad_loss");
    p.grad = arguments.output<T>("grad", kVectorAlignment);
    shrink_match_cuda::launch_backward(p, simt::stream());
  });
}

namespace {

struct Row {
  double loss;
  std::vector<double> gradient;
};

// One row by its definition, in double, with a sort.
Row row_by_definition(const float* weak, const float* strong, std::int64_t classes,
                      double threshold) {
  std::vector<std::size_t> order(static_cast<std::size_t>(classes));
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return weak[a] > weak[b]; });
  const auto term = [&](std::size_t rank) {
    return std::exp(static_cast<double>(weak[order[rank]]) - weak[order[0]]);
  };
  double rest = 0.0;
  for (std::size_t rank = 1; rank < order.size(); ++rank) rest += term(rank);
  Row row{0.0, std::vector<double>(order.size())};
  if (1.0 / (1.0 + rest) >= threshold) return row;
  const double confidence = 1.0 / (1.0 + rest);
  std::size_t cut = 1;
  while (cut < order.size() && 1.0 / (1.0 + rest) < threshold) rest -= term(cut++);
  if (cut == order.size()) return row;
  std::vector<std::size_t> kept = {order[0]};
  kept.insert(kept.end(), order.begin() + static_cast<std::ptrdiff_t>(cut), order.end());
  double total = 0.0;
  for (const std::size_t c : kept) total += std::exp(static_cast<double>(strong[c]));
  for (const std::size_t c : kept) {
    row.gradient[c] = confidence * std::exp(static_cast<double>(strong[c])) / total;
  }
  row.gradient[order[0]] -= confidence;
  row.loss = confidence * (std::log(total) - strong[order[0]]);
  return row;
}

std::vector<float> some_logits(std::int64_t count, int seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = static_cast<float>((index * 7919 + 131 * seed) % 1009) / 160.0f - 3.0f;
  }
  return values;
}

}  // namespace

// Sum over rows, by both ways to the gradient; equal logits among them.
RC_SIMT_CHECK(shrink_match_loss) {
  for (const std::int64_t classes : {1, 2, 3, 32, 130, 1030}) {
    const std::int64_t rows = 5;
    const auto row_count = static_cast<std::size_t>(rows);
    std::vector<float> weak = some_logits(rows * classes, 1);
    std::vector<float> strong = some_logits(rows * classes, 2);
    for (std::int64_t c = 0; c < classes; ++c) weak[c] = std::floor(weak[c]);
    std::vector<float> loss(1), row_loss(row_count), row_lse(row_count), row_weight(row_count),
        row_cut(row_count), row_confidence(row_count), grad(weak.size()), grad_loss{1.0f};
    std::vector<std::int64_t> row_top(row_count), row_tie(row_count), row_removed(row_count);
    const double threshold = 0.9;
    const simt::NamedValues given = {{"weak", simt::array(weak)},
                                     {"strong", simt::array(strong)},
                                     {"rows", rows},
                                     {"classes", classes},
                                     {"reduction", std::int64_t{2}}};
    const simt::NamedValues saved = {{"row_lse", simt::array(row_lse)},
                                     {"row_weight", simt::array(row_weight)},
                                     {"row_cut", simt::array(row_cut)},
                                     {"row_top", simt::array(row_top)},
                                     {"row_tie", simt::array(row_tie)}};
    const simt::NamedValues other = {{"threshold", threshold},
                                     {"loss", simt::array(loss)},
                                     {"row_loss", simt::array(row_loss)},
                                     {"row_confidence", simt::array(row_confidence)},
                                     {"row_removed", simt::array(row_removed)}};
    const auto joined = [](simt::NamedValues left, const simt::NamedValues& right) {
      left.insert(left.end(), right.begin(), right.end());
      return left;
    };
    std::vector<double> losses, gradients;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t offset = row * classes;
      const Row expected = row_by_definition(&weak[offset], &strong[offset], classes, threshold);
      losses.push_back(expected.loss);
      gradients.insert(gradients.end(), expected.gradient.begin(), expected.gradient.end());
    }
    const simt::NamedValues forward = joined(joined(given, saved), other);
    simt::run_case("shrink_match_loss_with_gradients",
                   joined(forward, {{"grad", simt::array(grad)}}));
    simt::expect_close("row_loss", row_loss, losses, 1e-5);
    simt::expect_close("grad", grad, gradients, 1e-5);

    simt::run_case("shrink_match_loss", forward);
    std::fill(grad.begin(), grad.end(), 0.0f);
    simt::run_case("shrink_match_loss_backward",
                   joined(joined(given, saved),
                          {{"grad_loss", simt::array(grad_loss)}, {"grad", simt::array(grad)}}));
    simt::expect_close("grad", grad, gradients, 1e-5);
  }
}

}  // namespace robustcore
