#include "losses/crossmax.cuh"

#include <algorithm>
#include <vector>

#include "simt_case.h"

namespace robustcore {
namespace {

// The operator makes its logits start here before it launches.
constexpr std::size_t kVectorAlignment = 16;

template <class T>
void set_sizes(CrossMaxProblem<T>& p, simt::Arguments& arguments) {
  p.samples = arguments.integer("samples");
  p.members = arguments.integer("members");
  p.classes = arguments.integer("classes");
}

}  // namespace

RC_SIMT_CASE(crossmax) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    CrossMaxProblem<T> p{};
    p.logits = arguments.input<T>("logits", kVectorAlignment);
    set_sizes(p, arguments);
    p.k = arguments.integer("k");
    p.result = arguments.output<T>("result");
    p.kth = arguments.output<std::int16_t>("kth");
    p.largest = arguments.output<std::int16_t>("largest");
    p.tops = arguments.output<std::int64_t>("tops");
    crossmax_cuda::launch_forward(p, simt::stream());
  });
}

RC_SIMT_CASE(crossmax_backward) {
  simt::dispatch_floating(arguments.dtype("grad"), [&]<typename T>() {
    CrossMaxProblem<T> p{};
    set_sizes(p, arguments);
    // The struct has them writable for the forward pass.
    p.kth = const_cast<std::int16_t*>(arguments.input<std::int16_t>("kth"));
    p.largest = const_cast<std::int16_t*>(arguments.input<std::int16_t>("largest"));
    p.tops = const_cast<std::int64_t*>(arguments.input<std::int64_t>("tops"));
    p.grad_result = arguments.input<T>("grad_result");
    p.grad = arguments.output<T>("grad", kVectorAlignment);
    crossmax_cuda::launch_backward(p, simt::stream());
  });
}

RC_SIMT_CHECK(crossmax) {
  for (const std::int64_t classes : {1, 5, 33, 300, 1100}) {
    const std::int64_t samples = 2, members = 4, k = 3;
    const auto results = static_cast<std::size_t>(samples * classes);
    std::vector<float> logits(static_cast<std::size_t>(samples * members * classes));
    for (std::size_t index = 0; index < logits.size(); ++index) {
      logits[index] = static_cast<float>((index * 7919 + 131) % 1009) / 100.0f;
    }
    std::vector<float> result(results), grad_result(results), grad(logits.size());
    std::vector<std::int16_t> kth(results), largest(results);
    std::vector<std::int64_t> tops(static_cast<std::size_t>(samples * members));
    for (std::size_t index = 0; index < results; ++index) {
      grad_result[index] = static_cast<float>(index % 7) - 3.0f;
    }

    // By definition: subtract, sort, and follow each subtraction back.
    std::vector<double> expected, expected_grad(logits.size());
    for (std::int64_t b = 0; b < samples; ++b) {
      const auto at = [&](std::int64_t i, std::int64_t c) {
        return static_cast<std::size_t>((b * members + i) * classes + c);
      };
      std::vector<std::int64_t> top;
      for (std::int64_t i = 0; i < members; ++i) {
        const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(at(i, 0));
        top.push_back(std::max_element(begin, begin + classes) - begin);
      }
      for (std::int64_t c = 0; c < classes; ++c) {
        const auto value = [&](std::int64_t i) {
          return logits[at(i, c)] - logits[at(i, top[static_cast<std::size_t>(i)])];
        };
        std::vector<std::int64_t> order = {0, 1, 2, 3};
        std::stable_sort(order.begin(), order.end(),
                         [&](std::int64_t a, std::int64_t d) { return value(a) > value(d); });
        expected.push_back(value(order[k - 1]) - value(order[0]));
        const double g = grad_result[static_cast<std::size_t>(b * classes + c)];
        const auto push = [&](std::int64_t i, double amount) {
          expected_grad[at(i, c)] += amount;
          expected_grad[at(i, top[static_cast<std::size_t>(i)])] -= amount;
        };
        push(order[k - 1], g);
        push(order[0], -g);
      }
    }
    const simt::NamedValues sizes = {
        {"samples", samples}, {"members", members}, {"classes", classes}};
    simt::NamedValues forward = sizes, backward = sizes;
    const simt::NamedValues saved = {
        {"kth", simt::array(kth)}, {"largest", simt::array(largest)}, {"tops", simt::array(tops)}};
    forward.insert(forward.end(), saved.begin(), saved.end());
    backward.insert(backward.end(), saved.begin(), saved.end());
    forward.emplace_back("logits", simt::array(logits));
    forward.emplace_back("k", k);
    forward.emplace_back("result", simt::array(result));
    simt::run_case("crossmax", forward);
    simt::expect_close("result", result, expected, 1e-6);
    backward.emplace_back("grad_result", simt::array(grad_result));
    backward.emplace_back("grad", simt::array(grad));
    simt::run_case("crossmax_backward", backward);
    simt::expect_close("grad", grad, expected_grad, 1e-5);
  }
}

}  // namespace robustcore
