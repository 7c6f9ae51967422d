// The operator energy_weights, the same for CPU and CUDA. Backend: as in mixture_log_softmax_op.h.
#pragma once

#include "common/tensor.h"
#include "losses/energy_weights.h"

namespace robustcore {

template <class Backend>
Tensor energy_weights(const Tensor& logits) {
  check_floating("energy_weights", "logits", logits);
  RC_CHECK(logits.dim() == 2, "energy_weights: logits must have 2 dimensions, got ", logits.dim());
  const Tensor rows = Backend::prepare(made_contiguous(logits));
  const Tensor weights = fresh(rows, {rows.size(0)}, accumulate_type(rows));
  const typename Backend::Scope scope(rows);
  dispatch_floating(rows.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const EnergyWeightsProblem<T> p{read_pointer<T>(rows), rows.size(0), rows.size(1),
                                    write_pointer<accumulate_t<T>>(weights)};
    Backend::template run<EnergyWeights>(p, scope);
  });
  return weights;
}

}  // namespace robustcore
