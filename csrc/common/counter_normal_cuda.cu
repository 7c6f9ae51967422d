#include "common/counter_normal.cuh"
#include "common/counter_normal_op.h"
#include "common/cuda.h"

namespace robustcore {
namespace {

struct CounterNormalCuda {
  using Scope = DeviceScope;
  static void launch(const CounterNormalParams& p, const Scope& scope) {
    launch_counter_normal(p, scope.stream());
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("counter_normal", TORCH_BOX(&robustcore::counter_normal<robustcore::CounterNormalCuda>));
}
