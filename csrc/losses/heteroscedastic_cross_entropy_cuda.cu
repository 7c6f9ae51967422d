#include "common/cuda.h"
#include "losses/heteroscedastic_cross_entropy_long.cuh"
#include "losses/heteroscedastic_cross_entropy_op.h"

namespace robustcore {
namespace {

struct HeteroscedasticCuda {
  using Scope = DeviceScope;

  // Targets are checked on the device, as PyTorch does.
  static void check_targets(const char*, const HeteroscedasticArguments&) {}

  template <class T>
  static void launch(const HeteroscedasticProblem<T>& p, const Scope& scope) {
    launch_heteroscedastic(p, scope.stream());
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_heteroscedastic_operators<HeteroscedasticCuda>(m);
}
