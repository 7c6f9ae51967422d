#include "losses/mixture_log_softmax_op.h"
#include "losses/row_map_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_mixture_log_softmax<RowMapCpu>(m);
}
