// The operators of crossmax, the same for CPU and CUDA. A backend brings the kernels: Scope,
// prepare(tensor), forward(problem, scope), backward(problem, scope).
#pragma once

#include <string>
#include <tuple>

#include "common/tensor.h"
#include "losses/crossmax.h"

namespace robustcore {

template <class Backend>
struct CrossMaxOperators {
  static constexpr const char* kName = "crossmax";

  static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& given, int64_t k) {
    check_floating(kName, "logits", given);
    RC_CHECK(given.dim() == 3, kName, ": logits must have 3 dimensions, got ", given.dim());
    const int64_t samples = given.size(0), members = given.size(1), classes = given.size(2);
    RC_CHECK(members <= kMostMembers, kName, ": logits must have at most ", kMostMembers,
             " members, got ", members);
    RC_CHECK(k >= 1 && k <= members, kName, ": k must be in [1, ", members, "], got ", k);
    const typename Backend::Scope scope(given);
    const Tensor logits = Backend::prepare(made_contiguous(given));
    const Tensor result = fresh(logits, {samples, classes}, logits.scalar_type());
    const Tensor chosen = fresh(logits, {2, samples, classes}, ScalarType::Short);
    const Tensor tops = fresh(logits, {samples, members}, ScalarType::Long);
    dispatch_floating(logits.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      CrossMaxProblem<T> p{};
      p.logits = read_pointer<T>(logits);
      set_sizes(p, samples, members, classes);
      p.k = k;
      p.result = write_pointer<T>(result);
      p.kth = write_pointer<int16_t>(chosen);
      p.largest = p.kth + samples * classes;
      p.tops = write_pointer<int64_t>(tops);
      if (samples * classes > 0) Backend::forward(p, scope);
    });
    return {result, chosen, tops};
  }

  static Tensor backward(const Tensor& grad_result, const Tensor& chosen_members,
                         const Tensor& member_tops) {
    check_floating(kName, "grad", grad_result);
    RC_CHECK(grad_result.dim() == 2 && member_tops.dim() == 2, kName,
             ": grad and tops must have 2 dimensions");
    const int64_t samples = grad_result.size(0), classes = grad_result.size(1);
    const int64_t members = member_tops.size(1);
    check_type(kName, "members", chosen_members, ScalarType::Short);
    check_numel(kName, "members", chosen_members, 2 * samples * classes);
    check_type(kName, "tops", member_tops, ScalarType::Long);
    check_numel(kName, "tops", member_tops, samples * members);
    check_same_device(kName, "members", chosen_members, grad_result);
    check_same_device(kName, "tops", member_tops, grad_result);
    const typename Backend::Scope scope(grad_result);
    const Tensor incoming = made_contiguous(grad_result), tops = made_contiguous(member_tops);
    const Tensor chosen = made_contiguous(chosen_members);
    const Tensor grad = fresh(grad_result, {samples, members, classes}, grad_result.scalar_type());
    dispatch_floating(grad.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      CrossMaxProblem<T> p{};
      set_sizes(p, samples, members, classes);
      // Writable for the forward pass; the backward pass reads them only.
      p.kth = const_cast<int16_t*>(read_pointer<int16_t>(chosen));
      p.largest = p.kth + samples * classes;
      p.tops = const_cast<int64_t*>(read_pointer<int64_t>(tops));
      p.grad_result = read_pointer<T>(incoming);
      p.grad = write_pointer<T>(grad);
      if (samples * classes > 0) Backend::backward(p, scope);
    });
    return grad;
  }

 private:
  template <class T>
  static void set_sizes(CrossMaxProblem<T>& p, int64_t samples, int64_t members, int64_t classes) {
    p.samples = samples;
    p.members = members;
    p.classes = classes;
  }
};

template <class Backend>
void register_crossmax_operators(torch::stable::detail::StableLibrary& library) {
  using Operators = CrossMaxOperators<Backend>;
  library.impl("crossmax", TORCH_BOX(&Operators::forward));
  library.impl("crossmax_backward", TORCH_BOX(&Operators::backward));
}

}  // namespace robustcore
