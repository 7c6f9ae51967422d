#include "common/cuda.h"
#include "losses/shrink_match_loss.cuh"
#include "losses/shrink_match_loss_op.h"

namespace robustcore {
namespace {

struct ShrinkMatchCuda {
  using Scope = DeviceScope;

  // The kernels load 16 bytes at a time.
  static Tensor prepare(const Tensor& tensor) { return vector_aligned(tensor); }

  template <bool kGradients, class T>
  static void forward(const ShrinkMatchProblem<T>& p, const Scope& scope) {
    shrink_match_cuda::launch_forward<kGradients>(p, scope.stream());
  }

  template <class T>
  static void backward(const ShrinkMatchProblem<T>& p, const Scope& scope) {
    shrink_match_cuda::launch_backward(p, scope.stream());
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  robustcore::register_shrink_match_operators<robustcore::ShrinkMatchCuda>(m);
}
