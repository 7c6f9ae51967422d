// The diagonal linear recurrence h_t = a_t h_{t-1} + x_t and its backward pass: the problem that
// the CPU and CUDA kernels are given and the mathematics of one step. Free of torch.
//
// Tensors are seen as (outer, time, inner): `outer` sequences side by side, each of `inner`
// channels, so outer * inner independent scalar recurrences, called lanes below. Time is counted in
// the order in which steps are taken: a view's data points at the step taken first, and running
// backwards in time is nothing but a negative time stride.
//
//   forward   h_s = a_s h_{s-1} + x_s,  h_{-1} = initial; without one h_0 = x_0, and a_0 is not
//             used
//   backward  G_s = a_{s-1} G_{s-1} + g_s,  G_0 = g_0  (s counts from the last step of the forward
//             pass); grad_x_s = G_s;  grad_a_s = G_s h_{s+1};  at the end, where h_{s+1} is the
//             initial state, grad_initial = a_last G_last
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/macros.h"

namespace robustcore {

// An (outer, time, inner) view with strides in elements; any of them may be zero or negative.
template <class T>
struct SequenceView {
  T* data = nullptr;
  int64_t outer = 0;
  int64_t time = 0;
  int64_t inner = 0;
};

template <class T>
struct LinearRecurrenceProblem {
  using Acc = accumulate_t<T>;
  int64_t outer = 0;
  int64_t length = 0;
  int64_t inner = 0;
  SequenceView<const T> a;
  SequenceView<const T> x;
  const Acc* initial = nullptr;  // [outer, inner], or null
  SequenceView<T> states;
};

template <class T>
struct LinearRecurrenceGradientProblem {
  using Acc = accumulate_t<T>;
  int64_t outer = 0;
  int64_t length = 0;
  int64_t inner = 0;
  SequenceView<const T> grad;  // with respect to the states
  SequenceView<const T> a;
  SequenceView<const T> states;  // read only where grad_a is wanted
  const Acc* initial = nullptr;  // [outer, inner], or null
  SequenceView<T> grad_a;        // null where not wanted
  SequenceView<T> grad_x;        // null where not wanted
  Acc* grad_initial = nullptr;   // [outer, inner], null where not wanted
};

// One step. Compilers contract it to a fused multiply-add where the processor has one.
template <class Acc>
RC_INLINE Acc recurrence_step(Acc a, Acc previous, Acc x) {
  return a * previous + x;
}

}  // namespace robustcore
