// CUDA backend of the two-logit operators.
#pragma once

#include "common/cuda.h"
#include "losses/two_logits.cuh"
#include "losses/two_logits_op.h"

namespace robustcore {

struct TwoLogitCuda {
  using Scope = DeviceScope;

  // The drivers load 16 bytes at a time. Targets are checked on the device, as PyTorch does.
  static TwoLogitArguments prepare(const char*, TwoLogitArguments a) {
    a.first = vector_aligned(a.first);
    a.second = vector_aligned(a.second);
    return a;
  }

  template <class Policy, TwoLogitMode kMode, class T>
  static void forward(const TwoLogitProblem<T>& p, const Scope& scope) {
    two_logits_cuda::launch_forward<Policy, kMode>(p, scope.stream());
  }

  template <class Policy, class T>
  static void backward(const TwoLogitProblem<T>& p, const Scope& scope) {
    two_logits_cuda::launch_backward<Policy>(p, scope.stream());
  }
};

}  // namespace robustcore
