// What the CPU and CUDA registrations of linear_recurrence share: checks, output tensors and the
// step from tensors of any number of dimensions to (outer, time, inner) views.
#pragma once

#include <optional>
#include <tuple>

#include "common/tensor.h"
#include "pcr/linear_recurrence.h"

namespace robustcore {

struct SequenceShape {
  int64_t outer = 1;
  int64_t length = 0;
  int64_t inner = 1;

  SequenceShape(const char* op, const Tensor& tensor, int64_t time_dim) {
    const int64_t dims = tensor.dim();
    RC_CHECK(time_dim < 0 && time_dim >= -dims, op, ": time_dim must be in [-", dims, ", -1], got ",
             time_dim);
    const int64_t at = dims + time_dim;
    for (int64_t d = 0; d < at; ++d) outer *= tensor.size(d);
    length = tensor.size(at);
    for (int64_t d = at + 1; d < dims; ++d) inner *= tensor.size(d);
  }

  bool empty() const { return outer == 0 || length == 0 || inner == 0; }
};

// A tensor together with the strides of its (outer, time, inner) view; a copy where the dimensions
// before or after time cannot be walked with one stride each.
struct SequenceTensor {
  Tensor tensor;
  int64_t outer = 0, time = 0, inner = 0;

  SequenceTensor(const Tensor& source, int64_t time_dim) : tensor(source) {
    if (walk(time_dim)) return;
    tensor = torch::stable::contiguous(source);
    walk(time_dim);
  }

  // Steps are taken from the first time to the last, or from the last to the first.
  template <class T>
  SequenceView<T> view(int64_t length, bool descending) const {
    T* data = const_cast<T*>(read_pointer<std::remove_const_t<T>>(tensor));
    return descending ? SequenceView<T>{data + (length - 1) * time, outer, -time, inner}
                      : SequenceView<T>{data, outer, time, inner};
  }

 private:
  bool walk(int64_t time_dim) {
    const int64_t dims = tensor.dim(), at = dims + time_dim;
    time = tensor.stride(at);
    return merge(0, at, outer) && merge(at + 1, dims, inner);
  }

  // The one stride with which the dimensions [first, last) can be walked as if they were one. Where
  // there is nothing to walk it is 1, so that single channels count as adjacent.
  bool merge(int64_t first, int64_t last, int64_t& stride) const {
    stride = 1;
    int64_t reach = -1;
    for (int64_t d = last - 1; d >= first; --d) {
      if (tensor.size(d) == 1) continue;
      if (reach < 0) {
        stride = tensor.stride(d);
      } else if (tensor.stride(d) != reach) {
        return false;
      }
      reach = tensor.stride(d) * tensor.size(d);
    }
    return true;
  }
};

inline void check_sequences(const char* op, const char* name, const Tensor& tensor,
                            const Tensor& like) {
  check_type(op, name, tensor, like.scalar_type());
  check_same_device(op, name, tensor, like);
  RC_CHECK(tensor.dim() == like.dim(), op, ": ", name, " must have ", like.dim(),
           " dimensions, got ", tensor.dim());
  for (int64_t d = 0; d < like.dim(); ++d) {
    RC_CHECK(tensor.size(d) == like.size(d), op, ": ", name, " must have size ", like.size(d),
             " at dimension ", d, ", got ", tensor.size(d));
  }
}

// The initial state has the shape of `like` without time and the dtype of the carry.
inline void check_initial(const char* op, const std::optional<Tensor>& initial, const Tensor& like,
                          int64_t time_dim) {
  if (!initial) return;
  check_type(op, "initial", *initial, accumulate_type(like));
  check_same_device(op, "initial", *initial, like);
  const int64_t dims = like.dim() - 1, at = like.dim() + time_dim;
  RC_CHECK(initial->dim() == dims, op, ": initial must have ", dims, " dimensions, got ",
           initial->dim());
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = like.size(d < at ? d : d + 1);
    RC_CHECK(initial->size(d) == size, op, ": initial must have size ", size, " at dimension ", d,
             ", got ", initial->size(d));
  }
}

// Calls run(problem) on the forward problem unless there is nothing to do, and returns the states.
template <class Run>
Tensor linear_recurrence_forward(const Tensor& a, const Tensor& x,
                                 const std::optional<Tensor>& initial, int64_t time_dim,
                                 bool reverse, Run&& run) {
  constexpr const char* kOp = "linear_recurrence";
  check_floating(kOp, "x", x);
  check_sequences(kOp, "a", a, x);
  const SequenceShape shape(kOp, x, time_dim);
  check_initial(kOp, initial, x, time_dim);
  const Tensor states = fresh(x, x.sizes(), x.scalar_type());
  // Before anything is copied: an expanded initial state may be large where no step is taken.
  if (shape.empty()) return states;
  const std::optional<Tensor> first = made_contiguous(initial);
  const SequenceTensor gates(a, time_dim), inputs(x, time_dim), outputs(states, time_dim);
  dispatch_floating(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    LinearRecurrenceProblem<T> p;
    p.outer = shape.outer;
    p.length = shape.length;
    p.inner = shape.inner;
    p.a = gates.view<const T>(shape.length, reverse);
    p.x = inputs.view<const T>(shape.length, reverse);
    p.initial = read_pointer<accumulate_t<T>>(first);
    p.states = outputs.view<T>(shape.length, reverse);
    run(p);
  });
  return states;
}

// The same for the backward problem; gradients that are not wanted are empty tensors.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> linear_recurrence_gradients(const Tensor& grad, const Tensor& a,
                                                               const std::optional<Tensor>& states,
                                                               const std::optional<Tensor>& initial,
                                                               int64_t time_dim, bool reverse,
                                                               bool needs_a, bool needs_x,
                                                               bool needs_initial, Run&& run) {
  constexpr const char* kOp = "linear_recurrence_backward";
  check_floating(kOp, "grad", grad);
  check_sequences(kOp, "a", a, grad);
  const SequenceShape shape(kOp, grad, time_dim);
  RC_CHECK(!needs_a || states, kOp, ": states are needed for the gradient of a");
  if (needs_a) check_sequences(kOp, "states", *states, grad);
  check_initial(kOp, initial, grad, time_dim);
  RC_CHECK(!needs_initial || initial, kOp, ": needs_initial without initial");
  const ScalarType type = grad.scalar_type();
  const Tensor grad_a = needs_a ? fresh(grad, grad.sizes(), type) : fresh(grad, {0}, type);
  const Tensor grad_x = needs_x ? fresh(grad, grad.sizes(), type) : fresh(grad, {0}, type);
  const ScalarType carry = accumulate_type(grad);
  Tensor grad_initial =
      needs_initial ? fresh(grad, initial->sizes(), carry) : fresh(grad, {0}, carry);
  if (shape.empty()) {
    // No step was taken, so nothing depends on the initial state.
    if (grad_initial.numel() > 0) torch::stable::zero_(grad_initial);
    return {grad_a, grad_x, grad_initial};
  }
  const std::optional<Tensor> first = made_contiguous(initial);
  const SequenceTensor incoming(grad, time_dim), gates(a, time_dim);
  const SequenceTensor before(needs_a ? *states : grad, time_dim);
  dispatch_floating(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LinearRecurrenceGradientProblem<T> p;
    p.outer = shape.outer;
    p.length = shape.length;
    p.inner = shape.inner;
    p.grad = incoming.view<const T>(shape.length, !reverse);
    p.a = gates.view<const T>(shape.length, !reverse);
    p.initial = read_pointer<accumulate_t<T>>(first);
    if (needs_a) {
      p.states = before.view<const T>(shape.length, !reverse);
      p.grad_a = SequenceTensor(grad_a, time_dim).view<T>(shape.length, !reverse);
    }
    if (needs_x) p.grad_x = SequenceTensor(grad_x, time_dim).view<T>(shape.length, !reverse);
    if (needs_initial) p.grad_initial = write_pointer<accumulate_t<T>>(grad_initial);
    run(p);
  });
  return {grad_a, grad_x, grad_initial};
}

}  // namespace robustcore
