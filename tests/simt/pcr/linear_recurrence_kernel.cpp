// Cases of pcr/linear_recurrence.cuh. Views come as strides in elements and an offset of their
// first step.
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "pcr/linear_recurrence.cuh"
#include "simt_case.h"

namespace robustcore {
namespace {

template <class T>
void view(simt::Arguments& arguments, const std::string& name, T* data, SequenceView<T>& view) {
  view = {data + arguments.integer(name + "_offset"), arguments.integer(name + "_outer"),
          arguments.integer(name + "_time"), arguments.integer(name + "_inner")};
}

template <class Problem>
void shape(simt::Arguments& arguments, Problem& p) {
  p.outer = arguments.integer("outer");
  p.length = arguments.integer("length");
  p.inner = arguments.integer("inner");
}

// A workspace (zeroed) chooses the chained kernel; the library chooses by size.
template <class Problem>
void launch(simt::Arguments& arguments, const Problem& p) {
  unsigned long long* workspace = nullptr;
  if (!arguments.has("workspace")) {
    arguments.optional_input<unsigned long long>("workspace");  // asked for, and absent
  } else {
    workspace = arguments.inout<unsigned long long>("workspace");
    const int64_t needed = linear_recurrence_chain_words(p);
    if (arguments.elements("workspace") != needed) {
      throw std::invalid_argument("workspace must have " + std::to_string(needed) + " words");
    }
  }
  launch_linear_recurrence(p, workspace, simt::stream());
}

}  // namespace

RC_SIMT_CASE(linear_recurrence) {
  simt::dispatch_floating(arguments.dtype("x"), [&]<typename T>() {
    LinearRecurrenceProblem<T> p;
    shape(arguments, p);
    view(arguments, "a", arguments.input<T>("a"), p.a);
    view(arguments, "x", arguments.input<T>("x"), p.x);
    p.initial = arguments.optional_input<accumulate_t<T>>("initial");
    view(arguments, "states", arguments.output<T>("states"), p.states);
    launch(arguments, p);
  });
}

RC_SIMT_CASE(linear_recurrence_backward) {
  simt::dispatch_floating(arguments.dtype("grad"), [&]<typename T>() {
    LinearRecurrenceGradientProblem<T> p;
    shape(arguments, p);
    view(arguments, "grad", arguments.input<T>("grad"), p.grad);
    view(arguments, "a", arguments.input<T>("a"), p.a);
    p.initial = arguments.optional_input<accumulate_t<T>>("initial");
    if (T* grad_a = arguments.optional_output<T>("grad_a")) {
      view(arguments, "states", arguments.input<T>("states"), p.states);
      view(arguments, "grad_a", grad_a, p.grad_a);
    }
    if (T* grad_x = arguments.optional_output<T>("grad_x")) {
      view(arguments, "grad_x", grad_x, p.grad_x);
    }
    p.grad_initial = arguments.optional_output<accumulate_t<T>>("grad_initial");
    launch(arguments, p);
  });
}

// One channels-last and one time-last problem through both kernels, without Python.
RC_SIMT_CHECK(linear_recurrence) {
  for (const bool chained : {false, true}) {
    for (const bool time_last : {false, true}) {
      const int64_t outer = 2, length = 401, inner = 19;
      const int64_t time = time_last ? 1 : inner, step = time_last ? length : 1;
      std::vector<float> a(outer * length * inner), x(a.size()), states(a.size());
      std::vector<double> expected(a.size());
      for (size_t i = 0; i < a.size(); ++i) {
        a[i] = 0.5f + 0.5f * std::sin(0.1f * i);
        x[i] = std::cos(0.7f * i);
      }
      for (int64_t o = 0; o < outer; ++o) {
        for (int64_t c = 0; c < inner; ++c) {
          double h = 0;
          for (int64_t t = 0; t < length; ++t) {
            const int64_t i = o * length * inner + t * time + c * step;
            expected[i] = h = a[i] * h + x[i];
          }
        }
      }
      LinearRecurrenceProblem<float> sizes;
      sizes.outer = outer, sizes.length = length, sizes.inner = inner;
      std::vector<uint64_t> workspace(linear_recurrence_chain_words(sizes));
      simt::NamedValues values{
          {"a", simt::array(a)}, {"x", simt::array(x)},
          {"initial", {}},       {"states", simt::array(states)},
          {"outer", outer},      {"length", length},
          {"inner", inner},      {"workspace", chained ? simt::array(workspace) : simt::Value{}}};
      for (const char* name : {"a", "x", "states"}) {
        values.emplace_back(std::string(name) + "_offset", int64_t{0});
        values.emplace_back(std::string(name) + "_outer", length * inner);
        values.emplace_back(std::string(name) + "_time", time);
        values.emplace_back(std::string(name) + "_inner", step);
      }
      simt::run_case("linear_recurrence", values);
      simt::expect_close("states", states, expected, 1e-5);
    }
  }
}

}  // namespace robustcore
