#include "common/cuda.h"
#include "losses/crossmax.cuh"
#include "losses/crossmax_op.h"

namespace robustcore {
namespace {

struct CrossMaxCuda {
  using Scope = DeviceScope;

  // The kernels load 16 bytes at a time.
  static Tensor prepare(const Tensor& tensor) { return vector_aligned(tensor); }

  template <class T>
  static void forward(const CrossMaxProblem<T>& p, const Scope& scope) {
    crossmax_cuda::launch_forward(p, scope.stream());
  }

  template <class T>
  static void backward(const CrossMaxProblem<T>& p, const Scope& scope) {
    crossmax_cuda::launch_backward(p, scope.stream());
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  robustcore::register_crossmax_operators<robustcore::CrossMaxCuda>(m);
}
