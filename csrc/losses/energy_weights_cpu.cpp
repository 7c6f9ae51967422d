#include "losses/energy_weights_op.h"
#include "losses/row_map_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  m.impl("energy_weights", TORCH_BOX(&energy_weights<RowMapCpu>));
}
