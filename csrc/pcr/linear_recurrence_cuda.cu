#include "common/cuda.h"
#include "pcr/linear_recurrence.cuh"
#include "pcr/linear_recurrence_op.h"

namespace robustcore {
namespace {

template <class Problem>
void run(const Problem& problem, const Tensor& like) {
  const DeviceScope device(like);
  const int64_t words = linear_recurrence_workspace(problem);
  if (words == 0) return launch_linear_recurrence(problem, nullptr, device.stream());
  const Tensor workspace = torch::stable::new_zeros(like, {words}, ScalarType::Long);
  launch_linear_recurrence(problem, write_pointer<unsigned long long>(workspace), device.stream());
}

Tensor linear_recurrence(const Tensor& a, const Tensor& x, const std::optional<Tensor>& initial,
                         int64_t time_dim, bool reverse) {
  return linear_recurrence_forward(a, x, initial, time_dim, reverse,
                                   [&](const auto& problem) { run(problem, x); });
}

std::tuple<Tensor, Tensor, Tensor> linear_recurrence_backward(const Tensor& grad, const Tensor& a,
                                                              const std::optional<Tensor>& states,
                                                              const std::optional<Tensor>& initial,
                                                              int64_t time_dim, bool reverse,
                                                              bool needs_a, bool needs_x,
                                                              bool needs_initial) {
  return linear_recurrence_gradients(grad, a, states, initial, time_dim, reverse, needs_a, needs_x,
                                     needs_initial,
                                     [&](const auto& problem) { run(problem, grad); });
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("linear_recurrence", TORCH_BOX(&robustcore::linear_recurrence));
  m.impl("linear_recurrence_backward", TORCH_BOX(&robustcore::linear_recurrence_backward));
}
